"""``expedited top``."""

from __future__ import annotations

import json
import time

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from expedited.api.client import ApiClient
from expedited.api.convert import to_plain
from expedited.cli.tables import console, containers_table, stops_table
from expedited.quantity import format_size
from expedited.settings import AgentSettings

__all__ = ["show_top"]

_STOPS_AT_MOST = 8


def show_top(settings: AgentSettings, *, once: bool, every_seconds: float, as_json: bool) -> None:
    """Show it until Ctrl-C, or once."""
    terminal = console()
    with ApiClient(settings.api_socket) as agent:
        if as_json:
            print(json.dumps({"containers": [to_plain(each) for each in agent.containers()]}))
            return
        if once or not terminal.is_terminal:
            terminal.print(_picture(agent, rows=None))
            return
        try:
            with Live(_picture(agent, rows=terminal.height), console=terminal, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(every_seconds)
                    live.update(_picture(agent, rows=terminal.height), refresh=True)
        except KeyboardInterrupt:
            pass


def _picture(agent: ApiClient, rows: int | None) -> RenderableType:
    containers = sorted(agent.containers(), key=lambda each: -each.memory.anon_bytes)
    stops = agent.stops(_STOPS_AT_MOST)
    status = agent.status()
    held = sum(each.memory.anon_bytes for each in containers)
    head = Text(
        f"expedited {status.version}  {len(containers)} containers, {format_size(held)}  {status.gated} gated  "
        f"{status.stops} stops  striker {status.striker}  {status.kernel}",
        style="reverse",
        no_wrap=True,
        overflow="ellipsis",
    )
    # The rest of a screen: heading, two table heads, a blank line
    shown = containers if rows is None else containers[: max(1, rows - len(stops) - 6)]
    more = f"and {len(containers) - len(shown)} more" if len(shown) < len(containers) else ""
    return Group(head, containers_table(shown), Text(more), stops_table(stops, "recent stops"))
