"""A striker's reports, each told once and in order: whatever comes while the agent connects, and who loses the link when."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from expedited import __version__
from support.striker import stand_in

# A striker that has made two reports which nobody has heard, and has a third at the worst of moments. A real one can't be had to.
_STRIKER = """
import json, os, signal, socket, sys
from expedited.teardown.report import Outcome, Report
path, version, drops, third, lacks = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:]

def report(number):
    made = Report(number=number, container_id=f"c{number}", cgroup="/", trigger="gate:kill", mode="strike",
                  outcome=Outcome.STRUCK, reason="", started_at=1.0).to_json()
    return {key: value for key, value in made.items() if key not in lacks}

def end(*_):
    if third == "end":
        connection.send(json.dumps({"is": "report", "report": report(3)}).encode())
    os.unlink(path)
    os._exit(0)

signal.signal(signal.SIGTERM, end)
heard_up_to = 0
pids = {"pid": os.getpid(), "supervisor_pid": os.getpid()}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind(path)
    listener.listen()
    print(flush=True)
    while True:
        connection, _ = listener.accept()
        if third == "connect":
            connection.send(json.dumps({"is": "report", "report": report(3)}).encode())
            third = "told"
        while packet := connection.recv(160_000):
            asked = json.loads(packet)
            answer = {"is": asked["do"], "seq": asked["seq"]}
            if asked["do"] == "status":
                answer |= {**pids, "version": version, "started_at": 7.0}
            elif asked["do"] == "reports":
                if drops:
                    drops -= 1
                    break
                numbers = range(asked["after"] + 1, 4 if third == "told" else 3)
                answer |= {"reports": [*map(report, numbers)], "more": False, "heard_up_to": heard_up_to}
            elif asked["do"] == "heard":
                heard_up_to = max(heard_up_to, asked["number"])
                continue
            else:
                continue
            connection.send(json.dumps(answer).encode())
        connection.close()
"""


def _striker(
    run_dir: Path, version: str = __version__, *, drops: int = 0, third: str, lacks: tuple[str, ...] = ()
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return stand_in(run_dir, _STRIKER, version, str(drops), third, *lacks)


def _told(agent: Any) -> list[str]:
    return [line["id"] for line in agent.told("stop") if line["event"] == "stop"]


@pytest.mark.parametrize("drops", [0, 2], ids="the link is lost {} times".format)
def test_a_report_that_comes_while_the_agent_connects_hides_none_before_it(
    run_dir: Path, start_agent: Callable[..., Any], drops: int
) -> None:
    with _striker(run_dir, drops=drops, third="connect"):
        agent = start_agent(ready=False)
        agent.wait(lambda: len(_told(agent)) >= 3, "stops are missing")
        with agent.ask() as asked:
            assert [stop.number for stop in asked.stops()] == [3, 2, 1]
        agent.close()
    assert _told(agent) == ["c1", "c2", "c3"]


@pytest.mark.parametrize("lacks", [(), ("lost_races", "boosted", "steps", "before", "number_of_nothing")])
def test_a_striker_that_is_replaced_is_asked_what_nobody_heard_and_heard_to_its_end(
    run_dir: Path, start_agent: Callable[..., Any], lacks: tuple[str, ...]
) -> None:
    with _striker(run_dir, "0.0.1", third="end", lacks=lacks) as old:
        agent = start_agent()
        assert old.wait(30) == 0
    assert _told(agent) == ["c1", "c2", "c3"]
    agent.close()
    assert not agent.told("can't be told of")


def test_a_report_that_can_not_be_read_is_one_line_and_the_striker_goes_all_the_same(
    run_dir: Path, start_agent: Callable[..., Any]
) -> None:
    with _striker(run_dir, "0.0.1", third="end", lacks=("outcome",)) as old:
        agent = start_agent()
        assert old.wait(30) == 0
    assert [line["number"] for line in agent.told("a stop can't be told of")] == [1, 2, 3]
    agent.close()


def test_what_still_waits_when_the_agent_ends_is_told(run_dir: Path, start_agent: Callable[..., Any]) -> None:
    with _striker(run_dir, drops=1_000_000, third="connect") as one:
        agent = start_agent(ready=False)
        agent.wait_told("the observer is up", 2)
        agent.close()
        assert one.wait(30) == 0
    assert _told(agent) == ["c3"]
