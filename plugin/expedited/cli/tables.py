"""How stops and containers look in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from expedited.pb.v1 import expedited_pb2 as pb
from expedited.quantity import format_seconds, format_size

__all__ = ["StopLines", "console", "containers_table", "outcome_text", "print_steps", "stops_table"]

_STYLES = {
    "struck": "green",
    "exited": "green",
    "observed": "cyan",
    "watched": "cyan",
    "skipped": "dim",
    "deadline": "yellow",
    "failed": "bold red",
}
_SHORT_ID = 12
_WIDE = 160
_HEADINGS = ("time", "container", "outcome", "back", "after", "gone", "order", "trigger")
_RIGHT = ("back", "after", "gone")
# The last of the headings, for which a narrow terminal has no room beside names
_ONLY_WIDE = 2
_NARROW = 110


def stops_table(stops: Iterable[pb.Stop], title: str | None = None, *, width: int = _WIDE) -> Table:
    """One row a stop; with the less important columns only where there is the width."""
    columns = len(_HEADINGS) if width >= _NARROW else len(_HEADINGS) - _ONLY_WIDE
    table = _table(_HEADINGS[:columns], _RIGHT, title)
    for stop in stops:
        table.add_row(*_stop_row(stop)[:columns])
    return table


class StopLines:
    """Stops one by one, as they come: a table whose rows are not all known when its columns get their widths.

    Args:
        to: Where they are printed, under headings that come first.
    """

    # What takes more is shown all the same, and moves its own line alone
    _WIDTHS = (8, 36, 8, 9, 8, 8, 6, 0)

    def __init__(self, to: Console) -> None:
        self._to = to
        self._columns = len(_HEADINGS) if to.width >= _NARROW else len(_HEADINGS) - _ONLY_WIDE
        self._print([Text(heading, style="bold") for heading in _HEADINGS])

    def add(self, stop: pb.Stop) -> None:
        """One more."""
        self._print([each if isinstance(each, Text) else Text(each) for each in _stop_row(stop)])

    def _print(self, cells: list[Text]) -> None:
        line = Text("  ").join(
            self._padded(cell, heading, width)
            for cell, heading, width in zip(cells, _HEADINGS, self._WIDTHS, strict=True)
            if heading in _HEADINGS[: self._columns]
        )
        line.rstrip()
        self._to.print(line, soft_wrap=True, highlight=False)

    @staticmethod
    def _padded(cell: Text, heading: str, width: int) -> Text:
        padding = Text(" " * (width - cell.cell_len))
        return padding + cell if heading in _RIGHT else cell + padding


def _stop_row(stop: pb.Stop) -> tuple[str | Text, ...]:
    return (
        datetime.fromtimestamp(stop.started_at).strftime("%H:%M:%S"),
        _label(stop.pod, stop.container_name, stop.container_id[:_SHORT_ID] or stop.cgroup),
        outcome_text(stop.outcome),
        format_size(stop.bytes_returned),
        format_seconds(_known(stop, "memory_back_seconds")),
        format_seconds(_known(stop, "gone_seconds")),
        stop.order or "-",
        stop.trigger,
    )


def outcome_text(outcome: str) -> Text:
    """The word in its colour."""
    return Text(outcome, style=_STYLES.get(outcome, ""))


def print_steps(stop: pb.Stop, to: Console) -> None:
    """The story of one stop, a line each."""
    if stop.reason:
        to.print(f"    {stop.reason}", soft_wrap=True, highlight=False, markup=False)
    for step in stop.steps:
        to.print(f"    {step.at_seconds * 1000:9.1f} ms  {step.what}", soft_wrap=True, highlight=False, markup=False)


def containers_table(containers: Iterable[pb.Container], title: str | None = None) -> Table:
    """One row a container, the largest first."""
    headings = ("container", "id", "state", "memory", "files", "mode", "gated")
    table = _table(headings, ("memory", "files"), title)
    for each in sorted(containers, key=lambda known: -known.memory.anon_bytes):
        table.add_row(
            _label(each.pod, each.name, each.id[:_SHORT_ID]),
            each.id[:_SHORT_ID],
            _state(each),
            held(each, "anon_bytes"),
            held(each, "file_bytes"),
            each.policy.mode,
            "yes" if each.gated else Text("no", style="yellow"),
        )
    return table


def held(container: pb.Container, kind: str) -> str:
    """What it holds of a kind of memory, if that is known: of a container that only the striker sees it is not."""
    return format_size(getattr(container.memory, kind)) if container.HasField("memory") else "-"


def _state(container: pb.Container) -> str | Text:
    if not container.HasField("stopping_since"):
        return container.state
    return Text(f"stopping {max(0, time.time() - container.stopping_since):.0f} s", style="yellow")


def _table(headings: Iterable[str], right: Iterable[str], title: str | None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        # The only one that may be squeezed; what it says is cut, and not broken into lines
        squeezed = heading == "container"
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=not squeezed)
    return table


def _label(pod: pb.Pod, name: str, otherwise: str) -> Text:
    where = f"{pod.namespace}/{pod.name}" if pod.name else ""
    label = "/".join(part for part in (where, name) if part) or otherwise
    return Text(label, no_wrap=True, overflow="ellipsis")


def console() -> Console:
    """A console for tables: as wide as the terminal, and wide enough for every name where it is none."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def _known(stop: pb.Stop, name: str) -> float | None:
    return getattr(stop, name) if stop.HasField(name) else None
