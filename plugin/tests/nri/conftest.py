"""A runtime that is nothing but bytes on a socket, and somebody who writes down what the plugin tells.

The peer frames and numbers by itself, with struct, so that what is wrong with our own framing can't cancel itself out.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from expedited.nri import NriContainer, NriPlugin, NriPod, serve
from expedited.pb.nri import api_pb2 as api
from expedited.pb.ttrpc import ttrpc_pb2

_PATIENCE_SECONDS = 30.0
_PLUGIN_SERVICE = "nri.pkg.api.v1alpha1.Plugin"


class Heard:
    """Handlers that write down what they are told; ``starting`` may be replaced to do more."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.on_call: Callable[[str], None] = lambda name: None
        self.starting: Callable[[NriPod, NriContainer], Awaitable[None]] | None = None
        self._changed = asyncio.Event()

    def _note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        self._changed.set()
        self.on_call(name)

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def of(self, container_id: str) -> list[tuple[str, NriPod, NriContainer]]:
        """What was told of one container, in order."""
        return [call for call in self.calls if isinstance(call[-1], NriContainer) and call[-1].id == container_id]  # type: ignore[misc]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def connected(self, runtime_name: str, version: str) -> None:
        self._note("connected", runtime_name, version)

    def disconnected(self, why: str) -> None:
        self._note("disconnected", why)

    def synchronize(self, pods: Sequence[NriPod], containers: Sequence[NriContainer]) -> None:
        self._note("synchronize", pods, containers)

    def pod_started(self, pod: NriPod) -> None:
        self._note("pod_started", pod)

    def pod_stopped(self, pod: NriPod) -> None:
        self._note("pod_stopped", pod)

    def pod_removed(self, pod: NriPod) -> None:
        self._note("pod_removed", pod)

    def container_created(self, pod: NriPod, container: NriContainer) -> None:
        self._note("container_created", pod, container)

    async def container_starting(self, pod: NriPod, container: NriContainer) -> None:
        self._note("container_starting", pod, container)
        if self.starting is not None:
            await self.starting(pod, container)

    def container_started(self, pod: NriPod, container: NriContainer) -> None:
        self._note("container_started", pod, container)

    def container_stopped(self, pod: NriPod, container: NriContainer) -> None:
        self._note("container_stopped", pod, container)

    def container_removed(self, pod: NriPod, container: NriContainer) -> None:
        self._note("container_removed", pod, container)


class Runtime:
    """The runtime's end of one connection; reads only when it is asked to.

    Attributes:
        frame_sizes: Of the payloads that the plugin has sent.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.frame_sizes: list[int] = []
        self._unread = {1: bytearray(), 2: bytearray()}
        self._trunk = bytearray()
        self._stream = -1

    # -- bytes ---------------------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self) -> bytes:
        """What comes next; empty when the plugin has closed."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            try:
                return await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            except ConnectionResetError:
                return b""

    async def closed(self) -> None:
        """Wait until the plugin has closed."""
        while await self.receive():
            pass

    @staticmethod
    def frame(connection: int, payload: bytes) -> bytes:
        return struct.pack(">II", connection, len(payload)) + payload

    @staticmethod
    def message(stream: int, kind: int, data: bytes, flags: int = 0) -> bytes:
        return struct.pack(">IIBB", len(data), stream, kind, flags) + data

    async def next_message(self, connection: int) -> tuple[int, int, int, bytes]:
        """The next (stream, type, flags, data) of that connection."""
        unread = self._unread[connection]
        while len(unread) < 10 or len(unread) < 10 + struct.unpack(">I", unread[:4])[0]:
            while len(self._trunk) < 8 or len(self._trunk) < 8 + struct.unpack(">I", self._trunk[4:8])[0]:
                data = await self.receive()
                assert data, "the plugin closed the connection"
                self._trunk += data
            number, length = struct.unpack(">II", self._trunk[:8])
            self.frame_sizes.append(length)
            self._unread[number] += self._trunk[8 : 8 + length]
            del self._trunk[: 8 + length]
        length, stream, kind, flags = struct.unpack(">IIBB", unread[:10])
        data = bytes(unread[10 : 10 + length])
        del unread[: 10 + length]
        return stream, kind, flags, data

    # -- calls ---------------------------------------------------------------------------------------------------------

    def request(self, method: str, payload: Any = None, service: str = _PLUGIN_SERVICE) -> bytes:
        """The frame of a call, on the next stream."""
        self._stream += 2
        data = ttrpc_pb2.Request(
            service=service, method=method, payload=payload.SerializeToString() if payload is not None else b""
        )
        # Of later runtimes' tracing, and to be passed over
        data.metadata.add(key="traceparent", value="00-1-2-01")
        return self.frame(1, self.message(self._stream, 1, data.SerializeToString()))

    async def answer(self) -> tuple[int, int, bytes]:
        """The next answer's (stream, status code, payload)."""
        stream, kind, flags, data = await self.next_message(1)
        assert (kind, flags) == (2, 0)
        response = ttrpc_pb2.Response.FromString(data)
        return stream, response.status.code, response.payload

    async def call(self, method: str, payload: Any = None) -> bytes:
        """Make a call that must succeed; gives the answer's payload."""
        await self.send(self.request(method, payload))
        stream, code, answer = await self.answer()
        assert (stream, code) == (self._stream, 0)
        return answer

    async def registration(self) -> tuple[int, api.RegisterPluginRequest]:
        """The plugin's first call, to be answered by :meth:`accept` or :meth:`refuse`."""
        stream, kind, flags, data = await self.next_message(2)
        assert (kind, flags) == (1, 0)
        request = ttrpc_pb2.Request.FromString(data)
        assert (request.service, request.method) == ("nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin")
        return stream, api.RegisterPluginRequest.FromString(request.payload)

    async def accept(self, stream: int) -> None:
        await self.send(self.frame(2, self.message(stream, 2, ttrpc_pb2.Response().SerializeToString())))

    async def refuse(self, stream: int, code: int, why: str) -> None:
        response = ttrpc_pb2.Response()
        response.status.code, response.status.message = code, why
        await self.send(self.frame(2, self.message(stream, 2, response.SerializeToString())))

    async def configure(self) -> api.ConfigureResponse:
        said = api.ConfigureRequest(runtime_name="peer", runtime_version="v1")
        return api.ConfigureResponse.FromString(await self.call("Configure", said))

    async def synchronize(self, *, more: bool = False, **what: Any) -> api.SynchronizeResponse:
        said = api.SynchronizeRequest(more=more, **what)
        return api.SynchronizeResponse.FromString(await self.call("Synchronize", said))

    async def take_in(self, **what: Any) -> None:
        """All that a runtime does first."""
        stream, _ = await self.registration()
        await self.accept(stream)
        await self.configure()
        await self.synchronize(**what)

    def close(self) -> None:
        self.socket.close()


class Listener:
    """The runtime's socket; ``path`` is not there until :meth:`listen`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening: socket.socket | None = None
        self._accepted: list[Runtime] = []

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen(8)
        self._listening.setblocking(False)

    async def next(self) -> Runtime:
        """The next connection of the plugin."""
        assert self._listening is not None
        async with asyncio.timeout(_PATIENCE_SECONDS):
            connection, _ = await asyncio.get_running_loop().sock_accept(self._listening)
        self._accepted.append(Runtime(connection))
        return self._accepted[-1]

    def hang_up(self) -> None:
        """Nobody listens any more; the file stays, as after a crash."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def close(self) -> None:
        self.hang_up()
        for each in self._accepted:
            each.close()


@pytest.fixture
async def heard() -> Heard:
    return Heard()


@pytest.fixture
def listener() -> Iterator[Listener]:
    # Not under pytest's own directory: the paths of sockets must be short
    with tempfile.TemporaryDirectory(prefix="expedited-nri-") as directory:
        one = Listener(Path(directory, "nri.sock"))
        yield one
        one.close()


class Served:
    """A plugin that is being served: by ``serve()``, as in the agent."""

    def __init__(self, plugin: NriPlugin, socket_path: str) -> None:
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(serve(plugin, socket_path, stop=self.stop, environ={}))

    async def end(self) -> None:
        """Stop it; fails if it does not stop, or has failed."""
        self.stop.set()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await self.task


@pytest.fixture
async def start_serving(heard: Heard) -> AsyncIterator[Callable[..., Served]]:
    """``start_serving(socket path, plugin=...) -> Served``; stopped in the end."""
    started: list[Served] = []

    def start(socket_path: os.PathLike[str] | str, plugin: NriPlugin | None = None) -> Served:
        started.append(Served(plugin or NriPlugin(heard), str(socket_path)))
        return started[-1]

    yield start
    for each in started:
        if each.task.done():
            with suppress(asyncio.CancelledError):
                each.task.result()
        else:
            await each.end()


@pytest.fixture
async def runtime(listener: Listener, start_serving: Callable[..., Served]) -> Runtime:
    """A runtime that the plugin has dialled; nothing has been said yet."""
    listener.listen()
    start_serving(listener.path)
    return await listener.next()
