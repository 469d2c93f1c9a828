"""One process, held by a descriptor: whatever becomes of its number, this names nobody else (pidfd_open(2))."""

from __future__ import annotations

import os
import select

__all__ = ["Pidfd"]


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

    def has_exited(self) -> bool:
        """Whether all its threads have: it is a zombie, or gone. Then its pidfd is readable."""
        poller = select.poll()
        poller.register(self.number, select.POLLIN)
        return bool(poller.poll(0))

    def __del__(self) -> None:
        os.close(self.number)
