"""The socket itself: who may use it, what is left by a crash, and what there is to read when nobody is there."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expedited.api.client import ApiClient
from expedited.api.server import serving
from expedited.errors import ExpeditedError, UsageError
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.stop import Stop

_NOBODY = 65534

# Connects as the user it is told, says what every HTTP/2 client says first, and prints how many bytes it was answered.
_VISITOR = """
import os, socket, sys
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
visit = socket.socket(socket.AF_UNIX)
visit.connect(sys.argv[1])
try:
    visit.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    print(len(visit.recv(100)))
except (BrokenPipeError, ConnectionResetError):
    print(0)
"""


def _answered_bytes(path: Path, uid: int) -> int:
    visit = subprocess.run(
        [sys.executable, "-c", _VISITOR, str(path), str(uid)], check=True, capture_output=True, text=True
    )
    return int(visit.stdout)


def test_the_socket_is_for_its_user_alone(agent: Any) -> None:
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600
    inner = agent.path.parent / "api"
    assert stat.S_IMODE(inner.stat().st_mode) == 0o700
    assert stat.S_IMODE((inner / "grpc.sock").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to come as another user")
def test_another_user_is_refused_by_his_credentials_even_where_the_mode_lets_him_in(
    agent: Any, client: ApiClient
) -> None:
    agent.path.chmod(0o666)
    assert _answered_bytes(agent.path, os.geteuid()) > 0
    assert _answered_bytes(agent.path, _NOBODY) == 0
    assert client.status().version == "1.2.3"


def test_a_socket_left_by_a_crash_is_replaced(run_dir: Path, start_agent: Callable[..., Any]) -> None:
    path = run_dir / "expedited.sock"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    agent = start_agent(path)
    with ApiClient(str(path)) as client:
        assert client.status().version == "1.2.3"
    agent.close()
    assert not path.exists()


def test_a_second_agent_is_refused_and_the_first_goes_on(
    agent: Any, client: ApiClient, start_agent: Callable[..., Any]
) -> None:
    with pytest.raises(ExpeditedError, match=f"another agent listens at {agent.path}"):
        start_agent(agent.path)
    assert client.status().version == "1.2.3"


def test_a_file_in_the_sockets_place_is_left_alone(run_dir: Path, start_agent: Callable[..., Any]) -> None:
    path = run_dir / "expedited.sock"
    path.write_text("mine")
    with pytest.raises(ExpeditedError, match="it is no socket"):
        start_agent(path)
    assert path.read_text() == "mine"


def test_a_path_too_long_for_a_socket_is_one_line(run_dir: Path, start_agent: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="at most 107 bytes"):
        start_agent(run_dir / ("d" * 120) / "expedited.sock")
    assert list(run_dir.iterdir()) == []


async def test_the_api_is_served_until_it_is_told_to_stop(agent: Any, run_dir: Path) -> None:
    path = run_dir / "other" / "own.sock"
    async with serving(agent.backend, str(path)):
        assert await asyncio.to_thread(path.exists)
    assert not await asyncio.to_thread(path.exists)


def test_without_an_agent_the_client_says_how_to_start_one(run_dir: Path) -> None:
    path = run_dir / "expedited.sock"
    with ApiClient(str(path)) as client, pytest.raises(ExpeditedError) as caught:
        client.status()
    assert str(caught.value) == f"no agent at {path}: start it with `expedited run`, or give --run-dir"
    assert not isinstance(caught.value, UsageError)


def test_a_run_dir_with_odd_characters_is_found(run_dir: Path, start_agent: Callable[..., Any]) -> None:
    odd = run_dir / "a %41?b"
    odd.mkdir()
    agent = start_agent(odd / "expedited.sock")
    with ApiClient(str(agent.path)) as client:
        assert client.status().version == "1.2.3"
    agent.close()


def test_a_watcher_is_told_when_the_agent_goes(
    run_dir: Path, start_agent: Callable[..., Any], make_stop: Callable[..., Stop]
) -> None:
    agent = start_agent(run_dir / "expedited.sock")
    agent.backend.remembered = [make_stop(1)]
    with ApiClient(str(agent.path)) as client:
        watching = client.watch(replay=True)
        next(watching)
        closing = threading.Thread(target=agent.close)
        closing.start()
        with pytest.raises(ExpeditedError, match="no agent at"):
            next(watching)
        closing.join()


def test_many_clients_are_served_at_once(agent: Any, make_stop: Callable[..., Stop]) -> None:
    agent.backend.remembered = [make_stop(number, reason="y" * 10_000) for number in range(50)]
    lengths: list[int] = []

    def ask() -> None:
        with ApiClient(str(agent.path)) as client:
            client.strike(pb.StrikeRequest(pod="a/b"))
            lengths.append(len(client.stops()))

    clients = [threading.Thread(target=ask) for _ in range(12)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert lengths == [50] * 12
