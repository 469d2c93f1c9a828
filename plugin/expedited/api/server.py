"""Serves the control API: ``expedited.v1``, with gRPC's health and reflection services."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from expedited.annotations import TERMS
from expedited.api.backend import Backend, Target
from expedited.api.convert import container_to_pb, status_to_pb, stop_to_pb
from expedited.api.relay import Relay, private_directory, refuse_if_listened_at
from expedited.errors import ExpeditedError, UsageError
from expedited.inventory import NotFoundError
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.pb.v1 import expedited_pb2_grpc as pb_grpc
from expedited.sighting import Container
from expedited.socket_path import refuse_if_too_long
from expedited.teardown.policy import LONGEST_SECONDS

__all__ = ["serving"]

# What a strike that is under way gets before it is cut off; who watches never ends by himself, and always waits it out
_GRACE_SECONDS = 0.2
_SERVICE = pb.DESCRIPTOR.services_by_name["Expedited"].full_name

_log = structlog.get_logger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def serving(backend: Backend, socket_path: str) -> AsyncIterator[None]:
    """The API answers at ``socket_path`` (mode 0600) inside the ``async with``.

    gRPC's own socket is ``api/grpc.sock`` beside it.

    Raises:
        ExpeditedError: the socket can't be made, or another agent listens there.
    """
    # Before anything is made: the other agent's inner socket would be replaced else
    await refuse_if_listened_at(socket_path)
    inner = Path(socket_path).parent / "api" / "grpc.sock"
    refuse_if_too_long(inner, "the control API's socket")
    private_directory(inner.parent)
    relay = Relay(socket_path, inner)
    server, status = _make_server(backend, str(inner))
    await server.start()
    try:
        inner.chmod(0o600)
        await status.set(_SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await relay.start()
        yield
    finally:
        await status.enter_graceful_shutdown()
        await server.stop(_GRACE_SECONDS)
        await relay.close()


def _make_server(backend: Backend, inner: str) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_ExpeditedServicer_to_server(_Servicer(backend), server)  # type: ignore[no-untyped-call]
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        # gRPC reads its address as a URI
        server.add_insecure_port(f"unix:{quote(inner)}")
    except RuntimeError as error:
        raise ExpeditedError(f"cannot listen at {inner}: is the directory writable, and on a local disk?") from error
    return server, status


class _Servicer(pb_grpc.ExpeditedServicer):
    """Each method: read the request, ask the agent, put the answer into a message."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Strike(self, request: pb.StrikeRequest, context: _Context) -> pb.StrikeResponse:  # noqa: N802
        async with _errors_as_codes(context):
            stops = await self._backend.strike(_target(request), _overrides(request))
            return pb.StrikeResponse(stops=[stop_to_pb(stop) for stop in stops])
        raise AssertionError

    async def ListContainers(  # noqa: N802
        self, request: pb.ListContainersRequest, context: _Context
    ) -> pb.ListContainersResponse:
        async with _errors_as_codes(context):
            wanted = [known for known in self._backend.containers() if request.all or not known.sandbox]
            # Every cgroup's memory is read from files, and the kernel may let a reader of those wait
            return await asyncio.to_thread(_list_containers, wanted)
        raise AssertionError

    async def ListStops(self, request: pb.ListStopsRequest, context: _Context) -> pb.ListStopsResponse:  # noqa: N802
        async with _errors_as_codes(context):
            newest_first = list(reversed(self._backend.stops()))
            wanted = newest_first[: request.limit or None]
            return pb.ListStopsResponse(stops=[stop_to_pb(stop) for stop in wanted])
        raise AssertionError

    async def WatchStops(self, request: pb.WatchStopsRequest, context: _Context) -> None:  # noqa: N802
        # Written one by one, not yielded: a generator that gRPC drops in the middle is closed only when it is collected
        async with _errors_as_codes(context), aclosing(self._backend.watch(replay=request.replay)) as stops:
            async for stop in stops:
                await context.write(stop_to_pb(stop))

    async def GetStatus(self, request: pb.GetStatusRequest, context: _Context) -> pb.Status:  # noqa: N802
        async with _errors_as_codes(context):
            return status_to_pb(await self._backend.status())
        raise AssertionError

    async def Close(self, request: pb.CloseRequest, context: _Context) -> pb.Status:  # noqa: N802
        async with _errors_as_codes(context):
            await self._backend.close()
            return status_to_pb(await self._backend.status())
        raise AssertionError


def _list_containers(containers: list[Container]) -> pb.ListContainersResponse:
    return pb.ListContainersResponse(containers=[container_to_pb(known) for known in containers])


@asynccontextmanager
async def _errors_as_codes(context: _Context) -> AsyncIterator[None]:
    """Answer an error with the code that stands for its kind, and its one line as details."""
    try:
        yield
    except NotFoundError as error:
        code, line = grpc.StatusCode.NOT_FOUND, str(error)
    except UsageError as error:
        code, line = grpc.StatusCode.INVALID_ARGUMENT, str(error)
    except ExpeditedError as error:
        code, line = grpc.StatusCode.FAILED_PRECONDITION, str(error)
    except Exception as error:
        _log.exception("the control API failed")
        code, line = grpc.StatusCode.INTERNAL, f"the agent failed ({type(error).__name__}): its log says more"
    else:
        return
    await context.abort(code, line)


def _target(request: pb.StrikeRequest) -> Target:
    """Whom to strike.

    Raises:
        UsageError: nothing, or an empty name, was given.
    """
    which = request.WhichOneof("target")
    name = getattr(request, which) if which else ""
    if not which or not name.strip():
        raise UsageError("nothing to strike was named: give a container_id, a cgroup or a pod")
    return Target(**{which: name})


def _overrides(request: pb.StrikeRequest) -> dict[str, Any]:
    """What the request says in place of the container's policy.

    Raises:
        UsageError: a value is none of those that it may be.
    """
    overrides: dict[str, Any] = {}
    for term, value in ((TERMS["page-cache"], request.page_cache), (TERMS["boost"], request.boost)):
        if value:
            _one_of(term.field, value, term.words)
            overrides[term.field] = term.parse(value)
    seconds = request.deadline_seconds
    if seconds:
        if not (math.isfinite(seconds) and 0 < seconds <= LONGEST_SECONDS):
            raise UsageError(
                f"deadline_seconds is {seconds:g}: give a number of seconds above 0, up to {LONGEST_SECONDS}"
            )
        overrides["deadline_seconds"] = seconds
    return overrides


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r}: give one of {', '.join(choices)}")
