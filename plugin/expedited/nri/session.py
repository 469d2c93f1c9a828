"""One connection of the plugin to a runtime: what is said on it, and who is told.

A runtime holds one lock over all its plugins and all its pods while it waits for an answer, and drops a plugin that takes
two seconds. So every event is answered before its handler is called, whatever becomes of that; but for START, where
the runtime is made to wait, for at most 100 ms, until the container's kill can't be missed any more.
Both generations of the protocol: up to 0.11 most events come as StateChange, from 0.12 each by a call of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from expedited.nri.handlers import Handlers
from expedited.nri.mux import Mux
from expedited.nri.records import NriContainer, NriPod, read_container, read_pod
from expedited.nri.ttrpc import Client, Code, Method, RpcError, Server
from expedited.pb.nri import api_pb2 as api

__all__ = ["EVENTS", "START_AT_MOST_SECONDS", "Session"]

#: How long a container's start waits for ``container_starting``.
START_AT_MOST_SECONDS = 0.1

_PLUGIN_CONNECTION, _RUNTIME_CONNECTION = 1, 2  # nri pkg/net/multiplex/ttrpc.go
_PLUGIN_SERVICE = "nri.pkg.api.v1alpha1.Plugin"
_RUNTIME_SERVICE = "nri.pkg.api.v1alpha1.Runtime"
# The runtime takes plugins in one after the other, and may wait for five seconds for each that is stuck.
_REGISTER_SECONDS = 20.0
# Pods and containers in one list, all its parts together: a hundred times what a node may have
_MOST_SYNCHRONIZED = 100_000
_SEND_OFF_SECONDS = 1.0
_EMPTY = b""
_Answer = bytes | Awaitable[bytes]

# The calls that tell of one event. Every answer may be empty, which is: change nothing, reject nothing.
_CALLS: Mapping[str, int] = {
    "RunPodSandbox": api.RUN_POD_SANDBOX,
    "StopPodSandbox": api.STOP_POD_SANDBOX,
    "RemovePodSandbox": api.REMOVE_POD_SANDBOX,
    "UpdatePodSandbox": api.UPDATE_POD_SANDBOX,
    "PostUpdatePodSandbox": api.POST_UPDATE_POD_SANDBOX,
    "CreateContainer": api.CREATE_CONTAINER,
    "PostCreateContainer": api.POST_CREATE_CONTAINER,
    "StartContainer": api.START_CONTAINER,
    "PostStartContainer": api.POST_START_CONTAINER,
    "UpdateContainer": api.UPDATE_CONTAINER,
    "PostUpdateContainer": api.POST_UPDATE_CONTAINER,
    "StopContainer": api.STOP_CONTAINER,
    "RemoveContainer": api.REMOVE_CONTAINER,
    "ValidateContainerAdjustment": api.VALIDATE_CONTAINER_ADJUSTMENT,
}


def _mask(*events: int) -> int:
    return sum(1 << (event - 1) for event in events)


#: What is asked for: what a handler is for. Every runtime that has NRI knows these (one bit that it does not know, and it
#: drops the plugin). Never 0, which asks for all: with them come requests to change containers, not our business.
EVENTS = _mask(
    api.RUN_POD_SANDBOX,
    api.STOP_POD_SANDBOX,
    api.REMOVE_POD_SANDBOX,
    api.POST_CREATE_CONTAINER,
    api.START_CONTAINER,
    api.POST_START_CONTAINER,
    api.STOP_CONTAINER,
    api.REMOVE_CONTAINER,
)

_log = structlog.get_logger(__name__)


class Session:
    """Both services of one connection.

    Attributes:
        mux: The trunk; asyncio's protocol for the socket.
        taken_in: Whether the runtime has configured the plugin.
    """

    def __init__(self, handlers: Handlers, name: str, idx: str) -> None:
        self.taken_in = False
        self.mux = Mux()
        self._handlers = handlers
        self._identity = api.RegisterPluginRequest(plugin_name=name, plugin_idx=idx)
        self._pods: list[NriPod] = []
        self._containers: list[NriContainer] = []
        self._starts: set[asyncio.Task[None]] = set()
        self._of_pods: dict[int, Callable[[NriPod], None]] = {
            api.RUN_POD_SANDBOX: handlers.pod_started,
            api.STOP_POD_SANDBOX: handlers.pod_stopped,
            api.REMOVE_POD_SANDBOX: handlers.pod_removed,
        }
        self._of_containers: dict[int, Callable[[NriPod, NriContainer], None]] = {
            api.POST_CREATE_CONTAINER: handlers.container_created,
            api.POST_START_CONTAINER: handlers.container_started,
            api.STOP_CONTAINER: handlers.container_stopped,
            api.REMOVE_CONTAINER: handlers.container_removed,
        }
        methods: dict[str, Method] = {name: partial(self._called, event) for name, event in _CALLS.items()}
        methods |= {
            "Configure": self._configure,
            "Synchronize": self._synchronize,
            "Shutdown": self._shutdown,
            "StateChange": self._state_change,
        }
        self._runtime = Client(partial(self.mux.write, _RUNTIME_CONNECTION))
        self.mux.open(
            _PLUGIN_CONNECTION, Server(partial(self.mux.write, _PLUGIN_CONNECTION), {_PLUGIN_SERVICE: methods})
        )
        self.mux.open(_RUNTIME_CONNECTION, self._runtime)

    async def run(self, stop: asyncio.Event) -> str:
        """Register, and serve until the connection ends; the mux must be connected.

        Args:
            stop: Set it to close the connection.

        Returns:
            Why it ended, for people.
        """
        closed = self.mux.closed
        register = asyncio.create_task(self._register())
        stopping = asyncio.create_task(stop.wait())
        try:
            either: set[asyncio.Future[Any]] = {stopping, closed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            self.mux.close("the plugin was told to stop")
            # A runtime that does not read would keep the connection open for as long.
            await asyncio.wait({closed}, timeout=_SEND_OFF_SECONDS)
        finally:
            self.mux.fail("the plugin was interrupted")
            for task in (register, stopping, *self._starts):
                task.cancel()
            ends: set[asyncio.Future[Any]] = {register, stopping, closed}
            await asyncio.wait(ends)
        why = closed.result()
        if self.taken_in:
            self._tell(self._handlers.disconnected, why)
        return why

    async def _register(self) -> None:
        request = self._identity.SerializeToString()
        try:
            await self._runtime.call(_RUNTIME_SERVICE, "RegisterPlugin", request, timeout_seconds=_REGISTER_SECONDS)
        except Exception as problem:
            self.mux.fail(f"the runtime did not take the plugin in: {problem}")

    def _configure(self, payload: bytes) -> bytes:
        request = api.ConfigureRequest.FromString(payload)
        if not self.taken_in:
            self.taken_in = True
            self._tell_later(self._handlers.connected, request.runtime_name, request.runtime_version)
        return api.ConfigureResponse(events=EVENTS).SerializeToString()

    def _synchronize(self, payload: bytes) -> bytes:
        request = api.SynchronizeRequest.FromString(payload)
        self._pods += map(read_pod, request.pods)
        self._containers += map(read_container, request.containers)
        if len(self._pods) + len(self._containers) > _MOST_SYNCHRONIZED:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"more than {_MOST_SYNCHRONIZED} pods and containers")
        if not request.more:
            pods, self._pods = tuple(self._pods), []
            containers, self._containers = tuple(self._containers), []
            self._tell_later(self._handlers.synchronize, pods, containers)
        return api.SynchronizeResponse(more=request.more).SerializeToString()

    def _shutdown(self, payload: bytes) -> bytes:
        _log.info("the runtime says that it is shutting down")
        return _EMPTY

    def _called(self, event: int, payload: bytes) -> _Answer:
        """An event by a call of its own; what no handler is for is not even decoded."""
        if event not in self._of_pods and event not in self._of_containers and event != api.START_CONTAINER:
            return _EMPTY
        try:
            # The requests of these events are all alike, but for the container, which a pod's has not.
            request = api.StartContainerRequest.FromString(payload)
        except DecodeError as problem:
            return _not_decoded(problem)
        return self._happened(event, request.pod, request.container)

    def _state_change(self, payload: bytes) -> _Answer:
        """An event as the runtimes before 0.12 tell it."""
        try:
            change = api.StateChangeEvent.FromString(payload)
        except DecodeError as problem:
            return _not_decoded(problem)
        return self._happened(change.event, change.pod, change.container)

    def _happened(self, event: int, pod: api.PodSandbox, container: api.Container) -> _Answer:
        subject = pod if event in self._of_pods else container
        if not subject.id:
            _log.warning("an NRI event names nobody, and is passed over", number=event)
        elif event in self._of_pods:
            self._tell_later(self._of_pods[event], read_pod(pod))
        elif event in self._of_containers:
            self._tell_later(self._of_containers[event], read_pod(pod), read_container(container))
        elif event == api.START_CONTAINER:
            return self._start(read_pod(pod), read_container(container))
        return _EMPTY

    async def _start(self, pod: NriPod, container: NriContainer) -> bytes:
        task = asyncio.create_task(self._tell_of_start(pod, container))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)
        _, late = await asyncio.wait({task}, timeout=START_AT_MOST_SECONDS)
        if late:
            _log.warning("a container starts before the agent is ready for it", container=container.id, pod=pod.name)
        return _EMPTY

    async def _tell_of_start(self, pod: NriPod, container: NriContainer) -> None:
        try:
            await self._handlers.container_starting(pod, container)
        except Exception as problem:
            _log_failure("container_starting", problem)

    def _tell_later(self, handler: Callable[..., None], *arguments: object) -> None:
        """Call a handler when the answer that is now being made has gone."""
        asyncio.get_running_loop().call_soon(self._tell, handler, *arguments)

    def _tell(self, handler: Callable[..., None], *arguments: object) -> None:
        try:
            handler(*arguments)
        except Exception as problem:
            _log_failure(getattr(handler, "__name__", repr(handler)), problem)


def _not_decoded(problem: DecodeError) -> bytes:
    # To refuse an event is to forbid it: a container that we can't read about must start and stop all the same.
    _log.error("an NRI event can't be decoded, and is passed over", error=str(problem))
    return _EMPTY


def _log_failure(handler: str, problem: Exception) -> None:
    _log.error("the agent failed at an NRI event", handler=handler, error=repr(problem))
