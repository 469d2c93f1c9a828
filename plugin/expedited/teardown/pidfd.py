"""One process, held by a descriptor: whatever becomes of its number, this names nobody else (pidfd_open(2))."""

from __future__ import annotations

import os
import resource
import select

__all__ = ["Pidfd", "highest_ahead"]


def highest_ahead() -> int:
    """The number from which on a descriptor is one too many for what is held in advance.

    The kernel gives out the lowest number that is free, so a high one says how many are in use.
    """
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class Pidfd:
    """A pidfd that is closed when the last reference to it goes, and not before.

    A reaper may be in a system call with it when its strike ends. Were the number closed under it, it could be another
    container's by the time that call begins.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    @classmethod
    def open(cls, pid: int) -> Pidfd:
        """Of the process with this number now.

        Raises:
            OSError: there is none (ESRCH), it is a thread's number (EINVAL), or there is no descriptor left (EMFILE, ENFILE).
        """
        return cls(os.pidfd_open(pid))

    @classmethod
    def open_ahead(cls, pid: int) -> Pidfd | None:
        """The same for one whose time has not come: None where there is none, or half of the descriptors are in use.

        The others are for those whose time has come, and for whoever is held: when the kernel has no descriptor for the file
        that somebody opens under the gate, it doesn't let them through, it refuses them.
        """
        try:
            pidfd = cls.open(pid)
        except OSError:
            return None
        return pidfd if pidfd.number < highest_ahead() else None

    def has_exited(self) -> bool:
        """Whether all its threads have: it is a zombie, or gone. Then its pidfd is readable."""
        poller = select.poll()
        poller.register(self.number, select.POLLIN)
        return bool(poller.poll(0))

    def __del__(self) -> None:
        os.close(self.number)
