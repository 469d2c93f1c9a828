"""Asks containerd over its gRPC socket what containers there are, and listens to what happens to them.

Only reads: the agent never kills through containerd. The containers and tasks are asked for namespace by namespace;
events come from all namespaces at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.empty_pb2 import Empty

from expedited.containerd.events import TOPICS, Event, decode
from expedited.containerd.records import RuntimeContainer, RuntimeTask, read_container, read_task
from expedited.errors import ExpeditedError
from expedited.pb.containerd.services.containers.v1 import containers_pb2
from expedited.pb.containerd.services.events.v1 import events_pb2
from expedited.pb.containerd.services.namespaces.v1 import namespace_pb2
from expedited.pb.containerd.services.tasks.v1 import tasks_pb2
from expedited.pb.containerd.services.version.v1 import version_pb2
from expedited.pb.containerd.types import event_pb2

__all__ = ["ContainerdClient", "ContainerdError", "NotFoundError"]

# What containerd's own clients allow themselves (containerd defaults.DefaultMaxRecvMsgSize); gRPC's default is 4 MiB.
_LARGEST_MESSAGE_BYTES = 16 << 20
_ANSWER_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_NEVER_CONNECTED = "not connected"

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _LARGEST_MESSAGE_BYTES),
    # The pauses between attempts are ours; gRPC's own, of up to two minutes, would only come on top.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    # gRPC shares connections, and their back-off, between channels to the same address in one process.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy for the network has no say over a socket of this machine.
    ("grpc.enable_http_proxy", 0),
)

_log = structlog.get_logger(__name__)


class ContainerdError(ExpeditedError):
    """containerd does not answer, or refuses."""


class NotFoundError(ContainerdError):
    """containerd has no such container, or it does not run."""


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name

    @classmethod
    def FromString(cls, s: bytes) -> Self: ...  # noqa: N802


_Answer = TypeVar("_Answer", bound=_Message)


class ContainerdClient:
    """One connection to one containerd; make it inside a running event loop, and close it.

    Args:
        socket: Path of the gRPC socket. It need not be there yet.
        namespace: Where containers and tasks are looked for unless a call says otherwise.

    Attributes:
        state: How the subscription is: ``ok``, or in a few words why not.
    """

    def __init__(self, socket: str, namespace: str) -> None:
        self.socket = socket
        self.namespace = namespace
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_CHANNEL_OPTIONS)
        self.state = _NEVER_CONNECTED
        self.connections = 0  #: how often the subscription has begun

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; whoever still waits for an answer or an event gets CancelledError."""
        await self._channel.close()

    async def version(self) -> str:
        """The version of containerd, such as ``v2.1.9``.

        Raises:
            ContainerdError: it does not answer.
        """
        said = await self._ask("version.v1.Version/Version", Empty(), version_pb2.VersionResponse)
        return said.version

    async def namespaces(self) -> list[str]:
        """The namespaces that containerd has: k8s.io, moby, default.

        Raises:
            ContainerdError: it does not answer.
        """
        request = namespace_pb2.ListNamespacesRequest()
        said = await self._ask("namespaces.v1.Namespaces/List", request, namespace_pb2.ListNamespacesResponse)
        return [space.name for space in said.namespaces]

    async def containers(self, namespace: str = "") -> list[RuntimeContainer]:
        """Every container of a namespace, running or not.

        Raises:
            ContainerdError: containerd does not answer.
        """
        # One message each, as all in one may be more than a message can hold.
        call = self._channel.unary_stream(
            _path("containers.v1.Containers/ListStream"),
            request_serializer=containers_pb2.ListContainersRequest.SerializeToString,
            response_deserializer=containers_pb2.ListContainerMessage.FromString,
        )
        where = namespace or self.namespace
        stream = call(containers_pb2.ListContainersRequest(), timeout=_ANSWER_SECONDS, metadata=_in(where))
        try:
            return [read_container(said.container, where) async for said in stream]
        except grpc.aio.AioRpcError as problem:
            raise self._explained(problem) from problem

    async def container(self, container_id: str, namespace: str = "") -> RuntimeContainer:
        """One container by its whole id.

        Raises:
            NotFoundError: there is none.
            ContainerdError: containerd does not answer.
        """
        where = namespace or self.namespace
        request = containers_pb2.GetContainerRequest(id=container_id)
        said = await self._ask("containers.v1.Containers/Get", request, containers_pb2.GetContainerResponse, where)
        return read_container(said.container, where)

    async def tasks(self, namespace: str = "", *, timeout_seconds: float = _ANSWER_SECONDS) -> list[RuntimeTask]:
        """The running side of every container of a namespace that has one: pids and states.

        containerd asks one shim after the other, and gives each that hangs two seconds.

        Raises:
            ContainerdError: containerd does not answer.
        """
        where = namespace or self.namespace
        said = await self._ask(
            "tasks.v1.Tasks/List", tasks_pb2.ListTasksRequest(), tasks_pb2.ListTasksResponse, where, timeout_seconds
        )
        return [read_task(process) for process in said.tasks]

    async def subscribe(self, on_connected: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[Event]:
        """Everything that happens, in all namespaces, for as long as it is iterated: a connection that breaks is renewed.

        Args:
            on_connected: Awaited after each connection, before its first event: the moment to list all containers,
                as what happened meanwhile was told to nobody. If it raises ContainerdError, the connection is
                taken for broken.
        """
        request = events_pb2.SubscribeRequest(filters=[f'topic=="{topic}"' for topic in TOPICS])
        call = self._channel.unary_stream(
            _path("events.v1.Events/Subscribe"),
            request_serializer=events_pb2.SubscribeRequest.SerializeToString,
            response_deserializer=event_pb2.Envelope.FromString,
        )
        pause = _FIRST_PAUSE_SECONDS
        while True:
            stream = None
            try:
                version = await self.version()
                # containerd does not say when the subscription has begun. It is on its way before the lists are asked
                # for on the same connection; what still slips between is what the next list of the agent is for.
                stream = call(request)
                await asyncio.sleep(0)
                self._tell(f"containerd {version} answers")
                self.connections += 1
                if on_connected is not None:
                    await on_connected()
                pause = _FIRST_PAUSE_SECONDS
                async for envelope in stream:
                    event = _decoded(envelope)
                    if event is not None:
                        yield event
                self._tell("containerd ended the stream of events", lost=True)
            except grpc.aio.AioRpcError as problem:
                self._tell(str(self._explained(problem)), lost=True)
            except ContainerdError as problem:
                self._tell(str(problem), lost=True)
            finally:
                if stream is not None:
                    stream.cancel()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _ask(
        self,
        method: str,
        request: _Message,
        answer: type[_Answer],
        namespace: str = "",
        timeout_seconds: float = _ANSWER_SECONDS,
    ) -> _Answer:
        call: grpc.aio.UnaryUnaryMultiCallable[_Message, _Answer] = self._channel.unary_unary(
            _path(method),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        try:
            return await call(request, timeout=timeout_seconds, metadata=_in(namespace or self.namespace))
        except grpc.aio.AioRpcError as problem:
            raise self._explained(problem, timeout_seconds) from problem

    def _explained(self, problem: grpc.aio.AioRpcError, timeout_seconds: float = _ANSWER_SECONDS) -> ContainerdError:
        """One line for a person."""
        code, details = problem.code(), " ".join((problem.details() or "").split())
        if code is grpc.StatusCode.NOT_FOUND:
            return NotFoundError(f"containerd: {details}")
        if code is grpc.StatusCode.UNAVAILABLE:
            # gRPC says it three times over; the errno comes last.
            why = details.rpartition("error: ")[2]
            return ContainerdError(f"containerd can't be reached at {self.socket}: {why}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ContainerdError(f"containerd at {self.socket} did not answer within {timeout_seconds:g} s")
        return ContainerdError(f"containerd at {self.socket} refused: {details} ({code.name})")

    def note(self, problem: ContainerdError | None = None) -> None:
        """Whoever asked something has an answer, or has none: the state is what was seen last."""
        if problem is not None:
            self._tell(str(problem), lost=True)
        elif self.state not in ("ok", _NEVER_CONNECTED):
            self._tell("containerd answers again")

    def _tell(self, what: str, *, lost: bool = False) -> None:
        """Log that the connection came or went; only when it is not so already."""
        before, self.state = self.state, what if lost else "ok"
        if before == self.state or (lost and before not in ("ok", _NEVER_CONNECTED)):
            return
        if lost:
            _log.warning(f"{what}; trying again", socket=self.socket)
        else:
            _log.info(what, socket=self.socket)


def _path(method: str) -> str:
    return f"/containerd.services.{method}"


def _in(namespace: str) -> tuple[tuple[str, str], ...]:
    return (("containerd-namespace", namespace),)


def _decoded(envelope: Any) -> Event | None:
    try:
        return decode(envelope)
    except ValueError as problem:
        _log.warning(str(problem))
        return None
