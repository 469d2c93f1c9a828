"""What a strike takes: from the event to the last signal, and until the memory is back beside a plain kill.

The first on a crowd of processes, by the engine alone and by a striker whose gate catches a runtime's ``kill``; the second on
one large process, struck and merely killed in turn, both watched by the engine's own meter.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expedited.bench.figures import Conditions, Progress, Spread, silent
from expedited.bench.machine import bare_strike_us
from expedited.bench.scratch import Crowd, cgroup_version, crowd, scratch_cgroup, scratch_directory, striker
from expedited.errors import ExpeditedError, UsageError
from expedited.striker.link import StrikerLink
from expedited.teardown.policy import Mode, PageCache, Policy
from expedited.teardown.reap import Reapers
from expedited.teardown.report import Outcome, Report
from expedited.teardown.roster import make_room_for_descriptors
from expedited.teardown.strike import strike

__all__ = [
    "COLUMNS",
    "TARGET_P50_US",
    "TARGET_P99_US",
    "Reaping",
    "Signalling",
    "StrikeOptions",
    "StrikeResult",
    "rows",
    "run",
]

#: From the event to the last signal, with 100 processes.
TARGET_P50_US, TARGET_P99_US = 1000.0, 3000.0

COLUMNS = ("strike", "p50", "p99", "worst")

_WARM_UP = 2
_REPORT_SECONDS = 30.0
_BETWEEN_SECONDS = 0.02
_POLICY = Policy(page_cache=PageCache.KEEP, min_size_bytes=0)

# What the runtime does at the gate, by a shell that is run as `runc start ID` and `runc kill ID 9`
_START = 'exec 3< "$STATE_FILE"\n'
_KILL = _START + '[ "$2" = 15 ] || kill -9 "$INIT_PID" 2> /dev/null; exit 0\n'


@dataclass(frozen=True, slots=True)
class StrikeOptions:
    """How much to measure.

    Attributes:
        runs: Strikes of a crowd each way; a percentile of fewer than 100 is little more than the worst.
        processes: In a crowd.
        reap_bytes: Of the one large process; 0 leaves that part out.
        reap_runs: Pairs of a strike and a plain kill.
    """

    runs: int = 50
    processes: int = 100
    reap_bytes: int = 512 << 20
    reap_runs: int = 5


@dataclass(frozen=True, slots=True)
class Signalling:
    """From the event to the last SIGKILL; ``way`` is ``engine``, ``gate`` or ``gate, after SIGTERM``."""

    way: str
    cgroup_version: int
    processes: int
    spread: Spread

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in microseconds."""
        return {
            "way": self.way,
            "cgroup_version": self.cgroup_version,
            "processes": self.processes,
            **self.spread.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Reaping:
    """Until 95% of one process's memory was free again, struck and merely killed, run by run."""

    bytes: int
    plain_kill_us: tuple[float, ...]
    strike_us: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times sooner the strike had it back: the median of the pairs."""
        return statistics.median(
            plain / struck for plain, struck in zip(self.plain_kill_us, self.strike_us, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in microseconds."""
        return {
            "bytes": self.bytes,
            "plain_kill": Spread.of(self.plain_kill_us).to_json(),
            "strike": Spread.of(self.strike_us).to_json(),
            "ratio": round(self.ratio, 3),
        }


@dataclass(frozen=True, slots=True)
class StrikeResult:
    """What was measured; ``reaping`` is None where it was left out.

    ``calls`` is a crowd killed by the system calls alone that a strike on version 1 makes: see :func:`bare_strike_us`.
    """

    conditions: Conditions
    signalling: tuple[Signalling, ...]
    calls: Spread
    reaping: Reaping | None

    @property
    def within_target(self) -> bool:
        """Whether every way sent its signals in the time that it may take."""
        return all(way.spread.p50_us <= TARGET_P50_US and way.spread.p99_us <= TARGET_P99_US for way in self.signalling)

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in microseconds."""
        return {
            "conditions": self.conditions.to_json(),
            "signalling": [way.to_json() for way in self.signalling],
            "calls": self.calls.to_json(),
            "reaping": self.reaping.to_json() if self.reaping else None,
            "target": {"p50_us": TARGET_P50_US, "p99_us": TARGET_P99_US},
            "within_target": self.within_target,
        }


def run(options: StrikeOptions | None = None, progress: Progress = silent) -> StrikeResult:
    """Measure; takes some 15 s with the defaults.

    Raises:
        UsageError: nothing to measure is asked for, or more than there is room for.
        ExpeditedError: no cgroup can be made here, no striker run, or a strike failed; says why.
    """
    options = options or StrikeOptions()
    _check(options)
    load_before = os.getloadavg()[0]
    make_room_for_descriptors()
    with _undisturbed(), Reapers() as reapers:
        by_engine, calls = _by_engine(options, reapers, progress)
        signalling = (
            by_engine,
            _by_gate("gate", ("9",), options, progress),
            _by_gate("gate, after SIGTERM", ("15", "9"), options, progress),
        )
        reaping = _reaping(options, reapers, progress) if options.reap_bytes else None
    return StrikeResult(Conditions.since(load_before), signalling, calls, reaping)


def _check(options: StrikeOptions) -> None:
    for name, value in (("runs", options.runs), ("processes", options.processes), ("reap runs", options.reap_runs)):
        if value < 1:
            raise UsageError(f"{value} {name}: give at least 1")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not 0 <= options.reap_bytes <= available // 2:
        raise UsageError(f"{options.reap_bytes >> 20} MiB to reap: give up to half of the free {available >> 20} MiB")
    if os.geteuid() != 0:
        raise ExpeditedError("the benchmark makes cgroups and a striker, which needs root: run it with sudo")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection meanwhile, as in the striker."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _by_engine(options: StrikeOptions, reapers: Reapers, progress: Progress) -> tuple[Signalling, Spread]:
    """By the engine alone and, run by run, by nothing but the calls."""
    took, calls_took = [], []
    for number in range(-_WARM_UP, options.runs):
        with scratch_cgroup() as cgroup, crowd(cgroup, options.processes) as victims:
            calls_us = bare_strike_us(victims)
        with scratch_cgroup() as cgroup, crowd(cgroup, options.processes) as victims:
            report = strike(cgroup.found(), _POLICY, init_pid=victims.pid, reapers=reapers)
        if number >= 0:
            calls_took.append(calls_us)
            took.append(_signalled_us(report, options.processes))
            progress(f"striking {options.processes} processes", number + 1, options.runs)
    by_engine = Signalling("engine", cgroup_version(), options.processes, Spread.of(took))
    return by_engine, Spread.of(calls_took)


def _by_gate(way: str, signals: tuple[str, ...], options: StrikeOptions, progress: Progress) -> Signalling:
    took = []
    with scratch_directory() as scratch:
        root = scratch / "state"
        root.mkdir()
        (scratch / "start").write_text(_START)
        (scratch / "kill").write_text(_KILL)
        policy = json.dumps({"min_size_bytes": 0, "page_cache": "keep"})
        with striker(scratch, root, f"--policy={policy}", "--budget=1") as link:
            for number in range(-_WARM_UP, options.runs):
                with scratch_cgroup() as cgroup, crowd(cgroup, options.processes) as victims:
                    report = _runtime_kills(link, root, f"bench{number + _WARM_UP}", victims, signals)
                if number >= 0:
                    took.append(_signalled_us(report, options.processes))
                    progress(f"striking {options.processes} processes by the {way}", number + 1, options.runs)
    return Signalling(way, cgroup_version(), options.processes, Spread.of(took))


def _runtime_kills(
    link: StrikerLink, root: Path, container_id: str, victims: Crowd, signals: tuple[str, ...]
) -> Report:
    """Keep a state file for the crowd, as a runtime does, and kill it as a runtime does."""
    directory = root / container_id
    directory.mkdir()
    state = {
        "id": container_id,
        "init_process_pid": victims.pid,
        "init_process_start": victims.start_time(),
        "cgroup_paths": victims.cgroup.directories,
    }
    state_file = directory / "state.json"
    state_file.write_text(json.dumps(state))
    if not link.ask("watch", id=container_id)["marked"]:
        raise ExpeditedError(f"{directory}: the striker does not gate it")
    environment = {"STATE_FILE": str(state_file), "INIT_PID": str(victims.pid)}
    for words in (("start", container_id), *(("kill", container_id, number) for number in signals)):
        subprocess.run(["runc", *words], executable="/bin/sh", cwd=root.parent, env=environment, check=True)
        time.sleep(_BETWEEN_SECONDS)  # as between a SIGTERM and the end of a grace, or a start and a stop
    report = link.report_of(container_id, _REPORT_SECONDS)
    if report is None:
        raise ExpeditedError(f"no report of a kill of {victims.cgroup.path} within {_REPORT_SECONDS:g} s")
    return report


def _signalled_us(report: Report, processes: int) -> float:
    if report.outcome is not Outcome.STRUCK or report.signalled_seconds is None or report.process_count != processes:
        raise ExpeditedError(
            f"cgroup {report.cgroup}: {report.outcome} {report.process_count} of {processes} processes {report.reason}"
        )
    return report.signalled_seconds * 1e6


def _reaping(options: StrikeOptions, reapers: Reapers, progress: Progress) -> Reaping:
    took: dict[Mode, list[float]] = {Mode.OBSERVE: [], Mode.STRIKE: []}
    size = options.reap_bytes >> 20
    for number in range(options.reap_runs):
        # Each goes first in every other pair: neither has the fresher machine
        for mode in (Mode.OBSERVE, Mode.STRIKE) if number % 2 == 0 else (Mode.STRIKE, Mode.OBSERVE):
            took[mode].append(_memory_back_us(mode, options.reap_bytes, reapers))
        progress(f"a process of {size} MiB, struck and merely killed", number + 1, options.reap_runs)
    return Reaping(options.reap_bytes, tuple(took[Mode.OBSERVE]), tuple(took[Mode.STRIKE]))


def _memory_back_us(mode: Mode, size_bytes: int, reapers: Reapers) -> float:
    with scratch_cgroup() as cgroup, crowd(cgroup, 1, size_bytes) as victims:

        def kill() -> None:
            if mode is Mode.OBSERVE:
                os.kill(victims.pid, signal.SIGKILL)

        policy = Policy(mode=mode, page_cache=PageCache.KEEP, min_size_bytes=0)
        report = strike(cgroup.found(), policy, init_pid=victims.pid, reapers=reapers, on_signalled=kill)
    if report.memory_back_seconds is None:
        raise ExpeditedError(f"cgroup {report.cgroup}: its memory can't be measured: no memory controller here")
    return report.memory_back_seconds * 1e6


def rows(result: StrikeResult) -> list[tuple[str, str, str, str]]:
    """For a table with :data:`COLUMNS`."""
    found = [
        _row(
            f"event to last signal, {way.processes} processes, {way.way}, cgroup v{way.cgroup_version} "
            f"(target: at most {TARGET_P50_US / 1000:.0f} and {TARGET_P99_US / 1000:.0f} ms)",
            way.spread,
        )
        for way in result.signalling
    ]
    processes = result.signalling[0].processes
    found.append(
        _row(f"for comparison: 2 lists, {processes} pidfd_open, {processes} signals, and nothing else", result.calls)
    )
    if result.reaping is not None:
        size = f"{result.reaping.bytes >> 20} MiB back"
        found.append(_row(f"{size}, plain kill", Spread.of(result.reaping.plain_kill_us)))
        found.append(
            _row(f"{size}, strike ({result.reaping.ratio:.2f} times as soon)", Spread.of(result.reaping.strike_us))
        )
    return found


def _row(name: str, spread: Spread) -> tuple[str, str, str, str]:
    return name, *(f"{value / 1000:.2f} ms" for value in (spread.p50_us, spread.p99_us, spread.max_us))  # type: ignore[return-value]
