"""``expedited demo``: the runtime's own kill beside ours, on a real containerd, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import import_workloads, program_file, workload_binary
from expedited.demo.leftovers import clear_abandoned
from expedited.demo.runtime import find_runtime
from expedited.demo.scenarios import SCENARIOS, Comparison, Pair, Scenario, Stop
from expedited.demo.stage import pod_for, stop_once
from expedited.demo.workloads import WORKLOADS, StoppedWorkload, stop_workload
from expedited.errors import ExpeditedError, UsageError
from expedited.quantity import format_size

__all__ = ["DemoOptions", "run_demo"]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to show.

    Attributes:
        pairs: Stops of each kind in each scenario, stock and expedited in turn; three times as many in idle and tree.
        scenarios: Names of those to run; empty: the usual ones.
        workload: A real server to stop in the end: ``redis`` or ``stress-ng``, from the machine's packages.
        json_path: Where to write the figures.
    """

    pairs: int = 5
    scenarios: tuple[str, ...] = ()
    workload: str | None = None
    json_path: Path | None = None


class _Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run_demo(options: DemoOptions, console: Console | None = None) -> int:
    """Run the scenarios, print the table, write the JSON, clean up.

    Returns:
        0; 128 and the signal's number if it was interrupted.

    Raises:
        UsageError: an option is wrong; nothing was started.
        ExpeditedError: something that the demo needs is missing, or failed.
    """
    console = console or Console()
    chosen = _checked(options)
    try:
        with _interruptible():
            comparisons, workload, failure = _perform(options, chosen, console)
    except _Interrupted as interruption:
        console.print(
            f"interrupted ({signal.Signals(interruption.number).name}); everything of the demo was cleared away"
        )
        return 128 + interruption.number
    _print_table(comparisons, console)
    if workload:
        _print_receipt(workload, console)
    if options.json_path:
        figures = {"scenarios": [comparison.to_json() for comparison in comparisons]}
        options.json_path.write_text(json.dumps(figures, indent=2) + "\n")
    if failure is not None:
        raise failure  # of the last scene: what was measured before it is told all the same
    return 0


def _checked(options: DemoOptions) -> tuple[Scenario, ...]:
    known = {scenario.name: scenario for scenario in SCENARIOS}
    for name in options.scenarios:
        if name not in known:
            raise UsageError(f"no scenario {name!r}: choose from {', '.join(known)}")
    if options.pairs < 1:
        raise UsageError(f"{options.pairs} pairs: at least one is needed")
    if options.workload is not None and options.workload not in WORKLOADS:
        raise UsageError(f"no workload {options.workload!r}: choose from {', '.join(WORKLOADS)}")
    if options.json_path and (
        options.json_path.is_dir() or not os.access(options.json_path.absolute().parent, os.W_OK)
    ):
        raise UsageError(f"{options.json_path} can't be written: give a file in a directory that exists")
    if options.workload is not None:
        for program, package in WORKLOADS[options.workload].programs.items():
            program_file(program, package)
    chosen = tuple(
        each for each in SCENARIOS if each.name in options.scenarios or (each.usual and not options.scenarios)
    )
    if os.geteuid() != 0:
        raise ExpeditedError("the demo starts containers, which needs root: run it with sudo")
    needed = 2 * max(scenario.bytes for scenario in chosen)
    available = _available_bytes()
    if available < needed:
        raise ExpeditedError(
            f"{format_size(available)} of memory is available, and the demo needs {format_size(needed)}: free some"
        )
    return chosen


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


@contextmanager
def _interruptible() -> Iterator[None]:
    """These signals end what is inside, once: what clears up afterwards is not to be interrupted again."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise _Interrupted(number)

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _perform(
    options: DemoOptions, chosen: tuple[Scenario, ...], console: Console
) -> tuple[list[Comparison], StoppedWorkload | None, ExpeditedError | None]:
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    stops = sum(2 * options.pairs * scenario.rounds for scenario in chosen) + bool(options.workload)
    with progress:
        task = progress.add_task("finding or building containerd", total=stops)

        def say(what: str, advance: int = 0) -> None:
            progress.update(task, description=what, advance=advance)

        binaries = find_runtime()
        workload_binary("hog")
        for abandoned in clear_abandoned(Path(tempfile.gettempdir())):
            _say(console, f"cleared away what a killed run had left in {abandoned}")
        root = Path(tempfile.mkdtemp(prefix="expedited-demo-"))
        say("starting a private containerd")
        with PrivateContainerd(root, binaries) as daemon:
            _say(console, f"{daemon.cri.version()}, {binaries.origin}, private in {root}")
            import_workloads(daemon)
            comparisons = [_compare(daemon, scenario, options.pairs * scenario.rounds, say) for scenario in chosen]
            workload, failure = None, None
            try:
                workload = stop_workload(daemon, options.workload, say) if options.workload else None
            except ExpeditedError as problem:
                failure = problem
            say("clearing away")
    return comparisons, workload, failure


def _compare(daemon: PrivateContainerd, scenario: Scenario, pairs: int, say: Callable[[str, int], None]) -> Comparison:
    pod = pod_for(daemon, scenario)
    made: list[Pair] = []
    for number in range(pairs):
        stops: dict[bool, Stop] = {}
        # Each of the two goes first in every other pair: neither has the fresher machine
        for expedited in (False, True) if number % 2 == 0 else (True, False):
            say(f"{scenario.name}, pair {number + 1} of {pairs}: {'expedited' if expedited else 'stock'}", 0)
            stops[expedited] = stop_once(daemon, scenario, pod, expedited=expedited)
            say(f"{scenario.name}, pair {number + 1} of {pairs}", 1)
        made.append(Pair(stock=stops[False], expedited=stops[True]))
    with suppress(ExpeditedError):
        daemon.cri.remove_pod(pod.id)
    return Comparison(scenario, tuple(made))


# -- what the user sees ------------------------------------------------------------------------------------------------


def _print_table(comparisons: list[Comparison], console: Console) -> None:
    table = Table(title="Seconds from the StopContainer call (medians)", title_justify="left")
    table.add_column("scenario", no_wrap=True)
    for heading in (
        "memory",
        "stock\nback",
        "stock\ngone",
        "expedited\nback",
        "expedited\ngone",
        "ratio",
        "exit\ncode",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in comparisons:
        stock, expedited = each.stock, each.expedited
        codes = sorted({stop.exit_code for pair in each.pairs for stop in (pair.stock, pair.expedited)})
        table.add_row(
            each.scenario.name,
            format_size(expedited.anon_bytes),
            *(_seconds(value, stock.capped) for value in (stock.memory_back_seconds, stock.gone_seconds)),
            *(_seconds(value, expedited.capped) for value in (expedited.memory_back_seconds, expedited.gone_seconds)),
            f"[bold]{each.ratio:.1f}[/bold]" if each.ratio < 20 else f"[bold]{each.ratio:.0f}[/bold]",
            ", ".join(map(str, codes)),
        )
    console.print(table)
    pairs = " or ".join(map(str, sorted({len(each.pairs) for each in comparisons})))
    for note in (
        *(f"{each.scenario.name}: {each.scenario.about}" for each in comparisons),
        "back: 95% of the container's anonymous memory is free; gone: its cgroup is empty",
        f"ratio: how many times sooner the memory was back, median of {pairs} pairs",
    ):
        _say(console, f"  {note}")


def _say(console: Console, line: str) -> None:
    """A line as it is, however narrow the terminal."""
    console.print(line, soft_wrap=True, highlight=False)


def _seconds(value: float, capped: bool) -> str:
    return f"{'> ' if capped else ''}{value:.3f}" if value < 1 else f"{'> ' if capped else ''}{value:.1f}"


def _print_receipt(stopped: StoppedWorkload, console: Console) -> None:
    report = stopped.report
    took = f"exit code {stopped.exit_code}, after {stopped.stop_seconds:.3f} s"
    _say(console, f"\n[bold]{stopped.name}[/bold], stopped by CRI: {took}")
    order = f" ({report.order})" if report.order else ""
    given_back = f"{format_size(report.bytes_returned)} of {report.process_count} processes given back"
    _say(console, f"its report: {report.outcome.value}{order}, {given_back}; trigger {report.trigger}")
    for step in report.steps:
        _say(console, f"  {step.at_seconds * 1000:8.1f} ms  {step.what}")
