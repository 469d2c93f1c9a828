"""The gate and its supervisor when things go wrong: nobody is held for long, and another gate comes."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from expedited.striker.argv import Command
from expedited.striker.fanotify import Event
from expedited.striker.gate import Gate, Hold
from expedited.striker.source import Counters
from expedited.teardown.report import Outcome


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def unsupervised(striker: Any) -> Iterator[None]:
    """Nobody looks whether the gate goes round: on a busy machine a test may need longer than it may stand still."""
    supervisor = striker.status()["supervisor_pid"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        yield
    finally:
        time.sleep(0.5)  # a gate that goes on has gone round by then
        os.kill(supervisor, signal.SIGCONT)


@contextmanager
def held_at_a_stopped_gate(node: Any, striker: Any, until: Any) -> Iterator[tuple[int, Any]]:
    """The gate's pid, and a kill of c1 that waits at it."""
    gate = striker.status()["pid"]
    with unsupervised(striker):
        os.kill(gate, signal.SIGSTOP)
        waiting = node.begin("kill", "c1", "9")
        # In an uninterruptible sleep, in its open
        until(lambda: state_of(waiting.pid) == "D", "the opener is not held")
        yield gate, waiting


def test_a_decision_over_its_budget_is_answered_by_the_loop(node: Any, make_striker: Any, scratch_cgroup: Any) -> None:
    striker = make_striker("--budget=0.001")
    for number in range(1, 6):
        name = f"c{number}"
        # What is padded takes long to read
        node.container(name, scratch_cgroup.child(name), "--bytes", "8M", "--children", "1", padding=700_000)
        striker.wait_gated(name)
        # Idle: let through by the loop, the runtime would be done before the worker has read the file
        assert node.run("kill", name, "9", idle=True) == 0
        report = striker.report_of(name)
        assert report.outcome is Outcome.STRUCK
        if striker.status()["overruns"] == 1:
            break  # else the loop itself was kept off the CPU, which is no overrun
    assert striker.status()["overruns"] == 1
    # The receipt has the loop's answer, not the worker's end
    assert report.answered_seconds < report.signalled_seconds
    assert [step.at_seconds for step in report.steps] == sorted(step.at_seconds for step in report.steps)


def test_a_machine_that_stood_still_costs_nobody_his_budget_and_nobody_waits_for_ever() -> None:
    gate = Gate.__new__(Gate)  # its loop alone: no group of the kernel's
    gate._budget_seconds = 10.0
    event, command = Event(mask=0, fd=0, pid=0, pidfd=-1), Command("kill", "c1", 9, False)
    hold = Hold(gate, event, command, time.monotonic() - 60, gate._budget_seconds)
    gate._holds = {0: hold}
    gate._stood_still()
    once = hold.deadline
    assert once > time.monotonic() + 5
    gate._stood_still()
    assert hold.deadline == once


def test_a_gate_that_is_closed_has_answered_and_answers_no_more() -> None:
    """Strikes go on for seconds after it, and the group's number may be another file's by then."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    another = os.pipe2(os.O_NONBLOCK)
    gate = Gate.__new__(Gate)
    gate.group, gate._holds, gate.counters = writer, {}, Counters()
    held = [Hold(gate, Event(0, fd, 0, -1), Command("kill", "c1", 9, False), time.monotonic(), 10.0) for fd in (71, 72)]
    gate._holds = {hold.descriptor: hold for hold in held}
    gate.close()
    written = os.read(reader, 4096)
    assert [written[at : at + 8] for at in range(0, len(written), 8)] == [struct.pack("=iI", fd, 1) for fd in (71, 72)]
    os.dup2(another[1], writer)
    assert [hold.answer() for hold in held] == [False, False]
    with pytest.raises(BlockingIOError):
        os.read(another[0], 1)
    for descriptor in (reader, writer, *another):
        os.close(descriptor)


def test_a_machine_that_stood_still_costs_no_gate(make_striker: Any) -> None:
    """Its beat is old then, but no older than its supervisor's last look."""
    striker = make_striker(start_new_session=True)
    status = striker.status()
    assert os.getpgid(status["pid"]) == status["supervisor_pid"]
    os.killpg(status["supervisor_pid"], signal.SIGSTOP)
    time.sleep(2.5)
    os.killpg(status["supervisor_pid"], signal.SIGCONT)
    time.sleep(1.0)
    assert (striker.status()["pid"], striker.status()["restarts"]) == (status["pid"], 0)


def test_a_gate_that_hangs_is_killed_and_replaced(node: Any, striker: Any, scratch_cgroup: Any, until: Any) -> None:
    first = node.container("c1", scratch_cgroup.child("c1"), "--bytes", "8M")
    node.container("c2", scratch_cgroup.child("c2"), "--bytes", "8M", "--children", "1")
    striker.wait_gated("c1", "c2")
    hung = striker.status()["pid"]
    os.kill(hung, signal.SIGSTOP)
    assert node.run("kill", "c1", "9") == 0  # held, until the supervisor has had enough
    assert first.wait() == -signal.SIGKILL
    status = striker.wait_for_gate_number(1)
    assert status["pid"] != hung
    assert "has not gone round" in striker.log
    striker.wait_gated("c2")
    node.run("kill", "c2", "9")
    assert striker.report_of("c2").outcome is Outcome.STRUCK


def test_killing_the_gate_lets_everybody_go_on(node: Any, striker: Any, scratch_cgroup: Any, until: Any) -> None:
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    with held_at_a_stopped_gate(node, striker, until) as (gate, waiting):
        os.kill(gate, signal.SIGKILL)
        assert waiting.wait(30) == 0
    striker.wait_for_gate_number(1)
    assert "has not gone round" not in striker.log


def test_a_held_opener_can_be_killed(node: Any, striker: Any, scratch_cgroup: Any, until: Any, alive: Any) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    with held_at_a_stopped_gate(node, striker, until) as (gate, waiting):
        waiting.kill()
        # Gone before the gate goes on: on one CPU that would be first, and find a runtime that is alive still
        assert waiting.wait(30) == -signal.SIGKILL
        os.kill(gate, signal.SIGCONT)
        striker.status()
    assert striker.reports() == []  # who is killed before its answer has killed nobody
    assert alive(process.pid)


def test_without_its_supervisor_the_gate_ends_and_is_open(
    node: Any, make_striker: Any, scratch_cgroup: Any, until: Any, alive: Any
) -> None:
    striker = make_striker()
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    gate = striker.status()["pid"]
    striker.process.kill()
    striker.process.wait()
    until(lambda: not alive(gate), "the gate outlives its supervisor")
    assert node.run("kill", "c1", "9") == 0


def test_a_striker_that_is_asked_to_end_ends_with_its_stops(node: Any, make_striker: Any, scratch_cgroup: Any) -> None:
    striker = make_striker()
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    striker.close()
    assert not Path(striker.socket).exists()
    assert node.run("kill", "c1", "9") == 0  # nobody is there to hold it


def test_a_striker_whose_reader_has_gone_gates_on(node: Any, make_striker: Any, scratch_cgroup: Any) -> None:
    """Its starter may be replaced: a later gate says "ready" to nobody."""
    striker = make_striker()
    striker.process.stdout.close()
    os.kill(striker.status()["pid"], signal.SIGKILL)
    striker.wait_for_gate_number(1)
    node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "1")
    striker.wait_gated("c1")
    node.run("kill", "c1", "9")
    assert striker.report_of("c1").outcome is Outcome.STRUCK


def test_a_gate_in_a_container_of_its_own_never_gates_that(
    node: Any, make_striker: Any, scratch_cgroup: Any, until: Any
) -> None:
    """Or a gate that hangs would hold up the very kill that is meant for it."""
    own = "f0" * 32
    cgroup = scratch_cgroup.child(own)
    node.state(own, {})
    node.state("another", {})
    striker = make_striker(preexec_fn=lambda: cgroup.add(os.getpid()))
    striker.wait_gated("another")
    assert own not in striker.status()["gated"]
    assert striker.link.ask("watch", id=own)["marked"] is False
    gate = striker.status()["pid"]
    with unsupervised(striker):
        os.kill(gate, signal.SIGSTOP)
        until(lambda: state_of(gate) == "T", "it does not stop")
        assert node.run("kill", own, "9", idle=True) == 0
        assert state_of(gate) == "T"  # it was not held: the gate stands still yet
        os.kill(gate, signal.SIGCONT)
        striker.status()
