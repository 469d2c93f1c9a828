"""The agent's figures for Prometheus. Imported only where ``metrics_address`` is set: the library costs memory."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from expedited.api.backend import Status
from expedited.errors import ExpeditedError, UsageError
from expedited.stop import Stop

__all__ = ["Metrics"]

# From a strike on an idle node to a throttled container's own way out
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_OK, _OFF = "ok", "off"


class Metrics:
    """All figures of one agent, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._standing = _Standing()
        self._registry.register(self._standing)
        self._stops = Counter(
            "expedited_stops_total",
            "Stops that the agent saw, by what it did and what came of it.",
            ("mode", "outcome", "trigger"),
            registry=self._registry,
        )
        self._memory_back = Histogram(
            "expedited_memory_back_seconds",
            "From the kill until 95% of the container's anonymous memory was free.",
            ("mode",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._gone = Histogram(
            "expedited_gone_seconds",
            "From the kill until the container's cgroup was empty.",
            ("mode",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._returned = Counter(
            "expedited_bytes_returned_total",
            "Anonymous memory of stopped containers that was given back.",
            registry=self._registry,
        )
        self._lost_races = Counter(
            "expedited_lost_races_total",
            "Processes that let go of their memory before it could be reaped.",
            registry=self._registry,
        )

    def stop(self, stop: Stop) -> None:
        """Count one finished stop."""
        report = stop.report
        self._stops.labels(report.mode, report.outcome.value, report.trigger).inc()
        if report.memory_back_seconds is not None:
            self._memory_back.labels(report.mode).observe(report.memory_back_seconds)
        if report.gone_seconds is not None:
            self._gone.labels(report.mode).observe(report.gone_seconds)
        self._returned.inc(report.bytes_returned)
        self._lost_races.inc(report.lost_races())

    def status(self, status: Status) -> None:
        """Show this as how things are, until the next one."""
        self._standing.now = status

    def serve(self, address: str) -> Callable[[], None]:
        """Answer Prometheus at ``HOST:PORT`` from a thread.

        Returns:
            What ends it, and waits until it has.

        Raises:
            UsageError: that is no address of this machine.
            ExpeditedError: the port is taken, or not ours to take.
        """
        host, port = _host_and_port(address)
        try:
            server, thread = start_http_server(port, host, self._registry)
        except socket.gaierror as error:
            raise UsageError(f"metrics_address is {address!r}: {host!r} is no host that is known here") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ExpeditedError(
                    f"metrics_address {address} is taken by another program: choose another port, or none"
                ) from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise UsageError(f"metrics_address is {address!r}: {host} is no address of this machine") from error
            raise ExpeditedError(f"cannot serve metrics at {address}: {error.strerror}") from error

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return close


class _Standing(Collector):
    """What the last status said; nothing before there is one."""

    def __init__(self) -> None:
        self.now: Status | None = None

    def collect(self) -> Iterator[Metric]:
        now = self.now
        if now is None:
            return
        yield GaugeMetricFamily("expedited_containers", "Containers that are known.", now.containers)
        yield GaugeMetricFamily("expedited_gated", "Containers whose kill passes the gate.", now.gated)
        yield GaugeMetricFamily("expedited_start_time_seconds", "When the agent started (epoch).", now.started_at)
        yield CounterMetricFamily(
            "expedited_gate_events", "Opens of state files that the gate judged.", now.gate_events
        )
        yield CounterMetricFamily("expedited_gate_overruns", "Times the gate's budget was overrun.", now.gate_overruns)
        yield CounterMetricFamily("expedited_gate_restarts", "Times the striker was started anew.", now.gate_restarts)
        yield _resident(now)
        yield _connected(now)


def _resident(now: Status) -> Metric:
    family = GaugeMetricFamily(
        "expedited_process_resident_bytes", "Resident memory of our own processes.", labels=("process",)
    )
    for process in now.processes:
        family.add_metric((process.name,), process.rss_bytes)
    return family


def _connected(now: Status) -> Metric:
    family = GaugeMetricFamily(
        "expedited_connected", "1: connected and well; what is not configured is not shown.", labels=("to",)
    )
    for name, state in (("striker", now.striker), ("nri", now.nri), ("containerd", now.containerd)):
        if state != _OFF:
            family.add_metric((name,), float(state == _OK))
    return family


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise UsageError(f"metrics_address is {address!r}: give HOST:PORT, such as 127.0.0.1:9788")
    return host, int(port)
