"""What the tests share: one private containerd a session, pods and containers in it, cgroups of our own."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import pytest

from expedited.demo.cri import ContainerSpec, Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE, import_workloads
from expedited.demo.leftovers import remove_cgroups
from expedited.teardown.cgroup import hierarchies

_V1_CONTROLLERS = ("memory", "pids", "cpu", "freezer")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    # Or a test run that is told to stop would leave its containerd behind
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
    with _sigterm_as_ctrl_c():
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
    made: list[str] = []

    def make() -> ScratchCgroup:
        path = f"/expedited-test-{secrets.token_hex(4)}"
        made.append(path)
        _enable_controllers(Path(root))
        return _scratch(2, {"unified": Path(root + path)}, path)

    yield make
    for path in made:
        remove_cgroups(path)


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
