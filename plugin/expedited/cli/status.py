"""``expedited status``."""

from __future__ import annotations

import json
from datetime import datetime

from rich.table import Table
from rich.text import Text

from expedited.api.client import ApiClient
from expedited.api.convert import to_plain
from expedited.cli.tables import console
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.quantity import format_size
from expedited.settings import AgentSettings

__all__ = ["show_status"]


def show_status(settings: AgentSettings, *, as_json: bool) -> int:
    """Print it.

    Returns:
        0; 1 when the main job does not work, as no striker is at work.
    """
    with ApiClient(settings.api_socket) as agent:
        status = agent.status()
    if as_json:
        print(json.dumps(to_plain(status)))
    else:
        console().print(_table(status))
    return 0 if status.striker == "ok" else 1


def _table(status: pb.Status) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    since = datetime.fromtimestamp(status.started_at).strftime("%Y-%m-%d %H:%M:%S")
    table.add_row("agent", f"{status.version}, since {since}")
    for name in ("striker", "nri", "containerd", "kubernetes"):
        table.add_row(name, Text(getattr(status, name)))
    table.add_row("kernel", status.kernel or "-")
    table.add_row("containers", f"{status.containers} known, {status.gated} gated")
    gate = f"{status.gate_events} events, {status.gate_overruns} over budget, {status.gate_restarts} restarts"
    table.add_row("gate", gate)
    table.add_row("source", _source(status))
    table.add_row("stops", str(status.stops))
    for process in status.processes:
        memory = f"{format_size(process.rss_bytes)} resident, {format_size(process.pss_bytes)} its own share"
        table.add_row(process.name, f"pid {process.pid}, {memory}")
    return table


def _source(status: pb.Status) -> str:
    degraded = status.source not in ("", "fanotify")
    said = f"{status.source}: degraded, kills are followed and not held" if degraded else status.source
    lost = f"events lost {status.source_lost} times, and kills among them not seen" if status.source_lost else ""
    return "; ".join(part for part in (said, lost) if part)
