"""Counts, and answers Prometheus. Imported only where ``metrics_address`` is set: the library costs memory."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client import metrics_core as core
from prometheus_client.registry import Collector

from expedited.api.backend import GateLatency, Status
from expedited.errors import ExpeditedError, UsageError
from expedited.metrics.server import serve
from expedited.metrics.table import Kind, named
from expedited.quantity import parse_address
from expedited.stop import Stop

__all__ = ["Metrics"]

_OK, _OFF = "ok", "off"


class Metrics:
    """All figures of one agent, in a registry of their own."""

    def __init__(self) -> None:
        # A series for the moment when another was made doubles their number, and nobody asks for it
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._standing = _Standing()
        self._registry.register(self._standing)
        self._stops = self._counted("expedited_stops_total")
        self._memory_back = self._counted("expedited_memory_back_seconds")
        self._gone = self._counted("expedited_gone_seconds")
        self._returned = self._counted("expedited_memory_returned_bytes_total")
        self._dropped = self._counted("expedited_page_cache_dropped_bytes_total")
        self._lost_races = self._counted("expedited_lost_races_total")
        self._boosts = self._counted("expedited_boosts_total")

    def stop(self, stop: Stop) -> None:
        """Count one finished stop."""
        report = stop.report
        outcome = report.outcome.value
        self._stops.labels(report.mode, outcome, report.trigger).inc()
        if report.memory_back_seconds is not None:
            self._memory_back.labels(outcome).observe(report.memory_back_seconds)
        if report.gone_seconds is not None:
            self._gone.labels(outcome).observe(report.gone_seconds)
        self._returned.labels(outcome).inc(report.bytes_returned)
        self._lost_races.inc(report.lost_races)
        self._dropped.labels("container").inc(report.page_cache_dropped_bytes)
        for lever in report.boosted:
            self._boosts.labels(lever).inc()

    def pod_cache_dropped(self, count: int) -> None:
        """So many bytes of page cache went with a pod."""
        self._dropped.labels("pod").inc(count)

    def status(self, status: Status) -> None:
        """Show this as how things are, until the next one."""
        self._standing.now = status

    def serve(self, address: str) -> Callable[[], None]:
        """Answer Prometheus at ``HOST:PORT`` from a thread.

        Returns:
            What ends it, and waits until it has.

        Raises:
            UsageError: that is no address at all.
            ExpeditedError: it is none of this machine's (yet: the network may be on its way up), or the port is taken, or not ours to
                take.
        """
        try:
            host, port = parse_address(address)
        except ValueError:
            raise UsageError(f"metrics-address is {address!r}: give HOST:PORT, such as 127.0.0.1:9788") from None
        try:
            return serve(host, port, self._registry)
        except (socket.gaierror, UnicodeError) as error:
            raise ExpeditedError(f"metrics-address is {address!r}: {host!r} is no host that is known here") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ExpeditedError(
                    f"metrics-address {address} is taken by another program: choose another port, or none"
                ) from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise ExpeditedError(f"metrics-address is {address!r}: {host} is no address of this machine") from error
            raise ExpeditedError(f"cannot serve metrics at {address}: {error.strerror}") from error

    def _counted(self, name: str) -> Any:
        """A metric of the table that this process counts itself; a Counter or a Histogram, for which there is no one type."""
        metric = named(name)
        labels = [label.name for label in metric.labels]
        if metric.kind is Kind.HISTOGRAM:
            return Histogram(name, metric.words, labels, buckets=metric.bounds, registry=self._registry)
        counter = Counter(name, metric.words, labels, registry=self._registry)
        for values in metric.seen_from_start:
            counter.labels(*values)
        return counter


class _Standing(Collector):
    """What the last status said; nothing before there is one."""

    def __init__(self) -> None:
        self.now: Status | None = None

    def collect(self) -> Iterator[core.Metric]:
        now = self.now
        if now is None:
            return
        yield _family("expedited_gate_events_total", [((), now.gate_events)])
        yield _family("expedited_gate_overruns_total", [((), now.gate_overruns)])
        yield _family("expedited_gate_restarts_total", [((), now.gate_restarts)])
        if now.gate_latency is not None:
            yield _latency(now.gate_latency)
        yield _family("expedited_source_lost_total", [((), now.source_lost)])
        yield _family("expedited_containers", [((), now.containers)])
        yield _family("expedited_gated_containers", [((), now.gated)])
        states = {"striker": now.striker, "nri": now.nri, "containerd": now.containerd, "kubernetes": now.kubernetes}
        connected = [((name,), state == _OK) for name, state in states.items() if state != _OFF]
        yield _family("expedited_connected", connected)
        yield _family("expedited_connections_total", [((name,), made) for name, made in now.connections.items()])
        if now.kubernetes_events is not None:
            results = zip(("created", "dropped"), now.kubernetes_events, strict=True)
            yield _family("expedited_kubernetes_events_total", [((name,), count) for name, count in results])
        resident = [((process.name,), process.rss_bytes) for process in now.processes]
        yield _family("expedited_process_resident_memory_bytes", resident)
        yield _family("expedited_start_time_seconds", [((), now.started_at)])
        yield _family("expedited_info", [((now.version, now.kernel, now.source), 1)])


def _family(name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> core.Metric:
    """A counter or gauge of the table, with the figures that it has now."""
    metric = named(name)
    kind: Any = core.CounterMetricFamily if metric.kind is Kind.COUNTER else core.GaugeMetricFamily
    family: core.Metric = kind(name, metric.words, labels=[label.name for label in metric.labels])
    for values, figure in samples:
        family.add_metric(values, float(figure))  # type: ignore[attr-defined]
    return family


def _latency(latency: GateLatency) -> core.Metric:
    metric = named("expedited_gate_latency_seconds")
    bounds = [*(str(bound) for bound in metric.bounds), "+Inf"]
    so_far, buckets = 0, []
    for bound, count in zip(bounds, latency.counts, strict=True):
        so_far += count
        buckets.append((bound, float(so_far)))
    return core.HistogramMetricFamily(metric.name, metric.words, buckets, latency.sum_seconds)
