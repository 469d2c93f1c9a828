"""Nobody is struck who is not in the cgroup: numbers that were used again, processes that were moved meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expedited.teardown import Cgroup, Fate, Outcome, Policy, strike
from expedited.teardown.boost import DYING_PRIORITY

ANY_SIZE = Policy(min_size_bytes=0)


def root_of(cgroup: Any) -> list[Path]:
    return [directory.parent for directory in cgroup.directories.values()]


def move_out(cgroup: Any, pid: int) -> None:
    for root in root_of(cgroup):
        (root / "cgroup.procs").write_text(str(pid))


def test_a_process_that_is_moved_out_between_listing_and_pidfd_is_not_struck(
    scratch_cgroup: Any, hog: Any, alive: Any, after_listing: Any
) -> None:
    stays = hog("--bytes", "8M", cgroup=scratch_cgroup)
    leaves = hog("--bytes", "8M", cgroup=scratch_cgroup)
    after_listing(lambda: move_out(scratch_cgroup, leaves.pid))
    report = strike(Cgroup.find(scratch_cgroup.path))
    assert (report.outcome, [one.pid for one in report.processes]) == (Outcome.STRUCK, [stays.pid])
    assert alive(leaves.pid)
    assert os.sched_getscheduler(leaves.pid) == os.SCHED_OTHER


def test_a_process_that_is_moved_in_meanwhile_is_a_member_and_struck(
    scratch_cgroup: Any, hog: Any, after_listing: Any
) -> None:
    was_there = hog("--bytes", "8M", cgroup=scratch_cgroup)
    comes = hog("--bytes", "8M")
    after_listing(lambda: scratch_cgroup.add(comes.pid))
    report = strike(Cgroup.find(scratch_cgroup.path))
    assert report.outcome is Outcome.STRUCK
    assert comes.wait() == was_there.wait() == -9
    assert scratch_cgroup.pids() == set()


Arrange = Callable[[Callable[[], None]], None]


@pytest.mark.parametrize("when", ["between listing and pidfd", "between pidfd and signal"])
def test_a_recycled_pid_is_never_struck(
    scratch_cgroup: Any,
    hog: Any,
    take_number: Any,
    alive: Any,
    after_listing: Arrange,
    after_enrolment: Arrange,
    when: str,
) -> None:
    victim = hog("--bytes", "8M", cgroup=scratch_cgroup)
    other = hog("--bytes", "8M", "--children", "1", cgroup=scratch_cgroup)

    def recycle() -> None:
        victim.kill()
        victim.wait()
        take_number(victim.pid)

    (after_listing if "listing" in when else after_enrolment)(recycle)
    report = strike(Cgroup.find(scratch_cgroup.path), ANY_SIZE)
    assert report.outcome is Outcome.STRUCK
    assert other.wait() == -9
    assert scratch_cgroup.pids() == set()
    assert alive(victim.pid)  # the number is a stranger's now
    assert victim.pid not in scratch_cgroup.pids()
    assert os.sched_getparam(victim.pid).sched_priority != DYING_PRIORITY
    os.kill(victim.pid, 9)


def test_a_recycled_pid_that_is_a_member_again_is_struck_as_itself(
    scratch_cgroup: Any, hog: Any, take_number: Any, after_listing: Arrange
) -> None:
    victim = hog("--bytes", "8M", cgroup=scratch_cgroup)
    hog("--bytes", "8M", cgroup=scratch_cgroup)

    def recycle() -> None:
        victim.kill()
        victim.wait()
        take_number(victim.pid)
        scratch_cgroup.add(victim.pid)

    after_listing(recycle)
    report = strike(Cgroup.find(scratch_cgroup.path), ANY_SIZE)
    assert report.outcome is Outcome.STRUCK
    assert scratch_cgroup.pids() == set()


def test_the_dead_are_reported_as_such(scratch_cgroup: Any, hog: Any, after_enrolment: Arrange) -> None:
    victim = hog("--bytes", "8M", cgroup=scratch_cgroup)

    def die() -> None:
        victim.kill()
        victim.wait()

    after_enrolment(die)
    (only,) = strike(Cgroup.find(scratch_cgroup.path)).processes
    assert only.fate in (Fate.GONE, Fate.KILLED)
