"""Where the inventory's knowledge comes from: the runtime's NRI events, and containerd's lists and events."""

# ruff: noqa: D102 - the methods of NriSource are the protocol's, which says what each is

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from expedited.containerd import (
    ContainerCreate,
    ContainerdClient,
    ContainerDelete,
    ContainerdError,
    Event,
    NotFoundError,
    RuntimeContainer,
    TaskDelete,
    TaskExit,
    TaskPaused,
    TaskResumed,
    TaskStart,
)
from expedited.inventory import Inventory, Sighting, Source, State
from expedited.nri import Handlers, NriContainer, NriPod

__all__ = ["ContainerdSource", "NriSource"]

# containerd loses an event now and then, and an agent must not carry its dead for ever
_RELIST_SECONDS = 60.0
# Nobody waits for what the containers do: that containerd asks of each one's shim, of which any number may hang
_TASKS_SECONDS = 45.0

_log = structlog.get_logger(__name__)


class NriSource(Handlers):
    """NRI's handlers (:class:`expedited.nri.Handlers`): what the runtime tells goes into the inventory.

    Args:
        inventory: Where to.
        runtime_namespace: Of the pods that NRI tells of; it does not say.
        gate: Awaited before a container starts: when it is done, no kill of that container is missed.
        started: Told of a container that runs, and of those that were found running.
        pod_ended: Told of a pod whose last process has ended by the runtime's StopPodSandbox.
        synchronized: Called whenever the runtime has told of all there is.

    Attributes:
        state: ``ok``, or in a few words why not.
    """

    def __init__(
        self,
        inventory: Inventory,
        runtime_namespace: str,
        *,
        gate: Callable[[str], Awaitable[None]],
        started: Callable[[str], None],
        pod_ended: Callable[[str], None],
        synchronized: Callable[[], None],
    ) -> None:
        self.state = "not connected"
        self.connections = 0  #: how often the runtime has taken us in
        self._inventory = inventory
        self._runtime_namespace = runtime_namespace
        self._gate = gate
        self._started = started
        self._pod_ended = pod_ended
        self._synchronized = synchronized

    def connected(self, runtime_name: str, version: str) -> None:
        self.state = "ok"
        self.connections += 1
        _log.info("NRI: the runtime has taken the plugin in", runtime=runtime_name, version=version)

    def disconnected(self, why: str) -> None:
        self.state = why

    def synchronize(self, pods: Sequence[NriPod], containers: Sequence[NriContainer]) -> None:
        by_id = {pod.id: pod for pod in pods}
        sightings = [self._of_pod(pod) for pod in pods]
        sightings += [self._of_container(by_id.get(each.pod_id), each) for each in containers]
        self._inventory.reconcile(Source.NRI, sightings, at=time.monotonic(), runtime_namespace=self._runtime_namespace)
        for container in containers:
            self._started(container.id)
        _log.info("NRI: synchronized", pods=len(pods), containers=len(containers))
        self._synchronized()

    def pod_started(self, pod: NriPod) -> None:
        self._inventory.saw(Source.NRI, self._of_pod(pod))

    def pod_stopped(self, pod: NriPod) -> None:
        self._inventory.exited(Source.NRI, pod.id)
        self._pod_ended(pod.id)

    def pod_removed(self, pod: NriPod) -> None:
        self._inventory.forget(pod.id)

    def container_created(self, pod: NriPod, container: NriContainer) -> None:
        self._inventory.saw(Source.NRI, self._of_container(pod, container, State.CREATED))

    async def container_starting(self, pod: NriPod, container: NriContainer) -> None:
        self._inventory.saw(Source.NRI, self._of_container(pod, container, State.CREATED))
        await self._gate(container.id)

    def container_started(self, pod: NriPod, container: NriContainer) -> None:
        self._inventory.saw(Source.NRI, self._of_container(pod, container, State.RUNNING))
        self._started(container.id)

    def container_stopped(self, pod: NriPod, container: NriContainer) -> None:
        self._inventory.exited(Source.NRI, container.id)

    def container_removed(self, pod: NriPod, container: NriContainer) -> None:
        self._inventory.forget(container.id)

    def _of_pod(self, pod: NriPod) -> Sighting:
        return Sighting(
            id=pod.id,
            runtime_namespace=self._runtime_namespace,
            pod_uid=pod.uid,
            pod_namespace=pod.namespace,
            pod_name=pod.name,
            sandbox_id=pod.id,
            sandbox=True,
            pid=pod.pid,
            state=State.RUNNING if pod.pid else State.UNKNOWN,  # one that has ended is listed, too, until it is removed
            annotations=pod.annotations,
        )

    def _of_container(self, pod: NriPod | None, container: NriContainer, state: State | None = None) -> Sighting:
        return Sighting(
            id=container.id,
            runtime_namespace=self._runtime_namespace,
            name=container.name,
            pod_uid=pod.uid if pod else "",
            pod_namespace=pod.namespace if pod else "",
            pod_name=pod.name if pod else "",
            sandbox_id=container.pod_id,
            sandbox=False,
            pid=container.pid,
            state=state or container.state,
            annotations=pod.annotations if pod else None,
        )


@dataclass(frozen=True, slots=True)
class _Listed:
    """The containers of one namespace, and when they were asked for (monotonic seconds)."""

    namespace: str
    asked_at: float
    containers: Sequence[RuntimeContainer]


class ContainerdSource:
    """What containerd lists, and what it tells of, goes into the inventory, for all of its namespaces.

    Args:
        client: The connection; closed by whoever made it.
        inventory: Where to.
        gate: Awaited for each container that starts.
        told_all: Called whenever all containers were listed.

    Attributes:
        listed: Set once all containers, also those that have ended, were listed for the first time.
    """

    def __init__(
        self,
        client: ContainerdClient,
        inventory: Inventory,
        *,
        gate: Callable[[str], Awaitable[None]],
        told_all: Callable[[], None],
    ) -> None:
        self.listed = asyncio.Event()
        self._told_all = told_all
        self._asking: asyncio.Task[None] | None = None
        self._states_known = True
        self._client = client
        self._inventory = inventory
        self._gate = gate

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen())
                tasks.create_task(self._list_now_and_then())
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def _listen(self) -> None:
        async for event in self._client.subscribe(self._list):
            try:
                await self._take(event)
            except ContainerdError as problem:
                _log.warning("a container could not be looked up", error=str(problem))

    async def _list_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_RELIST_SECONDS)
            try:
                await self._list()
            except ContainerdError as problem:
                self._client.note(problem)  # of one that hangs the subscription hears nothing
            else:
                self._client.note()

    async def _list(self) -> None:
        """Who is here, and with that the annotations; what each does is asked beside everything else."""
        lists: list[_Listed] = []
        for namespace in await self._client.namespaces():
            asked_at = time.monotonic()
            containers = await self._client.containers(namespace)
            sightings = [replace(container.sighting(), state=State.UNKNOWN) for container in containers]
            self._inventory.reconcile(Source.CONTAINERD, sightings, at=asked_at, runtime_namespace=namespace)
            lists.append(_Listed(namespace, asked_at, containers))
        self.listed.set()
        self._told_all()
        if self._asking is not None:
            self._asking.cancel()
        self._asking = asyncio.create_task(self._ask_states(lists))

    async def _ask_states(self, lists: Sequence[_Listed]) -> None:
        # At once: a namespace whose shims hang keeps no other one's states back
        problems = [each for each in await asyncio.gather(*map(self._ask_states_in, lists)) if each is not None]
        if problems and self._states_known:
            _log.warning("which containers run is not known but from events", error=str(problems[0]))
        self._states_known = not problems

    async def _ask_states_in(self, listed: _Listed) -> ContainerdError | None:
        try:
            found = await self._client.tasks(listed.namespace, timeout_seconds=_TASKS_SECONDS)
        except ContainerdError as problem:
            return problem
        tasks = {task.container_id: task for task in found}
        # As of when they were listed: what was told of them since is newer, and who was removed since stays so
        sightings = [container.sighting(tasks.get(container.id)) for container in listed.containers]
        self._inventory.saw(Source.CONTAINERD, *sightings, at=listed.asked_at)
        return None

    async def _take(self, event: Event) -> None:
        match event:
            case ContainerCreate():
                # Its policy is known before it runs; what it does by now, others may know better
                await self._look_up(event, state=State.UNKNOWN)
            case TaskStart():
                await self._gate(event.container_id)
                known = self._inventory.get(event.container_id)
                if known is not None and known.seen.state is State.RUNNING and known.seen.pid == event.pid:
                    return  # NRI was here before
                await self._look_up(event, state=State.RUNNING, pid=event.pid)
            case TaskExit() if event.is_init:
                self._inventory.exited(Source.CONTAINERD, event.container_id)
            case TaskPaused():
                self._became(event.container_id, State.PAUSED)
            case TaskResumed():
                self._became(event.container_id, State.RUNNING)
            case TaskDelete():
                self._inventory.exited(Source.CONTAINERD, event.container_id)
            case ContainerDelete():
                self._inventory.forget(event.container_id)
            case _:
                pass

    async def _look_up(self, event: ContainerCreate | TaskStart, **more: Any) -> None:
        """What its record says goes into the inventory, and what the event says beside it."""
        try:
            container = await self._client.container(event.container_id, event.namespace)
        except NotFoundError:
            return  # gone by now
        self._inventory.saw(Source.CONTAINERD, replace(container.sighting(), **more))

    def _became(self, container_id: str, state: State) -> None:
        """Its init is the one that it had, and was frozen or thawed."""
        known = self._inventory.get(container_id)
        # NRI tells of its end by another connection, and may have been first
        if known is not None and known.seen.state is not State.STOPPED:
            self._inventory.saw(Source.CONTAINERD, Sighting(container_id, state=state))
