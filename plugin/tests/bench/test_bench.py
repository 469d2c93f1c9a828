"""The benchmarks run, say what they promise to say, and leave nothing behind; how fast anything is, is not their tests' business."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from expedited.bench import gate, strike
from expedited.bench.figures import Conditions, Spread, percentile
from expedited.bench.gate import GateOptions, GateResult
from expedited.bench.strike import Reaping, Signalling, StrikeOptions, StrikeResult
from expedited.errors import UsageError
from expedited.teardown.hierarchies import hierarchies

_IDLE = Conditions("6.12.0", 2, 0.1, 0.4)


def _left_behind() -> list[Path]:
    mounts = hierarchies()
    roots = {Path("/run"), *map(Path, mounts.controllers.values()), *([Path(mounts.unified)] if mounts.unified else [])}
    return [found for root in roots for found in root.glob("expedited-bench-*")]


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """What others have left, or are about to clear away, is theirs."""
    before = set(_left_behind())
    yield
    assert set(_left_behind()) <= before


class Told:
    """What progress was made."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.calls.append((what, done, total))


def test_a_percentile_is_the_value_that_so_many_do_not_exceed():
    hundred = [float(number) for number in range(1, 101)]
    assert [percentile(hundred, share) for share in (0, 0.5, 0.985, 0.99, 1)] == [1, 50, 99, 99, 100]
    assert percentile([7.0], 0.99) == 7


def test_a_spread_takes_its_measurements_in_any_order():
    assert Spread.of([3, 1, 2, 10]) == Spread(count=4, p50_us=2.5, p99_us=10, max_us=10)


def test_a_busy_machine_is_called_busy():
    assert not _IDLE.busy
    assert "an idle machine" in _IDLE.describe()
    assert Conditions("6.12.0", 2, 1.5, 1.5).busy
    assert "repeat it" in Conditions("6.12.0", 2, 1.5, 1.5).describe()


@pytest.mark.usefixtures("leaves_nothing")
def test_the_gates_benchmark_measures_both_ways():
    told = Told()
    result = gate.run(GateOptions(runs=60), told)

    cpus = len(os.sched_getaffinity(0))
    assert (result.wake_ups.count if result.wake_ups else 0) == (60 if cpus > 1 else 0)
    assert (result.without_gate.count, result.with_gate.count, result.added.count) == (60, 60, 60)
    assert result.overruns == 0
    # The gate really was asked: somebody else had to answer before an open could go on
    assert 0 < result.decision_p50_us < result.with_gate.p50_us
    assert told.calls[-1][1:] == (60, 60)
    said = json.loads(json.dumps(result.to_json()))
    assert said["with_gate"].keys() == {"count", "p50_us", "p99_us", "max_us"}
    assert said.keys() == {
        *("conditions", "without_gate", "with_gate", "added", "wake_ups", "decision_p50_us", "decision_p99_us"),
        *("overruns", "target", "within_target"),
    }
    assert said["conditions"].keys() == {"kernel", "cpus", "load_before", "load_after", "busy"}
    assert all(len(row) == len(gate.COLUMNS) for row in gate.rows(result))


def test_the_gates_target_is_for_what_it_adds():
    def adds(p50_us: float, p99_us: float) -> GateResult:
        slow = Spread(1, 9999, 9999, 9999)
        return GateResult(_IDLE, slow, slow, Spread(1, p50_us, p99_us, 9999), None, 1, 1, 0)

    assert adds(100, 200).within_target
    assert not adds(101, 150).within_target
    assert not adds(50, 201).within_target


@pytest.mark.usefixtures("leaves_nothing")
def test_the_strikes_benchmark_measures_engine_gate_and_reaping():
    told = Told()
    result = strike.run(StrikeOptions(runs=2, processes=5, reap_bytes=32 << 20, reap_runs=2), told)

    assert [(way.way, way.processes, way.spread.count) for way in result.signalling] == [
        ("engine", 5, 2),
        ("gate", 5, 2),
        ("gate, after SIGTERM", 5, 2),
    ]
    assert result.calls.count == 2
    assert result.calls.p50_us > 0
    assert result.reaping is not None
    assert len(result.reaping.plain_kill_us) == len(result.reaping.strike_us) == 2
    assert {what for what, done, total in told.calls if done == total} == {
        "striking 5 processes",
        "striking 5 processes by the gate",
        "striking 5 processes by the gate, after SIGTERM",
        "a process of 32 MiB, struck and merely killed",
    }
    said = json.loads(json.dumps(result.to_json()))
    assert said.keys() == {"conditions", "signalling", "calls", "reaping", "target", "within_target"}
    assert said["signalling"][0].keys() >= {"way", "cgroup_version", "processes", "p50_us", "p99_us"}
    assert said["reaping"].keys() == {"bytes", "plain_kill", "strike", "ratio"}
    assert len(strike.rows(result)) == 6
    assert all(len(row) == len(strike.COLUMNS) for row in strike.rows(result))


def test_reaping_can_be_left_out():
    result = strike.run(StrikeOptions(runs=1, processes=2, reap_bytes=0))
    assert result.reaping is None
    assert result.to_json()["reaping"] is None
    assert len(strike.rows(result)) == 4


def test_the_strikes_target_is_for_every_way():
    def took(*p99s_us: float) -> StrikeResult:
        ways = tuple(Signalling("engine", 1, 100, Spread(1, 900, p99_us, p99_us)) for p99_us in p99s_us)
        return StrikeResult(_IDLE, ways, Spread(1, 9999, 9999, 9999), None)

    assert took(2900, 3000).within_target
    assert not took(2900, 3001).within_target


def test_the_ratio_is_that_of_the_pairs():
    assert Reaping(1, plain_kill_us=(10, 90, 40), strike_us=(5, 10, 40)).ratio == 2


@pytest.mark.parametrize(
    ("benchmark", "options", "complaint"),
    [
        (gate.run, GateOptions(runs=0), "0 runs: give at least 1"),
        (strike.run, StrikeOptions(runs=-1), "-1 runs"),
        (strike.run, StrikeOptions(processes=0), "0 processes"),
        (strike.run, StrikeOptions(reap_runs=0), "0 reap runs"),
        (strike.run, StrikeOptions(reap_bytes=1 << 60), "MiB to reap: give up to half of the free"),
    ],
)
def test_a_wrong_option_is_one_line(benchmark, options, complaint):
    with pytest.raises(UsageError, match=complaint):
        benchmark(options)
