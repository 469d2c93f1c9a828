"""``expedited stops``."""

from __future__ import annotations

import json

from rich.console import Console

from expedited.api.client import ApiClient
from expedited.api.convert import to_plain
from expedited.cli.tables import StopLines, console, print_steps, stops_table
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.settings import AgentSettings

__all__ = ["show_stops"]


def show_stops(settings: AgentSettings, *, prefix: str, follow: bool, limit: int, steps: bool, as_json: bool) -> None:
    """Print them, the oldest first; with ``follow`` until Ctrl-C."""
    terminal = console()
    with ApiClient(settings.api_socket) as agent:
        found = [stop for stop in reversed(agent.stops()) if _is_of(stop, prefix)]
        if not follow:
            _print(found[-limit:] if limit else found, terminal, steps=steps, as_json=as_json, prefix=prefix)
            return
        lines = None if as_json else StopLines(terminal)
        unwanted = len(found) - limit if limit else 0
        try:
            for stop in agent.watch(replay=True):
                if not _is_of(stop, prefix):
                    continue
                if unwanted > 0:
                    unwanted -= 1
                    continue
                if lines is None:
                    print(json.dumps(to_plain(stop)), flush=True)
                else:
                    lines.add(stop)
                    if steps:
                        print_steps(stop, terminal)
        except KeyboardInterrupt:
            pass


def _is_of(stop: pb.Stop, prefix: str) -> bool:
    pod = f"{stop.pod.namespace}/{stop.pod.name}" if stop.pod.name else ""
    names = (stop.container_id, stop.container_name, pod, stop.pod.name, stop.cgroup)
    return any(name.startswith(prefix) for name in names)


def _print(stops: list[pb.Stop], terminal: Console, *, steps: bool, as_json: bool, prefix: str) -> None:
    if as_json:
        for stop in stops:
            print(json.dumps(to_plain(stop)))
        return
    if not stops:
        terminal.print(f"no stop of {prefix!r} is remembered" if prefix else "no stops yet")
        return
    for group in [[stop] for stop in stops] if steps else [stops]:
        table = stops_table(group, width=terminal.width)
        table.show_header = group[0] is stops[0]
        terminal.print(table)
        if steps:
            print_steps(group[0], terminal)
