"""What the gate costs those who are no kill: opening a state file with and without it, in alternating blocks.

Both files are alike, in neighbouring directories of one file system; a real striker gates the one and not the other, so
that nothing has to be started or stopped between two blocks, and whatever the machine does meanwhile hits both.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expedited.bench.figures import Conditions, Progress, Spread, silent
from expedited.bench.machine import Echo, echo
from expedited.bench.scratch import scratch_directory, striker, wait_until
from expedited.errors import UsageError
from expedited.striker.process import GATE_PRIORITY

__all__ = ["COLUMNS", "TARGET_P50_US", "TARGET_P99_US", "GateOptions", "GateResult", "rows", "run"]

#: What the gate may add to an open, on an idle machine.
TARGET_P50_US, TARGET_P99_US = 100.0, 200.0

COLUMNS = ("opening a state file", "p50", "p99", "worst")

_BLOCK = 25
_WARM_UP = 50
_ID = "expedited-bench"
_STATE_BYTES = 20_000  # runc's own has about as much


@dataclass(frozen=True, slots=True)
class GateOptions:
    """How much to measure; ``runs`` is the number of opens each way."""

    runs: int = 2000


@dataclass(frozen=True, slots=True)
class GateResult:
    """What was measured.

    Attributes:
        added: Each open under the gate, less the median of the block without it that came just before.
        wake_ups: A byte to a process on another CPU and back: what is added by any gate that runs there, however fast it
            decides. None where there is no other CPU.
        decision_p50_us: The gate's own view, from its waking up to its answer; ``decision_p99_us`` likewise.
        overruns: Opens that were answered by the budget and not by a decision: 0 unless something is wrong.
    """

    conditions: Conditions
    without_gate: Spread
    with_gate: Spread
    added: Spread
    wake_ups: Spread | None
    decision_p50_us: float
    decision_p99_us: float
    overruns: int

    @property
    def within_target(self) -> bool:
        """Whether it adds no more than it may."""
        return self.added.p50_us <= TARGET_P50_US and self.added.p99_us <= TARGET_P99_US

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in microseconds."""
        return {
            "conditions": self.conditions.to_json(),
            "without_gate": self.without_gate.to_json(),
            "with_gate": self.with_gate.to_json(),
            "added": self.added.to_json(),
            "wake_ups": self.wake_ups.to_json() if self.wake_ups else None,
            "decision_p50_us": round(self.decision_p50_us, 1),
            "decision_p99_us": round(self.decision_p99_us, 1),
            "overruns": self.overruns,
            "target": {"added_p50_us": TARGET_P50_US, "added_p99_us": TARGET_P99_US},
            "within_target": self.within_target,
        }


def run(options: GateOptions | None = None, progress: Progress = silent) -> GateResult:
    """Measure; takes about a second.

    Raises:
        UsageError: nothing to measure is asked for.
        ExpeditedError: no striker can be run here; says why.
    """
    options = options or GateOptions()
    if options.runs < 1:
        raise UsageError(f"{options.runs} runs: give at least 1")
    load_before = os.getloadavg()[0]
    with scratch_directory() as scratch:
        gated, free = scratch / "gated" / _ID, scratch / "free" / _ID
        for directory in (gated, free):
            directory.mkdir(parents=True)
            (directory / "state.json").write_text("{}".ljust(_STATE_BYTES))
        with striker(scratch, gated.parent) as link:
            give_up_at = time.monotonic() + 10
            while not wait_until(_ID in link.status().gated, give_up_at, "the striker does not gate its root"):
                pass
            with echo(GATE_PRIORITY) as other:
                took = _measure(free / "state.json", gated / "state.json", other, options.runs, progress)
            status = link.status()
    return GateResult(
        conditions=Conditions.since(load_before),
        without_gate=Spread.of(took.without),
        with_gate=Spread.of(took.within),
        added=Spread.of(took.added),
        wake_ups=Spread.of(took.woken) if took.woken else None,
        decision_p50_us=status.latency_p50_us or 0.0,  # None before the first open, and there were some
        decision_p99_us=status.latency_p99_us or 0.0,
        overruns=status.overruns,
    )


@dataclass(frozen=True, slots=True)
class _Took:
    without: list[float] = field(default_factory=list)
    within: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    woken: list[float] = field(default_factory=list)


def _measure(free: Path, gated: Path, other: Echo | None, runs: int, progress: Progress) -> _Took:
    took = _Took()
    collecting = gc.isenabled()
    gc.disable()
    try:
        _opens(free, _WARM_UP)
        _opens(gated, _WARM_UP)
        while len(took.within) < runs:
            block = min(_BLOCK, runs - len(took.within))
            before, after = _opens(free, block), _opens(gated, block)
            base = statistics.median(before)
            took.without.extend(before)
            took.within.extend(after)
            took.added.extend(each - base for each in after)
            if other is not None:
                took.woken.extend(other.round_trips_us(block))
            progress("opening a state file", len(took.within), runs)
    finally:
        if collecting:
            gc.enable()
    return took


def _opens(path: Path, count: int) -> list[float]:
    """Microseconds that each open took."""
    name = os.fspath(path)
    took = []
    for _ in range(count):
        began = time.perf_counter_ns()
        descriptor = os.open(name, os.O_RDONLY)
        ended = time.perf_counter_ns()
        os.close(descriptor)
        took.append((ended - began) / 1000)
    return took


def rows(result: GateResult) -> list[tuple[str, str, str, str]]:
    """For a table with :data:`COLUMNS`."""
    target = f"target: at most {TARGET_P50_US:.0f} and {TARGET_P99_US:.0f} us"
    found = [
        _row("without the gate", result.without_gate),
        _row("under the gate", result.with_gate),
        _row(f"added ({target})", result.added),
    ]
    if result.wake_ups is not None:
        found.append(_row("for comparison: to wake up another CPU, and be woken up", result.wake_ups))
    return found


def _row(name: str, spread: Spread) -> tuple[str, str, str, str]:
    return name, f"{spread.p50_us:.0f} us", f"{spread.p99_us:.0f} us", f"{spread.max_us:.0f} us"
