"""What the tests share: one private containerd a session, pods and containers in it, cgroups of our own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import pytest
from blockbuster import blockbuster_ctx

# Before gRPC is loaded: its fork handlers and a `preexec_fn` don't get on, and no child of a test's process calls it
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A shell starts what is to run in the background with SIGINT ignored, and so would all be that the tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from expedited.demo.cri import ContainerSpec, Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE, import_workloads
from expedited.demo.leftovers import remove_cgroups
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.proc import cpus_are_taken
from support.agent import AgentProcess, agents
from support.cgroups import V1_CONTROLLERS, ScratchCgroup, enable_controllers, mounted_versions, scratch

# One that is kept off the CPU for 200 ms, which is Hypothesis' own limit, is no slow example
hypothesis.settings.register_profile(
    "expedited", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("expedited")


# Not among them: what a test's own loop may well wait for, such as a containerd that is started
_WITH_AN_EVENT_LOOP = [f"expedited.{name}" for name in ("agent", "api", "containerd", "kube", "metrics", "nri")]


@pytest.fixture(scope="session", autouse=True)
def _sigterm_as_ctrl_c() -> Iterator[None]:
    # Or a test run that is told to stop would leave behind what it has started
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _nothing_blocks_the_event_loop() -> Iterator[None]:
    with blockbuster_ctx(_WITH_AN_EVENT_LOOP) as blockbuster:
        for function in blockbuster.functions.values():
            # Once, before anybody is served; a token of some hundred bytes in memory; the lines of a traceback
            function.can_block_in("expedited/api/relay.py", "private_directory")
            function.can_block_in("expedited/api/server.py", "serving")
            function.can_block_in("expedited/kube/access.py", "bearer")
            function.can_block_in("structlog/_native.py", "exception")
        yield


@pytest.fixture(scope="session")
def containerd() -> Iterator[PrivateContainerd]:
    """A private containerd with CRI, NRI and the images of hog and pause, started when it is first asked for."""
    if os.geteuid() != 0:
        pytest.skip("a private containerd needs root")
    # In /tmp, and not where pytest keeps its own: the paths of sockets must be short
    root = Path(tempfile.mkdtemp(prefix="expedited-"))
    with PrivateContainerd(root) as daemon:
        import_workloads(daemon)
        yield daemon


@pytest.fixture
def make_pod(containerd: PrivateContainerd) -> Iterator[Callable[..., Pod]]:
    """``make_pod(PodSpec(...) or nothing) -> Pod``; stopped and removed after the test."""
    with ExitStack() as stack:

        def make(spec: PodSpec | None = None) -> Pod:
            pod = containerd.cri.run_pod(spec)
            stack.callback(containerd.cri.remove_pod, pod.id)
            return pod

        yield make


@dataclass(frozen=True, slots=True)
class Hog:
    """A container that runs, and where it is."""

    id: str
    pod: Pod
    pid: int

    @property
    def cgroup(self) -> str:
        """As /proc/PID/cgroup has it."""
        return f"{self.pod.cgroup_parent}/{self.id}"


@pytest.fixture
def make_container(containerd: PrivateContainerd, make_pod: Callable[..., Pod]) -> Callable[..., Hog]:
    """``make_container("--bytes", "64M", ..., pod=Pod, spec=ContainerSpec) -> Hog``: hog with those flags, READY.

    Its pod is a new one if none is given, and everything goes after the test. ``spec`` is for limits and names;
    a ``spec`` with a command of its own runs that, and is not waited for.
    """

    def make(*flags: str, pod: Pod | None = None, spec: ContainerSpec | None = None) -> Hog:
        pod = pod or make_pod()
        # A name of its own: a pod may have several, and the runtime keeps the name of one that has ended
        spec = spec or ContainerSpec(HOG_IMAGE, name=f"hog-{secrets.token_hex(3)}")
        own_command = bool(spec.command)
        if not own_command:
            spec = replace(spec, command=("/hog", *flags))
        container_id = containerd.cri.create_container(pod, spec)
        containerd.cri.start_container(container_id)
        if not own_command:
            containerd.cri.wait_for_output(container_id, "READY")
        return Hog(container_id, pod, containerd.cri.container(container_id).pid)

    return make


@pytest.fixture
def make_cgroup_v1() -> Iterator[Callable[[], ScratchCgroup]]:
    """``make_cgroup_v1() -> ScratchCgroup`` in version 1's hierarchies; killed and removed after."""
    mounts = hierarchies().controllers
    if os.geteuid() != 0 or 1 not in mounted_versions():
        pytest.skip("needs root and the version 1 hierarchies " + ", ".join(V1_CONTROLLERS))
    wanted = [*V1_CONTROLLERS, *(["cpuset"] if "cpuset" in mounts else [])]
    made: list[str] = []

    def make() -> ScratchCgroup:
        path = f"/expedited-test-{secrets.token_hex(4)}"
        made.append(path)
        return scratch(1, {name: Path(mounts[name] + path) for name in wanted}, path)

    yield make
    for path in made:
        remove_cgroups(path)


@pytest.fixture
def make_cgroup_v2() -> Iterator[Callable[[], ScratchCgroup]]:
    """``make_cgroup_v2() -> ScratchCgroup``, with whatever controllers the unified hierarchy has; killed and removed after."""
    root = hierarchies().unified
    if os.geteuid() != 0 or root is None:
        pytest.skip("needs root and the unified hierarchy")
    control = Path(root) / "cgroup.subtree_control"
    before = control.read_text().split()
    made: list[str] = []

    def make() -> ScratchCgroup:
        path = f"/expedited-test-{secrets.token_hex(4)}"
        made.append(path)
        enable_controllers(Path(root))
        return scratch(2, {"unified": Path(root + path)}, path)

    yield make
    for path in made:
        remove_cgroups(path)
    for controller in set(control.read_text().split()) - set(before):
        control.write_text(f"-{controller}")


@pytest.fixture
def make_cgroup(request: pytest.FixtureRequest) -> Callable[[], ScratchCgroup]:
    """``make_cgroup() -> ScratchCgroup`` whose memory is counted: of version 1 where that has the controllers, else of version 2."""
    make: Callable[[], ScratchCgroup] = request.getfixturevalue(f"make_cgroup_v{mounted_versions()[0]}")
    return make


@pytest.fixture(params=mounted_versions(), ids="v{}".format)
def scratch_cgroup(request: pytest.FixtureRequest) -> ScratchCgroup:
    """One scratch cgroup: the test is there once for each version that is mounted here."""
    make: Callable[[], ScratchCgroup] = request.getfixturevalue(f"make_cgroup_v{request.param}")
    return make()


@pytest.fixture
def open_files() -> Callable[[Any], list[str]]:
    """``open_files(striker)``: what its gate has open, as /proc names it."""

    def open_files(striker: Any) -> list[str]:
        found = []
        for entry in Path(f"/proc/{striker.status()['pid']}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(entry.readlink()))
        return found

    return open_files


@pytest.fixture
def bells(open_files: Callable[[Any], list[str]]) -> Callable[[Any], int]:
    """``bells(striker) -> int``: to how many cgroups a striker listens for an OOM kill."""
    return lambda striker: sum(
        link == "anon_inode:[eventfd]" or link.endswith("/memory.events") for link in open_files(striker)
    )


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """``alive(pid)``: whether it runs, and is no zombie."""
    return _is_alive


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b") ")[2][:1] not in (b"Z", b"X")


@contextmanager
def _busy_loops(each_cpu: int = 2) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(each_cpu * (os.cpu_count() or 1)):
            loops.append(subprocess.Popen(command))  # noqa: PERF401 - so that each is ended, whatever comes
        give_up_at = time.monotonic() + 30
        while not cpus_are_taken() and time.monotonic() < give_up_at:
            time.sleep(0.005)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.fixture
def busy_loops() -> Callable[..., AbstractContextManager[None]]:
    """``with busy_loops(each_cpu=2): ...``: every CPU is taken, by so many."""
    return _busy_loops


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """An agent's directory. Not under pytest's own: the paths of sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="expedited-run-") as directory:
        Path(directory).chmod(0o700)
        yield Path(directory)


@pytest.fixture
def start_agent(run_dir: Path) -> Iterator[Callable[..., AgentProcess]]:
    """``start_agent(*flags, ready=True) -> AgentProcess``: with no runtime unless flags say so; ended after the test."""
    with agents(Path(run_dir)) as start:
        yield start


@pytest.fixture(scope="module")
def start_lasting_agent() -> Iterator[Callable[..., AgentProcess]]:
    """The same, in a directory of its own, for one that serves a whole module."""
    with tempfile.TemporaryDirectory(prefix="expedited-run-") as directory, agents(Path(directory)) as start:
        yield start
