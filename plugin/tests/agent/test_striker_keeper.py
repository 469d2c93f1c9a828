"""The agent and a striker that does not come up, or is of another version: nobody who stops the agent is kept waiting for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from expedited import __version__
from expedited.agent.striker import _START_SECONDS, StrikerKeeper
from expedited.settings import AgentSettings
from expedited.striker.heartbeat import Heartbeat
from expedited.teardown.policy import Policy
from support.striker import stand_in
from support.waiting import happens

# Loaded by each Python of the agent's before its program (site(1)): holds the striker's at its very beginning
_HOLDS_THE_STRIKER = """
import os, pathlib, sys, time
if "expedited.striker" in sys.orig_argv:
    note = pathlib.Path(__file__).with_name("striker.pid")
    note.with_suffix(".new").write_text(str(os.getpid()))
    note.with_suffix(".new").rename(note)
    time.sleep(3600)
"""


@pytest.fixture
def late(start_agent: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """An agent whose striker is not there yet, and the process id of that."""
    (tmp_path / "sitecustomize.py").write_text(_HOLDS_THE_STRIKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    note = tmp_path / "striker.pid"
    agent = start_agent(ready=False)
    agent.wait(note.exists, "it started no striker")
    return agent, int(note.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_an_agent_that_is_stopped_while_its_striker_starts_ends_both(late: tuple[Any, int], number: int) -> None:
    agent, striker = late
    agent.process.send_signal(number)
    agent.close()
    assert not Path(f"/proc/{striker}").exists()
    assert agent.told("the agent has ended")
    assert not agent.told("kills are not caught")  # as it would have said when it had waited to no end
    assert not list(agent.run_dir.glob("*.sock"))


def test_a_striker_that_is_killed_while_it_starts_is_started_again(late: tuple[Any, int], tmp_path: Path) -> None:
    agent, striker = late
    (tmp_path / "sitecustomize.py").unlink()
    os.kill(striker, signal.SIGKILL)
    agent.wait_told("the kill gate is up")
    (why,) = agent.told("kills are not caught")
    assert "ended by signal 9" in why["event"]


def test_an_agent_whose_striker_is_silent_can_be_stopped(run_dir: Path, start_agent: Callable[..., Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(str(run_dir / "striker.sock"))
        silent.listen()
        agent = start_agent(ready=False)
        connection, _ = silent.accept()
        with connection:
            assert b'"status"' in connection.recv(4096)  # and gets no answer
            agent.close()
    assert agent.told("the agent has ended")
    assert not agent.told("kills are not caught")


@pytest.mark.parametrize("room", [0, 1, 2], ids="for {}".format)
def test_a_node_with_no_room_for_a_process_gets_its_striker_when_there_is(
    make_cgroup_v1: Callable[[], Any], start_agent: Callable[..., Any], room: int
) -> None:
    """A striker is two processes, and the agent needs a thread to wait for the first."""
    agent = start_agent()
    with agent.ask() as asked:
        (supervisor,) = [each.pid for each in asked.status().processes if each.name == "supervisor"]
    limit = make_cgroup_v1().directories["pids"] / "pids.max"
    # In this hierarchy alone: that of the CPU takes nobody who is real-time
    (limit.parent / "cgroup.procs").write_text(str(agent.process.pid))
    limit.write_text(str(int((limit.parent / "pids.current").read_text()) + room))
    os.kill(supervisor, signal.SIGKILL)
    agent.wait(lambda: agent.told("kills are not caught"), "it does not say so")
    if not room:
        assert "can't be started" in agent.told("kills are not caught")[-1]["event"]
    limit.write_text("max")
    agent.wait_told("the kill gate is up", times=2)


# Answers as a striker may that was kept: with less in its status than ours has, with more, or with faults that can't be caused
_KEPT = """
import json, os, signal, socket, sys
path, told = sys.argv[1], json.loads(sys.argv[2])

def end(*_):
    os.unlink(path)
    os._exit(0)

signal.signal(signal.SIGTERM, end)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind(path)
    listener.listen()
    print(flush=True)
    while True:
        connection, _ = listener.accept()
        while packet := connection.recv(160_000):
            asked = json.loads(packet)
            pids = {"pid": os.getpid(), "supervisor_pid": os.getpid()}
            answers = {"status": {**pids, **told}, "reports": {"reports": [], "more": False, "heard_up_to": 0}}
            if asked["do"] in answers:
                answer = {"is": asked["do"], "seq": asked["seq"], **answers[asked["do"]]}
                connection.send(json.dumps(answer).encode())
"""


def _kept_striker(run_dir: Path, told: dict[str, Any]) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return stand_in(run_dir, _KEPT, json.dumps(told))


@pytest.mark.parametrize("told", [{}, {"version": "99.0", "gated": [], "pressure": {"some": 0.5}}], ids=["old", "new"])
def test_a_striker_of_another_version_is_replaced_whatever_it_tells(
    run_dir: Path, start_agent: Callable[..., Any], told: dict[str, Any]
) -> None:
    with _kept_striker(run_dir, told) as kept:
        agent = start_agent()
        assert kept.wait(30) == 0
    (line,) = agent.told("replacing a striker of another version")
    assert (line["found"], line["ours"]) == (told.get("version", ""), __version__)
    assert agent.pids()["striker"] != kept.pid


def test_what_the_kernel_dropped_at_the_striker_is_in_the_agents_status(
    run_dir: Path, start_agent: Callable[..., Any]
) -> None:
    told = {"version": __version__, "source": "proc-connector", "lost": 3}
    with _kept_striker(run_dir, told) as kept:
        agent = start_agent(ready=False)
        agent.wait_told("the observer is up")
        (status,) = agent.json("status")
        assert (status["source"], status["source_lost"], status["gate_events"]) == ("proc-connector", 3, 0)
        agent.close()
        assert kept.wait(30) == 0


def test_all_of_many_containers_are_known_and_counted(tmp_path: Path, start_agent: Callable[..., Any]) -> None:
    names = [f"{number:064x}" for number in range(5000)]
    for name in names:
        (tmp_path / "k8s.io" / name).mkdir(parents=True)
    agent = start_agent(f"--state-root={tmp_path}/*")
    (status,) = agent.json("status")
    assert (status["gated"], status["containers"], status["striker"]) == (len(names), len(names), "ok")
    assert not agent.told("kills are not caught")


def test_a_striker_that_cannot_be_read_is_one_line(run_dir: Path, start_agent: Callable[..., Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as garbled:
        garbled.bind(str(run_dir / "striker.sock"))
        garbled.listen()
        agent = start_agent(ready=False)
        for _ in range(2):  # it asks again, and does not say so again
            connection, _ = garbled.accept()
            with connection:
                assert b'"status"' in connection.recv(4096)
                connection.send(b'{"is": "status", "gated": ["c1", "c')
                agent.wait_told("kills are not caught")
        agent.close()
    (line,) = agent.told("kills are not caught")
    assert "a packet of 35 bytes that can't be read" in line["event"]


def test_a_kept_striker_with_other_options_is_replaced_and_the_line_says_which(start_agent: Callable[..., Any]) -> None:
    first = start_agent("--keep-striker", "--state-root=/no/runtime/*")
    kept = first.pids()["striker"]
    first.close()
    second = start_agent("--keep-striker", "--state-root=/no/runtime/*")
    assert second.pids()["striker"] == kept
    assert not second.told("replacing")
    second.close()
    third = start_agent("--state-root=/no/runtime/*", "--state-root=/nor/this", "--source=gate", "--budget=500ms")
    (line,) = third.told("replacing a striker that was started with other options")
    for words in (
        "source auto and not gate",
        "budget 1.0 and not 0.5",
        "/no/runtime/* and not /no/runtime/* /nor/this",
    ):
        assert words in line["event"]
    assert third.pids()["striker"] != kept


async def test_more_policies_than_the_socket_takes_at_once_arrive_in_order(run_dir: Path) -> None:
    policies = {f"{number:064x}": Policy(min_size_bytes=number) for number in range(5000)}
    ready, may_read, told = threading.Event(), threading.Event(), {}

    def listen() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(run_dir / "striker.sock"))
            listener.listen()
            ready.set()
            connection, _ = listener.accept()
            with connection:
                asked = json.loads(connection.recv(160_000))
                connection.send(json.dumps({"is": "status", "seq": asked["seq"], "version": __version__}).encode())
                may_read.wait(30)
                while packet := connection.recv(160_000):
                    told.update(json.loads(packet).get("containers", {"last": {}}))

    striker = threading.Thread(target=listen, daemon=True)
    striker.start()
    ready.wait(30)
    keeper = StrikerKeeper(
        AgentSettings(run_dir=str(run_dir), keep_striker=True),
        connected=lambda status: keeper.tell_policies(policies, default=Policy()),
        heard=lambda message: None,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(keeper.run(stop))
    await happens(lambda: keeper.connections, "a link")
    keeper.tell("forget", id="who was never there")  # what is told after waits for its turn
    may_read.set()
    await happens(lambda: "last" in told, "all policies")
    assert list(told) == [*policies, "last"]
    assert {name: Policy.from_json(told[name]) for name in policies} == policies
    assert keeper.connections == 1
    stop.set()
    await running
    await asyncio.to_thread(striker.join)


def test_a_striker_has_the_time_to_start_that_its_supervisor_gives_it() -> None:
    assert -Heartbeat().age_seconds() < _START_SECONDS
