"""The figures for Prometheus, read over HTTP as Prometheus reads them."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from expedited.api.backend import GateLatency, ProcessStatus, Status
from expedited.errors import ExpeditedError, UsageError
from expedited.metrics.exporter import Metrics
from expedited.metrics.reference import reference
from expedited.metrics.table import TABLE, Kind
from expedited.stop import Stop
from expedited.teardown import boost
from expedited.teardown.report import Fate, Memory, Outcome, ProcessReport, Report

_REPORT = Report(
    number=1,
    container_id="c1",
    cgroup="/c1",
    trigger="gate:kill",
    mode="strike",
    order="lead",
    outcome=Outcome.STRUCK,
    reason="",
    started_at=0.0,
    before=Memory(1000, 0, 0, 0),
    after=Memory(0, 0, 0, 0),
    signalled_seconds=0.001,
    answered_seconds=None,
    memory_back_seconds=0.02,
    gone_seconds=0.2,
    lead_seconds=None,
    page_cache_dropped_bytes=64,
    process_count=1,
    lost_races=1,
    processes=(ProcessReport(5, 1000, Fate.LOST_RACE),),
    boosted=("rt",),
    steps=(),
)
_STATUS = Status(
    version="1",
    striker="ok",
    nri="dialling",
    containerd="off",
    containers=5,
    gated=4,
    stops=1,
    processes=(ProcessStatus("agent", 1, 4096, 2048),),
    kernel="stock",
    started_at=100.0,
    gate_events=10,
    gate_overruns=2,
    gate_restarts=1,
    kubernetes="ok",
    source="fanotify",
    source_lost=4,
    connections={"striker": 1, "nri": 3, "kubernetes": 2},
    gate_latency=GateLatency((5, 3, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0), 0.2),
    kubernetes_events=(7, 1),
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def address(metrics: Metrics) -> Iterator[str]:
    name = f"127.0.0.1:{_free_port()}"
    close = metrics.serve(name)
    yield name
    close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _scrape(address: str) -> dict[tuple[str, ...], float]:
    """(sample's name, the labels' values in their names' order) -> value."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_stop_is_counted_by_what_was_done(metrics: Metrics, address: str) -> None:
    metrics.stop(Stop(_REPORT))
    metrics.stop(Stop(_REPORT))
    metrics.stop(Stop(replace(_REPORT, mode="observe", outcome=Outcome.OBSERVED, trigger="gate:delete", before=None)))

    figures = _scrape(address)

    assert figures["expedited_stops_total", "strike", "struck", "gate:kill"] == 2
    assert figures["expedited_stops_total", "observe", "observed", "gate:delete"] == 1
    assert figures["expedited_memory_returned_bytes_total", "struck"] == 2000
    assert figures["expedited_memory_returned_bytes_total", "observed"] == 0
    assert figures["expedited_lost_races_total",] == 3
    assert figures["expedited_memory_back_seconds_bucket", "0.01", "struck"] == 0
    assert figures["expedited_memory_back_seconds_bucket", "0.025", "struck"] == 2
    assert figures["expedited_gone_seconds_sum", "struck"] == pytest.approx(0.4)
    assert figures["expedited_page_cache_dropped_bytes_total", "container"] == 3 * 64
    assert figures["expedited_boosts_total", "rt"] == 3
    assert figures["expedited_boosts_total", "quota"] == 0


def test_the_page_cache_of_pods_is_counted_apart(metrics: Metrics, address: str) -> None:
    metrics.pod_cache_dropped(100)
    metrics.pod_cache_dropped(11)
    figures = _scrape(address)
    assert figures["expedited_page_cache_dropped_bytes_total", "pod"] == 111
    assert figures["expedited_page_cache_dropped_bytes_total", "container"] == 0


def test_the_first_failure_is_an_increase(metrics: Metrics, address: str) -> None:
    """A series that begins at 1 is no increase to Prometheus: those that an alert asks for begin at 0."""
    assert _scrape(address)["expedited_stops_total", "strike", "failed", "gate:kill"] == 0
    metrics.stop(Stop(replace(_REPORT, outcome=Outcome.FAILED)))
    assert _scrape(address)["expedited_stops_total", "strike", "failed", "gate:kill"] == 1


def test_what_was_not_measured_is_in_no_histogram(metrics: Metrics, address: str) -> None:
    metrics.stop(Stop(replace(_REPORT, memory_back_seconds=None, gone_seconds=None)))
    figures = _scrape(address)
    assert ("expedited_gone_seconds_count", "struck") not in figures
    assert ("expedited_memory_back_seconds_count", "struck") not in figures


def test_the_latest_status_is_shown(metrics: Metrics, address: str) -> None:
    assert ("expedited_containers",) not in _scrape(address)
    metrics.status(_STATUS)
    metrics.status(replace(_STATUS, containers=6, gate_events=12))

    figures = _scrape(address)

    assert figures["expedited_containers",] == 6
    assert figures["expedited_gated_containers",] == 4
    assert figures["expedited_gate_events_total",] == 12
    assert figures["expedited_gate_overruns_total",] == 2
    assert figures["expedited_gate_restarts_total",] == 1
    assert figures["expedited_source_lost_total",] == 4
    assert figures["expedited_process_resident_memory_bytes", "agent"] == 4096
    assert figures["expedited_connected", "striker"] == 1
    assert figures["expedited_connected", "nri"] == 0
    assert ("expedited_connected", "containerd") not in figures
    assert figures["expedited_connections_total", "nri"] == 3
    assert figures["expedited_kubernetes_events_total", "dropped"] == 1
    assert figures["expedited_gate_latency_seconds_bucket", "5e-05"] == 5
    assert figures["expedited_gate_latency_seconds_bucket", "0.0001"] == 8
    assert figures["expedited_gate_latency_seconds_bucket", "2.0"] == 10
    assert figures["expedited_gate_latency_seconds_count",] == 10
    assert figures["expedited_gate_latency_seconds_sum",] == 0.2
    assert figures["expedited_info", "stock", "fanotify", "1"] == 1


def _families(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        return {each.name: each for each in text_string_to_metric_families(answer.read().decode())}


def test_what_is_shown_is_what_the_table_says(metrics: Metrics, address: str) -> None:
    metrics.stop(Stop(_REPORT))
    metrics.status(_STATUS)

    families = _families(address)

    shown = {f"{name}_total" if each.type == "counter" else name: each for name, each in families.items()}
    assert set(shown) == {metric.name for metric in TABLE}
    for metric in TABLE:
        family = shown[metric.name]
        assert (family.type, family.documentation) == (metric.kind.value, metric.words)
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels == {label.name for label in metric.labels}
        for sample in family.samples:
            for label in metric.labels:
                assert sample.labels[label.name] in label.values or label.values == ("(one)",)


def test_a_node_makes_few_series() -> None:
    """Whatever its pods are called, and however many they are: those that can be there at once."""
    assert sum(metric.series for metric in TABLE) <= 400


def test_there_is_nothing_but_what_was_asked_for(address: str) -> None:
    assert not [name for name in _families(address) if name.endswith("_created")]


def test_promtool_finds_nothing_to_complain_of(metrics: Metrics, address: str) -> None:
    metrics.stop(Stop(_REPORT))
    metrics.status(_STATUS)
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        text = answer.read()
    said = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")


def test_the_reference_is_what_the_table_says() -> None:
    committed = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    assert committed == reference(), "python -m expedited.metrics.reference >docs/metrics.md"


def test_the_boosts_of_the_engine_are_the_labels_of_the_metric() -> None:
    source = Path(boost.__file__).read_text()
    (levers,) = [metric.labels[0].values for metric in TABLE if metric.name == "expedited_boosts_total"]
    assert all(f'"{lever}"' in source for lever in levers)


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Any) -> None:
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.words.endswith(".")
    for values in metric.seen_from_start:
        assert all(value in label.values for value, label in zip(values, metric.labels, strict=True))


@pytest.mark.parametrize("address", ["", "9788", "localhost:", ":9788", "localhost:http", "localhost:0", "h:65536"])
def test_what_is_no_host_and_port_is_a_usage_error(metrics: Metrics, address: str) -> None:
    with pytest.raises(UsageError, match="metrics-address"):
        metrics.serve(address)


def test_who_connects_and_says_nothing_takes_no_thread_and_is_let_go(metrics: Metrics, address: str) -> None:
    host, _, port = address.rpartition(":")
    before = threading.active_count()
    silent = [socket.create_connection((host, int(port))) for _ in range(2)]
    assert threading.active_count() == before
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        assert answer.status == 200
    for one in silent:
        assert one.recv(1) == b""
        one.close()


def test_who_speaks_slowly_is_let_go_as_well(metrics: Metrics, address: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as slow:
        with pytest.raises(OSError, match=r"reset|Broken"):  # noqa: PT012 - it is a matter of when
            for _ in range(100):
                slow.sendall(b"G")
                time.sleep(0.1)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.1", "127.0.0..1", "x" * 64])
def test_an_address_of_another_machine_is_an_error_that_may_pass(metrics: Metrics, host: str) -> None:
    """At boot the network may be on its way up: with code 2, systemd would not try again."""
    with pytest.raises(ExpeditedError, match=f"metrics-address is .*{host}") as caught:
        metrics.serve(f"{host}:9788")
    assert caught.value.exit_code == 1


def test_a_taken_port_is_told_in_one_line(metrics: Metrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ExpeditedError, match=f"{address} is taken") as caught:
            metrics.serve(address)
    assert caught.value.exit_code == 1


def test_after_close_nobody_listens(metrics: Metrics) -> None:
    address = f"127.0.0.1:{_free_port()}"
    close = metrics.serve(address)
    close()
    with pytest.raises(OSError, match="refused"):
        _scrape(address)
