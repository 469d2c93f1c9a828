"""One container as its runtime's state directory describes it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from expedited.errors import ExpeditedError
from expedited.teardown.cgroup import Cgroup, CgroupGone
from expedited.teardown.pidfd import Pidfd
from expedited.teardown.proc import read_proc

__all__ = ["Container", "InitGone", "StateError", "directory_of_state", "open_state", "read_container"]

_STATE_FILES = ("state.json", "status")  # runc's; crun's
#: The largest state file that is read: runc's has some 20 KB, more with many mounts.
_STATE_AT_MOST = 4 << 20


class StateError(ExpeditedError):
    """A runtime's state file does not say which process and cgroup the container is."""


class InitGone(CgroupGone):
    """A container has ended already, and its runtime says only by its init which cgroup it had (crun)."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container that a runtime keeps state of.

    ``init_start`` is field 22 of /proc/PID/stat, in clock ticks after boot: with it, a pid that was used again is told
    from the container's init. ``init`` is held from when the state was read, where it was there then: to ask that is 50 us
    sooner at a kill than to read /proc.
    """

    directory: str
    init_pid: int
    init_start: int
    cgroup: Cgroup
    init: Pidfd | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """As the runtime knows it: its directory's name."""
        return os.path.basename(self.directory)

    def is_running(self) -> bool:
        """Whether init is the same process still, and has not exited (a zombie's memory is back already)."""
        if self.init is not None:
            return not self.init.has_exited()
        fields = _stat(self.init_pid)
        if not fields or int(fields[19]) != self.init_start:
            return False
        # A leader that has exited before its threads is listed as a zombie too, and its container lives
        return fields[0] not in (b"Z", b"X") or int(fields[17]) > 1


def directory_of_state(descriptor: int) -> str:
    """The directory of an open state file; empty if it is another file."""
    directory, _, name = os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")
    return directory if name.removesuffix(" (deleted)") in _STATE_FILES else ""


def open_state(directory: str) -> int | None:
    """A descriptor of the state file in a container's directory; None where there is none, or it is gone.

    From the gate's process: it passes our own gate, whose loop lets its own process through.
    """
    for name in _STATE_FILES:
        try:
            return os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return None


def read_container(directory: str, descriptor: int) -> Container:
    """Read the state file (runc's ``state.json``, crun's ``status``) through an open descriptor.

    Through the descriptor, because opening it by name would pass the gate.

    Raises:
        StateError: the file is no runtime's state.
        InitGone: it has ended.
        CgroupGone: it is in no cgroup of its own, or that is not there any more.
    """
    try:
        state: dict[str, Any] = json.loads(_read_all(descriptor))
        init_pid = int(state.get("init_process_pid") or state["pid"])
        init_start = int(state.get("init_process_start") or state["process-start-time"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise StateError(
            f"{directory}: the state file names no init process ({error}); is this a runtime's directory?"
        ) from None
    paths = state.get("cgroup_paths")
    init = Pidfd.open_ahead(init_pid)

    def is_there() -> bool:
        fields = _stat(init_pid)  # asked after its pidfd was opened: the number may be somebody else's
        return bool(fields) and int(fields[19]) == init_start

    if isinstance(paths, dict):
        cgroup = Cgroup.from_runtime(paths)
        return Container(directory, init_pid, init_start, cgroup, init if is_there() else None)
    gone = InitGone(f"{directory}: its init, process {init_pid}, has exited")
    if not is_there():
        raise gone
    try:
        cgroup = _cgroup_by_init(directory, init_pid, str(state.get("cgroup-path") or ""))
    except CgroupGone:
        if os.path.isdir(f"/proc/{init_pid}"):
            raise
        raise gone from None
    if not is_there():
        raise gone
    return Container(directory, init_pid, init_start, cgroup, init)


def _cgroup_by_init(directory: str, pid: int, recorded: str) -> Cgroup:
    """The cgroup that crun has on record, found by its init, which is in it or below, where one like systemd has gone.

    By both, because the record is as crun saw it, which may have been in a cgroup namespace; and because a container may have none
    of its own (``--cgroups=disabled``): then init's is that of whoever has started it.
    """
    own = Cgroup.of_process(pid)
    at = f"{own.path}/".find(f"{recorded.rstrip('/')}/") if recorded.strip("/") else -1
    if at < 0:
        raise StateError(
            f"{directory}: its init is in {own.path}, its state says {recorded or 'none'}: no cgroup of its own that may be struck"
        )
    end = at + len(recorded.rstrip("/"))
    return own if end == len(own.path) else Cgroup.find(own.path[:end])


def _stat(pid: int) -> list[bytes]:
    """From field 3 of proc_pid_stat(5) on: [0] state, [17] number of threads, [19] start time; empty: no such process."""
    return read_proc(pid, "stat").rpartition(b")")[2].split()


def _read_all(descriptor: int) -> bytes:
    parts: list[bytes] = []
    at = 0
    while at < _STATE_AT_MOST and (part := os.pread(descriptor, 65536, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
