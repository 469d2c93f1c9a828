"""What a strike did, in figures: the receipt of one stop."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from enum import StrEnum
from typing import Any

__all__ = ["Fate", "Memory", "Outcome", "ProcessReport", "Report", "Step"]


class Outcome(StrEnum):
    """How a stop ended for the agent."""

    STRUCK = "struck"  #: torn down, the cgroup is empty
    EXITED = "exited"  #: ended within its grace period; nobody was signalled, but its memory was reaped, or its dying boosted
    OBSERVED = "observed"  #: the runtime's own kill was measured, nothing was changed
    WATCHED = "watched"  #: ended within its grace period, which was measured, and nothing was changed
    SKIPPED = "skipped"  #: left alone: see the report's ``reason``
    DEADLINE = "deadline"  #: struck, but something was still there at the deadline
    FAILED = "failed"  #: the strike could not be made: see ``reason``


class Fate(StrEnum):
    """What became of one process."""

    REAPED = "reaped"  #: its memory was freed by process_mrelease
    LOST_RACE = "lost_race"  #: it had let go of its mm before it could be reaped, and frees it by itself
    GONE = "gone"  #: it had exited before anybody killed it
    KILLED = "killed"  #: killed, and not reaped: it was too small for that, or the kill was only observed
    EXITED = "exited"  #: had ended within the grace period, and freed its memory by itself
    SURVIVED = "survived"  #: still there at the deadline


@dataclass(frozen=True, slots=True)
class Memory:
    """What a cgroup holds, in bytes (memory.stat of either version of the memory controller)."""

    anon_bytes: int
    file_bytes: int
    shmem_bytes: int
    swap_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """One process of the container; ``rss_bytes`` is None where its size was never read."""

    pid: int
    rss_bytes: int | None
    fate: Fate


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a stop's story: seconds since the kill was seen, and what happened then."""

    at_seconds: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One stop, from the kill to the empty cgroup.

    All ``..._seconds`` count from the moment the kill was seen; of outcomes EXITED and WATCHED, from when the last of it were seen to end.

    Attributes:
        number: Counts the reports of one striker, from 1; 0 for a strike made without one.
        started_at: Wall clock, seconds since the epoch.
        trigger: What announced the kill: ``gate:kill``, ``gate:delete``, ``observer:kill``, ``observer:delete``, ``oom``,
            ``api``, ``command``; ``grace`` where there was none, and what is seen is a process that ends.
        order: lead or follow; empty where nothing was struck.
        signalled_seconds: When the last SIGKILL was sent; None where the agent signalled nothing (follow, observe).
        answered_seconds: When the runtime was let through the gate; None without a gate.
        memory_back_seconds: When 95% of the anonymous memory was free; None if it was not, or can't be measured. The
            kernel's counters lag, so it may be a little later than gone_seconds.
        gone_seconds: When the cgroup was empty; None if it was not by the deadline.
        lead_seconds: How long before the runtime's own SIGKILL could come the memory was back (negative: after).
        processes: The largest first, at most 64 of them; ``process_count`` says how many there were.
        lost_races: How many of them all let go of their memory before it could be reaped.
        boosted: What was lifted for the dying: ``rt``, ``rt-bandwidth``, ``weight``, ``quota``, ``cpuset``.
        steps: The stop's story, in time order.
    """

    number: int = 0
    container_id: str
    cgroup: str
    trigger: str
    mode: str
    order: str = ""
    outcome: Outcome
    reason: str
    started_at: float
    before: Memory | None = None
    after: Memory | None = None
    signalled_seconds: float | None = None
    answered_seconds: float | None = None
    memory_back_seconds: float | None = None
    gone_seconds: float | None = None
    lead_seconds: float | None = None
    page_cache_dropped_bytes: int = 0
    process_count: int = 0
    lost_races: int = 0
    processes: tuple[ProcessReport, ...] = ()
    boosted: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def bytes_returned(self) -> int:
        """Anonymous memory that was there before and is not any more; 0 where it could not be measured."""
        if self.before is None:
            return 0
        return max(0, self.before.anon_bytes - (self.after.anon_bytes if self.after else 0))

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, as :func:`json.dumps` takes them."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """The opposite of :meth:`to_json`; keys that a newer striker may send are passed over.

        A field that an older one does not send has its default.

        Raises:
            KeyError: a field is missing that has none.
            ValueError: an outcome, or a process's fate, that is not known here.
        """
        values = {
            field.name: data[field.name] for field in fields(cls) if field.name in data or field.default is MISSING
        }
        values["outcome"] = Outcome(values["outcome"])
        for name in ("before", "after"):
            values[name] = Memory(**values[name]) if values.get(name) else None
        values["processes"] = tuple(
            ProcessReport(process["pid"], process["rss_bytes"], Fate(process["fate"]))
            for process in values.get("processes", ())
        )
        values["boosted"] = tuple(values.get("boosted", ()))
        values["steps"] = tuple(Step(**step) for step in values.get("steps", ()))
        return cls(**values)
