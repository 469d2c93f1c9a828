"""``expedited doctor``: how the findings look."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from expedited.cli.tables import console
from expedited.doctor import Finding, Level, examine, works
from expedited.settings import AgentSettings

__all__ = ["run_doctor", "show", "to_plain"]

# (symbol, the same where the terminal has ASCII only, style)
_LOOKS = {
    Level.OK: ("✔", "+", "green"),
    Level.DEGRADED: ("!", "!", "yellow"),
    Level.BROKEN: ("✘", "x", "bold red"),
    Level.UNKNOWN: ("?", "?", "cyan"),
}
_WORD_COLUMNS = max(len(level.value) for level in Level)
_LABEL_COLUMNS = len("to get it")
_DETAIL_INDENT = 3  # below the word: what is wrong is what is read


def run_doctor(settings: AgentSettings, *, json: bool, config: Path | None = None) -> int:
    """Examine this machine and print what was found.

    Returns:
        0; 1 when the main job can't work here.
    """
    findings = examine(settings, config)
    if json:
        print(json_format.dumps(to_plain(findings)))
    else:
        with suppress(SystemExit):  # rich's, where whoever reads has seen enough: what was found holds all the same
            show(findings, console())
    return 0 if works(findings) else 1


def to_plain(findings: Iterable[Finding]) -> dict[str, Any]:
    """The same as JSON's types."""
    findings = tuple(findings)
    return {
        "works": works(findings),
        "findings": [
            {
                "area": finding.area.value,
                "name": finding.name,
                "found": finding.found,
                "level": finding.level.value,
                "costs": finding.costs,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def show(findings: Sequence[Finding], to: Console) -> None:
    """By area, a line each; below what is missing, what that costs and how to get it."""
    name_columns = max((len(finding.name) for finding in findings), default=0)
    for area, group in groupby(findings, key=lambda finding: finding.area):
        to.print(Text(area.value, style="bold"))
        for finding in group:
            symbol, plain, style = _LOOKS[finding.level]
            mark = Text(symbol if to.encoding.startswith("utf") else plain, style=style)
            word = Text(finding.level.value, style=style)
            to.print(
                _line(
                    1, (1, mark), (_WORD_COLUMNS, word), (name_columns, Text(finding.name)), (None, Text(finding.found))
                )
            )
            if finding.level is not Level.OK:
                for label, text in (("costs", finding.costs), ("to get it", finding.remedy)):
                    to.print(_line(_DETAIL_INDENT, (_LABEL_COLUMNS, Text(label)), (None, Text(text))), style="dim")
    to.print(_summary(findings))


def _line(indent: int, *cells: tuple[int | None, Text]) -> Padding:
    """Cells of so many columns; the last one has the rest of the line, and wraps within it."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for columns, _ in cells:
        grid.add_column(width=columns, overflow="fold")
    grid.add_row(*(text for _, text in cells))
    return Padding(grid, (0, 0, 0, indent), expand=False)


def _summary(findings: Sequence[Finding]) -> Text:
    counts = ((level, sum(1 for finding in findings if finding.level is level)) for level in Level)
    tally = ", ".join(f"{count} {level.value}" for level, count in counts if count)
    if works(findings):
        return Text(f"Kills can be caught and struck here: {tally}.", style="bold")
    return Text(f"The main job can't work here until what is broken is mended: {tally}.", style="bold red")
