"""Finding and clearing what a private containerd leaves behind: processes, mounts, cgroups, sockets.

Each is known by something that only this containerd's can have (its socket's path, its root, its cgroup's name), so that
a neighbour's is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from expedited.teardown.files import try_write
from expedited.teardown.hierarchies import hierarchies

__all__ = [
    "cgroup_directories",
    "claim",
    "clear",
    "clear_abandoned",
    "kill_all",
    "mounts_below",
    "own_cgroup",
    "processes_in",
    "processes_naming",
    "remove_cgroups",
    "shim_sockets",
    "undisturbed",
    "unmount_below",
]


_OWNER = "owner.json"
_SHIM_SOCKETS = Path("/run/containerd/s")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep SIGINT, SIGTERM and SIGHUP away from what has to be done to the end; they take effect afterwards.

    Only for moments: a second Ctrl-C of an impatient user waits for it. In a thread other than the main one, which no
    signal interrupts, it does nothing.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, remember)
    except ValueError:  # not the main thread
        before.clear()
    try:
        yield
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)
        for late in came[:1]:
            signal.raise_signal(late)


def processes_naming(text: str) -> list[int]:
    """Processes that have ``text``, a path of ours, as an argument or at the start of one."""
    wanted, found = text.encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if any(argument == wanted or argument.startswith(wanted + b"/") for argument in arguments):
                found.append(int(entry.name))
    return found


def processes_in(cgroup: str) -> set[int]:
    """Processes in the cgroup of that path, or below it, in any hierarchy."""
    found: set[int] = set()
    for directory in cgroup_directories(cgroup):
        with suppress(OSError):
            found.update(map(int, (directory / "cgroup.procs").read_text().split()))
    return found


def cgroup_directories(cgroup: str) -> list[Path]:
    """The cgroup of that path and all below it, in every hierarchy, the deepest first."""
    mounts = hierarchies()
    roots = dict.fromkeys([*mounts.controllers.values(), *([mounts.unified] if mounts.unified else [])])
    return [
        Path(place)
        for root in roots
        for place, _, _ in os.walk(f"{root}/{cgroup.strip('/')}", topdown=False, onerror=None)
    ]


def kill_all(pids: set[int], *, timeout_seconds: float = 10.0) -> None:
    """SIGKILL and wait until they are gone, or the time is over."""
    handles = []
    for pid in pids:
        with suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    try:
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        for handle in handles:
            os.close(handle)
    deadline = time.monotonic() + timeout_seconds
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        _reap(pids)
        time.sleep(0.005)


def _reap(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return state not in (b"Z", b"X")


def mounts_below(root: Path) -> list[str]:
    """Mount points under ``root``, the deepest first (proc_pid_mountinfo(5))."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = line.split(" ")[4].encode("ascii", "surrogateescape").decode("unicode_escape")
        if point == str(root) or point.startswith(f"{root}/"):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def unmount_below(root: Path) -> None:
    """Unmount everything under ``root``, lazily where it is still in use."""
    for point in mounts_below(root):
        subprocess.run(["umount", "--lazy", "--no-mtab", point], capture_output=True, check=False)


def shim_sockets(state: Path) -> list[Path]:
    """The sockets of the shims whose bundles are under containerd's ``state`` directory.

    Shims listen in /run/containerd/s whatever containerd's own directories are, under names that are hashes; the bundle
    says which (containerd core/runtime/v2: ``bootstrap.json``, before 2.0 ``address``).
    """
    sockets = []
    for bundle in state.glob("io.containerd.runtime.v2.task/*/*"):
        with suppress(OSError, ValueError, KeyError):
            if (bundle / "bootstrap.json").exists():
                address = str(json.loads((bundle / "bootstrap.json").read_text())["address"])
            else:
                address = (bundle / "address").read_text().strip()
            sockets.append(Path(address.removeprefix("unix://")))
    return sockets


def remove_cgroups(cgroup: str, *, timeout_seconds: float = 15.0) -> None:
    """Kill what is in a cgroup of ours and remove it, in every hierarchy.

    First everything that could slow its death down is lifted: what is left may be throttled or starved.
    """
    deadline = time.monotonic() + timeout_seconds
    while directories := cgroup_directories(cgroup):
        for directory in directories:
            for name, value in (
                ("cpu.cfs_quota_us", b"-1"),
                ("cpu.shares", b"1024"),
                ("cpu.max", b"max"),
                ("cpu.weight", b"100"),
                ("freezer.state", b"THAWED"),
                ("cgroup.freeze", b"0"),
            ):
                try_write(f"{directory}/{name}", value)
        kill_all(processes_in(cgroup), timeout_seconds=1.0)
        for directory in directories:
            with suppress(OSError):
                directory.rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.005)


def clear(root: Path, cgroup: str) -> None:
    """End and remove all that a private containerd with this root and this cgroup path has, or has left."""
    # What starts processes first, shims and strikers after it; each has such a path as an argument
    for name in ("config.toml", "containerd.sock", "runc", "run"):
        kill_all(set(processes_naming(str(root / name))))
    sockets = shim_sockets(root / "state")
    remove_cgroups(cgroup)
    unmount_below(root)
    for socket in sockets:
        if socket.parent == _SHIM_SOCKETS and socket.is_socket():
            socket.unlink(missing_ok=True)
    if not mounts_below(root):
        shutil.rmtree(root, ignore_errors=True)


def own_cgroup(root: Path, pid: int) -> str:
    """The path of the cgroup above all that the private containerd of that process and root runs."""
    return f"/{root.name}-{pid}"


def _only_ours(root: Path) -> bool:
    """Whether nobody but this user (and root) could have put anything there: as :func:`tempfile.mkdtemp` makes it."""
    status = root.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def claim(root: Path, cgroup: str) -> None:
    """Note in ``root`` that this process answers for it, so that :func:`clear_abandoned` can tell."""
    owner = {"pid": os.getpid(), "started": _start_ticks(os.getpid()), "cgroup": cgroup}
    (root / _OWNER).write_text(json.dumps(owner))


def clear_abandoned(directory: Path) -> list[Path]:
    """Clear what programs left in ``directory`` that were killed before they could; returns the roots of it."""
    cleared = []
    for note in directory.glob(f"expedited-*/{_OWNER}"):
        with suppress(OSError, ValueError, KeyError):
            if not _only_ours(note.parent):
                continue  # anybody may write to /tmp, and what stands there is about to be done as root
            owner = json.loads(note.read_text())
            if owner["cgroup"] != own_cgroup(note.parent, int(owner["pid"])):
                continue
            # The start time too: the number may be another process's by now
            if _start_ticks(owner["pid"]) != owner["started"]:
                clear(note.parent, owner["cgroup"])
                cleared.append(note.parent)
    return cleared


def _start_ticks(pid: int) -> int | None:
    """Field 22 of proc_pid_stat(5); None: there is no such process."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(line.rpartition(b") ")[2].split()[19])
