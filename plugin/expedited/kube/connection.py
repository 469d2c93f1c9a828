"""HTTP/1.1 over one TLS connection, as far as the Kubernetes API needs it: a request, and a body that may never end.

Its own, and not the `kubernetes` package, as that costs the resident agent 22 MiB (docs/decisions/0009); asyncio's
streams, and not http.client in a thread, as a watch that waits must end when the agent does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Self

from expedited.kube.access import Access
from expedited.kube.errors import UnreachableError

__all__ = ["Connection", "Response"]

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
# etcd keeps no object above 1.5 MiB; a list of a node's pods is more
_LARGEST_LINE = 4 << 20
_LARGEST_BODY = 32 << 20
# A peer that has vanished without a word is noticed after 15 + 3 * 5 s, also while a watch has nothing to say
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class Response:
    """One answer; its body is read once, by one of the methods.

    Attributes:
        headers: By lower-case name.
        reusable: Whether the connection may be asked again once the body was read to its end.
    """

    def __init__(self, status: int, headers: dict[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self.headers = headers
        self.reusable = headers.get("connection", "").lower() != "close"
        self._reader = reader

    async def body(self) -> bytes:
        """All of it.

        Raises:
            UnreachableError: it broke off, or is larger than anything that is asked for here.
        """
        parts, size = [], 0
        with _as_unreachable("reading the answer"):
            async with asyncio.timeout(_ANSWER_SECONDS):
                async for chunk in self._chunks():
                    size += len(chunk)
                    if size > _LARGEST_BODY:
                        raise ValueError(f"an answer of more than {_LARGEST_BODY >> 20} MiB")
                    parts.append(chunk)
        return b"".join(parts)

    async def lines(self) -> AsyncIterator[bytes]:
        """Line by line as they come, until the server ends the body.

        Raises:
            UnreachableError: it broke off, or a line is larger than any object can be.
        """
        rest = bytearray()
        with _as_unreachable("watching"):
            async for chunk in self._chunks():
                rest += chunk
                if len(rest) > _LARGEST_LINE:
                    raise ValueError(f"an object of more than {_LARGEST_LINE >> 20} MiB")
                *whole, tail = rest.split(b"\n")
                rest = tail
                for line in whole:
                    if line.strip():
                        yield bytes(line)

    async def _chunks(self) -> AsyncIterator[bytes]:
        """RFC 9112, 6: chunked, of a known length, or until the connection ends."""
        reader = self._reader
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\n")).split(b";")[0], 16):
                yield await reader.readexactly(size)
                await reader.readexactly(2)
            while (await reader.readline()).strip():
                pass  # a trailer
        elif "content-length" in self.headers:
            left = int(self.headers["content-length"])
            while left:
                data = await reader.readexactly(min(left, 1 << 16))
                left -= len(data)
                yield data
        elif self.status != 204:
            self.reusable = False
            while data := await reader.read(1 << 16):
                yield data


class Connection:
    """Takes one request at a time."""

    def __init__(self, access: Access, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._access = access
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, access: Access) -> Self:
        """Connect, and make sure that it is the right server.

        Raises:
            UnreachableError: nobody there, or not the one that its certificate should say it is.
        """
        with _as_unreachable(f"the API server at {access.address}"):
            context = await asyncio.to_thread(access.context)
            name = (access.server_name or access.host) if context else None
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    access.host, access.port, ssl=context, server_hostname=name
                )
        bare = writer.get_extra_info("socket")
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            bare.setsockopt(socket.IPPROTO_TCP, option, value)
        return cls(access, reader, writer)

    async def ask(self, method: str, target: str, body: bytes = b"", **headers: str) -> Response:
        """Send a request; returns when the head of the answer is there.

        Args:
            method: GET, POST, PATCH.
            target: Path and query.
            body: JSON, mostly.
            headers: ``content_type`` stands for Content-Type, and so on.

        Raises:
            UnreachableError: the connection broke, or no answer came.
        """
        access = self._access
        with _as_unreachable(f"the API server at {access.address}"):
            token = access.bearer()
            said = {"Host": access.address, "User-Agent": "expedited", "Content-Length": str(len(body))}
            said |= {name.replace("_", "-"): value for name, value in headers.items()}
            if token:
                said["Authorization"] = f"Bearer {token}"
            lines = [f"{method} {access.path}{target} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
            async with asyncio.timeout(_ANSWER_SECONDS):
                self._writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
                await self._writer.drain()
                while True:
                    response = await self._head()
                    if response.status >= 200:
                        return response

    def close(self) -> None:
        """Let go, whatever is on its way."""
        self._writer.transport.abort()

    async def _head(self) -> Response:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status, *_ = head[0].split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(f"it speaks {version!r}, not HTTP/1.1")
        pairs = (line.partition(":") for line in head[1:] if line)
        return Response(int(status), {name.lower(): value.strip() for name, _, value in pairs}, self._reader)


class _as_unreachable:  # noqa: N801 - reads as the statement that it is
    """Whatever a connection can raise becomes one line."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        match problem:
            case TimeoutError():
                why = "no answer in time"
            case asyncio.IncompleteReadError():
                why = "the connection was closed"
            case OSError() | asyncio.LimitOverrunError() | ValueError():
                # Also TLS's errors, whose text has the reason where strerror is a library's code
                why = " ".join(str(problem).split())
            case _:
                return
        raise UnreachableError(f"{self._what}: {why}") from problem
