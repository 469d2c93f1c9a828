"""How long the gate holds those who wait: the last of them for percentiles, all of them in buckets."""

from __future__ import annotations

from array import array
from bisect import bisect_left

__all__ = ["BOUNDS_SECONDS", "Latencies"]

#: Upper bounds of the buckets: from a bare answer to the budget, and to the supervisor's patience.
BOUNDS_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0)

_KEPT = 2048


class Latencies:
    """Noted by the loop and by its workers, with no lock: when two meet, one may go uncounted, and nobody waits.

    Attributes:
        counts: By bucket, the last for what is above all bounds.
        sum_seconds: Of all.
    """

    def __init__(self) -> None:
        self.counts = array("Q", bytes(8 * (len(BOUNDS_SECONDS) + 1)))
        self.sum_seconds = 0.0
        self._last_us = array("f")
        self._next = 0

    def note(self, seconds: float) -> None:
        """From reading an event to its answer."""
        self.counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds
        if len(self._last_us) < _KEPT:
            self._last_us.append(seconds * 1e6)
        else:
            self._last_us[self._next % _KEPT] = seconds * 1e6
            self._next += 1

    def percentile_us(self, share: float) -> float | None:
        """Of the last 2,048; None before the first."""
        ordered = sorted(self._last_us)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
