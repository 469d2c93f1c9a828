"""When the memory was back, and when the container was gone: the two figures that every report is about."""

from __future__ import annotations

import os
from dataclasses import replace

from expedited.teardown.cgroup import Cgroup
from expedited.teardown.memory_stat import anon_bytes
from expedited.teardown.report import Memory

__all__ = ["BACK_SHARE", "MemoryWatch"]

#: *Memory back* is when this share of the cgroup's anonymous memory is free.
BACK_SHARE = 0.95

# What the cgroup is charged for, of any kind.
_USAGE_FILE = {1: "memory.usage_in_bytes", 2: "memory.current"}


class MemoryWatch:
    """Follows the anonymous memory of one cgroup through a descriptor that stays open.

    Opened before the strike, so that a reading is one system call and works up to the moment when the runtime removes
    the cgroup (then it reads as empty).

    The kernel's sums lag: what a nested cgroup gave back stands in its parent's memory.stat until the next flush, seen
    15 ms and by the kernel's timer up to 2 s later. The charge itself is exact to a few pages, and nothing anonymous is
    held without one, so whichever is less is nearer to the truth.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self.before: Memory | None = None
        self.back_seconds: float | None = None
        self._version = cgroup.version
        self._usage_path = f"{cgroup.memory_dir}/{_USAGE_FILE[cgroup.version]}"
        self._descriptor = -1
        if cgroup.memory_dir is None:
            return
        try:
            self._descriptor = os.open(f"{cgroup.memory_dir}/memory.stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        self.begin_anew(cgroup)

    def begin_anew(self, cgroup: Cgroup) -> None:
        """What it holds now is what there was before: for whoever had to wait."""
        stat = self._stat()
        if stat:
            self.before = cgroup.memory_by(stat)
            self.back_seconds = None

    def sample(self, at_seconds: float) -> None:
        """Read once more; notes the first reading that has at least 95% of the memory back."""
        if self.before is None or self.back_seconds is not None:
            return
        if self._at_most_charged(anon_bytes(self._stat(), self._version)) <= (1 - BACK_SHARE) * self.before.anon_bytes:
            self.back_seconds = at_seconds

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to wait for: the memory is back, or can't be measured."""
        return self.before is None or self.back_seconds is not None

    def after(self, cgroup: Cgroup) -> Memory | None:
        """What is left now; all zero when the cgroup was removed, None where memory can't be measured at all."""
        if self.before is None:
            return None
        left = cgroup.memory() or Memory(0, 0, 0, 0)
        return replace(left, anon_bytes=self._at_most_charged(left.anon_bytes))

    def close(self) -> None:
        """Let go of the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _at_most_charged(self, counted_bytes: int) -> int:
        if not counted_bytes:
            return 0
        try:
            descriptor = os.open(self._usage_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0  # removed
        try:
            return min(counted_bytes, int(os.read(descriptor, 32)))
        except OSError:  # ENODEV: removed
            return 0
        finally:
            os.close(descriptor)

    def _stat(self) -> bytes:
        try:
            return os.pread(self._descriptor, 16384, 0)
        except OSError:  # ENODEV: removed
            return b""
