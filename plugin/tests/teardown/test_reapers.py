"""The pool: it outlives every strike, and a pidfd outlives every call that is made with it."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from expedited.teardown import Cgroup, Fate, Policy, Reapers, strike
from expedited.teardown import reap as reap_module
from expedited.teardown.linux import mrelease_support, process_mrelease
from expedited.teardown.orders import Killing
from expedited.teardown.pidfd import Pidfd
from expedited.teardown.reap import kill_and_reap, reap
from expedited.teardown.roster import Roster, Victim


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def victim_of(pid: int) -> Victim:
    return Victim(pid, Pidfd.open(pid))


def test_the_kernel_tells_what_it_can_do_without_a_victim() -> None:
    assert process_mrelease(-1, 0) in (errno.EBADF, errno.ENOSYS)
    assert process_mrelease(-1, 1 << 30) in (errno.EINVAL, errno.ENOSYS)
    assert mrelease_support().describe() in ("none", "stock", "reap-kill", "keep-file", "reap-kill+keep-file")


def test_a_process_that_lives_is_not_reaped(hog: Any, alive: Any) -> None:
    process = hog("--bytes", "8M")
    assert process_mrelease(os.pidfd_open(process.pid), 0) in (errno.EINVAL, errno.ENOSYS)
    assert alive(process.pid)


def test_killed_and_reaped_in_one_go(hog: Any) -> None:
    process = hog("--bytes", "64M")
    fate = kill_and_reap(victim_of(process.pid), 1 if mrelease_support().reap_kill else 0)
    assert fate in (Fate.REAPED, Fate.LOST_RACE, Fate.GONE)
    assert process.wait() == -signal.SIGKILL


def test_a_mm_that_says_not_now_is_asked_again(hog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN comes from memory with a notifier that may sleep (a guest's, a device's), which a test has none of."""
    answers = [errno.EAGAIN] * 3
    monkeypatch.setattr(
        reap_module,
        "process_mrelease",
        lambda pidfd, flags: answers.pop() if answers else process_mrelease(pidfd, flags),
    )
    process = hog("--bytes", "64M")
    fate = kill_and_reap(victim_of(process.pid), 1 if mrelease_support().reap_kill else 0)
    assert (answers, fate in (Fate.REAPED, Fate.LOST_RACE, Fate.GONE)) == ([], True)
    if not mrelease_support().reap_kill:
        assert process.wait() == -signal.SIGKILL


def test_one_that_is_gone_is_reported_gone(hog: Any) -> None:
    process = hog("--bytes", "1M")
    victim = victim_of(process.pid)
    process.kill()
    process.wait()
    assert reap(victim) is Fate.GONE


def test_a_victim_whose_strike_has_ended_is_left_alone(hog: Any, alive: Any) -> None:
    process = hog("--bytes", "1M")
    victim = victim_of(process.pid)
    victim.pidfd = None
    assert victim.has_exited()
    assert (kill_and_reap(victim, 0), reap(victim)) == (None, None)
    assert alive(process.pid)


def test_a_pidfd_stays_open_while_a_reaper_is_at_it(hog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed under it, the number could be another process's pidfd by the time the system call begins."""
    process = hog("--bytes", "1M")
    victim = victim_of(process.pid)
    assert victim.pidfd is not None
    number = victim.pidfd.number
    in_call, go_on = threading.Event(), threading.Event()

    def slow(pidfd: int, flags: int) -> int:
        in_call.set()
        assert go_on.wait(10)
        return errno.ESRCH

    monkeypatch.setattr(reap_module, "process_mrelease", slow)
    with Reapers(1) as pool:
        fates: list[Fate | None] = []
        pool.submit(lambda: fates.append(kill_and_reap(victim, 1)))
        assert in_call.wait(10)
        victim.pidfd = None  # the strike lets go of it
        assert str(Path(f"/proc/self/fd/{number}").readlink()).startswith("anon_inode:")
        go_on.set()
        done = threading.Event()
        pool.submit(done.set)
        assert done.wait(10)
    assert fates == [Fate.GONE]
    with pytest.raises(OSError, match="No such file"):
        Path(f"/proc/self/fd/{number}").readlink()


def test_who_waits_for_a_kill_is_in_nobodys_way(hog: Any, scratch_cgroup: Any, alive: Any) -> None:
    processes = [hog("--bytes", "8M", cgroup=scratch_cgroup) for _ in range(3)]
    cgroup, roster = Cgroup.find(scratch_cgroup.path), Roster(Cgroup.find(scratch_cgroup.path))
    done = threading.Event()
    with Reapers(1) as pool:
        killing = Killing(
            cgroup, roster, pool, init_pid=processes[0].pid, anon_bytes=None, support=mrelease_support(), keep_file=True
        )
        killing.follow(roster.muster(), time.monotonic() + 60)
        pool.submit(done.set)
        assert done.wait(30)
        assert all(alive(process.pid) for process in processes)
        roster.close()


def test_the_pool_outlives_its_strikes(scratch_cgroup: Any, hog: Any) -> None:
    with Reapers() as pool:
        for _ in range(15):
            hog("--bytes", "4M", "--children", "4", cgroup=scratch_cgroup)
            strike(Cgroup.find(scratch_cgroup.path), Policy(min_size_bytes=0), reapers=pool)
        assert all(thread.is_alive() for thread in pool._threads)


def test_many_strikes_leave_no_descriptor_behind(scratch_cgroup: Any, hog: Any) -> None:
    with Reapers() as pool:
        counts = []
        for _ in range(8):
            process = hog("--bytes", "4M", "--children", "4", cgroup=scratch_cgroup)
            strike(Cgroup.find(scratch_cgroup.path), Policy(min_size_bytes=0), reapers=pool)
            process.wait()
            process.stdout.close()
            idle = threading.Barrier(pool.count + 1)  # each of them is done with its last victim
            for _ in range(pool.count):
                pool.submit(lambda idle=idle: idle.wait(60))
            idle.wait(60)
            counts.append(open_descriptors())
    assert max(counts) <= counts[0]
