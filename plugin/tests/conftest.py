"""What the tests share: one private containerd a session, pods and containers in it, cgroups of our own."""

from __future__ import annotations

import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import hypothesis
import pytest

# Before gRPC is loaded: its fork handlers and a `preexec_fn` don't get on, and no child of a test's process calls it
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A shell starts what is to run in the background with SIGINT ignored, and so would all be that the tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from expedited.api.client import ApiClient
from expedited.cli import main
from expedited.demo.cri import ContainerSpec, Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE, import_workloads
from expedited.demo.leftovers import remove_cgroups
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.proc import cpus_are_taken

# One that is kept off the CPU for 200 ms, which is Hypothesis' own limit, is no slow example
hypothesis.settings.register_profile(
    "expedited", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("expedited")

# A worker of the striker's that gets no CPU for 50 ms, its usual budget, is this machine's affair
_DEFAULT_FLAGS = ("--metrics-address=", "--log-level=debug", "--budget=1s")
_V1_CONTROLLERS = ("memory", "pids", "cpu", "freezer")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


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

    Its pod is a new one if none is given, and everything goes after the test. ``spec`` is for limits and annotations;
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


@dataclass(frozen=True, slots=True)
class ScratchCgroup:
    """A cgroup made for one test, with the same path in each of its hierarchies.

    Attributes:
        path: As /proc/PID/cgroup has it.
        directories: Controller (``unified`` on version 2) -> directory.
    """

    version: int
    path: str
    directories: dict[str, Path]

    def add(self, pid: int) -> None:
        """Move a process into it, in every hierarchy."""
        for directory in self.directories.values():
            (directory / "cgroup.procs").write_text(str(pid))

    def pids(self) -> set[int]:
        """Who is in it (not below it), in any of its hierarchies."""
        return {
            int(pid)
            for directory in self.directories.values()
            for pid in (directory / "cgroup.procs").read_text().split()
        }

    @property
    def memory_dir(self) -> Path:
        """Whose memory controller it has, if its version has one here."""
        return self.directories["memory" if self.version == 1 else "unified"]

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Whoever is in it does not run: a process that dies stays as it is, with its memory (version 1's freezer)."""
        state = self.directories["freezer"] / "freezer.state"
        state.write_text("FROZEN")
        try:
            while "FROZEN" not in state.read_text():
                time.sleep(0.001)
            yield
        finally:
            if state.exists():
                state.write_text("THAWED")

    def child(self, name: str) -> ScratchCgroup:
        """A cgroup below it, which goes with it."""
        directories = {key: directory / name for key, directory in self.directories.items()}
        return _scratch(self.version, directories, f"{self.path}/{name}")


def _scratch(version: int, directories: dict[str, Path], path: str) -> ScratchCgroup:
    for controller, directory in directories.items():
        directory.mkdir(exist_ok=True)
        if controller == "cpuset":  # version 1's start empty, and take no process then
            for name in ("cpuset.cpus", "cpuset.mems"):
                (directory / name).write_text((directory.parent / name).read_text())
    return ScratchCgroup(version, path, directories)


def _mounted_versions() -> list[int]:
    """Of the cgroup versions, those that a container could be in here."""
    mounts = hierarchies()
    versions = [1] if all(name in mounts.controllers for name in _V1_CONTROLLERS) else []
    return [*versions, 2] if mounts.unified is not None else versions


@pytest.fixture
def make_cgroup_v1() -> Iterator[Callable[[], ScratchCgroup]]:
    """``make_cgroup_v1() -> ScratchCgroup`` in version 1's hierarchies; killed and removed after."""
    mounts = hierarchies().controllers
    if os.geteuid() != 0 or 1 not in _mounted_versions():
        pytest.skip("needs root and the version 1 hierarchies " + ", ".join(_V1_CONTROLLERS))
    wanted = [*_V1_CONTROLLERS, *(["cpuset"] if "cpuset" in mounts else [])]
    made: list[str] = []

    def make() -> ScratchCgroup:
        path = f"/expedited-test-{secrets.token_hex(4)}"
        made.append(path)
        return _scratch(1, {name: Path(mounts[name] + path) for name in wanted}, path)

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
        _enable_controllers(Path(root))
        return _scratch(2, {"unified": Path(root + path)}, path)

    yield make
    for path in made:
        remove_cgroups(path)
    for controller in set(control.read_text().split()) - set(before):
        control.write_text(f"-{controller}")


@pytest.fixture
def make_cgroup(request: pytest.FixtureRequest) -> Callable[[], ScratchCgroup]:
    """``make_cgroup() -> ScratchCgroup`` whose memory is counted: of version 1 where that has the controllers, else of version 2."""
    make: Callable[[], ScratchCgroup] = request.getfixturevalue(f"make_cgroup_v{_mounted_versions()[0]}")
    return make


def _enable_controllers(directory: Path) -> None:
    available = (directory / "cgroup.controllers").read_text().split()
    for controller in ("memory", "pids", "cpu", "cpuset"):
        if controller in available:
            (directory / "cgroup.subtree_control").write_text(f"+{controller}")


@pytest.fixture(params=_mounted_versions(), ids="v{}".format)
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


class AgentProcess:
    """``expedited run``, and the command line that asks it.

    Args:
        run_dir: Its own; the path must be short.
        flags: Of ``expedited run``.
    """

    program = Path(sys.executable).with_name("expedited")

    def __init__(self, run_dir: Path, *flags: str) -> None:
        self.run_dir = run_dir
        self.socket = run_dir / "expedited.sock"
        self.log_path = run_dir / f"agent-{secrets.token_hex(3)}.log"
        if not any(flag.startswith(("--state-root", "--config")) for flag in flags):
            # This machine's own containers are not a test's to strike
            flags = (*flags, "--state-root=/no/runtime/of/this/machine/*")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [self.program, "run", f"--run-dir={run_dir}", *_DEFAULT_FLAGS, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )

    @staticmethod
    def environment() -> dict[str, str]:
        """Ours, but for what would configure the agent."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("EXPEDITED_", "NRI_"))}

    def log(self) -> list[dict[str, Any]]:
        """Every line of its log, and of its striker's, so far."""
        whole, _, _ = self.log_path.read_text().rpartition("\n")  # it may be writing the last one
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def told(self, event: str) -> list[dict[str, Any]]:
        """The log's lines with these words in their event."""
        return [line for line in self.log() if event in line["event"]]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One command against this agent: the program's ``main``, in this process, as each start takes a second."""
        stdout, stderr, code = io.StringIO(), io.StringIO(), 0
        argv = [str(self.program), *arguments, f"--run-dir={self.run_dir}"]
        with redirect_stdout(stdout), redirect_stderr(stderr), mock.patch.object(sys, "argv", argv):
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return subprocess.CompletedProcess(argv, code, stdout.getvalue(), stderr.getvalue())

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command prints with ``--json``, an object a line."""
        answer = self.cli(*arguments, "--json")
        assert answer.returncode == 0, answer.stderr
        return [json.loads(line) for line in answer.stdout.splitlines()]

    def ask(self) -> ApiClient:
        """A connection to its control API."""
        return ApiClient(str(self.socket))

    def wait(self, condition: Callable[[], object], what: str, timeout_seconds: float = 30.0) -> None:
        """Until it is so; the agent's end is the end of waiting, too."""
        give_up_at = time.monotonic() + timeout_seconds
        while not condition():
            assert self.process.poll() is None, f"the agent has ended:\n{self.log_path.read_text()}"
            assert time.monotonic() < give_up_at, f"{what}; its log:\n{self.log_path.read_text()}"
            time.sleep(0.02)

    def wait_told(self, event: str, times: int = 1) -> None:
        """Until the log has these words so many times."""
        self.wait(lambda: len(self.told(event)) >= times, f"it never said {event!r}")

    def stops_of(self, container_id: str) -> list[dict[str, Any]]:
        """What it has told so far of this container's stops."""
        return [line for line in self.told("stop") if line["event"] == "stop" and line["id"] == container_id]

    def stop_of(self, container_id: str) -> dict[str, Any]:
        """The one stop of this container that it tells of, when it has."""
        self.wait(lambda: self.stops_of(container_id), f"no stop of {container_id}")
        (stop,) = self.stops_of(container_id)
        return stop

    def wait_known(self, *container_ids: str) -> dict[str, Any]:
        """Until it knows them with their pods, and gates them; all that it knows, by id."""
        known: dict[str, Any] = {}

        def here() -> bool:
            with self.ask() as asked:
                known.update({each.id: each for each in asked.containers(sandboxes=True)})
            wanted = [known.get(name) for name in container_ids]
            return all(each and each.pod.name and each.state == "running" and each.gated for each in wanted)

        self.wait(here, f"{container_ids} not all known")
        return known

    def pids(self) -> dict[str, int]:
        """Of its processes, by their names."""
        with self.ask() as asked:
            return {process.name: process.pid for process in asked.status().processes}

    def close(self) -> None:
        """SIGTERM; it and its striker end in order."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            assert self.process.wait(30) == 0, self.log_path.read_text()
            assert "Traceback" not in self.log_path.read_text()
        finally:
            self.process.kill()
            self.process.wait()


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


@contextmanager
def _agents(run_dir: Path) -> Iterator[Callable[..., AgentProcess]]:
    agents: list[AgentProcess] = []

    def start(*flags: str, ready: bool = True) -> AgentProcess:
        agent = AgentProcess(run_dir, "--nri-socket=", "--containerd-socket=", *flags)
        agents.append(agent)
        if ready:
            agent.wait_told("the kill gate is up")
        return agent

    with ExitStack() as stack:
        stack.callback(lambda: [stack.callback(agent.close) for agent in agents])
        yield start


@pytest.fixture
def start_agent(run_dir: Path) -> Iterator[Callable[..., AgentProcess]]:
    """``start_agent(*flags, ready=True) -> AgentProcess``: with no runtime unless flags say so; ended after the test."""
    with _agents(Path(run_dir)) as start:
        yield start


@pytest.fixture(scope="module")
def start_lasting_agent() -> Iterator[Callable[..., AgentProcess]]:
    """The same, in a directory of its own, for one that serves a whole module."""
    with tempfile.TemporaryDirectory(prefix="expedited-run-") as directory, _agents(Path(directory)) as start:
        yield start
