"""What the control API is an interface to: the agent, as the API sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from expedited.sighting import Container
from expedited.stop import Stop

__all__ = ["Backend", "GateLatency", "ProcessStatus", "Status", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """What to strike; exactly one is not empty.

    Attributes:
        container_id: Or a prefix of it that only one container has.
        cgroup: A directory, or a path as /proc/PID/cgroup has it.
        pod: A uid, or NAMESPACE/NAME.
    """

    container_id: str = ""
    cgroup: str = ""
    pod: str = ""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One of our own processes.

    Attributes:
        name: agent, striker or supervisor.
    """

    name: str
    pid: int
    rss_bytes: int
    pss_bytes: int


@dataclass(frozen=True, slots=True)
class GateLatency:
    """How long the gate has held those who opened a state file, since its start.

    Attributes:
        counts: By bucket of :data:`expedited.striker.latency.BOUNDS_SECONDS`, the last for what is above all.
    """

    counts: tuple[int, ...]
    sum_seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """How the agent and what it is connected to are.

    Attributes:
        striker: ``ok``, or what is wrong with it, in a few words; so ``nri``, ``containerd`` and ``kubernetes``
            (``off``: not configured).
        kernel: What the kernel offers the strike: stock, reap-kill or reap-kill+keep-file.
        started_at: Seconds since the epoch.
        source: How kills are seen: fanotify, or an observer that sees them only when they have begun.
        source_lost: How many times the kernel dropped what it had to tell the source; kills among that were not seen.
        connections: How often each connection was made, by what it is to.
        gate_latency: None before the gate has told of it.
        kubernetes_events: How many Events the cluster took, and never got; None where there is no cluster.
    """

    version: str
    striker: str
    nri: str
    containerd: str
    containers: int
    gated: int
    stops: int
    processes: tuple[ProcessStatus, ...]
    kernel: str
    started_at: float
    gate_events: int
    gate_overruns: int
    gate_restarts: int
    kubernetes: str = "off"
    source: str = ""
    source_lost: int = 0
    connections: Mapping[str, int] = field(default_factory=dict)
    gate_latency: GateLatency | None = None
    kubernetes_events: tuple[int, int] | None = None


class Backend(Protocol):
    """The agent's side of the control API."""

    async def strike(self, target: Target, overrides: dict[str, Any]) -> Sequence[Stop]:
        """Kill and tear down now.

        Args:
            target: Whom.
            overrides: Of the policy: any of page_cache, boost, deadline_seconds, as Policy.from_json takes them.

        Raises:
            ExpeditedError: there is none, or it could not be done; one line for the user.
        """

    def containers(self) -> Sequence[Container]:
        """Every container that is known, sandboxes too, sorted by pod and name."""

    def stops(self) -> Sequence[Stop]:
        """The stops that are remembered, the oldest first."""

    def watch(self, *, replay: bool) -> AsyncGenerator[Stop, None]:
        """Each stop as it ends; with ``replay`` the remembered ones before, none twice and none missed."""

    async def status(self) -> Status:
        """How things are."""

    async def close(self) -> None:
        """End the gate for good; comes back when nothing waits at it any more, and the last strike is over."""
