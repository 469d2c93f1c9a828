"""What passes the gate, what is struck there, and what is never held up."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from expedited.striker.argv import Command, Verb
from expedited.striker.fanotify import Event
from expedited.striker.gate import Gate, Hold
from expedited.striker.known import Known
from expedited.striker.log import Log
from expedited.striker.source import Kill
from expedited.striker.stops import Stops
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.report import Fate, Outcome

_TRIES = 5


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


@pytest.mark.parametrize("word", ["9", "KILL", "SIGKILL"])
def test_a_kill_is_struck_and_goes_on(node: Any, striker: Any, scratch_cgroup: Any, word: str) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "16M", "--children", "2")
    striker.wait_gated("c1")
    node.run("kill", "c1", word)
    report = striker.report_of("c1")
    assert (report.outcome, report.trigger, report.order) == (Outcome.STRUCK, "gate:kill", "lead")
    assert report.answered_seconds is not None
    assert process.wait() == -signal.SIGKILL
    assert scratch_cgroup.pids() == set()


def test_a_lone_init_is_followed_where_there_is_a_cpu_to_be_had(
    node: Any, make_striker: Any, scratch_cgroup: Any, tmp_path: Path
) -> None:
    quiet = tmp_path / "loadavg"
    quiet.write_text("0.00 0.00 0.00 1/80 99\n")
    # In a mount namespace of its own: what else runs on this machine is not what this is about
    striker = make_striker(preexec_fn=lambda: _see_instead(quiet, "/proc/loadavg"))
    process = node.container("c1", scratch_cgroup, "--bytes", "32M")
    striker.wait_gated("c1")
    node.run("kill", "c1", "9")
    report = striker.report_of("c1")
    assert (report.outcome, process.wait()) == (Outcome.STRUCK, -signal.SIGKILL)
    assert report.order == ("follow" if striker.status()["kernel"] == "stock" else "lead")
    assert (report.signalled_seconds is None) == (report.order == "follow")


def _see_instead(file: Path, of: str) -> None:
    libc = ctypes.CDLL(None)
    assert libc.unshare(0x20000) == 0  # CLONE_NEWNS (include/uapi/linux/sched.h)
    assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE (include/uapi/linux/mount.h)
    assert libc.mount(os.fsencode(file), os.fsencode(of), None, 0x1000, None) == 0  # MS_BIND


def test_a_lone_init_is_led_where_every_cpu_is_taken(
    node: Any, striker: Any, scratch_cgroup: Any, busy_loops: Callable[[], Any]
) -> None:
    for number in range(_TRIES):
        name = f"c{number}"
        process = node.container(name, scratch_cgroup, "--bytes", "32M")
        striker.wait_gated(name)
        with busy_loops():
            node.run("kill", name, "9")
            report = striker.report_of(name)
        assert (report.outcome, process.wait()) == (Outcome.STRUCK, -signal.SIGKILL)
        if report.order == "lead":
            break  # else one of the loops was waiting for something just then
    assert report.order == "lead"


def test_what_crun_keeps_is_understood(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "1", crun=True)
    if scratch_cgroup.version == 2 and Path("/sys/fs/cgroup/memory").exists():
        # On a hybrid host a process of this test run is in version 1's cgroups of it: ours, so nothing may be struck
        striker.wait_gated("c1")
        node.run("kill", "c1", "9", file="status", idle=True)
        assert striker.report_of("c1").outcome is Outcome.FAILED
        return
    striker.wait_gated("c1")
    node.run("kill", "c1", "9", file="status", idle=True)
    assert striker.report_of("c1").outcome is Outcome.STRUCK


def test_a_forced_delete_is_struck(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "1")
    striker.wait_gated("c1")
    node.run("delete", "--force", "c1")
    assert striker.report_of("c1").trigger == "gate:delete"
    assert process.wait() == -signal.SIGKILL


def test_kill_all_after_the_exit_is_not_struck(node: Any, striker: Any, scratch_cgroup: Any, alive: Any) -> None:
    """The runtime sends it to every container that has exited, and init's number may be somebody else's by then."""
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    bystander = node.container("c2", scratch_cgroup, "--bytes", "8M")  # in the very cgroup, as a late exec would be
    striker.wait_gated("c1")
    process.kill()
    process.wait()
    node.run("kill", "--all", "c1", "9", idle=True)
    assert striker.status()["kills"] == 1
    assert striker.reports() == []
    assert alive(bystander.pid)


def test_kill_all_of_a_living_container_is_struck(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "1")
    striker.wait_gated("c1")
    node.run("kill", "--all", "c1", "9")
    assert striker.report_of("c1").outcome is Outcome.STRUCK


def test_an_init_whose_number_is_somebody_elses_is_not_struck(
    node: Any, striker: Any, scratch_cgroup: Any, alive: Any
) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "1")
    state = (node.namespace / "c1" / "state.json").read_text()
    start = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    node.state("c1", state.replace(f'"init_process_start":{start}', f'"init_process_start":{start - 100}'))
    striker.wait_gated("c1")
    node.run("kill", "c1", "9", idle=True)
    assert striker.reports() == []
    assert alive(process.pid)


def test_a_sigterm_is_announced_and_nothing_else(node: Any, striker: Any, scratch_cgroup: Any, alive: Any) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "8M", "--ignore-term")
    striker.wait_gated("c1")
    assert node.run("kill", "c1", "15") == 0
    assert striker.said("stop_began", id="c1", signal=15)
    assert striker.reports() == []
    assert alive(process.pid)


def test_a_kill_is_announced_before_its_report(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    assert node.run("kill", "c1", "9") == 0
    assert striker.said("stop_began", id="c1", signal=9)
    assert striker.said("report")


@pytest.mark.parametrize("word", ["USR1", "10", "CONT"])
def test_another_signal_is_none_of_ours(node: Any, striker: Any, scratch_cgroup: Any, alive: Any, word: str) -> None:
    # With a child it would be led, and have its signals at once
    process = node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "1")
    striker.wait_gated("c1")
    node.run("kill", "c1", word, idle=True)
    assert (striker.status()["active"], striker.reports()) == (0, [])
    assert alive(process.pid)


@pytest.mark.parametrize("words", [("state", "c1"), ("start", "c1"), ("exec", "c1", "kill", "9"), ("delete", "c1")])
def test_other_commands_pass_untouched(
    node: Any, striker: Any, scratch_cgroup: Any, alive: Any, words: tuple[str, ...]
) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    assert node.run(words[0], "c1", *words[2:], idle=True) == 0
    status = striker.status()
    assert status["events"] >= 1
    assert (status["kills"], striker.reports()) == (0, [])
    assert alive(process.pid)


def test_a_kill_of_another_container_is_not_this_ones(node: Any, striker: Any, scratch_cgroup: Any, alive: Any) -> None:
    """`runc list` and friends open every container's file; so may whatever has `kill` in its arguments."""
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    file = node.namespace / "c1" / "state.json"
    assert subprocess.run(["grep", "-q", "kill", file], check=False).returncode == 1
    assert subprocess.run(["cat", file], check=True, capture_output=True).stdout
    assert striker.reports() == []
    assert alive(process.pid)


def test_a_garbled_state_file_is_let_through_and_told_of(node: Any, striker: Any) -> None:
    contents = ["", "{", "[]", "null", '{"init_process_pid": "x"}', "\0\1\2", '{"cgroup_paths": 3}', "[" * 10000]
    for number, content in enumerate(contents):
        node.state(f"garbled-{number}", content)
    striker.wait_gated(*(f"garbled-{number}" for number in range(len(contents))))
    for number in range(len(contents)):
        node.run("kill", f"garbled-{number}", "9", idle=True)
        report = striker.report_of(f"garbled-{number}")
        assert (report.outcome, report.cgroup) == (Outcome.FAILED, "")
        assert "names no init process" in report.reason
    time.sleep(1.2)  # whoever listens for OOM kills has looked at them, too
    assert [report.number for report in striker.reports()] == list(range(1, len(contents) + 1))
    assert striker.log == ""  # whoever hears the reports tells of them
    assert striker.status()["restarts"] == 0


@pytest.mark.parametrize("whose", ["the root", "the striker's own"])
def test_a_cgroup_that_is_no_containers_is_refused(
    node: Any, striker: Any, scratch_cgroup: Any, alive: Any, whose: str
) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    path = node.namespace / "c1" / "state.json"
    state = json.loads(path.read_text())
    mounts = hierarchies()
    if whose == "the root":
        places = {"": mounts.unified, **mounts.controllers}
        state["cgroup_paths"] = {key: place for key, place in places.items() if place}
    else:
        # Its own and pid 1's: the root again where nothing has a cgroup of its own
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        roots = {"": mounts.unified, **mounts.controllers}
        state["cgroup_paths"] = {key: f"{roots[key]}{place}" for _, key, place in lines if roots.get(key)}
    node.state("c1", state)
    striker.wait_gated("c1")
    node.run("kill", "c1", "9", idle=True)
    report = striker.report_of("c1")
    assert (report.outcome, report.trigger, report.mode) == (Outcome.FAILED, "gate:kill", "strike")
    assert "nothing was done" in report.reason or "nothing that may be struck" in report.reason
    assert striker.log == ""  # whoever hears the report tells of it
    assert alive(process.pid)


def test_an_error_that_nobody_thought_of_holds_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], until: Any
) -> None:
    stops = Stops(lambda report: True, lambda container_id, number: None, Log(as_json=True))
    monkeypatch.setattr(Known, "find", lambda known, descriptor: 1 // 0)
    kill = Kill(Command(Verb.KILL, "c1", 9, False), os.open(os.devnull, os.O_RDONLY), time.monotonic())
    stops.on_kill(kill)
    until(lambda: kill.released, "it is held")
    until(lambda: stops.active == 0, "it goes on")
    said: list[str] = []
    until(lambda: said.append(capsys.readouterr().err) or "ZeroDivisionError" in "".join(said), "nothing is said")
    assert "".join(said).count("\n") == 1
    assert not stops.reports


def test_a_failed_stop_that_nobody_hears_of_is_in_the_log(
    node: Any, striker: Any, scratch_cgroup: Any, until: Any
) -> None:
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    node.state("c1", {"id": "c1"})
    striker.wait_gated("c1")
    striker.link.close()
    node.run("kill", "c1", "9", idle=True)
    until(lambda: striker.log, "nothing was said")
    assert striker.log.count("\n") == 1
    assert "c1 was left to its runtime's own kill: " in striker.log


@pytest.mark.parametrize("ended", ["gone", "somebody else's"])
def test_one_that_has_ended_is_no_stop_that_failed(node: Any, striker: Any, scratch_cgroup: Any, ended: str) -> None:
    """crun does not say which cgroup it had."""
    process = node.container("c1", scratch_cgroup, "--bytes", "8M", crun=True)
    if ended == "gone":
        process.kill()
        process.wait()
    else:
        node.state("c1", {"pid": process.pid, "process-start-time": 1}, name="status")
    striker.wait_gated("c1")
    assert node.run("delete", "--force", "c1", idle=True, file="status") == 0
    striker.status()
    assert (striker.reports(), striker.log) == ([], "")


def test_the_other_file_that_crun_opens_is_no_second_stop(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    """The container's configuration, beside its status."""
    node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "1", crun=True)
    node.state("c1", {"ociVersion": "1.0"}, name="config.json")
    striker.wait_gated("c1")
    assert node.run("delete", "--force", "c1", idle=True, file="config.json") == 0
    assert node.run("start", "c1", file="config.json") == 0
    striker.status()
    assert (striker.reports(), striker.log) == ([], "")


def test_what_crun_has_on_record_goes_before_where_init_has_gone(node: Any, striker: Any, make_cgroup: Any) -> None:
    """An init like systemd moves itself into a cgroup below."""
    whole = make_cgroup()
    init = node.container("c1", whole.child("init.scope"), "--bytes", "8M", crun=True)
    other = node.container("other", whole.child("service"), "--bytes", "8M", crun=True)
    status = json.loads((node.namespace / "c1" / "status").read_text())
    node.state("c1", {**status, "cgroup-path": whole.path}, name="status")
    striker.wait_gated("c1")
    node.run("kill", "c1", "9", idle=True, file="status")
    assert (striker.report_of("c1").cgroup, other.wait(30), init.wait(30)) == (whole.path, -9, -9)


def test_a_record_of_crun_that_init_is_not_in_is_not_gone_by(node: Any, striker: Any, make_cgroup: Any) -> None:
    mine, anothers = make_cgroup(), make_cgroup()
    node.container("c1", mine, "--bytes", "8M", "--children", "1", crun=True)
    status = json.loads((node.namespace / "c1" / "status").read_text())
    node.state("c1", {**status, "cgroup-path": anothers.path}, name="status")
    striker.wait_gated("c1")
    node.run("kill", "c1", "9", idle=True, file="status")
    assert striker.report_of("c1").cgroup == mine.path


def test_a_decision_over_its_budget_is_answered_by_the_loop(node: Any, make_striker: Any, scratch_cgroup: Any) -> None:
    striker = make_striker("--budget=0.001")
    for number in range(1, 6):
        name = f"c{number}"
        # What is padded takes long to read
        node.container(name, scratch_cgroup.child(name), "--bytes", "8M", "--children", "1", padding=700_000)
        striker.wait_gated(name)
        # Idle: let through by the loop, the runtime would be done before the worker has read the file
        assert node.run("kill", name, "9", idle=True) == 0
        assert striker.report_of(name).outcome is Outcome.STRUCK
        if striker.status()["overruns"] == 1:
            break  # else the loop itself was kept off the CPU, which is no overrun
    assert striker.status()["overruns"] == 1


def test_many_at_once(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    names = [f"c{number}" for number in range(24)]
    for name in names:
        node.container(name, scratch_cgroup.child(name), "--bytes", "4M", "--children", "1")
    striker.wait_gated(*names)
    for one in [node.begin("kill", name, "9") for name in names]:
        assert one.wait(30) in (0, 1)  # 1: the strike was quicker, "container not running"
    waiting = set(names)
    while waiting:
        report = striker.said("report")["report"]
        assert report["outcome"] == "struck", report
        waiting.discard(report["container_id"])
    assert scratch_cgroup.pids() == set()


def test_what_is_observed_is_measured_to_its_end(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    """The deadline is a strike's: a kill that takes longer is just what whoever only observes wants to know of."""
    striker.policy(mode="observe", deadline_seconds=0.05)
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    node.run("kill", "c1", "9", idle=True)
    time.sleep(0.3)
    process.kill()
    report = striker.report_of("c1")
    assert (report.outcome, report.reason) == (Outcome.OBSERVED, "")
    assert report.gone_seconds is not None
    assert report.gone_seconds > 0.05


def test_who_is_observed_may_be_struck_meanwhile(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    striker.policy(mode="observe")
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    node.run("kill", "c1", "9", idle=True)
    striker.link.send("strike", id="c1")
    assert process.wait(30) == -signal.SIGKILL
    outcomes = {striker.said("report")["report"]["outcome"] for _ in range(3)}  # one of them is the answer
    assert outcomes == {"struck", "observed"}


def test_observe_lets_the_runtime_kill_and_measures_it(node: Any, striker: Any, scratch_cgroup: Any) -> None:
    striker.policy(mode="observe")
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    assert node.run("kill", "c1", "9") == 0
    report = striker.report_of("c1")
    assert (report.outcome, report.signalled_seconds, report.boosted) == (Outcome.OBSERVED, None, ())
    assert {one.fate for one in report.processes} <= {Fate.GONE}  # nobody, where the kill was quicker than the look
    assert process.wait() == -signal.SIGKILL


def test_off_does_nothing(node: Any, striker: Any, scratch_cgroup: Any, until: Any) -> None:
    striker.policy(mode="off")
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    assert node.run("kill", "c1", "9") == 0
    until(lambda: not scratch_cgroup.pids(), "it lives")
    assert (striker.status()["active"], striker.reports()) == (0, [])


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
    gate = striker.status()["pid"]
    with unsupervised(striker):
        os.kill(gate, signal.SIGSTOP)
        waiting = node.begin("kill", "c1", "9")
        # In an uninterruptible sleep, in its open
        until(lambda: state_of(waiting.pid) == "D", "the opener is not held")
        os.kill(gate, signal.SIGKILL)
        assert waiting.wait(30) == 0
    striker.wait_for_gate_number(1)
    assert "has not gone round" not in striker.log


def test_a_held_opener_can_be_killed(node: Any, striker: Any, scratch_cgroup: Any, until: Any, alive: Any) -> None:
    process = node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    gate = striker.status()["pid"]
    with unsupervised(striker):
        os.kill(gate, signal.SIGSTOP)
        waiting = node.begin("kill", "c1", "9")
        until(lambda: state_of(waiting.pid) == "D", "the opener is not held")
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


def test_the_time_until_the_answer_is_kept(node: Any, striker: Any) -> None:
    node.state("c1", {})
    striker.wait_gated("c1")
    for _ in range(20):
        node.run("state", "c1", idle=True)
    status = striker.status()
    assert 0 < status["latency_p50_us"] <= status["latency_p99_us"]
