"""An API server of our own that speaks the real one's wire format: TLS, tokens, lists, chunked watches, bookmarks, 410.

It keeps pods, events and nodes in memory, with resource versions and a history that can be compacted, as
apimachinery's and etcd's rules say. What only the real one can show (RBAC, admission, its timing) is the e2e suite's.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from expedited.kube import Access
from expedited.stop import Stop
from expedited.teardown.report import Fate, Memory, Outcome, ProcessReport, Report, Step
from support.waiting import wait_for

_METADATA_ONLY = "as=PartialObjectMetadataList"
_BOOKMARK_SECONDS = 0.1


@dataclass
class Request:
    """What the server was asked, and when."""

    method: str
    path: str
    query: dict[str, str]
    body: dict[str, Any]
    at: float
    accept: str = ""


@dataclass
class _Store:
    """The cluster's state: guarded by one lock, whose condition wakes the watches."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    version: int = 100
    compacted: int = 0
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)


class ApiServerInTest:
    """Serves from threads; every fault is a method or an attribute.

    Attributes:
        tokens: Who is let in.
        requests: All that were made, in order.
        refusals: Answers to give to the next requests, in place of a proper one: (path's beginning, status, headers).
        commands: What a command that is run in a pod answers: (pod, argv) -> (stdout, stderr, exit code).
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.ca_file = str(certificate)
        self.tokens = {"first-token"}
        self.requests: list[Request] = []
        self.refusals: list[tuple[str, int, dict[str, str]]] = []
        self.store = _Store()
        self.commands: Callable[[str, list[str]], tuple[bytes, bytes, int]] = lambda pod, argv: (b"", b"", 0)
        self.bookmarks = True
        self.watch_seconds: float | None = None
        self.odd: dict[str, Any] = {}  # what a refusal's Status has in place of what it should have
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    # -- being there or not --------------------------------------------------------------------------------------------

    def start(self) -> None:
        outer = self

        class Handler(_Handler):
            api = outer

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass  # a client that hangs up is what is being tested

        server = Server(("127.0.0.1", self.port), Handler)
        server.socket = self._context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = server.server_address[1]
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more, and every connection is gone."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        self.drop_connections()

    def drop_connections(self) -> None:
        """As a load balancer in between does: with a RST."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)

    # -- what happens in the cluster -----------------------------------------------------------------------------------

    def put_pod(self, name: str, node: str = "node-1", **metadata: Any) -> None:
        """Make a pod, or change its metadata (and, by ``conditions``, its status)."""
        store = self.store
        with store.changed:
            known = store.pods.get(name)
            pod = copy.deepcopy(known) if known else _new_pod(name, node)
            pod["status"]["conditions"] = metadata.pop("conditions", pod["status"]["conditions"])
            pod["spec"]["containers"] = metadata.pop("containers", pod["spec"]["containers"])
            pod["metadata"] |= metadata
            self._record("MODIFIED" if known else "ADDED", pod)
            store.pods[name] = pod

    def delete_pod(self, name: str) -> None:
        """It is off the records."""
        with self.store.changed:
            self._record("DELETED", copy.deepcopy(self.store.pods.pop(name)))

    def compact(self) -> None:
        """Forget the history, as etcd does every five minutes."""
        with self.store.changed:
            self.store.version += 1
            self.store.compacted = self.store.version
            self.store.history.clear()

    def _record(self, kind: str, pod: dict[str, Any]) -> None:
        store = self.store
        store.version += 1
        pod["metadata"]["resourceVersion"] = str(store.version)
        store.history.append((store.version, kind, pod))
        store.changed.notify_all()

    # -- what tests ask ------------------------------------------------------------------------------------------------

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(self.store.events.values())

    def asked(self, method: str, path: str, watch: bool | None = None) -> list[Request]:
        """The requests for a path that begins so; with ``watch``, only watches or only others."""
        return [
            each
            for each in list(self.requests)
            if each.method == method
            and each.path.startswith(path)
            and (watch is None or watch == (each.query.get("watch") == "true"))
        ]

    def access(self, **changes: Any) -> Access:
        values: dict[str, Any] = {"ca_file": self.ca_file, "token": "first-token", **changes}
        return Access("127.0.0.1", self.port, **values)

    def wait(self, condition: Callable[[], object], what: str = "") -> None:
        """For use in a thread."""
        wait_for(condition, what)


class _Handler(BaseHTTPRequestHandler):
    api: ApiServerInTest
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.request.do_handshake()
        super().setup()
        self.api._open.add(self.request)

    def finish(self) -> None:
        self.api._open.discard(self.request)
        with suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_GET  # noqa: N815 - the base class looks for these names
    do_PATCH = do_GET  # noqa: N815

    def _handle(self) -> None:
        url = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = json.loads(raw) if raw else {}
        api = self.api
        accept = self.headers.get("Accept", "")
        api.requests.append(Request(self.command, url.path, query, body, time.monotonic(), accept))
        for refusal in api.refusals:
            if url.path.startswith(refusal[0]):
                api.refusals.remove(refusal)
                self._refuse(refusal[1], "InTest", "told to refuse", refusal[2])
                return
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in api.tokens:
            self._refuse(401, "Unauthorized", "Unauthorized")
            return
        match self.command, url.path.strip("/").split("/"):
            case "GET", ["api", "v1", "pods"] if query.get("watch") == "true":
                self._watch(query)
            case "GET", ["api", "v1", "pods"]:
                self._list(query)
            case "GET", ["api", "v1", "namespaces", _, "pods"]:
                self._list(query)
            case "GET", ["api", "v1", "namespaces", namespace, "pods", name]:
                pod = api.store.pods.get(name)
                if pod is None or pod["metadata"]["namespace"] != namespace:
                    self._refuse(404, "NotFound", f'pods "{name}" not found')
                else:
                    self._answer(200, pod)
            case "GET", ["api", "v1", "namespaces", _, "pods", name, "exec"]:
                self._exec(name, parse_qs(url.query)["command"])
            case "POST", ["api", "v1", "namespaces", namespace, "events"]:
                self._create_event(namespace, body)
            case "GET", ["api", "v1", "nodes", name]:
                self._answer(200, api.store.nodes.setdefault(name, _new_node(name)))
            case "PATCH", ["api", "v1", "nodes", name, "status"]:
                self._patch_node(name, body)
            case _:
                self._refuse(404, "NotFound", f"no {url.path}")

    def _list(self, query: dict[str, str]) -> None:
        store = self.api.store
        with store.changed:
            items = [copy.deepcopy(pod) for pod in store.pods.values() if _selected(pod, query)]
            version = store.version
        kind = "PodList"
        if _METADATA_ONLY in self.headers.get("Accept", ""):
            items = [{"kind": "PartialObjectMetadata", "metadata": item["metadata"]} for item in items]
            kind = "PartialObjectMetadataList"
        listed = {"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}, "items": items}
        self._answer(200, listed)

    def _watch(self, query: dict[str, str]) -> None:
        api, store = self.api, self.api.store
        after = int(query["resourceVersion"])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        ends_at = time.monotonic() + (api.watch_seconds or float(query["timeoutSeconds"]))
        while time.monotonic() < ends_at:
            with store.changed:
                if after < store.compacted:
                    status = _status(410, "Expired", f"too old resource version: {after} ({store.compacted})")
                    self._chunk({"type": "ERROR", "object": status})
                    break
                news = [entry for entry in store.history if entry[0] > after and _selected(entry[2], query)]
                if not news:
                    store.changed.wait(_BOOKMARK_SECONDS)
                    came = any(entry[0] > after and _selected(entry[2], query) for entry in store.history)
                    if api.bookmarks and not came and store.version > after >= store.compacted:
                        after = store.version
                        bookmark = {"kind": "Pod", "metadata": {"resourceVersion": str(after)}}
                        self._chunk({"type": "BOOKMARK", "object": bookmark})
                    if not self._connected():
                        return
                    continue
            for version, kind, pod in news:
                self._chunk({"type": kind, "object": pod})
                after = version
        self.wfile.write(b"0\r\n\r\n")

    def _connected(self) -> bool:
        return self.request in self.api._open and self.api._server is not None

    def _chunk(self, event: dict[str, Any]) -> None:
        """In two pieces, as nothing says that a chunk is a line."""
        line = json.dumps(event).encode() + b"\n"
        middle = len(line) // 2
        for piece in (line[:middle], line[middle:]):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def _create_event(self, namespace: str, body: dict[str, Any]) -> None:
        store, name = self.api.store, body["metadata"]["name"]
        problem = _why_no_event(namespace, body)
        if problem:
            self._refuse(422, "Invalid", problem)
            return
        with store.changed:
            if f"{namespace}/{name}" in store.events:
                self._refuse(409, "AlreadyExists", f'events "{name}" already exists')
                return
            store.events[f"{namespace}/{name}"] = body
        self._answer(201, body)

    def _patch_node(self, name: str, body: dict[str, Any]) -> None:
        if self.headers.get("Content-Type") != "application/strategic-merge-patch+json":
            self._refuse(415, "UnsupportedMediaType", "a patch of no known kind")
            return
        node = self.api.store.nodes.setdefault(name, _new_node(name))
        conditions = {each["type"]: each for each in node["status"]["conditions"]}
        conditions |= {each["type"]: each for each in body["status"]["conditions"]}
        node["status"]["conditions"] = list(conditions.values())
        self._answer(200, node)

    # -- a command in a pod: WebSocket (RFC 6455), subprotocol v4.channel.k8s.io ---------------------------------------

    def _exec(self, pod: str, argv: list[str]) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        self.end_headers()
        self.close_connection = True
        out, err, code = self.api.commands(pod, argv)
        status: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
        for channel, data in ((1, out), (2, err), (3, json.dumps(status).encode())):
            for start in range(0, len(data), 1000):
                self._frame(bytes([channel]) + data[start : start + 1000])
        self._frame(struct.pack(">H", 1000), opcode=8)

    def _frame(self, payload: bytes, opcode: int = 2) -> None:
        size = len(payload)
        head = bytes([0x80 | opcode]) + (bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size))
        self.wfile.write(head + payload)

    # --------------------------------------------------------------------------------------------------------------

    def _refuse(self, code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._answer(code, {**_status(code, reason, message), **self.api.odd}, headers)

    def _answer(self, code: int, obj: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(obj).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _new_pod(name: str, node: str) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {}},
        "spec": {"nodeName": node, "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "conditions": []},
    }


def _new_node(name: str) -> dict[str, Any]:
    return {"kind": "Node", "metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def _selected(pod: dict[str, Any], query: dict[str, str]) -> bool:
    fields = query.get("fieldSelector", "")
    if fields.startswith("spec.nodeName=") and pod["spec"]["nodeName"] != fields.removeprefix("spec.nodeName="):
        return False
    labels = pod["metadata"].get("labels", {})
    wanted = [pair.partition("=") for pair in query.get("labelSelector", "").split(",") if pair]
    return all(labels.get(key) == value for key, _, value in wanted)


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def _why_no_event(namespace: str, event: dict[str, Any]) -> str:
    """What kubernetes pkg/apis/core/validation/events.go would say; empty: nothing."""
    about = event["involvedObject"]
    if about["namespace"] != namespace or event["metadata"]["namespace"] != namespace:
        return "involvedObject.namespace: does not match event.namespace"
    if len(event["metadata"]["name"]) > 253 or len(event["message"]) > 1024 or len(event["reason"]) > 128:
        return "too long"
    return "" if event["type"] in ("Normal", "Warning") else "type: invalid"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "ca.crt", directory / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=kube-apiserver"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:kubernetes.default.svc"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def api(certificate: tuple[Path, Path]) -> Iterator[ApiServerInTest]:
    """An API server, without pods."""
    server = ApiServerInTest(*certificate)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries of a hundredth of what they are."""
    monkeypatch.setattr("expedited.kube.patience._FIRST_SECONDS", 0.01)
    monkeypatch.setattr("expedited.kube.patience._LONGEST_SECONDS", 0.1)


@pytest.fixture(name="make_stop")
def make_stop_fixture() -> Callable[..., Stop]:
    """``make_stop(pod, container, **changes of the report) -> Stop``, of 1 GiB that was back after 0.25 s."""

    def make(pod: str = "web", container: str = "nginx", **changes: Any) -> Stop:
        values: dict[str, Any] = {
            "number": 1,
            "container_id": f"id-of-{container}",
            "cgroup": "/kubepods/c",
            "trigger": "gate:kill",
            "mode": "strike",
            "order": "lead",
            "outcome": Outcome.STRUCK,
            "reason": "",
            "started_at": 1_700_000_000.25,
            "before": Memory(1 << 30, 1 << 20, 0, 0),
            "after": Memory(0, 0, 0, 0),
            "signalled_seconds": 0.001,
            "answered_seconds": 0.002,
            "memory_back_seconds": 0.25,
            "gone_seconds": 0.3,
            "lead_seconds": None,
            "page_cache_dropped_bytes": 0,
            "process_count": 1,
            "processes": (ProcessReport(5, 1 << 30, Fate.REAPED),),
            "boosted": ("rt",),
            "steps": (Step(0.0, "kill seen"),),
            **changes,
        }
        return Stop(Report(**values), "k8s.io", f"uid-{pod}" if pod else "", "shop" if pod else "", pod, container)

    return make
