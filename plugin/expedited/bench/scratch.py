"""What a measurement needs around it, and clears away again: a striker, a state directory, a cgroup, a crowd in it."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from expedited.errors import ExpeditedError
from expedited.striker.link import StrikerLink
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.hierarchies import hierarchies

__all__ = [
    "Crowd",
    "ScratchCgroup",
    "cgroup_version",
    "crowd",
    "scratch_cgroup",
    "scratch_directory",
    "striker",
    "wait_until",
]

_PATIENCE_SECONDS = 20.0
# Those that a runtime puts its containers into, as far as the engine looks at them
_CONTROLLERS = ("memory", "pids", "cpu", "freezer")
_CROWD = Path(__file__).with_name("crowd.py")


def wait_until(condition: bool, give_up_at: float, complaint: str) -> bool:
    """One look of a waiting loop: ``condition``, after a short sleep if it is not so.

    Raises:
        ExpeditedError: it is later than ``give_up_at`` (``time.monotonic()``); says ``complaint``.
    """
    if not condition:
        if time.monotonic() > give_up_at:
            raise ExpeditedError(complaint)
        time.sleep(0.002)
    return condition


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """In /run, as the runtimes' own state, for the same kind of file system; removed in the end."""
    place = "/run" if os.access("/run", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="expedited-bench-", dir=place))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def striker(run_dir: Path, state_root: Path, *options: str) -> Iterator[StrikerLink]:
    """A striker of its own process that gates ``state_root`` alone; gives a link to it when its gate is up.

    Raises:
        ExpeditedError: it can't gate here; says what it said.
    """
    if os.geteuid() != 0:
        raise ExpeditedError("the benchmark starts a striker, which needs root: run it with sudo")
    log_path = run_dir / "striker.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "expedited.striker", f"--run-dir={run_dir}", f"--state-root={state_root}"),
                "--hold-executions=off",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for us
        )
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], _PATIENCE_SECONDS)[0] or not process.stdout.readline():
            said = (log_path.read_text().strip().splitlines() or ["nothing"])[-1]
            raise ExpeditedError(f"the striker did not start; it said: {said}")
        with StrikerLink.connect(f"{run_dir}/striker.sock") as link:
            yield link
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def cgroup_version() -> int:
    """Which version a container's cgroups have here: 1 wherever version 1 has the controllers.

    Raises:
        ExpeditedError: neither is mounted.
    """
    mounts = hierarchies()
    if all(name in mounts.controllers for name in _CONTROLLERS):
        return 1
    if mounts.unified is None:
        raise ExpeditedError("no cgroup file system is mounted here: the benchmark needs one")
    return 2


@dataclass(frozen=True, slots=True)
class ScratchCgroup:
    """A cgroup for one measurement.

    Attributes:
        directories: By controller, as runc's state has them (empty: version 2).
    """

    path: str
    directories: dict[str, str]

    def found(self) -> Cgroup:
        """As the engine finds it."""
        return Cgroup.from_runtime(self.directories)


@contextmanager
def scratch_cgroup() -> Iterator[ScratchCgroup]:
    """An empty cgroup below the root; whoever is in it at the end is killed, and it is removed."""
    mounts, version = hierarchies(), cgroup_version()
    path = f"/expedited-bench-{secrets.token_hex(4)}"
    if version == 1:
        directories = {name: mounts.controllers[name] + path for name in _CONTROLLERS}
    else:
        directories = {"": f"{mounts.unified}{path}"}
    try:
        for directory in directories.values():
            Path(directory).mkdir(exist_ok=True)  # one mount may have several controllers
    except OSError as problem:
        raise ExpeditedError(
            f"{problem.filename}: {problem.strerror}; the benchmark makes cgroups: run it as root"
        ) from None
    try:
        yield ScratchCgroup(path, directories)
    finally:
        _remove(directories)


def _remove(directories: dict[str, str]) -> None:
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    for directory in set(directories.values()):
        while time.monotonic() < give_up_at:
            with suppress(OSError):
                for pid in Path(directory, "cgroup.procs").read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), 9)
            try:
                Path(directory).rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:  # EBUSY: somebody is dying in it
                time.sleep(0.002)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Processes in a scratch cgroup; ``pid`` is the first, the parent of all the others."""

    pid: int
    cgroup: ScratchCgroup

    def start_time(self) -> int:
        """Field 22 of /proc/PID/stat: clock ticks after boot."""
        return int(Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


@contextmanager
def crowd(cgroup: ScratchCgroup, processes: int, bytes_each: int = 0) -> Iterator[Crowd]:
    """So many processes that sleep, all in ``cgroup``, each with so much memory touched; killed in the end.

    Raises:
        ExpeditedError: they did not come up.
    """
    command = [sys.executable, "-I", "-S", str(_CROWD), str(processes), str(bytes_each)]
    command += set(cgroup.directories.values())
    first = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    assert first.stdout is not None
    try:
        said = first.stdout.read(processes)
        if said != b"+" * processes:
            why = said.replace(b"+", b"").decode() or "somebody killed them"
            raise ExpeditedError(f"{processes} processes of {bytes_each} bytes did not come up: {why}")
        yield Crowd(first.pid, cgroup)
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
