"""The striker's socket: JSON objects over SOCK_SEQPACKET, one a packet. This is the client's half.

The protocol is in docs/architecture.md. Standard library only, synchronous, with a descriptor to select on.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from expedited.errors import ExpeditedError
from expedited.striker.status import StrikerStatus
from expedited.teardown.report import Report

__all__ = ["PACKET_AT_MOST", "Peer", "StrikerLink", "StrikerUnreachable", "Unreadable", "peer"]

#: The largest packet, in bytes: a report with 64 processes and its steps has some 10 KB.
PACKET_AT_MOST = 160_000
# A striker of before named all of its containers in one packet, however large: who is to replace it has to read that
_OLDER_AT_MOST = 1 << 20
# All policies of a hundred thousand containers
_UNSENT_AT_MOST = 16 << 20

_UCRED = struct.Struct("=iII")  # struct ucred of include/linux/socket.h: pid, uid, gid


class StrikerUnreachable(ExpeditedError):
    """No striker listens at that socket, or it has ended."""


class Unreadable(StrikerUnreachable):
    """What it sent is no message: nothing that follows on this connection can be relied on."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A process at the other end of a unix socket; ``pid`` is 0 where it has no number in our pid namespace."""

    pid: int
    uid: int


def peer(connection: socket.socket) -> Peer:
    """Who connected, of a socket that was accepted; who listens, of one that was connected (SO_PEERCRED, unix(7)).

    The kernel has noted it at that time, and it holds whatever becomes of the socket's mode.
    """
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid)


class StrikerLink:
    """A connection to the striker."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sequence = 0
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0

    @classmethod
    def connect(cls, path: str, *, blocking: bool = True) -> StrikerLink:
        """Connect to the striker's socket.

        Args:
            path: Where it listens.
            blocking: Whether :meth:`send` may wait for a striker that does not read; else what it has no room for is kept, for
                :meth:`flush`.

        Raises:
            StrikerUnreachable: nobody listens there.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(blocking)  # before: one that accepts nobody would be waited for, too
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise StrikerUnreachable(
                f"no striker at {path} ({os.strerror(error.errno or 0)}): start it with `expedited run`"
            ) from None
        return cls(connection)

    def fileno(self) -> int:
        """For select and for asyncio's add_reader."""
        return self._socket.fileno()

    def send(self, do: str, **fields: Any) -> int:
        """Ask for something; see the protocol for what ``do`` may be.

        Returns:
            The request's number, which its answer repeats as ``seq``.

        Raises:
            StrikerUnreachable: the striker has ended, or has not read for long.
        """
        self._sequence += 1
        packet = json.dumps({"do": do, "seq": self._sequence, **fields}, separators=(",", ":")).encode()
        self._unsent.append(packet)
        self._unsent_bytes += len(packet)
        self.flush()
        if self._unsent_bytes > _UNSENT_AT_MOST:
            raise StrikerUnreachable(f"the striker has not read for {self._unsent_bytes:,} bytes")
        return self._sequence

    @property
    def unsent(self) -> bool:
        """Whether something waits for :meth:`flush`, which is for when the descriptor can be written to."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what waits, in its order, as far as there is room for it.

        Raises:
            StrikerUnreachable: the striker has ended.
        """
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent_bytes -= len(self._unsent.popleft())
        except BlockingIOError:
            return
        except OSError as error:
            raise StrikerUnreachable(
                f"the striker can't be reached any more ({os.strerror(error.errno or 0)})"
            ) from None

    def receive(self, timeout_seconds: float | None = 0.0) -> dict[str, Any] | None:
        """The next message.

        Args:
            timeout_seconds: How long to wait for one; None: for ever.

        Returns:
            The message; None when there was none in that time.

        Raises:
            StrikerUnreachable: the striker has ended.
            Unreadable: what came is no message.
        """
        poller = select.poll()  # not select(), which has no place for a descriptor above 1,023
        poller.register(self._socket, select.POLLIN)
        if not poller.poll(None if timeout_seconds is None else timeout_seconds * 1000):
            return None
        try:
            packet = self._socket.recv(_OLDER_AT_MOST)
        except OSError:
            packet = b""
        if not packet:
            raise StrikerUnreachable("the striker has closed the connection")
        return _read(packet)

    def ask(self, do: str, *, timeout_seconds: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Send and wait for the answer; what else comes meanwhile is dropped, so use it on a link of its own.

        Raises:
            StrikerUnreachable: the striker has ended, or does not answer in time.
        """
        sequence = self.send(do, **fields)
        while (message := self.receive(timeout_seconds)) is not None:
            if message.get("seq") == sequence:
                return message
        raise StrikerUnreachable(f"the striker did not answer `{do}` within {timeout_seconds:g} s")

    def status(self, *, timeout_seconds: float = 5.0) -> StrikerStatus:
        """How it is; on a link of its own, as :meth:`ask`.

        Raises:
            StrikerUnreachable: the striker has ended, or does not answer in time.
        """
        return StrikerStatus.from_json(self.ask("status", timeout_seconds=timeout_seconds))

    def report_of(self, container_id: str, timeout_seconds: float) -> Report | None:
        """The next report of this container; what else comes meanwhile is dropped, as by :meth:`ask`.

        Returns:
            None when there was none in that time.

        Raises:
            StrikerUnreachable: the striker has ended.
        """
        give_up_at = time.monotonic() + timeout_seconds
        while (left := give_up_at - time.monotonic()) > 0:
            message = self.receive(left)
            if message and message["is"] == "report" and message["report"]["container_id"] == container_id:
                return Report.from_json(message["report"])
        return None

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> StrikerLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(packet: bytes) -> dict[str, Any]:
    try:
        message = json.loads(packet)
    except ValueError as error:
        why = str(error)
    else:
        if isinstance(message, dict):
            return message
        why = "no object"
    raise Unreadable(f"the striker sent a packet of {len(packet):,} bytes that can't be read ({why})")
