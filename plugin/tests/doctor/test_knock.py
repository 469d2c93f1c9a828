from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from expedited.doctor.knock import Door, knock


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _listen(stack: ExitStack, path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    listener.bind(str(path))
    listener.listen(0)
    return listener


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_whoever_listens_is_there_and_is_named(run_dir: Path, stack: ExitStack, kind: socket.SocketKind) -> None:
    _listen(stack, run_dir / "s", kind)
    visit = knock(str(run_dir / "s"), kind)
    assert (visit.door, visit.pid) == (Door.OPEN, os.getpid())


def test_a_crashs_leftover_is_deserted(run_dir: Path, stack: ExitStack) -> None:
    _listen(stack, run_dir / "s").close()
    assert knock(str(run_dir / "s")).door is Door.DESERTED


def test_a_listener_that_takes_nobody_is_busy(run_dir: Path, stack: ExitStack) -> None:
    path = str(run_dir / "s")
    _listen(stack, run_dir / "s")
    while knock(path).door is Door.OPEN:  # each leaves a connection in its queue, which is not long
        visitor = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        visitor.setblocking(False)
        try:
            visitor.connect(path)
        except BlockingIOError:
            break
    assert knock(path).door is Door.BUSY


def test_nothing_is_absent_and_a_file_is_no_socket(run_dir: Path) -> None:
    (run_dir / "file").write_text("")
    assert knock(str(run_dir / "s")).door is Door.ABSENT
    assert knock(str(run_dir / "no" / "s")).door is Door.ABSENT
    assert knock(str(run_dir / "file")).door is Door.NOT_A_SOCKET


def test_a_socket_of_another_kind_is_not_the_one(run_dir: Path, stack: ExitStack) -> None:
    _listen(stack, run_dir / "s", socket.SOCK_SEQPACKET)
    assert knock(str(run_dir / "s"), socket.SOCK_STREAM).door is Door.NOT_A_SOCKET
