"""What the nodes' doctors found: what many nodes lack is one thing to mend, and told once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

__all__ = ["show_findings"]

_ORDER = ("broken", "degraded", "unknown")
_STYLES = {"broken": "bold red", "degraded": "yellow", "unknown": "cyan"}
_NAMED_AT_MOST = 5


def show_findings(nodes: Sequence[dict[str, Any]], to: Console) -> None:
    """The worst first; then how many nodes can do the main job."""
    lacks: dict[tuple[str, ...], list[str]] = {}
    for each in nodes:
        for finding in each.get("findings", ()):
            if finding["level"] != "ok":
                key = tuple(finding[part] for part in ("level", "area", "name", "found", "costs", "remedy"))
                lacks.setdefault(key, []).append(each["node"])
    for key, where in sorted(lacks.items(), key=lambda item: (_rank(item[0][0]), -len(item[1]))):
        level, area, name, found, costs, remedy = key
        style = _STYLES.get(level, "")
        to.print(f"{level}: {area}: {name}: {found}", style=style, soft_wrap=True, highlight=False, markup=False)
        for label, text in (("nodes", _listed(where, len(nodes))), ("costs", costs), ("to get it", remedy)):
            to.print(f"  {label:<9}  {text}", soft_wrap=True, highlight=False, markup=False)
    able = [each["node"] for each in nodes if each.get("works")]
    if nodes:
        to.print(f"Kills can be caught and struck on {len(able)} of {len(nodes)} nodes.", style="bold", highlight=False)


def _rank(level: str) -> int:
    return _ORDER.index(level) if level in _ORDER else len(_ORDER)


def _listed(names: Sequence[str], all_there_are: int) -> str:
    if len(names) == all_there_are > 1:
        return f"all {all_there_are}"
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
