"""The one place that wires everything: striker, inventory, NRI, containerd, control API, metrics.

Data flows one way: the striker's reports become stops, which are remembered, logged and counted. Policy flows the other
way: what the inventory makes of annotations and configuration goes to the striker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from expedited import __version__, log
from expedited.agent.chores import Chores
from expedited.agent.cluster import link_to_kubernetes
from expedited.agent.orders import Orders
from expedited.agent.pod_cache import PodCache
from expedited.agent.processes import give_back, measure
from expedited.agent.reports import Reports
from expedited.agent.sources import ContainerdSource, NriSource
from expedited.agent.stopping import Stopping
from expedited.agent.stops import StopLog
from expedited.agent.striker import StrikerKeeper
from expedited.api.backend import GateLatency, Status, Target
from expedited.api.relay import refuse_if_listened_at
from expedited.api.server import serving
from expedited.containerd import ContainerdClient
from expedited.errors import ExpeditedError
from expedited.inventory import Change, Container, Inventory, Sighting, Source, State
from expedited.nri import START_AT_MOST_SECONDS, NriPlugin, serve
from expedited.settings import AgentSettings
from expedited.stop import Stop
from expedited.striker.link import StrikerUnreachable
from expedited.striker.status import StrikerStatus
from expedited.teardown.report import Report

if TYPE_CHECKING:  # loaded only where they are wanted: each costs memory
    from expedited.kube import KubernetesLink
    from expedited.metrics.exporter import Metrics

__all__ = ["Agent", "run"]

_STATUS_SECONDS = 5.0
#: How long the default policy waits for the annotations that may forbid what it says.
_FIRST_LOOK_SECONDS = 10.0

_log = structlog.get_logger(__name__)


async def run(settings: AgentSettings) -> None:
    """Be the agent until SIGTERM or SIGINT.

    Raises:
        ExpeditedError: it can't work with these settings here; one line for the user.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # `expedited run` has blocked them until there was somebody to hear them
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        await Agent(settings).run(stop)
    finally:
        # Whoever asks again while Python takes itself down has been heard
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


class Agent:
    """One agent; the control API's backend (:class:`expedited.api.backend.Backend`)."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._started_at = time.time()
        self._preinstalled = "NRI_PLUGIN_SOCKET" in os.environ  # started by the runtime, as a plugin of its own
        self._with_nri = bool(settings.nri_socket) or self._preinstalled
        self._looked = asyncio.Event()  # a source has told of all containers, and with them of their annotations
        self._stops = StopLog()
        self._pod_cache = PodCache(self._pod_cache_dropped)
        self._inventory = Inventory(settings, self._policies_changed)
        self._striker = StrikerKeeper(
            settings,
            linked=lambda: self._reports.linked(),
            replacing=lambda status: self._reports.catch_up(status.started_at, self._listed),
            connected=self._striker_connected,
            heard=self._striker_said,
        )
        self._reports = Reports(self._striker, self._take_report)
        self._orders = Orders(self._inventory, self._striker, settings.policy)
        self._nri = NriSource(
            self._inventory,
            settings.cri_namespace,
            gate=self._gate_before_start,
            started=self._container_started,
            pod_ended=self._pod_ended,
            synchronized=self._looked.set,
        )
        self._containerd: ContainerdClient | None = None
        self._listed: asyncio.Event | None = None  # by containerd, for the first time
        self._kubernetes: KubernetesLink | None = None
        self._gate = StrikerStatus()  # the last that it told
        self._metrics: Metrics | None = None
        self._stopping = Stopping()
        self._closing = asyncio.Event()  # the gate is to end, with the agent or before it
        self._gate_ended = asyncio.Event()
        self._chores = Chores()

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set.

        Raises:
            ExpeditedError: a socket or an address can't be used.
        """
        settings = self._settings
        await refuse_if_listened_at(settings.api_socket)
        async with AsyncExitStack() as stack:
            if settings.metrics_address:
                from expedited.metrics.exporter import Metrics

                self._metrics = Metrics()
                stack.callback(self._metrics.serve(settings.metrics_address))
            self._kubernetes = link_to_kubernetes(
                settings, self._pod_leaves, self._inventory.annotate, lambda: self._striker.state
            )
            await stack.enter_async_context(serving(self, settings.api_socket))
            striker = asyncio.create_task(self._striker.run(self._closing))
            striker.add_done_callback(lambda done: self._gate_ended.set())
            others = [asyncio.create_task(self._keep_status()), asyncio.create_task(self._close_at(stop))]
            if self._with_nri:
                others.append(asyncio.create_task(self._serve_nri(stop)))
            if settings.containerd_socket:
                self._containerd = ContainerdClient(settings.containerd_socket, settings.cri_namespace)
                stack.push_async_callback(self._containerd.close)
                source = ContainerdSource(
                    self._containerd, self._inventory, gate=self._gate_before_start, told_all=self._looked.set
                )
                self._listed = source.listed
                others.append(asyncio.create_task(source.run()))
            if self._kubernetes is not None:
                self._chores.do(self._kubernetes.run())
            self._chores.do(self._look_first())
            _log.info("the agent runs", version=__version__, mode=settings.policy.mode.value, api=settings.api_socket)
            for task in others:
                task.add_done_callback(lambda done: None if done.cancelled() else stop.set())
            why = ""
            try:
                await striker
                await stop.wait()
            except ExpeditedError as last:
                why = str(last)
                raise
            finally:
                for task in others:
                    task.cancel()
                ended = await asyncio.gather(*others, return_exceptions=True)
                await self._chores.end()
                if not self._striker.keep:
                    self._reports.take_rest()  # there is nobody left to ask for what came before
                if self._kubernetes is not None:
                    await self._kubernetes.last_word(why)
            for problem in ended:
                if isinstance(problem, Exception):
                    raise problem
        _log.info("the agent has ended", stops=self._stops.count)

    # -- what the sources tell -----------------------------------------------------------------------------------------

    async def _serve_nri(self, stop: asyncio.Event) -> None:
        await serve(NriPlugin(self._nri), self._settings.nri_socket, stop=stop)
        if self._preinstalled:
            # Started by a runtime that has ended or let go of us: it starts another when it comes back
            stop.set()

    async def _look_first(self) -> None:
        """Until the annotations are known a new striker only observes, and one taken over goes by what it was told before."""
        if self._with_nri or self._containerd is not None:
            try:
                async with asyncio.timeout(_FIRST_LOOK_SECONDS):
                    await self._looked.wait()
            except TimeoutError:
                _log.warning("no source has told of containers yet: until one does, the default policy holds for all")
        self._looked.set()
        self._striker.tell_policies(self._inventory.policies(), default=self._settings.policy)
        self._tell_who_leaves()  # again: whose containers nobody knew of when the API server told of them

    def _policies_changed(self, change: Change) -> None:
        for problem in change.problems:
            _log.warning(problem)
        self._striker.tell_policies(change.policies)
        for container_id in change.gone:
            self._stopping.ended(container_id)
            self._striker.tell("forget", id=container_id)
            self._pod_cache.forget(container_id)

    async def _gate_before_start(self, container_id: str) -> None:
        """The runtime waits for this: after it no kill of the container is missed, and its policy is known."""
        self._stopping.ended(container_id)
        known = self._inventory.get(container_id)
        if known is not None and known.policy != self._settings.policy:
            # The striker forgot it with the container's last run, where this one starts again under the same id
            self._striker.tell_policies({container_id: known.policy})
        try:
            answer = await self._striker.ask("watch", id=container_id, timeout_seconds=START_AT_MOST_SECONDS)
        except StrikerUnreachable:
            return  # the next striker looks for itself
        if answer["marked"]:
            self._inventory.saw(Source.STRIKER, Sighting(container_id))

    def _container_started(self, container_id: str) -> None:
        known = self._inventory.get(container_id)
        if known is not None:
            self._chores.do(self._pod_cache.learn(known))

    def _pod_ended(self, sandbox_id: str) -> None:
        members = [known for known in self._inventory if known.seen.sandbox_id == sandbox_id]
        self._striker.tell("leaving", ids=[known.id for known in members])
        self._chores.do(self._pod_cache.drop(sandbox_id, members))

    def _pod_leaves(self, uid: str, why: str) -> None:
        """Kubernetes knows before the kill that it will not come back: its page cache may go with it."""
        members = [known.id for known in self._inventory if known.seen.pod_uid == uid]
        if members:
            self._striker.tell("leaving", ids=members)
            _log.debug("a pod goes for good", pod=uid, why=why, containers=len(members))

    def _tell_who_leaves(self) -> None:
        for uid in self._kubernetes.leaving if self._kubernetes is not None else ():
            self._pod_leaves(uid, "known before")

    def _pod_cache_dropped(self, count: int) -> None:
        if self._metrics is not None:
            self._metrics.pod_cache_dropped(count)

    # -- what the striker tells ----------------------------------------------------------------------------------------

    def _striker_connected(self, status: StrikerStatus) -> None:
        self._take_status(status)
        if self._looked.is_set():
            self._striker.tell_policies(self._inventory.policies(), default=self._settings.policy)
        self._tell_who_leaves()
        self._chores.do(self._reports.catch_up(status.started_at, self._listed))

    def _striker_said(self, message: dict[str, Any]) -> None:
        match message["is"]:
            case "report":
                self._reports.came(message["report"])
            case "stop_began":
                self._stopping.began(message["id"])
                container = self._inventory.get(message["id"])
                sent = signal.Signals(message["signal"]).name
                _log.debug("a stop goes on", sent=sent, container=container.label if container else message["id"])
            case "refused":
                _log.error("the striker refused what the agent told it", why=message["why"])

    def _take_report(self, report: Report, is_news: bool) -> None:
        stop = self._stop_of(report)
        self._stopping.ended(stop.report.container_id)
        self._stops.add(stop)
        if not is_news:
            return  # in the log, the metrics and the cluster's Events already
        log.log_stop(stop)
        if self._metrics is not None:
            self._metrics.stop(stop)
        if self._kubernetes is not None:
            self._kubernetes.stop(stop)

    def _stop_of(self, report: Report) -> Stop:
        known = self._inventory.recall(report.container_id) if report.container_id else None
        if known is None:
            return Stop(report)
        seen = known.seen
        return Stop(report, seen.runtime_namespace, seen.pod_uid, seen.pod_namespace, seen.pod_name, seen.name)

    def _take_status(self, status: StrikerStatus) -> None:
        self._gate = status
        sightings = [Sighting(container_id) for container_id in status.gated]
        self._inventory.reconcile(Source.STRIKER, sightings, at=time.monotonic() - _STATUS_SECONDS)

    async def _keep_status(self) -> None:
        await asyncio.sleep(_STATUS_SECONDS)
        give_back()
        while True:
            status = await self.status()
            if self._metrics is not None:
                self._metrics.status(status)
            await asyncio.sleep(_STATUS_SECONDS)

    # -- the control API's backend -------------------------------------------------------------------------------------

    async def strike(self, target: Target, overrides: dict[str, Any]) -> Sequence[Stop]:
        """See :meth:`Backend.strike`."""
        return list(map(self._stop_of, await self._orders.strike(target, overrides)))

    def containers(self) -> Sequence[Container]:
        """See :meth:`Backend.containers`."""
        return sorted(map(self._with_stop, self._inventory), key=lambda known: (known.pod, known.seen.name, known.id))

    def _with_stop(self, known: Container) -> Container:
        since = self._stopping.since(known.id)
        # One that ended within its grace was not struck, and if it was quick there is no report of it
        return known if since is None or known.seen.state is State.STOPPED else replace(known, stopping_since=since)

    def stops(self) -> Sequence[Stop]:
        """See :meth:`Backend.stops`."""
        return self._stops.remembered()

    def watch(self, *, replay: bool) -> AsyncGenerator[Stop, None]:
        """See :meth:`Backend.watch`."""
        return self._stops.watch(replay=replay)

    async def status(self) -> Status:
        """See :meth:`Backend.status`."""
        keeper = self._striker
        if keeper.state == "ok":
            try:
                self._take_status(await keeper.status())
            except StrikerUnreachable:
                pass  # its state says so
        if keeper.state != "ok" and self._gate.gated:
            # What it had counted holds, and nobody gates
            self._take_status(replace(self._gate, gated=(), gated_beyond=0))
        pids = (("agent", os.getpid()), ("striker", keeper.pid), ("supervisor", keeper.supervisor_pid))
        try:
            processes = await asyncio.to_thread(
                lambda: tuple(filter(None, (measure(*each) for each in pids if each[1])))
            )
        except RuntimeError:
            processes = ()  # no thread to be had on a node that has no room for one: the rest can be told all the same
        return Status(
            version=__version__,
            striker=keeper.state,
            nri=self._nri.state if self._with_nri else "off",
            containerd=self._containerd.state if self._containerd else "off",
            containers=len(self._inventory),
            gated=self._gate.gated_count,
            stops=self._stops.count,
            processes=processes,
            kernel=self._gate.kernel,
            started_at=self._started_at,
            gate_events=self._gate.events,
            gate_overruns=self._gate.overruns,
            gate_restarts=self._gate.restarts,
            kubernetes=self._kubernetes.state if self._kubernetes else "off",
            source=self._gate.source,
            source_lost=self._gate.lost,
            connections=self._connections(),
            gate_latency=_latency(self._gate),
            kubernetes_events=self._kubernetes.events if self._kubernetes else None,
        )

    def _connections(self) -> dict[str, int]:
        made = {"striker": self._striker.connections}
        if self._with_nri:
            made["nri"] = self._nri.connections
        if self._containerd is not None:
            made["containerd"] = self._containerd.connections
        if self._kubernetes is not None:
            made["kubernetes"] = self._kubernetes.connections
        return made

    async def close(self) -> None:
        """See :meth:`Backend.close`."""
        if not self._closing.is_set():
            _log.info("the gate is closed for good: kills are only the runtime's from here on")
        self._striker.keep = False
        self._closing.set()
        await self._gate_ended.wait()

    async def _close_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._closing.set()


def _latency(gate: StrikerStatus) -> GateLatency | None:
    return GateLatency(gate.latency_counts, gate.latency_sum_seconds) if gate.latency_counts else None
