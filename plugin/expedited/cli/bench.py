"""``expedited bench``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.progress import Progress as Bar
from rich.table import Table

from expedited.bench import gate, strike
from expedited.bench.figures import Progress
from expedited.cli.tables import console

__all__ = ["bench_gate", "bench_strike"]


def bench_gate(runs: int | None, *, as_json: bool) -> int:
    """Measure, and print a table or JSON; always 0, as a slow machine is no error."""
    options = gate.GateOptions() if runs is None else gate.GateOptions(runs=runs)
    with _progress(as_json) as progress:
        result = gate.run(options, _reporter(progress))
    _print(gate.COLUMNS, gate.rows(result), result, as_json=as_json)
    return 0


def bench_strike(runs: int | None, *, as_json: bool) -> int:
    """The same for strikes."""
    options = strike.StrikeOptions() if runs is None else strike.StrikeOptions(runs=runs)
    with _progress(as_json) as progress:
        result = strike.run(options, _reporter(progress))
    _print(strike.COLUMNS, strike.rows(result), result, as_json=as_json)
    return 0


def _progress(hidden: bool) -> Bar:
    return Bar(transient=True, disable=hidden or not sys.stdout.isatty())


def _reporter(progress: Bar) -> Progress:
    task = progress.add_task("", total=None)

    def report(what: str, done: int, total: int) -> None:
        progress.update(task, description=what, completed=done, total=total)

    return report


def _print(
    columns: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    result: gate.GateResult | strike.StrikeResult,
    *,
    as_json: bool,
) -> None:
    if as_json:
        print(json.dumps(result.to_json()))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    terminal = console()
    terminal.print(table)
    verdict = "within the target" if result.within_target else "over the target"
    terminal.print(f"{verdict}; {result.conditions.describe()}", soft_wrap=True, highlight=False)
