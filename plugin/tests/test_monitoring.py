"""Rules, alerts and dashboard: that they ask for metrics that there are, in words that a real Prometheus understands."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from expedited.api.backend import GateLatency, ProcessStatus, Status
from expedited.metrics.exporter import Metrics
from expedited.metrics.table import TABLE
from expedited.stop import Stop
from expedited.teardown.report import Memory, Outcome, Report

_DEPLOY = Path(__file__).parents[2] / "deploy"
_DASHBOARD = _DEPLOY / "grafana/expedited.json"
_RULES = _DEPLOY / "prometheus/rules.yaml"
_NAME = re.compile(r"(?<![\w:])expedited_\w+")


def _expressions() -> list[str]:
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(_RULES.read_text())["groups"] for rule in group["rules"]]


def _metrics_in(expression: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in _NAME.findall(expression)}


def test_the_dashboard_is_what_the_table_makes_of_it() -> None:
    made = subprocess.run(
        [sys.executable, str(_DEPLOY / "grafana/dashboard.py")], capture_output=True, text=True, check=True
    )
    assert _DASHBOARD.read_text() == made.stdout, "deploy/grafana/dashboard.py >deploy/grafana/expedited.json"


def test_every_metric_is_in_the_dashboard_and_every_metric_in_it_exists() -> None:
    asked = set().union(*(_metrics_in(expression) for expression in _expressions()))
    assert asked == {metric.name for metric in TABLE}


def test_rules_and_alerts_ask_for_metrics_that_there_are() -> None:
    asked = set().union(*(_metrics_in(rule["expr"]) for rule in _rules()))
    assert asked <= {metric.name for metric in TABLE}
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    used = set().union(*(set(re.findall(r"\w+:expedited\w*:\w+", rule["expr"])) for rule in _rules()))
    assert used <= recorded


def test_the_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("arguments", [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]])
def test_promtool_takes_the_rules(arguments: list[str]) -> None:
    said = subprocess.run(["promtool", *arguments], cwd=_RULES.parent, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((_RULES.parent / "rules_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in _rules() if "alert" in rule}


# -- a real Prometheus -------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _stop(outcome: Outcome, seconds: float) -> Stop:
    return Stop(
        Report(
            container_id="c",
            cgroup="/c",
            trigger="gate:kill",
            mode="strike",
            outcome=outcome,
            reason="",
            started_at=0.0,
            before=Memory(1 << 30, 0, 0, 0),
            after=Memory(0, 0, 0, 0),
            memory_back_seconds=seconds,
            gone_seconds=seconds,
            page_cache_dropped_bytes=4096,
            process_count=1,
            boosted=("rt",),
        )
    )


_STATUS = Status(
    version="1", striker="ok", nri="ok", containerd="ok", containers=5, gated=4, stops=1,
    processes=(ProcessStatus("agent", 1, 4096, 2048),), kernel="stock", started_at=100.0, gate_events=10,
    gate_overruns=0, gate_restarts=0, kubernetes="ok", source="fanotify", connections={"striker": 1},
    gate_latency=GateLatency((5, 3) + (0,) * 12, 0.001), kubernetes_events=(1, 0),
)  # fmt: skip


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has our rules and scrapes an exporter that counts; its address."""
    directory = tmp_path_factory.mktemp("prometheus")
    ours, its = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
    metrics = Metrics()
    metrics.status(_STATUS)
    close = metrics.serve(ours)
    (directory / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(_RULES)],
                "scrape_configs": [{"job_name": "expedited", "static_configs": [{"targets": [ours]}]}],
            }
        )
    )
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={its}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        for number in range(1, 1000):
            metrics.stop(_stop(Outcome.STRUCK, 0.1))
            metrics.stop(_stop(Outcome.OBSERVED, 5.0))
            events = 10 + number
            latency = GateLatency((events, 3) + (0,) * 12, 0.001)
            metrics.status(replace(_STATUS, gate_events=events, gate_latency=latency))
            assert server.poll() is None, (directory / "log").read_text()
            # Rates want at least two scrapes, and rules an evaluation after those
            medians = _ask(its, "outcome:expedited_memory_back_seconds:p50_5m")
            if medians and all(each["value"][1] != "NaN" for each in medians):
                break
            time.sleep(0.1)
        yield its
    finally:
        server.terminate()
        server.wait()
        close()


def _ask(address: str, expression: str) -> list[dict[str, Any]]:
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url) as answer:
            return list(json.load(answer)["data"]["result"])
    except (urllib.error.URLError, ConnectionError):
        return []


def _as_grafana_asks(address: str, target: dict[str, Any]) -> list[dict[str, Any]]:
    """The series of a panel's query, with Grafana's variables filled in: over the last minute, or for now."""
    expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m").replace("$__range", "1h")
    if target["instant"]:
        give_up_at = time.monotonic() + 30
        # A scrape that came too late on a busy machine is an empty answer until the next one
        while not (samples := _ask(address, expression)) and time.monotonic() < give_up_at:
            time.sleep(0.2)
        return [{**sample, "values": [sample["value"]]} for sample in samples]
    now = time.time()
    words = {"query": expression, "start": now - 60, "end": now, "step": 1}
    with urllib.request.urlopen(f"http://{address}/api/v1/query_range?{urllib.parse.urlencode(words)}") as answer:
        return list(json.load(answer)["data"]["result"])


def test_every_panel_has_something_to_show(prometheus: str) -> None:
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    targets = [(panel["title"], target) for panel in panels for target in panel.get("targets", ())]
    empty = []
    for title, target in targets:
        series = _as_grafana_asks(prometheus, target)
        # An outcome that nothing came to has no quantiles
        last = [each["values"][-1][1] for each in series if "outcome" not in each["metric"]]
        if not series or "NaN" in last:
            empty.append(title)
    assert targets
    assert empty == []


def test_the_legend_of_a_panel_tells_its_series_apart(prometheus: str) -> None:
    for panel in json.loads(_DASHBOARD.read_text())["panels"]:
        names = []
        for target in panel.get("targets", ()):
            for series in _as_grafana_asks(prometheus, target):
                label = series["metric"]
                names.append(re.sub(r"\{\{(\w+)\}\}", lambda word, label=label: label[word[1]], target["legendFormat"]))
        assert len(names) == len(set(names)), panel["title"]


def test_the_dashboards_list_of_agents_is_prometheus_own(prometheus: str) -> None:
    (variable,) = (
        each for each in json.loads(_DASHBOARD.read_text())["templating"]["list"] if each["name"] == "instance"
    )
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
    assert [series["metric"][label] for series in _ask(prometheus, metric)]


def test_the_recorded_medians_tell_struck_from_observed(prometheus: str) -> None:
    samples = _ask(prometheus, "outcome:expedited_memory_back_seconds:p50_5m")
    medians = {sample["metric"]["outcome"]: float(sample["value"][1]) for sample in samples}
    assert medians["struck"] <= 0.1
    assert 2.5 < medians["observed"] <= 5.0


def test_no_alert_is_up(prometheus: str) -> None:
    give_up_at = time.monotonic() + 30  # one late scrape makes an alert pending, until the next
    while up := _ask(prometheus, 'ALERTS{alertname=~"Expedited.*"}'):
        assert time.monotonic() < give_up_at, up
        time.sleep(0.5)
