"""One number in memory that two processes share: when the gate's loop last went round."""

from __future__ import annotations

import mmap
import struct
import time

__all__ = ["Heartbeat"]

_NANOSECONDS = struct.Struct("=q")


class Heartbeat:
    """Made before the fork; the gate calls :meth:`beat`, the supervisor :meth:`age_seconds`.

    ``restarts`` is how many gates of this supervisor have failed before this one.
    """

    def __init__(self, restarts: int = 0) -> None:
        self.restarts = restarts
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.beat()

    def beat(self) -> None:
        """The loop is alive."""
        _NANOSECONDS.pack_into(self._memory, 0, time.monotonic_ns())

    def age_seconds(self) -> float:
        """Since the last beat."""
        beat: int = _NANOSECONDS.unpack_from(self._memory, 0)[0]
        return (time.monotonic_ns() - beat) * 1e-9
