"""Medians, percentiles, and the conditions that they were measured under."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Conditions", "Progress", "Spread", "percentile", "silent"]

#: Called as (what is being done, how many of it are done, out of how many).
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Progress for nobody."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank).

    Args:
        ordered: Ascending, at least one.
        share: From 0 to 1.
    """
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """How long something took, in microseconds."""

    count: int
    p50_us: float
    p99_us: float
    max_us: float

    @classmethod
    def of(cls, microseconds: Iterable[float]) -> Spread:
        """Of at least one measurement."""
        ordered = sorted(microseconds)
        return cls(len(ordered), statistics.median(ordered), percentile(ordered, 0.99), ordered[-1])

    def to_json(self) -> dict[str, Any]:
        """Rounded to a tenth of a microsecond, below which there is only noise."""
        return {name: value if name == "count" else round(value, 1) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the figures depend on.

    Attributes:
        load_before: Processes that ran or waited for a CPU, averaged over the minute before; ``load_after`` likewise,
            with the measurement's own share in it.
    """

    kernel: str
    cpus: int
    load_before: float
    load_after: float

    @classmethod
    def since(cls, load_before: float) -> Conditions:
        """At the end of a measurement."""
        return cls(platform.release(), os.cpu_count() or 1, load_before, os.getloadavg()[0])

    @property
    def busy(self) -> bool:
        """Whether others had the CPUs as well, so that the figures say more of the machine than of us."""
        return self.load_before > 0.5 * self.cpus

    def describe(self) -> str:
        """One line for below a table."""
        quality = "a busy machine: repeat it on an idle one" if self.busy else "an idle machine"
        return f"Linux {self.kernel}, {self.cpus} CPUs, load {self.load_before:.1f} before: {quality}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "busy": self.busy}
