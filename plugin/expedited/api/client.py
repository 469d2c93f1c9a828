"""Asks the agent over its control API, for the command line: plain calls, and errors of one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import grpc

from expedited.errors import ExpeditedError, UsageError
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.pb.v1 import expedited_pb2_grpc as pb_grpc
from expedited.socket_path import refuse_if_too_long

__all__ = ["ApiClient"]

# For all but a strike, which has its own deadline, and a watch, which has none
_ANSWER_SECONDS = 10.0
_STRIKE_SLACK_SECONDS = 60.0
# Strikes in progress may end first
_CLOSE_SECONDS = 25.0

_OPTIONS = (
    # gRPC's default of 4 MiB is less than a long memory of large stops
    ("grpc.max_receive_message_length", 64 << 20),
    # A proxy for the network has no say over a socket of this machine
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_THE_USERS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
_NO_CONNECTION = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class ApiClient:
    """One connection to the agent, made when it is first needed.

    Every method raises :class:`UsageError` where the agent says that the request is wrong, and :class:`ExpeditedError`
    where there is no agent or it could not do it.

    Args:
        socket_path: The agent's ``expedited.sock``.
    """

    def __init__(self, socket_path: str) -> None:
        refuse_if_too_long(socket_path, "the agent's socket")
        self._path = socket_path
        # gRPC reads its target as a URI
        self._channel = grpc.insecure_channel(f"unix:{quote(socket_path)}", options=_OPTIONS)
        self._stub: Any = pb_grpc.ExpeditedStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def strike(self, request: pb.StrikeRequest) -> list[pb.Stop]:
        """Kill and tear down now; returns when it is done."""
        with self._one_line_errors():
            # Of a pod its containers first, then its sandbox. Without a deadline of the request's the policy's holds, which is not known
            deadline = request.deadline_seconds
            return list(
                self._stub.Strike(
                    request, timeout=2 * deadline + _STRIKE_SLACK_SECONDS if 0 < deadline < inf else None
                ).stops
            )

    def containers(self, *, sandboxes: bool = False) -> list[pb.Container]:
        """The containers that the agent knows, with the memory they hold now."""
        with self._one_line_errors():
            request = pb.ListContainersRequest(all=sandboxes)
            return list(self._stub.ListContainers(request, timeout=_ANSWER_SECONDS).containers)

    def stops(self, limit: int = 0) -> list[pb.Stop]:
        """The stops that the agent remembers, the newest first; 0: all."""
        with self._one_line_errors():
            return list(self._stub.ListStops(pb.ListStopsRequest(limit=limit), timeout=_ANSWER_SECONDS).stops)

    def watch(self, *, replay: bool = False) -> Iterator[pb.Stop]:
        """Each stop as it ends, until the iterator is closed; with ``replay`` the remembered ones before."""
        with self._one_line_errors():
            call = self._stub.WatchStops(pb.WatchStopsRequest(replay=replay))
            try:
                yield from call
            finally:
                call.cancel()

    def status(self, *, timeout_seconds: float = _ANSWER_SECONDS) -> pb.Status:
        """How the agent is."""
        with self._one_line_errors():
            status: pb.Status = self._stub.GetStatus(pb.GetStatusRequest(), timeout=timeout_seconds)
            return status

    def close_gate(self) -> pb.Status:
        """End the gate for good; returns when it has ended."""
        with self._one_line_errors():
            closed: pb.Status = self._stub.Close(pb.CloseRequest(), timeout=_CLOSE_SECONDS)
            return closed

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._explain(error) from error

    def _explain(self, error: Any) -> ExpeditedError:
        # What a call raises is an RpcError and a grpc.Call in one, for which there is no type
        code, details = error.code(), error.details() or ""
        if code in _THE_USERS:
            return UsageError(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ExpeditedError(f"the agent at {self._path} does not answer: see its log")
        if code in _NO_CONNECTION:
            return self._no_agent()
        return ExpeditedError(details or f"the agent at {self._path} answered {code.name}")

    def _no_agent(self) -> ExpeditedError:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(self._path)
            return ExpeditedError(f"the agent at {self._path} does not answer: see its log")
        try:
            owner = Path(self._path).stat().st_uid
        except PermissionError:
            return ExpeditedError(f"{self._path} is closed to this user: ask as root")
        except OSError:
            owner = os.geteuid()
        if os.geteuid() not in (0, owner):
            return ExpeditedError(f"{self._path} is closed to this user: ask as root, or as user {owner}")
        return ExpeditedError(f"no agent at {self._path}: start it with `expedited run`, or give --run-dir")
