"""Does somebody outside of the container share a victim's memory?

PROCESS_MRELEASE_REAP_KILL kills every process that shares the mm, wherever it is: the kernel can't reap memory that
somebody still runs in. A container's process may share with one outside: a vfork child that its parent, a runtime that is
about to exec into the container, has put into the container's cgroup already (CLONE_VFORK | CLONE_INTO_CGROUP), or a child
that somebody has moved out. Such a victim is killed by its own pidfd alone.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator

from expedited.teardown.proc import read_proc

__all__ = ["may_share_outside"]

#: Threads whose children are looked at; more would delay the kill by more than a millisecond.
_THREADS_LOOKED_AT = 32


def may_share_outside(pid: int, members: Container[int]) -> bool:
    """Whether a parent or child of this process that is no member may have the same mm.

    By the size of the address space, which whoever shares an mm has in common: equal by chance only costs the one call that
    kills and reaps, and it takes no right to look at other users' processes, as kcmp(2) does.
    """
    stat = _stat(pid)
    if stat is None:
        return False
    parent, size = stat
    relatives = [parent, *_children(pid)]
    sizes = {other[1] for other in (_stat(each) for each in relatives if each not in members) if other is not None}
    again = _stat(pid)  # it may have mapped something between the looks
    return size in sizes or (again is not None and again[1] in sizes)


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and size of the address space in bytes: fields 4 and 23 of proc_pid_stat(5)."""
    text = read_proc(pid, "stat").rpartition(b")")[2].split()
    return (int(text[1]), int(text[20])) if len(text) > 20 else None


def _children(pid: int) -> Iterator[int]:
    """Of all its threads (CONFIG_PROC_CHILDREN)."""
    try:
        tids = os.listdir(f"/proc/{pid}/task")[:_THREADS_LOOKED_AT]
    except OSError:
        return
    for tid in tids:
        yield from map(int, read_proc(pid, f"task/{tid}/children").split())
