"""Who ends within the grace period: helped, signalled by nobody, reported when all are gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expedited.teardown import Cgroup, Fate, Mode, Outcome, PageCache, Policy, Report, Strike
from expedited.teardown import ending as ending_module
from expedited.teardown.ending import Ending
from expedited.teardown.roster import Roster

MIB = 1 << 20
KEEP = Policy(page_cache=PageCache.KEEP)
OBSERVE = Policy(Mode.OBSERVE, PageCache.DROP, deadline_seconds=0.001)  # which is for those who are helped
_TRIES = 4


def ending_of(cgroup: Cgroup, policy: Policy = KEEP) -> Ending:
    roster = Roster(cgroup)
    roster.enrol()
    return Ending(cgroup, policy, roster, container_id="c1")


def last_turn(ending: Ending, policy: Policy = KEEP) -> Report:
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        if (report := ending.turn(policy)) is not None:
            return report
        time.sleep(0.002)
    raise AssertionError("it does not end")


@pytest.fixture
def cgroup_v1(make_cgroup_v1: Callable[[], Any]) -> Any:
    return make_cgroup_v1()


def test_the_dying_is_reaped_though_it_does_not_run(cgroup_v1: Any, hog: Any) -> None:
    process = hog("--bytes", "32M", cgroup=cgroup_v1)
    cgroup = Cgroup.find(cgroup_v1.path)
    ending = ending_of(cgroup)
    assert ending.turn(KEEP) is None
    assert (ending.helps, ending.over) == (False, False)
    with cgroup_v1.held_up():
        process.kill()  # which reaches who is held up at once
        assert ending.turn(KEEP) is None
        assert (ending.helps, ending.dying) == (True, 1)
        memory = cgroup.memory()
        assert memory is not None
        assert memory.anon_bytes < 4 * MIB
    assert process.wait() == -signal.SIGKILL
    report = last_turn(ending)
    assert (report.outcome, report.trigger, report.order) == (Outcome.EXITED, "grace", "")
    assert report.signalled_seconds is None
    assert [(each.pid, each.fate) for each in report.processes] == [(process.pid, Fate.REAPED)]
    assert report.bytes_returned >= 30 * MIB
    assert report.lost_races == 0
    assert report.gone_seconds is not None
    assert report.memory_back_seconds is not None
    assert ending.over
    ending.close()


def test_the_living_are_asked_and_not_touched(scratch_cgroup: Any, hog: Any, alive: Any) -> None:
    process = hog("--bytes", "8M", "--children", "2", cgroup=scratch_cgroup)
    cgroup = Cgroup.find(scratch_cgroup.path)
    ending = ending_of(cgroup)
    before = [os.sched_getscheduler(pid) for pid in cgroup.pids()]
    for _ in range(50):
        assert ending.turn(KEEP) is None
    assert (ending.helps, ending.over, ending.dying) == (False, False, 0)
    assert alive(process.pid)
    assert [os.sched_getscheduler(pid) for pid in cgroup.pids()] == before
    ending.close()


def test_those_who_end_one_after_the_other_make_one_report(cgroup_v1: Any, hog: Any) -> None:
    first = hog("--bytes", "32M", cgroup=cgroup_v1)
    last = hog("--bytes", "8M", cgroup=cgroup_v1)
    cgroup = Cgroup.find(cgroup_v1.path)
    ending = ending_of(cgroup)
    for process in (first, last):
        if process is last:
            time.sleep(0.3)  # its own time, which is no part of any figure
        lately = time.time()
        with cgroup_v1.held_up():
            process.send_signal(signal.SIGKILL)
            assert ending.turn(KEEP) is None
            assert ending.dying == 1
        process.wait()
        if process is first:
            assert ending.turn(KEEP) is None
            assert (ending.dying, ending.over) == (0, False)
    report = last_turn(ending)
    assert report.process_count == 2
    assert report.bytes_returned >= 38 * MIB
    assert report.started_at >= lately
    assert report.steps[0].what == "seen to end: 2 of 2 processes were reaped"
    ending.close()


def test_a_strike_takes_over_who_is_held(cgroup_v1: Any, hog: Any) -> None:
    dying = hog("--bytes", "16M", cgroup=cgroup_v1)
    living = hog("--bytes", "16M", "--ignore-term", cgroup=cgroup_v1)
    cgroup = Cgroup.find(cgroup_v1.path)
    ending = ending_of(cgroup)
    with cgroup_v1.held_up():
        dying.send_signal(signal.SIGKILL)
        assert ending.turn(KEEP) is None
        assert ending.dying == 1
        one = Strike(cgroup, KEEP, init_pid=living.pid, held=ending.hand_over())
        assert one.signal() is Outcome.STRUCK
        report = one.finish()  # it has let them go, to die
    assert (report.outcome, report.process_count) == (Outcome.STRUCK, 2)
    assert living.wait() == -signal.SIGKILL
    assert dying.wait() == -signal.SIGKILL
    fates = {each.pid: each.fate for each in report.processes}
    assert fates[dying.pid] is Fate.REAPED


def test_who_takes_longer_than_the_deadline_is_let_go_of(cgroup_v1: Any, hog: Any) -> None:
    process = hog("--bytes", "16M", cgroup=cgroup_v1)
    cgroup = Cgroup.find(cgroup_v1.path)
    policy = Policy(page_cache=PageCache.KEEP, deadline_seconds=0.05)
    ending = ending_of(cgroup, policy)
    with cgroup_v1.held_up():
        process.send_signal(signal.SIGKILL)
        assert ending.turn(policy) is None
        time.sleep(0.1)
        assert ending.turn(policy) is None
        assert ending.over
    ending.close()
    assert process.wait() == -signal.SIGKILL


def test_who_was_started_meanwhile_is_waited_for(cgroup_v1: Any, hog: Any) -> None:
    first = hog("--bytes", "16M", cgroup=cgroup_v1)
    cgroup = Cgroup.find(cgroup_v1.path)
    ending = ending_of(cgroup)
    second = hog("--bytes", "16M", cgroup=cgroup_v1)
    weight = cgroup_v1.directories["cpu"] / "cpu.shares"
    before = weight.read_text()
    with cgroup_v1.held_up():
        first.send_signal(signal.SIGKILL)
        assert ending.turn(KEEP) is None
        assert ending.dying == 1
        assert weight.read_text() == before  # it is the second's as well
    first.wait()
    for _ in range(5):
        assert ending.turn(KEEP) is None
    assert not ending.over
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert last_turn(ending).process_count == 2
    ending.close()


def test_page_cache_is_dropped_when_nobody_is_left_who_could_want_it(
    cgroup_v1: Any, hog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[set[int]] = []
    monkeypatch.setattr(Cgroup, "drop_page_cache", lambda self: dropped.append(set(self.pids())) or 4096)
    first = hog("--bytes", "16M", cgroup=cgroup_v1)
    last = hog("--bytes", "16M", cgroup=cgroup_v1)
    cgroup = Cgroup.find(cgroup_v1.path)
    policy = Policy(page_cache=PageCache.DROP)
    ending = ending_of(cgroup, policy)
    for process in (first, last):
        assert dropped == []
        with cgroup_v1.held_up():
            process.send_signal(signal.SIGKILL)
            assert ending.turn(policy) is None
        process.wait()
        if process is first:
            assert ending.turn(policy) is None
    report = last_turn(ending, policy)
    assert len(dropped) == 1
    assert report.page_cache_dropped_bytes == 4096
    ending.close()


@pytest.mark.parametrize(
    "policy",
    [Policy(mode=Mode.OFF), Policy(min_size_bytes=1 << 30), Policy(mode=Mode.OBSERVE, min_size_bytes=1 << 30)],
    ids=["off", "small", "small, observe"],
)
def test_who_is_not_to_be_struck_is_asked_nothing(make_cgroup: Any, hog: Any, policy: Policy) -> None:
    cgroup = make_cgroup()
    hog("--bytes", "16M", cgroup=cgroup)
    ending = ending_of(Cgroup.find(cgroup.path), policy)
    assert ending.over
    ending.close()


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question that reaps must not be put."""

    def refuse(pidfd: int, flags: int) -> int:
        raise AssertionError("process_mrelease")

    monkeypatch.setattr(ending_module, "process_mrelease", refuse)


@pytest.mark.usefixtures("unasked")
def test_who_is_only_observed_ends_as_if_nobody_looked(make_cgroup: Any, hog: Any) -> None:
    cgroup = make_cgroup()
    for _ in range(_TRIES):
        process = hog("--bytes", "256M", cgroup=cgroup)
        ending = ending_of(Cgroup.find(cgroup.path), OBSERVE)
        assert ending.turn(OBSERVE) is None
        assert (ending.helps, ending.over) == (False, False)
        process.kill()
        while not ending.helps and not ending.over:
            ending.turn(OBSERVE)
        if ending.helps:  # else it was quicker than the look
            break
        ending.close()
        process.wait()
    else:
        pytest.fail("it was always quicker than the look")
    report = last_turn(ending, OBSERVE)
    assert (report.outcome, report.trigger, report.mode) == (Outcome.WATCHED, "grace", "observe")
    assert report.reason == "ended within its grace period"
    assert [(each.pid, each.fate) for each in report.processes] == [(process.pid, Fate.EXITED)]
    assert report.bytes_returned >= 250 * MIB
    assert (report.boosted, report.page_cache_dropped_bytes) == ((), 0)
    assert report.memory_back_seconds is not None
    assert [step.what for step in report.steps] == ["seen to end", "gone: the cgroup is empty"]
    ending.close()


@pytest.mark.usefixtures("unasked")
def test_the_living_are_observed_and_not_taken_for_dying(scratch_cgroup: Any, hog: Any, alive: Any) -> None:
    process = hog("--bytes", "8M", "--children", "2", cgroup=scratch_cgroup)
    ending = ending_of(Cgroup.find(scratch_cgroup.path), OBSERVE)
    for _ in range(50):
        assert ending.turn(OBSERVE) is None
    assert (ending.helps, ending.over, ending.dying) == (False, False, 0)
    assert alive(process.pid)
    ending.close()


@pytest.mark.usefixtures("unasked")
def test_who_has_gone_between_two_looks_is_observed_no_more(make_cgroup: Any, hog: Any) -> None:
    """Waited for by its parent, it has no /proc any more."""
    cgroup = make_cgroup()
    process = hog("--bytes", "8M", cgroup=cgroup)
    ending = ending_of(Cgroup.find(cgroup.path), OBSERVE)
    process.kill()
    process.wait()
    assert ending.turn(OBSERVE) is None
    assert ending.over
    ending.close()


@pytest.mark.usefixtures("unasked")
def test_whose_score_says_nothing_is_not_observed(make_cgroup: Any, hog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of oom_score_adj -1000: the score is 0 all its life, not only as it dies."""
    cgroup = make_cgroup()
    process = hog("--bytes", "8M", cgroup=cgroup)
    try:
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("-1000")
    except PermissionError:  # not everywhere may root lower it
        monkeypatch.setattr(ending_module, "read_proc", lambda pid, name: b"0\n")
    ending = ending_of(Cgroup.find(cgroup.path), OBSERVE)
    assert ending.over
    ending.close()
