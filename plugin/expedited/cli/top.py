"""``expedited top``."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """Show it until q or Ctrl-C, or once."""
    terminal = console()
    with ApiClient(settings.api_socket) as agent:
        if as_json:
            containers, stops = agent.containers(), agent.stops(_STOPS_AT_MOST)
            print(json.dumps({"containers": [*map(to_plain, containers)], "stops": [*map(to_plain, stops)]}))
            return
        if once or not terminal.is_terminal:
            terminal.print(_picture(agent, terminal.width))
            return
        try:
            first = _picture(agent, terminal.width, terminal.height)
            # The keyboard first: who sees the first picture may press a key. And that is not drawn while Live begins, as an
            # interrupt would then find nobody to take it off the screen.
            with _ended_in_order(), _keys() as pressed, Live(console=terminal, screen=True, auto_refresh=False) as live:
                live.update(first, refresh=True)
                while pressed(every_seconds) != b"q":
                    live.update(_picture(agent, terminal.width, terminal.height), refresh=True)
        except KeyboardInterrupt:
            pass


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Whoever ends it by a signal finds the terminal as it was."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keys() -> Iterator[Callable[[float], bytes]]:
    """Gives a function that waits so many seconds for a key; without a terminal to read from it only waits."""
    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None

    def pressed(seconds: float) -> bytes:
        watched = [] if keyboard is None else [keyboard]
        return os.read(watched[0], 1) if select.select(watched, [], [], seconds)[0] else b""

    if keyboard is None:
        yield pressed
        return
    before = termios.tcgetattr(keyboard)
    # A key counts at once, and is not shown; one typed ahead is kept (the default, TCSAFLUSH, throws it away)
    tty.setcbreak(keyboard, termios.TCSADRAIN)
    try:
        yield pressed
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _picture(agent: ApiClient, width: int, rows: int | None = None) -> RenderableType:
    containers = sorted(agent.containers(), key=lambda each: -each.memory.anon_bytes)
    # A pod's pause, which is too small to be struck, is no news
    stops = [stop for stop in agent.stops(4 * _STOPS_AT_MOST) if stop.container_name or stop.outcome != "skipped"]
    stops = stops[:_STOPS_AT_MOST]
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
    return Group(head, containers_table(shown), Text(more), stops_table(stops, "recent stops", width=width))
