"""Answers Prometheus over HTTP, one request after the other.

The library's own server has a thread for each connection, for as long as that lasts: whoever connects and says nothing
a few thousand times would take the agent's memory and descriptors, and with them the striker's.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable
from socketserver import TCPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

__all__ = ["serve"]

#: How long somebody may take to say what they want, and to take the answer, all in all.
_PATIENCE_SECONDS = 2.0


class _Request(io.RawIOBase):
    """What somebody says within their time: the socket's own time-out begins anew with each byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = time.monotonic() + _PATIENCE_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Request(self.connection))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


class _Server(WSGIServer):
    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # not HTTPServer's, which asks the name service for this host's name
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # whoever broke off, or said nothing in time


def serve(host: str, port: int, registry: CollectorRegistry) -> Callable[[], None]:
    """Listen, and answer from a thread.

    Returns:
        What ends it, and waits until it has.

    Raises:
        socket.gaierror, UnicodeError: no host of that name is known; OSError: it can't listen there.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    server = type("_Server", (_Server,), {"address_family": family})(address, _Handler)
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
