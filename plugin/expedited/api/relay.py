"""The door of the control API: a unix socket that asks the kernel who is there, in front of gRPC's own.

gRPC for Python does not show a server its peer's credentials. So gRPC listens in a directory that only we may enter,
and this relay, at the public path, carries bytes to it for those who may: root and our own user (SO_PEERCRED, unix(7)).
The socket's mode says the same; the credentials hold even where somebody has changed it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import structlog

from expedited.errors import ExpeditedError
from expedited.striker.link import peer

__all__ = ["Relay", "private_directory", "refuse_if_listened_at"]

_CHUNK_BYTES = 64 << 10

_log = structlog.get_logger(__name__)


async def refuse_if_listened_at(path: str) -> None:
    """Make sure that nobody serves ``path``: a file there is a leftover, and may be replaced.

    Raises:
        ExpeditedError: somebody does, or what is there is no socket.
    """
    try:
        mode = _mode_of(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ExpeditedError(f"{path} can't be used: {error.strerror}; choose another --run-dir") from error
    if not stat.S_ISSOCK(mode):
        raise ExpeditedError(f"{path} is in the way: it is no socket; remove it, or choose another --run-dir")
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return  # a crash's leftover
    writer.close()
    raise ExpeditedError(
        f"another agent listens at {path}, and a node has one: stop that one first (the DaemonSet's pod, or `expedited install --remove`)"
    )


def private_directory(path: Path) -> None:
    """Make ``path``, or take it over, as a directory that only our user may enter.

    Raises:
        ExpeditedError: there is something else of that name, or it can't be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ExpeditedError(f"{path} is not ours: remove it, or choose another --run-dir")
        path.chmod(0o700)
    except OSError as error:
        raise ExpeditedError(f"cannot make {path} for the control API: {error.strerror}") from error


class Relay:
    """Listens at ``public`` and carries what those say who may to ``inner``, and back.

    Args:
        public: Where clients connect.
        inner: Where gRPC listens, in a directory of ours.
    """

    def __init__(self, public: str, inner: Path) -> None:
        self._public = Path(public)
        self._inner = inner
        self._visits: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            ExpeditedError: the socket can't be made.
        """
        try:
            listener = self._listen()
        except OSError as error:
            raise ExpeditedError(f"cannot listen at {self._public}: {error.strerror or error}") from error
        self._server = await asyncio.start_unix_server(self._welcome, sock=listener)

    async def close(self) -> None:
        """Stop listening, end every visit, remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)
        await self._server.wait_closed()
        self._remove()

    def _listen(self) -> socket.socket:
        # Made in the private directory and then moved: so it never stands at the public path with another mode, and
        # replaces a crash's leftover in one step.
        cradle = self._inner.with_name("new.sock")
        cradle.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(cradle))
            cradle.chmod(0o600)
            listener.listen(64)
            self._inode = cradle.stat().st_ino
            cradle.rename(self._public)
        except BaseException:
            listener.close()
            raise
        return listener

    def _remove(self) -> None:
        try:
            # Not if a later agent's socket stands there by now
            if self._public.stat().st_ino == self._inode:
                self._public.unlink()
        except FileNotFoundError:
            pass

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = peer(writer.get_extra_info("socket"))
        if client.uid not in (0, os.geteuid()):
            _log.warning("refused a client of the control API", uid=client.uid, pid=client.pid)
            writer.close()
            return
        visit = asyncio.get_running_loop().create_task(self._carry(reader, writer))
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._inner)
        except OSError:
            writer.close()  # gRPC is on its way out
            return
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_pump(reader, inner_writer))
                directions.create_task(_pump(inner_reader, writer))
        except* OSError:
            pass  # either side hung up in the middle of something, and both go
        finally:
            writer.close()
            inner_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


def _mode_of(path: str) -> int:
    return os.lstat(path).st_mode
