"""Asks the API server: objects as plain JSON, its refusals as errors, its watches as a stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from expedited.kube.access import Access
from expedited.kube.connection import Connection, Response
from expedited.kube.errors import ApiError, ExpiredError, UnreachableError

__all__ = ["METADATA_ONLY", "ApiServer"]

#: Asks for a list whose items have nothing but their metadata (kubernetes apimachinery meta/v1 PartialObjectMetadataList).
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
_JSON = "application/json"

_Object = dict[str, Any]


class ApiServer:
    """One API server. Requests share a connection, each watch has its own. Used from one event loop."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._idle: Connection | None = None
        self._turn = asyncio.Lock()

    def close(self) -> None:
        """Let go of the connection that is kept."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    async def get(self, path: str, *, accept: str = _JSON) -> _Object:
        """Read an object or a list.

        Raises:
            ApiError: refused; UnreachableError: no answer.
        """
        return await self._ask("GET", path, accept=accept)

    async def create(self, path: str, obj: _Object) -> _Object:
        """Make an object.

        Raises:
            ApiError: refused; UnreachableError: no answer.
        """
        return await self._ask("POST", path, json.dumps(obj).encode(), accept=_JSON, content_type=_JSON)

    async def patch(self, path: str, changes: _Object) -> _Object:
        """Change an object by a strategic merge patch, which joins lists by their keys.

        Raises:
            ApiError: refused; UnreachableError: no answer.
        """
        kind = "application/strategic-merge-patch+json"
        return await self._ask("PATCH", path, json.dumps(changes).encode(), accept=_JSON, content_type=kind)

    async def watch(self, path: str) -> AsyncGenerator[_Object, None]:
        """Each event (``type`` and ``object``) of a watch, until the server ends it; the first, BEGUN, is ours.

        Raises:
            ExpiredError: it can't begin, or go on, from that resource version; ApiError: refused.
            UnreachableError: no answer, or the connection broke.
        """
        connection = await Connection.open(self._access)
        try:
            response = await connection.ask("GET", path, accept=_JSON)
            if response.status != 200:
                raise _refusal("GET", path, response, await response.body())
            yield {"type": "BEGUN", "object": {}}
            async for line in response.lines():
                event = _parsed(line)
                if event.get("type") == "ERROR":
                    raise _as_error("GET", path, event.get("object", {}), response)
                yield event
        finally:
            connection.close()

    async def _ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> _Object:
        async with self._turn:
            response, answer = await self._exchange(method, path, body, **headers)
        if response.status >= 300:
            raise _refusal(method, path, response, answer)
        return _parsed(answer) if answer else {}

    async def _exchange(self, method: str, path: str, body: bytes, **headers: str) -> tuple[Response, bytes]:
        """One request on the connection that is kept, or once more on a new one where that has died meanwhile."""
        kept, self._idle = self._idle, None
        if kept is not None:
            try:
                return await self._exchange_on(kept, method, path, body, **headers)
            except UnreachableError:
                pass  # servers close what was idle for long; what is created here has a name, so twice does no harm
        return await self._exchange_on(await Connection.open(self._access), method, path, body, **headers)

    async def _exchange_on(
        self, connection: Connection, method: str, path: str, body: bytes, **headers: str
    ) -> tuple[Response, bytes]:
        done = False
        try:
            response = await connection.ask(method, path, body, **headers)
            answer = await response.body()
            done = response.reusable
        finally:
            if done:
                self._idle = connection
            else:
                connection.close()
        return response, answer


def _parsed(data: bytes) -> _Object:
    try:
        value = json.loads(data)
    except ValueError as problem:
        raise UnreachableError(f"the API server's answer is no JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise UnreachableError(f"the API server's answer is no object but {type(value).__name__}")
    return value


def _refusal(method: str, path: str, response: Response, body: bytes) -> ApiError:
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):  # a proxy in between, or a server that is overwhelmed, answers in plain text
        said = {"message": " ".join(body.decode(errors="replace").split())[:200]}
    return _as_error(method, path, said, response)


def _as_error(method: str, path: str, status: _Object, response: Response) -> ApiError:
    """From a Status object (kubernetes apimachinery meta/v1 Status)."""
    said = status.get("code")  # whatever stands between us and the API server may put anything there
    code = said if isinstance(said, int) and said > 0 else max(response.status, 400)
    after = response.headers.get("retry-after", "")
    kind = ExpiredError if code == 410 else ApiError
    return kind(
        code,
        str(status.get("reason") or "error"),
        str(status.get("message", "")),
        asked=f"{method} {path.partition('?')[0]}",
        retry_after_seconds=float(after) if after.isdecimal() else 0.0,
    )
