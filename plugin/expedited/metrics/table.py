"""Every metric that the agent shows: the one place from which exporter, reference, dashboard and rules are made or checked.

Names follow Prometheus' conventions: base units, ``_total`` for counters, the unit before it. No label has the name of
a pod or a container: how many series a node makes is known beforehand (:attr:`Metric.series`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from math import prod

from expedited.striker.latency import BOUNDS_SECONDS
from expedited.teardown.policy import Mode
from expedited.teardown.report import Outcome

__all__ = ["TABLE", "Kind", "Label", "Metric", "named"]

# From a strike on an idle node to a starved container's own way out
_STOP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Kind(StrEnum):
    """What can be done with a metric."""

    COUNTER = "counter"  #: only grows: `rate()` it
    GAUGE = "gauge"  #: how things are
    HISTOGRAM = "histogram"  #: `histogram_quantile()` over its buckets


@dataclass(frozen=True, slots=True)
class Label:
    """One label, with all the values that it can have."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: As it is asked for; a histogram's without ``_bucket``.
        words: One sentence for whoever meets it in a query.
        bounds: A histogram's buckets, without +Inf.
        seen_from_start: Values of the labels that are shown as zero before the first was counted, as the first failure
            of a series that was not there before would be no increase.
    """

    name: str
    kind: Kind
    words: str
    labels: tuple[Label, ...] = ()
    bounds: tuple[float, ...] = ()
    seen_from_start: tuple[tuple[str, ...], ...] = ()

    @property
    def unit(self) -> str:
        """``seconds``, ``bytes`` or nothing, as the name says."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in ("seconds", "bytes") if stem.endswith(f"_{unit}")), "")

    @property
    def series(self) -> int:
        """The most that one node can make of it."""
        each = len(self.bounds) + 3 if self.kind is Kind.HISTOGRAM else 1
        return prod((len(label.values) for label in self.labels), start=each)


_MODE = Label("mode", tuple(mode.value for mode in Mode if mode is not Mode.OFF))
_OUTCOME = Label("outcome", tuple(outcome.value for outcome in Outcome))
# Who is left alone, or could not be struck, has no times
_TIMED = Label("outcome", tuple(outcome for outcome in _OUTCOME.values if outcome not in ("skipped", "failed")))
_TRIGGER = Label(
    "trigger", ("gate:kill", "gate:delete", "observer:kill", "observer:delete", "oom", "grace", "api", "command")
)
_LEVER = Label("lever", ("rt", "rt-bandwidth", "weight", "quota", "cpuset"))
_TO = Label("to", ("striker", "nri", "containerd", "kubernetes"))
_PROCESS = Label("process", ("agent", "striker", "supervisor"))
_ONE_OF_MANY = ("(one)",)  # exactly one series, whose value says what there is

#: By what a reader asks first.
TABLE: tuple[Metric, ...] = (
    Metric(
        "expedited_stops_total",
        Kind.COUNTER,
        "Stops that the agent saw, by what it was to do, what came of it, and what announced the kill.",
        (_MODE, _OUTCOME, _TRIGGER),
        seen_from_start=(
            *(("strike", outcome, "gate:kill") for outcome in ("struck", "skipped")),
            *product(("strike", "compare"), ("deadline", "failed"), ("gate:kill", "observer:kill")),
            ("strike", "exited", "grace"),
        ),
    ),
    Metric(
        "expedited_memory_back_seconds",
        Kind.HISTOGRAM,
        "From the kill (outcomes exited and watched: from when it was seen to end) until 95% of the anonymous memory was free.",
        (_TIMED,),
        _STOP_SECONDS,
    ),
    Metric(
        "expedited_gone_seconds",
        Kind.HISTOGRAM,
        "From the kill (outcomes exited and watched: from when it was seen to end) until the container's cgroup was empty.",
        (_TIMED,),
        _STOP_SECONDS,
    ),
    Metric(
        "expedited_memory_returned_bytes_total",
        Kind.COUNTER,
        "Anonymous memory of stopped containers that was given back.",
        (_OUTCOME,),
        seen_from_start=(("struck",), ("exited",), ("observed",), ("watched",)),
    ),
    Metric(
        "expedited_page_cache_dropped_bytes_total",
        Kind.COUNTER,
        'Page cache that was given back when a container (`of="container"`) or a whole pod (`of="pod"`) ended for good.',
        (Label("of", ("container", "pod")),),
        seen_from_start=(("container",), ("pod",)),
    ),
    Metric(
        "expedited_lost_races_total",
        Kind.COUNTER,
        "Processes that let go of their memory before it could be reaped, and freed it by themselves.",
    ),
    Metric(
        "expedited_boosts_total",
        Kind.COUNTER,
        "Stops for which a limit on the dying processes was lifted, by limit; see the concept of the boost.",
        (_LEVER,),
        seen_from_start=tuple((lever,) for lever in _LEVER.values),
    ),
    Metric("expedited_gate_events_total", Kind.COUNTER, "Opens of state files that the gate judged."),
    Metric(
        "expedited_gate_overruns_total",
        Kind.COUNTER,
        "Runtime commands that the gate let through because its budget was over, not because it had decided.",
    ),
    Metric("expedited_gate_restarts_total", Kind.COUNTER, "Gates that failed and were started anew."),
    Metric(
        "expedited_gate_latency_seconds",
        Kind.HISTOGRAM,
        "How long the gate held those who opened a state file.",
        bounds=BOUNDS_SECONDS,
    ),
    Metric(
        "expedited_source_lost_total",
        Kind.COUNTER,
        "Times that the kernel dropped process events because they came faster than they were read; kills among them were not seen.",
    ),
    Metric("expedited_containers", Kind.GAUGE, "Containers that are known, sandboxes too."),
    Metric("expedited_gated_containers", Kind.GAUGE, "Containers whose kill passes the gate."),
    Metric(
        "expedited_connected",
        Kind.GAUGE,
        "1: connected and well, 0: not; what is not configured is not shown.",
        (_TO,),
    ),
    Metric(
        "expedited_connections_total",
        Kind.COUNTER,
        "Times that a connection was made: what is above 1 are reconnects.",
        (_TO,),
    ),
    Metric(
        "expedited_kubernetes_events_total",
        Kind.COUNTER,
        "Events about stops: those that the cluster took, and those that it never got; only in a cluster.",
        (Label("result", ("created", "dropped")),),
    ),
    Metric("expedited_process_resident_memory_bytes", Kind.GAUGE, "Resident memory of our own processes.", (_PROCESS,)),
    Metric("expedited_start_time_seconds", Kind.GAUGE, "When the agent started, in seconds since the epoch."),
    Metric(
        "expedited_info",
        Kind.GAUGE,
        "Always 1: which version it is, what the kernel offers the strike, and how kills are seen.",
        (Label("version", _ONE_OF_MANY), Label("kernel", _ONE_OF_MANY), Label("source", _ONE_OF_MANY)),
    ),
)

_BY_NAME = {metric.name: metric for metric in TABLE}


def named(name: str) -> Metric:
    """The metric of this name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]
