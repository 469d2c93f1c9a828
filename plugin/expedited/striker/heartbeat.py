"""One number in memory that two processes share: when the gate's loop last went round."""

from __future__ import annotations

import mmap
import os
import struct
import time

__all__ = ["Heartbeat"]

_NANOSECONDS = struct.Struct("=q")
_START_NANOSECONDS = 30_000_000_000


class Heartbeat:
    """Made before the fork; the gate calls :meth:`beat`, the supervisor :meth:`age_seconds`.

    The first beat is the one before the first mark: until then nobody can be held, and a process that starts on a busy
    node may take its time.

    Attributes:
        restarts: How many gates of this supervisor have failed before this one.
        supervisor_pid: Who made it.
    """

    def __init__(self, restarts: int = 0) -> None:
        self.restarts = restarts
        self.supervisor_pid = os.getpid()
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._set(time.monotonic_ns() + _START_NANOSECONDS)

    def beat(self) -> None:
        """The loop is alive."""
        self._set(time.monotonic_ns())

    def _set(self, nanoseconds: int) -> None:
        _NANOSECONDS.pack_into(self._memory, 0, nanoseconds)

    def age_seconds(self) -> float:
        """Since the last beat; negative before the first."""
        beat: int = _NANOSECONDS.unpack_from(self._memory, 0)[0]
        return (time.monotonic_ns() - beat) * 1e-9
