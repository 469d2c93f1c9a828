"""Several byte streams over one unix socket, as NRI does it (nri pkg/net/multiplex/mux.go).

A frame is a connection's number and the payload's length, both u32 big-endian, then the payload. Opening and closing a
connection is not signalled, and frames of one that nobody opened are dropped. No frame is ever kept: whatever part
of a payload has arrived is handed on at once, so nothing that a peer says can make this layer grow.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Protocol, cast

from expedited.errors import ExpeditedError

__all__ = ["LARGEST_SENT_FRAME_BYTES", "Mux", "MuxError", "Receiver"]

#: The largest payload we send. The peer reads through a buffer of this size, and a frame that does not fit into it is an
#: error there (mux.go ``Read`` says ENOMEM; ttrpc channel.go has bufio's default of 4096).
LARGEST_SENT_FRAME_BYTES = 4096

_HEADER = struct.Struct(">II")
_RESERVED = 0
# mux.go maxPayloadSize: the largest message of ttrpc and its header
_LARGEST_FRAME_BYTES = 10 + (4 << 20)
# What the peer has not read yet; it takes our few answers as they come, or it is not there any more.
_LARGEST_BACKLOG_BYTES = 1 << 20


class MuxError(ExpeditedError):
    """The peer does not speak this protocol, or a stream in it is broken; the whole trunk is closed for it."""


class Receiver(Protocol):
    """What one connection's bytes are for. Neither method may wait for anything."""

    def received(self, data: bytes) -> None:
        """The next bytes of the stream, in whatever pieces they come.

        Raises:
            MuxError: they can't be understood; the trunk is closed.
        """

    def lost(self, why: str) -> None:
        """Nothing more will come, and nothing can be sent."""


class Mux(asyncio.Protocol):
    """The trunk: an asyncio protocol for the socket to the runtime.

    Attributes:
        closed: Done when the trunk is; its result says why, for people.
    """

    def __init__(self) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._receivers: dict[int, Receiver] = {}
        self._header = bytearray()
        self._left_bytes = 0
        self._target: Receiver | None = None
        self._why = ""

    def open(self, connection: int, receiver: Receiver) -> None:
        """Let ``receiver`` have what comes on this connection; before the first frame, or it is lost.

        Raises:
            ValueError: the number is reserved, or in use.
        """
        if connection == _RESERVED or connection in self._receivers:
            raise ValueError(f"connection {connection} is reserved or open already")
        self._receivers[connection] = receiver

    def write(self, connection: int, data: bytes) -> None:
        """Send on a connection: in one go if the socket takes it, never waiting. Dropped once the trunk is closed."""
        if self._transport is None or self._why:
            return
        frames = bytearray()
        for start in range(0, len(data), LARGEST_SENT_FRAME_BYTES):
            payload = data[start : start + LARGEST_SENT_FRAME_BYTES]
            frames += _HEADER.pack(connection, len(payload))
            frames += payload
        self._transport.write(bytes(frames))
        backlog = self._transport.get_write_buffer_size()
        if backlog > _LARGEST_BACKLOG_BYTES:
            self.fail(f"the runtime does not read what it is sent: {backlog} bytes wait")

    def close(self, why: str) -> None:
        """Close the trunk after what has been written; ``closed`` tells when."""
        if self._begin_closing(why) and self._transport is not None:
            self._transport.close()

    def fail(self, why: str) -> None:
        """Close the trunk at once, whatever was still to be sent."""
        # Also after close(), which waits for a peer to read
        self._begin_closing(why)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio: the socket is there."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: the next bytes of the trunk."""
        at = 0
        try:
            while at < len(data) and not self._why:
                if self._left_bytes:
                    piece = data[at : at + self._left_bytes]
                    at += len(piece)
                    self._left_bytes -= len(piece)
                    if self._target is not None:
                        self._target.received(piece)
                else:
                    part = data[at : at + _HEADER.size - len(self._header)]
                    at += len(part)
                    self._header += part
                    if len(self._header) == _HEADER.size:
                        self._begin_frame()
        except MuxError as problem:
            self.fail(str(problem))

    def eof_received(self) -> bool:
        """Called by asyncio: the peer has closed; so do we."""
        cut = self._left_bytes or self._header
        self.fail("the runtime closed the connection" + (" in the middle of a frame" if cut else ""))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the socket is gone."""
        self._begin_closing(f"the connection broke: {exc}" if exc else "the connection was closed")
        self._transport = None
        receivers, self._receivers, self._target = self._receivers, {}, None
        for receiver in receivers.values():
            receiver.lost(self._why)
        if not self.closed.done():
            self.closed.set_result(self._why)

    def _begin_frame(self) -> None:
        connection, self._left_bytes = _HEADER.unpack(self._header)
        self._header.clear()
        if connection == _RESERVED:
            raise MuxError("the peer does not speak NRI's protocol: a frame for connection 0")
        if self._left_bytes > _LARGEST_FRAME_BYTES:
            raise MuxError(
                f"the peer does not speak NRI's protocol: a frame of {self._left_bytes} bytes "
                f"(at most {_LARGEST_FRAME_BYTES})"
            )
        self._target = self._receivers.get(connection)

    def _begin_closing(self, why: str) -> bool:
        """Note the first reason; False if there is one already."""
        first = not self._why
        self._why = self._why or why
        return first
