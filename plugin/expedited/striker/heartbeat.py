"""One number in memory that two processes share: when the gate's loop last went round."""

from __future__ import annotations

import mmap
import os
import time

__all__ = ["Heartbeat"]

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
        # One aligned machine word, stored as such. struct.pack_into clears its bytes before it fills them, and a supervisor
        # that looked in between would see a gate that had hung since the machine came up.
        self._nanoseconds = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self._nanoseconds[0] = time.monotonic_ns() + _START_NANOSECONDS

    def beat(self) -> None:
        """The loop is alive."""
        self._nanoseconds[0] = time.monotonic_ns()

    def age_seconds(self) -> float:
        """Since the last beat; negative before the first."""
        return (time.monotonic_ns() - self._nanoseconds[0]) * 1e-9
