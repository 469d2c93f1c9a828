"""What a report is made of while its stop goes on: the clock that it counts by, the story, the processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from expedited.teardown.report import Fate, ProcessReport, Step
from expedited.teardown.roster import Victim

__all__ = ["Story", "process_reports"]

_PROCESSES_REPORTED = 64


class Story:
    """What happens in one stop, and when.

    Args:
        began: ``time.monotonic()`` of the moment that everything is counted from; now, if not given.

    Attributes:
        began_at: The same by the wall clock, seconds since the epoch.
    """

    def __init__(self, began: float | None = None) -> None:
        now = time.monotonic()
        self.began = now if began is None else began
        self.began_at = time.time() - (now - self.began)
        self._steps: list[Step] = []

    def now(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def tell(self, what: str, at: float | None = None) -> None:
        """One more step; ``at`` that ``time.monotonic()``, now if not given."""
        self._steps.append(Step(self.now() if at is None else at - self.began, what))

    @property
    def steps(self) -> tuple[Step, ...]:
        """In time order."""
        return tuple(sorted(self._steps, key=lambda step: step.at_seconds))


def process_reports(victims: Iterable[Victim], fate_of: Callable[[Victim], Fate]) -> tuple[ProcessReport, ...]:
    """The largest first, and no more of them than a report has room for."""
    by_size = sorted(victims, key=lambda victim: -(victim.rss_bytes or 0))
    return tuple(ProcessReport(each.pid, each.rss_bytes, fate_of(each)) for each in by_size[:_PROCESSES_REPORTED])
