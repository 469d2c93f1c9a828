"""The figures for Prometheus, read over HTTP as Prometheus reads them."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from expedited.api.backend import ProcessStatus, Status
from expedited.errors import ExpeditedError, UsageError
from expedited.metrics import Metrics
from expedited.stop import Stop
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
    page_cache_dropped_bytes=0,
    process_count=1,
    processes=(ProcessReport(5, 1000, Fate.LOST_RACE),),
    boosted=(),
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
    assert figures["expedited_bytes_returned_total",] == 2000
    assert figures["expedited_lost_races_total",] == 3
    assert figures["expedited_memory_back_seconds_bucket", "0.01", "strike"] == 0
    assert figures["expedited_memory_back_seconds_bucket", "0.025", "strike"] == 2
    assert figures["expedited_gone_seconds_sum", "strike"] == pytest.approx(0.4)


def test_what_was_not_measured_is_in_no_histogram(metrics: Metrics, address: str) -> None:
    metrics.stop(Stop(replace(_REPORT, memory_back_seconds=None, gone_seconds=None)))
    figures = _scrape(address)
    assert ("expedited_gone_seconds_count", "strike") not in figures
    assert ("expedited_memory_back_seconds_count", "strike") not in figures


def test_the_latest_status_is_shown(metrics: Metrics, address: str) -> None:
    assert ("expedited_containers",) not in _scrape(address)
    metrics.status(_STATUS)
    metrics.status(replace(_STATUS, containers=6, gate_events=12))

    figures = _scrape(address)

    assert figures["expedited_containers",] == 6
    assert figures["expedited_gated",] == 4
    assert figures["expedited_gate_events_total",] == 12
    assert figures["expedited_gate_overruns_total",] == 2
    assert figures["expedited_gate_restarts_total",] == 1
    assert figures["expedited_process_resident_bytes", "agent"] == 4096
    assert figures["expedited_connected", "striker"] == 1
    assert figures["expedited_connected", "nri"] == 0
    assert ("expedited_connected", "containerd") not in figures


@pytest.mark.parametrize("address", ["", "9788", "localhost:", ":9788", "localhost:http", "localhost:0", "h:65536"])
def test_what_is_no_host_and_port_is_a_usage_error(metrics: Metrics, address: str) -> None:
    with pytest.raises(UsageError, match="metrics_address"):
        metrics.serve(address)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.1"])
def test_an_address_of_another_machine_is_a_usage_error(metrics: Metrics, host: str) -> None:
    with pytest.raises(UsageError, match=f"metrics_address is .*{host}"):
        metrics.serve(f"{host}:9788")


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
