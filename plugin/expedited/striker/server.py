"""The striker's socket, the striker's half: takes policy and requests, sends reports."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from expedited.errors import ExpeditedError
from expedited.striker.container import Container, open_state, read_container
from expedited.striker.link import PACKET_AT_MOST, peer
from expedited.striker.log import Log
from expedited.striker.roots import Roots
from expedited.striker.status import StrikerStatus
from expedited.striker.stops import Stops
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.linux import be_realtime
from expedited.teardown.policy import Policy
from expedited.teardown.reap import STRIKER_PRIORITY
from expedited.teardown.report import Report

__all__ = ["Server", "listen"]

_REPORTS_A_PACKET = 8
_ACCEPT_AGAIN_SECONDS = 0.05
#: How much of a packet may be containers' ids: beside them is whatever else a status has.
_IDS_BYTES = 64_000


def listen(path: str) -> socket.socket:
    """Bind the striker's socket, mode 0600, in place of one that a crash has left.

    Raises:
        ExpeditedError: another striker listens there already, or the directory can't be made.
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except OSError:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise ExpeditedError(
                    f"{path} is in the way: it is no socket; move it away, or give another --run-dir"
                ) from None
            os.unlink(path)
        else:
            raise ExpeditedError(f"{path}: a striker listens there already; stop it first, or give another --run-dir")
        finally:
            probe.close()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(16)
    except OSError as error:
        raise ExpeditedError(f"{path}: can't listen there: {error.strerror or error}; give another --run-dir") from None
    return listener


class Server:
    """Serves every client in one thread; a client that does not read is dropped, never waited for."""

    def __init__(self, listener: socket.socket, log: Log) -> None:
        self._listener = listener
        self._log = log
        self._clients: dict[int, socket.socket] = {}
        self._lock = threading.Lock()

    def start(self, stops: Stops, roots: Roots, status: Callable[[], StrikerStatus]) -> None:
        """Begin to serve, in a thread of its own."""
        self._stops, self._roots, self._status = stops, roots, status
        threading.Thread(target=self._run, name="link", daemon=True).start()

    def publish(self, report: Report) -> bool:
        """Send a report to every client, if there is one; from any thread."""
        self._send_all({"is": "report", "report": report.to_json()})
        return bool(self._clients)

    def stop_began(self, container_id: str, signal: int) -> None:
        """Tell every client that a SIGTERM, or a SIGKILL that is being struck, has passed the gate; from any thread."""
        self._send_all({"is": "stop_began", "id": container_id, "signal": signal})

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        be_realtime(STRIKER_PRIORITY)  # not the gate's, whose loop has started it
        while True:
            # poll, not select: a strike of a thousand processes takes descriptors beyond select's 1,024
            poller = select.poll()
            for descriptor in (self._listener.fileno(), *self._clients):
                poller.register(descriptor, select.POLLIN)
            for descriptor, _ in poller.poll():
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._clients:
                    self._serve(self._clients[descriptor])

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # No descriptor left for it, and who waits keeps the listener readable: without a pause that would be a loop at a
            # real-time priority
            time.sleep(_ACCEPT_AGAIN_SECONDS)
            return
        visitor = peer(connection)
        if visitor.uid not in (0, os.getuid()):
            self._log.warning(f"a process of user {visitor.uid} was turned away")
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._clients[connection.fileno()] = connection

    def _serve(self, connection: socket.socket) -> None:
        try:
            packet = connection.recv(PACKET_AT_MOST)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._drop(connection)
            return
        message: Any = None
        try:
            message = json.loads(packet)
            do = message["do"]
            # A strike's answer comes when the strike has ended
            handler = partial(self._strike, connection) if do == "strike" else getattr(self, f"_do_{do}", None)
            if handler is None:
                raise ExpeditedError(f"unknown request {do!r}")
            answer = handler(message)
        except ExpeditedError as error:
            answer = {"is": "refused", "why": str(error), "code": error.exit_code}
        except OSError as error:
            # A cgroup that goes while it is looked at
            answer = {"is": "refused", "why": f"{error.strerror}: {error.filename}; is it gone?", "code": 1}
        except Exception as error:
            # Whatever a client sends: this thread serves everybody else, and must not end
            why = f"malformed request: {type(error).__name__}: {error}".partition("\n")[0]
            answer = {"is": "refused", "why": why, "code": 2}
        if answer is not None:
            self._send(connection, {"seq": message.get("seq") if isinstance(message, dict) else None, **answer})

    def _do_policy(self, message: dict[str, Any]) -> None:
        stops = self._stops
        if "default" in message:
            stops.default = Policy.from_json(message["default"])
        fresh = {name: Policy.from_json(policy) for name, policy in message.get("containers", {}).items()}
        stops.policies = fresh if message.get("replace") else {**stops.policies, **fresh}

    def _do_forget(self, message: dict[str, Any]) -> None:
        self._stops.forget(message["id"])

    def _do_leaving(self, message: dict[str, Any]) -> None:
        self._stops.leaving.update(message["ids"])

    def _do_watch(self, message: dict[str, Any]) -> dict[str, Any]:
        marked = self._roots.ensure(message["id"])
        return {"is": "watching", "id": message["id"], "marked": marked}

    def _do_status(self, message: dict[str, Any]) -> dict[str, Any]:
        status = self._status()
        ids, beyond = _page(status.gated)
        return {"is": "status", **replace(status, gated=ids, gated_beyond=beyond).to_json()}

    def _do_gated(self, message: dict[str, Any]) -> dict[str, Any]:
        after = str(message.get("after", ""))
        ids, beyond = _page([name for name in self._status().gated if name > after])
        return {"is": "gated", "ids": ids, "more": beyond > 0}

    def _do_reports(self, message: dict[str, Any]) -> dict[str, Any]:
        stops = self._stops
        kept = [report for report in list(stops.reports) if report.number > message.get("after", 0)]
        told = [report.to_json() for report in kept[:_REPORTS_A_PACKET]]
        return {"is": "reports", "reports": told, "more": len(kept) > len(told), "heard_up_to": stops.heard_up_to}

    def _do_heard(self, message: dict[str, Any]) -> None:
        stops = self._stops
        stops.heard_up_to = max(stops.heard_up_to, int(message["number"]))

    def _strike(self, connection: socket.socket, message: dict[str, Any]) -> None:
        """In a worker: this thread must stay free to answer others. The answer is the report."""
        stops = self._stops
        container = self._find(message["id"]) if message.get("id") else None
        cgroup = container.cgroup if container else Cgroup.find(message["cgroup"])
        policy = stops.policy_of(container.id if container else "")
        if message.get("policy"):
            policy = Policy.from_json({**policy.to_json(), **message["policy"]})
        cgroup.refuse_if_not_a_containers()
        sequence = message.get("seq")
        trigger = str(message.get("trigger", "command"))

        def work() -> None:
            try:
                report = stops.strike_now(container, cgroup, policy, trigger)
                answer = {"is": "report", "seq": sequence, "report": report.to_json()}
            except ExpeditedError as error:
                answer = {"is": "refused", "seq": sequence, "why": str(error), "code": error.exit_code}
            self._send(connection, answer)

        stops.submit(work)

    # --------------------------------------------------------------------------------------------------------------

    def _find(self, container_id: str) -> Container:
        for directory in self._roots.marked:
            descriptor = open_state(directory) if os.path.basename(directory) == container_id else None
            if descriptor is not None:
                try:
                    return read_container(directory, descriptor)
                finally:
                    os.close(descriptor)
        raise ExpeditedError(
            f"container {container_id}: no runtime on this node has one of that id; see `expedited top --once`"
        )

    def _send_all(self, message: dict[str, Any]) -> None:
        for connection in list(self._clients.values()):
            self._send(connection, message)

    def _send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        packet = json.dumps(message, separators=(",", ":")).encode()
        with self._lock:
            try:
                connection.send(packet)
            except OSError:
                # Gone, or it has not read for megabytes: its reports are kept, and it can ask for them when it is back
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _drop(self, connection: socket.socket) -> None:
        with self._lock:
            self._clients.pop(connection.fileno(), None)
            connection.close()


def _page(ids: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """As many of them as a packet has room for, the first always; and how many are left."""
    room, count = _IDS_BYTES, 0
    for name in ids:
        room -= len(json.dumps(name)) + 1
        if room < 0 and count:
            break
        count += 1
    return tuple(ids[:count]), len(ids) - count
