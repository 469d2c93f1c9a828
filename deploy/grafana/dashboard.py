"""Makes the Grafana dashboard from the metric table: ``uv run python deploy/grafana/dashboard.py >deploy/grafana/expedited.json``.

A panel says which metric it is about and how it is asked for; name, unit and description come from the table, so that a
metric that is renamed there can't be forgotten here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from expedited.metrics.table import named

_UNITS = {"seconds": "s", "bytes": "bytes", "": "short"}
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
# How each way of asking turns a metric's name into PromQL; {by} is what it is summed by
_ON = 'instance=~"$instance"'
_RATE = "sum{by} (rate({name}{{{on}}}[$__rate_interval]))"
_INCREASE = "sum{by} (increase({name}{{{on}}}[$__range]))"
_EACH = "sum{by} (increase({name}{{{on}}}[$__rate_interval]))"
_NOW = "sum{by} ({name}{{{on}}})"
# Struck stops are back in milliseconds, others in a minute: on an axis of equal steps the former are a line at zero
_LOGARITHMIC = {"custom": {"scaleDistribution": {"type": "log", "log": 10}}}
_QUANTILE = "histogram_quantile({share}, sum by ({by}le) (rate({name}_bucket{{{on}}}[$__rate_interval])))"


@dataclass(frozen=True)
class Query:
    """One line of a panel.

    Attributes:
        metric: Its name in the table.
        how: One of the templates above.
        by: Labels that are kept.
        legend: Grafana's template for the line's name.
        share: Of a quantile.
        only: One more condition on labels.
    """

    metric: str
    how: str
    by: tuple[str, ...] = ()
    legend: str = ""
    share: float = 0.5
    only: str = ""

    @property
    def expression(self) -> str:
        """PromQL."""
        on = ", ".join(part for part in (_ON, self.only) if part)
        if self.how == _QUANTILE:
            by = "".join(f"{label}, " for label in self.by)
            return self.how.format(name=named(self.metric).name, share=self.share, by=by, on=on)
        by = f" by ({', '.join(self.by)})" if self.by else ""
        return self.how.format(name=named(self.metric).name, by=by, on=on)


@dataclass(frozen=True)
class Panel:
    """One panel; its unit is that of the first query's metric, per second where that is a rate."""

    title: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    unit: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def _quantiles(metric: str, *by: str) -> tuple[Query, ...]:
    prefix = "".join(f"{{{{{label}}}}} " for label in by)
    return tuple(Query(metric, _QUANTILE, by, f"{prefix}p{share * 100:.0f}", share) for share in (0.5, 0.99))


_RETURNED = "expedited_memory_returned_bytes_total"
_ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "What came back",
        (
            Panel("Memory given back", (Query(_RETURNED, _INCREASE),), "stat", 6, 4),
            Panel("Stops", (Query("expedited_stops_total", _INCREASE),), "stat", 6, 4),
            Panel(
                "Page cache given back", (Query("expedited_page_cache_dropped_bytes_total", _INCREASE),), "stat", 6, 4
            ),
            Panel("Nodes", (Query("expedited_info", "count({name}{{{on}}})"),), "stat", 6, 4),
            Panel(
                "Memory back after the kill, or the end",
                _quantiles("expedited_memory_back_seconds", "outcome"),
                width=12,
                extra=_LOGARITHMIC,
            ),
            Panel(
                "Gone after the kill, or the end",
                _quantiles("expedited_gone_seconds", "outcome"),
                width=12,
                extra=_LOGARITHMIC,
            ),
            Panel("Stops by outcome", (Query("expedited_stops_total", _RATE, ("outcome",), "{{outcome}}"),)),
            Panel("Stops by trigger", (Query("expedited_stops_total", _RATE, ("trigger",), "{{trigger}}"),)),
            Panel("Memory given back by outcome", (Query(_RETURNED, _RATE, ("outcome",), "{{outcome}}"),)),
            Panel(
                "Page cache given back by whose",
                (Query("expedited_page_cache_dropped_bytes_total", _RATE, ("of",), "{{of}}"),),
            ),
            Panel("Boosts", (Query("expedited_boosts_total", _RATE, ("lever",), "{{lever}}"),)),
            Panel("Lost races", (Query("expedited_lost_races_total", _RATE, (), "processes"),)),
        ),
    ),
    (
        "The gate",
        (
            Panel("Held for", _quantiles("expedited_gate_latency_seconds"), extra=_LOGARITHMIC),
            Panel("Opens judged", (Query("expedited_gate_events_total", _RATE, ("instance",), "{{instance}}"),)),
            Panel(
                "Overruns, restarts, losses",
                (
                    Query("expedited_gate_overruns_total", _EACH, ("instance",), "{{instance}} overruns"),
                    Query("expedited_gate_restarts_total", _EACH, ("instance",), "{{instance}} restarts"),
                    Query("expedited_source_lost_total", _EACH, ("instance",), "{{instance}} losses"),
                ),
                unit="short",
            ),
        ),
    ),
    (
        "The agents",
        (
            Panel(
                "Connected",
                (Query("expedited_connected", "min by (to) ({name}{{{on}}})", legend="{{to}}"),),
                extra={"min": 0, "max": 1},
            ),
            Panel("Connections made", (Query("expedited_connections_total", _EACH, ("to",), "{{to}}"),), unit="short"),
            Panel(
                "Containers known, and gated",
                (
                    Query("expedited_containers", _NOW, (), "known"),
                    Query("expedited_gated_containers", _NOW, (), "gated"),
                ),
            ),
            Panel(
                "Resident memory, the largest",
                (
                    Query(
                        "expedited_process_resident_memory_bytes",
                        "max by (process) ({name}{{{on}}})",
                        legend="{{process}}",
                    ),
                ),
            ),
            Panel(
                "Events told to Kubernetes",
                (Query("expedited_kubernetes_events_total", _RATE, ("result",), "{{result}}"),),
            ),
            Panel(
                "Running for",
                (Query("expedited_start_time_seconds", "time() - {name}{{{on}}}", legend="{{instance}}"),),
                unit="s",
            ),
            Panel(
                "Versions, kernels, sources",
                (
                    Query(
                        "expedited_info",
                        "count by (version, kernel, source) ({name}{{{on}}})",
                        legend="{{version}} {{kernel}} {{source}}",
                    ),
                ),
                "bargauge",
                24,
                5,
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in _ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
                "panels": [],
            }
        )
        x, y, tallest = 0, y + 1, 0
        for panel in row:
            if x + panel.width > _COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return {
        "uid": "expedited",
        "title": "expedited",
        "description": "What killed containers gave back, and when; the kill gate; the agents.",
        "tags": ["expedited", "kubernetes", "memory"],
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "instance",
                    "type": "query",
                    "label": "Node's agent",
                    "datasource": _SOURCE,
                    "query": {"query": f"label_values({named('expedited_info').name}, instance)", "refId": "instance"},
                    "refresh": 2,
                    "sort": 1,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": ["All"], "value": ["$__all"]},
                },
            ]
        },
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    metrics = [named(query.metric) for query in panel.queries]
    unit = panel.unit or _UNITS[metrics[0].unit]
    if not panel.unit and panel.queries[0].how == _RATE:
        unit = {"bytes": "Bps", "short": "ops"}[unit]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": " ".join(dict.fromkeys(metric.words for metric in metrics)),
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        # There is no zero on a logarithmic axis
        "fieldConfig": {"defaults": {"unit": unit, **(panel.extra or {"min": 0})}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend or panel.title,
                "range": panel.kind == "timeseries",
                "instant": panel.kind != "timeseries",
            }
            for index, query in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    print()
