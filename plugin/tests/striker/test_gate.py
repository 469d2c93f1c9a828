"""What passes the gate, what is struck there, and what is never held up."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expedited.striker.argv import Command, Verb
from expedited.striker.log import Log
from expedited.striker.source import Kill
from expedited.striker.stops import Stops
from expedited.teardown.report import Fate, Outcome
from support.waiting import wait_for

_TRIES = 5


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


def test_podman_and_cri_o_are_followed(node: Any, scratch_cgroup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no shim that takes it for done when who was to be killed is dead already."""
    monkeypatch.setattr("expedited.striker.stops._WITHOUT_A_SHIM", (str(node.namespace),))
    stops = Stops(lambda report: True, lambda container_id, number: None, Log(as_json=True))
    process = node.container("c1", scratch_cgroup, "--bytes", "8M", "--children", "2")
    state = os.open(node.namespace / "c1" / "state.json", os.O_RDONLY)
    kill = _Held(Command(Verb.KILL, "c1", 9, False), state, time.monotonic())
    stops.on_kill(kill)
    assert kill.answered.wait(30)
    assert process.poll() is None
    for pid in scratch_cgroup.pids():  # as the runtime, and a pid namespace's end, do now
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: stops.reports, "it is not reported")
    assert (stops.reports[0].outcome, stops.reports[0].order) == (Outcome.STRUCK, "follow")


class _Held(Kill):
    """At a gate that this test is."""

    held = True

    def __init__(self, command: Command, descriptor: int, seen: float) -> None:
        super().__init__(command, descriptor, seen)
        self.answered = threading.Event()

    def answer(self) -> bool:
        self.answered.set()
        return True

    def release(self) -> None:
        self.answer()
        super().release()


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
    assert {one.fate for one in report.processes} <= {Fate.KILLED}  # nobody, where the kill was quicker than the look
    assert process.wait() == -signal.SIGKILL


def test_off_does_nothing(node: Any, striker: Any, scratch_cgroup: Any, until: Any) -> None:
    striker.policy(mode="off")
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    striker.wait_gated("c1")
    assert node.run("kill", "c1", "9") == 0
    until(lambda: not scratch_cgroup.pids(), "it lives")
    assert (striker.status()["active"], striker.reports()) == (0, [])


def test_the_time_until_the_answer_is_kept(node: Any, striker: Any) -> None:
    node.state("c1", {})
    striker.wait_gated("c1")
    for _ in range(20):
        node.run("state", "c1", idle=True)
    status = striker.status()
    assert 0 < status["latency_p50_us"] <= status["latency_p99_us"]
