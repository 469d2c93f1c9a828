"""How a striker is: what it answers when it is asked for its status, and what whoever asks makes of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from expedited.striker.latency import BOUNDS_SECONDS

__all__ = ["StrikerStatus"]


@dataclass(frozen=True, slots=True)
class StrikerStatus:
    """One striker's word on itself; the counters count since its gate was started.

    Attributes:
        version: Of its code.
        pid: Of the gate's process; 0: not told.
        supervisor_pid: Of who keeps the gate alive; 0: not told.
        started_at: When the gate was started, in seconds since the epoch; tells one gate from the next.
        source: How it sees kills: ``fanotify`` (the gate), or ``proc-connector`` (the observer).
        kernel: What the kernel offers the strike, in the words of :meth:`MreleaseSupport.describe`.
        realtime: Whether its loop goes before all ordinary work on the CPUs.
        memory_locked: Whether its pages stay in memory, whatever the node needs.
        gated: The containers whose kill it sees, by id and in their order; the first of them, where a packet has no room for
            all: the rest is asked for (docs/architecture.md, ``gated``).
        gated_beyond: How many more there are.
        binaries: The runtimes' programs whose executions it holds, by path.
        events: What the kernel told it of: opens of state files, or executions.
        kills: Those that were a runtime's `kill` or `delete --force`, whatever its signal.
        executions: Of a runtime's program, that it held.
        overruns: Commands that were let through as the budget was over, and not by a decision.
        lost: How many times the kernel has dropped events, as they came faster than they were read.
        restarts: Gates of its supervisor that have failed before this one.
        latency_p50_us: From reading an event to its answer, of the last 2,048, in microseconds; None before the first.
        latency_p99_us: Likewise.
        latency_counts: All of them by bucket of :data:`expedited.striker.latency.BOUNDS_SECONDS`, the last for what is above
            all bounds; empty where the striker has other buckets.
        latency_sum_seconds: Of all.
        active: Stops in progress.
        stops: How many have ended.
        wanted_source: What it was started with, as are those below; empty, 0 or nothing: not told.
        budget_seconds: Likewise.
        state_roots: Likewise.
        log_format: Likewise.
    """

    version: str = ""
    pid: int = 0
    supervisor_pid: int = 0
    started_at: float = 0.0
    source: str = ""
    kernel: str = ""
    realtime: bool = False
    memory_locked: bool = False
    gated: tuple[str, ...] = ()
    gated_beyond: int = 0
    binaries: tuple[str, ...] = ()
    events: int = 0
    kills: int = 0
    executions: int = 0
    overruns: int = 0
    lost: int = 0
    restarts: int = 0
    latency_p50_us: float | None = None
    latency_p99_us: float | None = None
    latency_counts: tuple[int, ...] = ()
    latency_sum_seconds: float = 0.0
    active: int = 0
    stops: int = 0
    wanted_source: str = ""
    budget_seconds: float = 0.0
    state_roots: tuple[str, ...] = ()
    log_format: str = ""

    @property
    def gated_count(self) -> int:
        """How many containers' kills it sees."""
        return len(self.gated) + self.gated_beyond

    @property
    def holds(self) -> bool:
        """Whether a runtime waits at it: a gate. Else it observes, and its strikes can only follow."""
        return self.source == "fanotify"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they travel over the striker's socket."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StrikerStatus:
        """The opposite of :meth:`to_json`, whatever version the striker is of: one that was kept may be older, or newer.

        What it does not tell keeps its default, and what is not known here is passed over.
        """
        told: dict[str, Any] = {}
        for field in fields(cls):
            value = data.get(field.name)
            if value is not None:
                told[field.name] = tuple(value) if isinstance(value, list) else value
        if len(told.get("latency_counts", ())) != len(BOUNDS_SECONDS) + 1:
            told["latency_counts"] = ()
        return cls(**told)
