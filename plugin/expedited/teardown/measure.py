"""When the memory was back, and when the container was gone: the two figures that every report is about."""

from __future__ import annotations

import os

from expedited.teardown.cgroup import Cgroup
from expedited.teardown.report import Memory

__all__ = ["BACK_SHARE", "MemoryWatch"]

#: *Memory back* is when this share of the cgroup's anonymous memory is free.
BACK_SHARE = 0.95

# The line of memory.stat that has the anonymous memory, by cgroup version; version 1 counts descendants in total_*.
_ANON_LINE = {1: b"total_rss ", 2: b"anon "}


class MemoryWatch:
    """Follows the anonymous memory of one cgroup through a descriptor that stays open.

    Opened before the strike, so that a reading is one system call and works up to the moment when the runtime removes
    the cgroup (then it reads as empty).
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self.before: Memory | None = cgroup.memory()
        self.back_seconds: float | None = None
        self.last_anon_bytes: int | None = self.before.anon_bytes if self.before else None
        self._line = _ANON_LINE[cgroup.version]
        self._descriptor = -1
        if self.before is not None:
            try:
                self._descriptor = os.open(f"{cgroup.memory_dir}/memory.stat", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self.before = None

    def sample(self, at_seconds: float) -> None:
        """Read once more; notes the first reading that has at least 95% of the memory back."""
        if self.before is None or self.back_seconds is not None:
            return
        self.last_anon_bytes = self._anon_bytes()
        if self.last_anon_bytes <= (1 - BACK_SHARE) * self.before.anon_bytes:
            self.back_seconds = at_seconds

    def after(self, cgroup: Cgroup) -> Memory | None:
        """What is left now; all zero when the cgroup was removed, None where memory can't be measured at all."""
        if self.before is None:
            return None
        return cgroup.memory() or Memory(0, 0, 0, 0)

    def close(self) -> None:
        """Let go of the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _anon_bytes(self) -> int:
        try:
            text = b"\n" + os.pread(self._descriptor, 16384, 0)
        except OSError:  # ENODEV: removed
            return 0
        start = text.find(b"\n" + self._line)
        if start < 0:
            return 0
        start += len(self._line) + 1
        return int(text[start : text.index(b"\n", start)])
