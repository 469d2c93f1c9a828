"""Whatever the shape of its processes, a struck cgroup is empty and its memory is back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from expedited.demo.image import workload_binary
from expedited.teardown import Cgroup, CgroupGone, Fate, Outcome, Policy, Report, TargetError, strike

MIB = 1 << 20
ANY_SIZE = Policy(min_size_bytes=0)
ACCOUNTED_FOR = {Fate.REAPED, Fate.LOST_RACE, Fate.GONE, Fate.KILLED}


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def until_counted(cgroup: Cgroup, anon_bytes: int) -> None:
    """The kernel sums up its counters per CPU every two seconds, and a frozen process does nothing that hurries it."""
    give_up_at = time.monotonic() + 10
    while (memory := cgroup.memory()) is not None and memory.anon_bytes < 0.9 * anon_bytes:
        assert time.monotonic() < give_up_at, memory
        time.sleep(0.05)


def check_torn_down(report: Report, scratch: Any, *, held_bytes: int, processes: int) -> None:
    assert (report.outcome, report.reason) == (Outcome.STRUCK, "")
    assert report.process_count == processes
    assert scratch.pids() == set()
    assert report.signalled_seconds is not None
    assert report.gone_seconds is not None
    assert {process.fate for process in report.processes} <= ACCOUNTED_FOR
    if Cgroup.find(scratch.path).memory_dir is None:
        assert (report.before, report.after, report.memory_back_seconds) == (None, None, None)
    else:
        # The kernel sums up its counters per CPU only now and then, so a reading may be a little behind
        assert report.bytes_returned >= 0.9 * held_bytes
        assert report.memory_back_seconds is not None  # it may be later than gone: the counters lag


def test_a_single_process(scratch_cgroup: Any, hog: Any) -> None:
    process = hog("--bytes", "64M", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=process.pid)
    check_torn_down(report, scratch_cgroup, held_bytes=64 * MIB, processes=1)
    assert process.wait() == -signal.SIGKILL
    assert report.order == "lead"
    (only,) = report.processes
    assert only.pid == process.pid
    assert only.rss_bytes is not None
    assert only.rss_bytes >= 64 * MIB


def test_a_tree(scratch_cgroup: Any, hog: Any) -> None:
    process = hog("--bytes", "16M", "--children", "7", "--ignore-term", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=process.pid)
    check_torn_down(report, scratch_cgroup, held_bytes=8 * 16 * MIB, processes=8)


def test_a_tree_whose_threads_burn_the_cpu(scratch_cgroup: Any, hog: Any) -> None:
    process = hog("--bytes", "8M", "--children", "3", "--threads", "4", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=process.pid)
    check_torn_down(report, scratch_cgroup, held_bytes=4 * 8 * MIB, processes=4)


def test_init_dies_first_so_its_exit_status_is_the_kills(scratch_cgroup: Any, shape: Any) -> None:
    for _ in range(20):
        process = shape("heir", cgroup=scratch_cgroup)
        strike(Cgroup.find(scratch_cgroup.path), ANY_SIZE, init_pid=process.pid)
        assert process.wait() == -signal.SIGKILL  # 7: it saw its child die, and had the time to act on it


def test_a_thousand_processes_within_the_usual_descriptor_limit(scratch_cgroup: Any, hog: Any) -> None:
    hog("--bytes", "8K", "--children", "999", cgroup=scratch_cgroup)
    # In a process of its own, whose limit can be lowered: fewer descriptors than the tree has processes
    code = (
        "import resource, sys; from expedited.teardown import Cgroup, strike\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "report = strike(Cgroup.find(sys.argv[1])); print(report.outcome, report.process_count)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, scratch_cgroup.path], capture_output=True, text=True, check=True
    )
    outcome, count = answer.stdout.split()
    assert outcome == "struck"
    assert int(count) <= 1000
    assert scratch_cgroup.pids() == set()


def test_a_thousand_processes_are_all_in_the_count(scratch_cgroup: Any, hog: Any) -> None:
    hog("--bytes", "8K", "--children", "799", cgroup=scratch_cgroup)
    before = open_descriptors()
    report = strike(Cgroup.find(scratch_cgroup.path))
    assert (report.outcome, report.process_count, len(report.processes)) == (Outcome.STRUCK, 800, 64)
    assert open_descriptors() <= before


@pytest.mark.parametrize("bomb", ["fleeing", "bomb"])
def test_a_fork_bomb(scratch_cgroup: Any, shape: Any, bomb: str) -> None:
    shape(bomb, 64 if bomb == "fleeing" else 400, cgroup=scratch_cgroup)
    time.sleep(0.2)  # until it is in full swing
    report = strike(Cgroup.find(scratch_cgroup.path), ANY_SIZE)
    assert report.outcome is Outcome.STRUCK
    assert scratch_cgroup.pids() == set()
    assert len(report.steps) < 64


def test_a_stopped_tree(scratch_cgroup: Any, hog: Any) -> None:
    process = hog("--bytes", "8M", "--children", "3", cgroup=scratch_cgroup)
    os.killpg(process.pid, signal.SIGSTOP)
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=process.pid)
    check_torn_down(report, scratch_cgroup, held_bytes=4 * 8 * MIB, processes=4)


def freeze(scratch: Any) -> None:
    if scratch.version == 2:
        (scratch.directories["unified"] / "cgroup.freeze").write_text("1")
        events = scratch.directories["unified"] / "cgroup.events"
        is_frozen = lambda: "frozen 1" in events.read_text()  # noqa: E731
    else:
        state = scratch.directories["freezer"] / "freezer.state"
        state.write_text("FROZEN")
        is_frozen = lambda: state.read_text() == "FROZEN\n"  # noqa: E731
    while not is_frozen():
        time.sleep(0.001)


def test_a_frozen_tree(scratch_cgroup: Any, hog: Any) -> None:
    process = hog("--bytes", "8M", "--children", "3", cgroup=scratch_cgroup)
    freeze(scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=process.pid)
    check_torn_down(report, scratch_cgroup, held_bytes=4 * 8 * MIB, processes=4)


def test_a_frozen_cgroup_inside_the_containers(scratch_cgroup: Any, hog: Any) -> None:
    """opencontainers/runc 2105: the kill waits for ever."""
    inner = scratch_cgroup.child("inner").child("most")
    hog("--bytes", "8M", cgroup=scratch_cgroup)
    hog("--bytes", "8M", cgroup=inner)
    freeze(inner)
    cgroup = Cgroup.find(scratch_cgroup.path)
    until_counted(cgroup, 16 * MIB)
    report = strike(cgroup)
    check_torn_down(report, scratch_cgroup, held_bytes=16 * MIB, processes=2)


def test_nested_cgroups(scratch_cgroup: Any, hog: Any) -> None:
    a, b = scratch_cgroup.child("a"), scratch_cgroup.child("b")
    for cgroup in (scratch_cgroup, a, b, a.child("deeper").child("still")):
        hog("--bytes", "8M", "--children", "1", cgroup=cgroup)
    cgroup = Cgroup.find(scratch_cgroup.path)
    until_counted(cgroup, 8 * 8 * MIB)
    report = strike(cgroup)
    check_torn_down(report, scratch_cgroup, held_bytes=8 * 8 * MIB, processes=8)
    assert (a.pids(), b.pids()) == (set(), set())


def test_a_sibling_of_the_struck_lives(scratch_cgroup: Any, hog: Any, alive: Any) -> None:
    struck, sibling = scratch_cgroup.child("struck"), scratch_cgroup.child("struck-not")
    hog("--bytes", "8M", cgroup=struck)
    neighbour = hog("--bytes", "8M", cgroup=sibling)
    strike(Cgroup.find(struck.path))
    assert alive(neighbour.pid)


def test_zombies_need_no_strike(scratch_cgroup: Any, shape: Any) -> None:
    process = shape("zombies", 50, cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), ANY_SIZE, init_pid=process.pid)
    assert report.outcome is Outcome.STRUCK
    assert scratch_cgroup.pids() == set()


def test_nothing_but_zombies_is_an_empty_cgroup(scratch_cgroup: Any, hog: Any) -> None:
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    report = strike(Cgroup.find(scratch_cgroup.path), ANY_SIZE)
    assert report.outcome is Outcome.STRUCK
    assert {one.fate for one in report.processes} <= {Fate.GONE, Fate.KILLED}


@pytest.mark.parametrize("how", ["shared", "vfork"])
def test_two_processes_with_one_memory(scratch_cgroup: Any, shape: Any, how: str) -> None:
    process = shape(how, 64 * MIB, cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=process.pid)
    check_torn_down(report, scratch_cgroup, held_bytes=64 * MIB, processes=2)


def test_one_memory_with_a_process_outside_is_not_reaped_under_it(make_cgroup_v2: Any, shape: Any, alive: Any) -> None:
    """The one outside still runs in that memory: the kernel says EINVAL, and the reaper must give in."""
    scratch = make_cgroup_v2()
    process = shape("shared", 16 * MIB, cgroup=scratch)
    (outside,) = scratch.pids() - {process.pid}
    Path(Cgroup.find("/").procs_dir.rstrip("/"), "cgroup.procs").write_text(str(outside))
    report = strike(Cgroup.find(scratch.path), init_pid=process.pid)
    assert report.outcome is Outcome.STRUCK
    assert [one.fate for one in report.processes] != [Fate.REAPED]
    assert alive(outside)
    assert process.wait() == -signal.SIGKILL
    os.kill(outside, signal.SIGKILL)


def test_a_leader_that_has_exited_before_its_threads(scratch_cgroup: Any, shape: Any) -> None:
    process = shape("leaderless", 64 * MIB, cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=process.pid)
    check_torn_down(report, scratch_cgroup, held_bytes=64 * MIB, processes=1)
    (only,) = report.processes
    assert only.rss_bytes is not None
    assert only.rss_bytes >= 64 * MIB  # read from a thread that lives: the leader's own statm is all zero
    assert only.fate in ACCOUNTED_FOR


def test_a_pid_namespace(scratch_cgroup: Any, launch: Any) -> None:
    command = ["unshare", "--pid", "--fork", workload_binary("hog"), "--bytes", "16M", "--children", "3"]
    outer = launch(*command, cgroup=scratch_cgroup)
    (init,) = map(int, Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split())
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=init)
    check_torn_down(report, scratch_cgroup, held_bytes=4 * 16 * MIB, processes=5)
    assert report.lost_races <= 4


def test_an_empty_cgroup(scratch_cgroup: Any) -> None:
    report = strike(Cgroup.find(scratch_cgroup.path), ANY_SIZE)
    assert (report.outcome, report.process_count, report.bytes_returned) == (Outcome.STRUCK, 0, 0)


def test_a_cgroup_that_was_removed_after_it_was_found(scratch_cgroup: Any) -> None:
    inner = scratch_cgroup.child("short-lived")
    cgroup = Cgroup.find(inner.path)
    for directory in inner.directories.values():
        directory.rmdir()
    report = strike(cgroup)
    assert (report.outcome, report.process_count) == (Outcome.STRUCK, 0)


@pytest.mark.parametrize("mode", ["strike", "observe"])
def test_who_cannot_be_named_from_here_is_not_overlooked(make_cgroup_v2: Any, hog: Any, mode: str) -> None:
    """From another pid namespace the pids of version 2 read as 0, and only cgroup.kill reaches them."""
    scratch = make_cgroup_v2()
    hog("--bytes", "8M", cgroup=scratch)
    code = (
        "import sys, time; from expedited.teardown import Cgroup, Mode, Policy, strike\n"
        "policy = Policy(Mode(sys.argv[2]), min_size_bytes=0, deadline_seconds=30 if sys.argv[2] == 'strike' else 1,\n"
        "                boost=False)\n"
        "began, used = time.monotonic(), time.process_time()\n"
        "report = strike(Cgroup.find(sys.argv[1]), policy)\n"
        "share = (time.process_time() - used) / (time.monotonic() - began)\n"
        "print(report.outcome, report.process_count, share, report.reason or '-', sep='|')"
    )
    wrapped = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, scratch.path, mode]
    answer = subprocess.run(wrapped, capture_output=True, text=True, check=True)
    outcome, count, share, reason = answer.stdout.strip().split("|")
    assert count == "0"
    if mode == "strike":
        assert (outcome, scratch.pids()) == ("struck", set())
    else:
        assert (outcome, reason) == ("observed", "still running at the deadline")
        assert float(share) < 0.5  # it waits, and does not spin


@pytest.mark.parametrize("target", ["root", "own", "pid 1", "outside", "relative", "no such"])
def test_what_must_not_be_struck_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str
) -> None:
    signalled: list[object] = []
    monkeypatch.setattr("signal.pidfd_send_signal", lambda *words: signalled.append(words))
    monkeypatch.setattr("expedited.teardown.reap.process_mrelease", lambda *words: signalled.append(words))
    monkeypatch.setattr(Cgroup, "kill", lambda self: signalled.append(self))
    name = {
        "root": "/",
        "own": max(Cgroup.own_directories(), key=len),
        "pid 1": "/",
        "outside": str(tmp_path),
        "relative": "kubepods/pod1",
        "no such": "/kubepods/expedited-no-such-pod",
    }[target]
    with pytest.raises((TargetError, CgroupGone)) as refused:
        strike(Cgroup.of_process(1) if target == "pid 1" else Cgroup.find(name))
    assert "\n" not in str(refused.value)
    assert refused.type is (CgroupGone if target == "no such" else TargetError)
    assert not signalled
