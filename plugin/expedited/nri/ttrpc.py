"""ttrpc, containerd's small form of gRPC, over any byte stream (containerd/ttrpc PROTOCOL.md). Unary calls only.

A message is ten bytes of header and its data: the data's length and the stream's number, both u32 big-endian, a type and
flags, a byte each. A call is one Request and one Response of the same stream, whose numbers the caller counts
up, odd ones only. Each side is a :class:`~expedited.nri.mux.Receiver`, and sends by a function that takes bytes.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import structlog
from google.protobuf.message import DecodeError

from expedited.errors import ExpeditedError
from expedited.nri.mux import MuxError
from expedited.pb.ttrpc import ttrpc_pb2

__all__ = ["Client", "Code", "Method", "RpcError", "RpcLostError", "Server"]

#: What answers a call, given the request's bytes: the answer's, at once or when awaited. May raise RpcError; a
#: DecodeError is the caller's fault, anything else ours.
Method = Callable[[bytes], bytes | Awaitable[bytes]]
_Send = Callable[[bytes], None]

_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE, _DATA = 1, 2, 3
_REMOTE_OPEN = 0x2  # flag: more data follows this request, so it is a stream's
_LARGEST_DATA_BYTES = 4 << 20  # ttrpc channel.go messageLengthMax
# The peer queues 256 frames of 4096 bytes and gives up after that (nri mux.go readQueueLen); half of it is plenty.
_LARGEST_SENT_DATA_BYTES = 512 << 10
# A runtime asks one thing at a time.
_MOST_UNANSWERED = 64

_log = structlog.get_logger(__name__)


class Code(IntEnum):
    """Of google/rpc/code.proto, those that are used here."""

    OK = 0
    INVALID_ARGUMENT = 3
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13


class RpcError(ExpeditedError):
    """A call was refused; ``code`` is one of google/rpc/code.proto."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class RpcLostError(ExpeditedError):
    """A call got no answer: the connection was lost, or the time was up."""


class _Message(NamedTuple):
    """One message; ``data`` is None where it was too long and has been passed over."""

    stream: int
    kind: int
    flags: int
    length_bytes: int
    data: bytes | None


class _Reassembly:
    """Puts messages together from the pieces of a byte stream; keeps one unfinished message of at most 4 MiB."""

    def __init__(self, deliver: Callable[[_Message], None]) -> None:
        self._deliver = deliver
        self._header = bytearray()
        self._data = bytearray()
        self._left_bytes = 0
        self._begun: tuple[int, int, int, int] | None = None

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._begun is None:
                part = data[at : at + _HEADER.size - len(self._header)]
                at += len(part)
                self._header += part
                if len(self._header) < _HEADER.size:
                    return
                self._begun = _HEADER.unpack(self._header)
                self._left_bytes = self._begun[0]
                self._header.clear()
            else:
                part = data[at : at + self._left_bytes]
                at += len(part)
                self._left_bytes -= len(part)
                if self._begun[0] <= _LARGEST_DATA_BYTES:
                    self._data += part
            if self._left_bytes == 0:
                self._finish()

    def _finish(self) -> None:
        assert self._begun is not None
        length, stream, kind, flags = self._begun
        whole = bytes(self._data) if length <= _LARGEST_DATA_BYTES else None
        self._begun, self._data = None, bytearray()
        self._deliver(_Message(stream, kind, flags, length, whole))


def _pack(stream: int, kind: int, data: bytes) -> bytes:
    return _HEADER.pack(len(data), stream, kind, 0) + data


def _too_long(length_bytes: int, largest_bytes: int) -> RpcError:
    return RpcError(Code.RESOURCE_EXHAUSTED, f"a message of {length_bytes} bytes is too long (at most {largest_bytes})")


class Server:
    """Answers calls. A call that can be answered at once is answered before :meth:`received` returns.

    Args:
        send: Takes the answers' bytes.
        services: By the service's full name, its methods by their names.
    """

    def __init__(self, send: _Send, services: Mapping[str, Mapping[str, Method]]) -> None:
        self._send = send
        self._services = services
        self._reassembly = _Reassembly(self._take)
        self._last_stream = 0
        self._unanswered: set[asyncio.Future[bytes]] = set()

    def received(self, data: bytes) -> None:
        """The next bytes from the caller."""
        self._reassembly.feed(data)

    def lost(self, why: str) -> None:
        """Answers are not wanted any more."""
        for waiting in self._unanswered:
            waiting.cancel()

    def _take(self, message: _Message) -> None:
        try:
            result = self._call(message)
            if isinstance(result, bytes):
                self._answer(message.stream, result)
            elif result is not None:
                # The method's own coroutine, and none around it: cancelled before it began, it must not be left unawaited
                waiting = asyncio.ensure_future(result)
                self._unanswered.add(waiting)
                waiting.add_done_callback(partial(self._answer_later, message.stream))
        except Exception as problem:
            self._refuse(message.stream, problem)

    def _call(self, message: _Message) -> bytes | Awaitable[bytes] | None:
        """What the method says; None where there is nothing to answer."""
        if message.data is None:
            raise _too_long(message.length_bytes, _LARGEST_DATA_BYTES)
        if message.kind == _DATA:
            raise RpcError(Code.INVALID_ARGUMENT, f"stream {message.stream} is not open")
        if message.kind != _REQUEST:
            return None  # a later version's: upstream passes over it as well
        if message.stream % 2 == 0 or message.stream <= self._last_stream:
            raise RpcError(Code.INVALID_ARGUMENT, f"stream {message.stream} is even, or not above the last one")
        self._last_stream = message.stream
        request = ttrpc_pb2.Request.FromString(message.data)
        method = self._services.get(request.service, {}).get(request.method)
        if method is None:
            raise RpcError(Code.UNIMPLEMENTED, f"no method {request.service}/{request.method} here")
        if message.flags & _REMOTE_OPEN:
            raise RpcError(Code.UNIMPLEMENTED, f"{request.service}/{request.method} takes no stream")
        if len(self._unanswered) >= _MOST_UNANSWERED:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"{len(self._unanswered)} calls are waiting for their answers")
        return method(request.payload)

    def _answer_later(self, stream: int, result: asyncio.Future[bytes]) -> None:
        self._unanswered.discard(result)
        if result.cancelled():
            return  # the connection is gone
        try:
            self._answer(stream, result.result())
        except Exception as problem:
            self._refuse(stream, problem)

    def _answer(self, stream: int, payload: bytes) -> None:
        data = ttrpc_pb2.Response(payload=payload).SerializeToString()
        if len(data) > _LARGEST_SENT_DATA_BYTES:
            raise _too_long(len(data), _LARGEST_SENT_DATA_BYTES)
        self._send(_pack(stream, _RESPONSE, data))

    def _refuse(self, stream: int, problem: Exception) -> None:
        if isinstance(problem, DecodeError):
            problem = RpcError(Code.INVALID_ARGUMENT, f"the request can't be decoded: {problem}")
        elif not isinstance(problem, RpcError):
            _log.error("a call failed for a reason of our own", error=repr(problem))
            problem = RpcError(Code.INTERNAL, repr(problem))
        response = ttrpc_pb2.Response()
        response.status.code = problem.code
        response.status.message = str(problem)[:1000]
        self._send(_pack(stream, _RESPONSE, response.SerializeToString()))


class Client:
    """Makes calls.

    Args:
        send: Takes the requests' bytes.
    """

    def __init__(self, send: _Send) -> None:
        self._send = send
        self._reassembly = _Reassembly(self._take)
        self._next_stream = 1
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._lost = ""

    async def call(self, service: str, method: str, payload: bytes, *, timeout_seconds: float) -> bytes:
        """Call a method and wait for what it says.

        Raises:
            RpcError: it was refused.
            RpcLostError: no answer in that time, or the connection is gone.
        """
        if self._lost:
            raise RpcLostError(f"{service}/{method}: {self._lost}")
        request = ttrpc_pb2.Request(service=service, method=method, payload=payload)
        request.timeout_nano = int(timeout_seconds * 1e9)
        data = request.SerializeToString()
        if len(data) > _LARGEST_SENT_DATA_BYTES:
            raise _too_long(len(data), _LARGEST_SENT_DATA_BYTES)
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = answer
        try:
            self._send(_pack(stream, _REQUEST, data))
            async with asyncio.timeout(timeout_seconds):
                return await answer
        except TimeoutError:
            raise RpcLostError(f"{service}/{method}: no answer within {timeout_seconds:g} s") from None
        finally:
            del self._waiting[stream]

    def received(self, data: bytes) -> None:
        """The next bytes from the server."""
        self._reassembly.feed(data)

    def lost(self, why: str) -> None:
        """No more answers will come."""
        self._lost = why
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(RpcLostError(why))

    def _take(self, message: _Message) -> None:
        answer = self._waiting.get(message.stream)
        if message.kind != _RESPONSE or answer is None or answer.done():
            return  # whoever asked has given up, or it is of a later version
        if message.data is None:
            answer.set_exception(_too_long(message.length_bytes, _LARGEST_DATA_BYTES))
            return
        try:
            response = ttrpc_pb2.Response.FromString(message.data)
        except DecodeError as problem:
            raise MuxError(f"the peer does not speak ttrpc: not a response ({problem})") from None
        if response.status.code != Code.OK:
            answer.set_exception(RpcError(response.status.code, response.status.message))
        else:
            answer.set_result(response.payload)
