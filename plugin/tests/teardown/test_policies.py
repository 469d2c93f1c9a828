"""What the policy says is what happens: modes, orders, sizes, page cache, boost, deadline."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from expedited.teardown import Cgroup, Fate, Mode, Order, Outcome, PageCache, Policy, Reapers, Report, Strike, strike
from expedited.teardown import orders as orders_module
from expedited.teardown import reap as reap_module
from expedited.teardown.linux import MreleaseSupport
from expedited.teardown.roster import Roster
from support.waiting import wait_for

strike_module = importlib.import_module("expedited.teardown.strike")  # the package's `strike` is the function

MIB = 1 << 20


class Runtime(threading.Thread):
    """Kills a process a little after its start, as the runtime does once it is through the gate."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.killed_at = 0.0

    def run(self) -> None:
        time.sleep(0.2)
        self.killed_at = time.time()
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def memory_is_counted(scratch_cgroup: Any) -> bool:
    return Cgroup.find(scratch_cgroup.path).memory_dir is not None


def test_smaller_than_min_size_is_left_alone(
    scratch_cgroup: Any, hog: Any, alive: Any, memory_is_counted: bool
) -> None:
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), Policy(min_size_bytes=64 * MIB))
    if memory_is_counted:
        assert (report.outcome, report.order, report.process_count) == (Outcome.SKIPPED, "", 0)
        assert report.reason.startswith("smaller than min-size (8")
        assert alive(process.pid)
    else:  # what can't be measured can't be too small
        assert report.outcome is Outcome.STRUCK


def test_larger_than_min_size_is_struck(scratch_cgroup: Any, hog: Any) -> None:
    hog("--bytes", "16M", cgroup=scratch_cgroup)
    assert strike(Cgroup.find(scratch_cgroup.path), Policy(min_size_bytes=12 * MIB)).outcome is Outcome.STRUCK


def test_observe_touches_nothing_and_measures_the_runtimes_kill(
    scratch_cgroup: Any, hog: Any, memory_is_counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = hog("--bytes", "32M", "--children", "0", cgroup=scratch_cgroup)
    touched: list[object] = []
    monkeypatch.setattr("signal.pidfd_send_signal", lambda *words: touched.append(words))
    monkeypatch.setattr(reap_module, "process_mrelease", lambda *words: touched.append(words))
    monkeypatch.setattr("expedited.teardown.cgroup.write", lambda *words: touched.append(words))
    monkeypatch.setattr("expedited.teardown.boost.try_write", lambda *words: touched.append(words))
    runtime = Runtime(process.pid)
    policy = Policy(mode=Mode.OBSERVE, page_cache=PageCache.DROP)
    report = strike(Cgroup.find(scratch_cgroup.path), policy, on_signalled=runtime.start)
    runtime.join()
    assert (report.outcome, report.order, report.boosted, touched) == (Outcome.OBSERVED, "", (), [])
    assert report.signalled_seconds is None
    assert report.gone_seconds is not None
    assert [one.fate for one in report.processes] == [Fate.KILLED]
    if memory_is_counted:
        assert report.bytes_returned >= 0.9 * 32 * MIB  # the counters may lag
        assert report.memory_back_seconds is not None


def test_observe_gives_up_at_the_deadline(scratch_cgroup: Any, hog: Any, alive: Any) -> None:
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), Policy(mode=Mode.OBSERVE, deadline_seconds=0.2))
    assert (report.outcome, report.reason) == (Outcome.OBSERVED, "still running at the deadline")
    assert (report.gone_seconds, [one.fate for one in report.processes]) == (None, [Fate.SURVIVED])
    assert alive(process.pid)


@pytest.mark.parametrize("mode", [Mode.OFF, "off"])
def test_off_does_nothing_at_all(scratch_cgroup: Any, hog: Any, alive: Any, mode: Mode) -> None:
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), Policy(mode=mode))
    assert (report.outcome, report.reason) == (Outcome.SKIPPED, "the policy's mode is off")
    assert alive(process.pid)


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.STRIKE])
def test_compare_is_one_or_the_other_by_the_id(scratch_cgroup: Any, hog: Any, alive: Any, mode: Mode) -> None:
    compare = Policy(mode=Mode.COMPARE, deadline_seconds=0.2)
    name = next(name for name in map(str, range(100)) if compare.for_container(name).mode is mode)
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    strike(Cgroup.find(scratch_cgroup.path), compare, container_id=name)
    assert alive(process.pid) == (mode is Mode.OBSERVE)


def test_words_are_as_good_as_members() -> None:
    policy = Policy(mode="observe", page_cache="drop", order="lead")  # type: ignore[arg-type]
    assert (policy.mode, policy.page_cache, policy.order) == (Mode.OBSERVE, PageCache.DROP, Order.LEAD)
    assert policy.mode is Mode.OBSERVE


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "of"}, {"boost": "off"}, {"min_size_bytes": "1Mi"}, {"deadline_seconds": "30"}, {"deadline_seconds": 0}],
)
def test_a_wrong_value_is_no_policy(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Policy(**wrong)


def test_a_strike_that_fails_before_its_first_signal_kills_nobody(
    scratch_cgroup: Any, hog: Any, alive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)

    def fail(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Roster, "muster", fail)
    one = Strike(Cgroup.find(scratch_cgroup.path), Policy(min_size_bytes=0))
    with pytest.raises(RuntimeError):
        one.signal()
    report = one.finish()
    assert (report.outcome, report.reason) == (Outcome.SKIPPED, "no such luck")
    assert alive(process.pid)


_WITHOUT_CAP_KILL = """
import sys
from expedited.teardown import Cgroup, Order, Policy, Strike
one = Strike(Cgroup.find(sys.argv[1]), Policy(order=Order.LEAD, min_size_bytes=0), runtime_kills=sys.argv[2] == "runtime")
try:
    one.signal()
    print("waits", flush=True)
except Exception as error:
    print(error, flush=True)
report = one.finish()
print(report.outcome, report.order, report.signalled_seconds, sep="|")
"""


@pytest.mark.parametrize("who", ["runtime", "command"])
def test_who_is_not_ours_to_signal_is_followed(make_cgroup_v1: Any, launch: Any, alive: Any, who: str) -> None:
    """Without CAP_KILL, of another user, and with no cgroup.kill."""
    scratch = make_cgroup_v1()
    another = ("setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "echo READY; exec sleep 1000")
    process = launch(*another, cgroup=scratch)
    command = ["setpriv", "--bounding-set=-kill", sys.executable, "-c", _WITHOUT_CAP_KILL, scratch.path, who]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as strikes:
        assert strikes.stdout is not None
        said = strikes.stdout.readline()
        assert alive(process.pid)
        if who == "runtime":
            assert said == "waits\n"
            process.kill()
            assert strikes.stdout.readline() == "struck|follow|None\n"
        else:
            assert "CAP_KILL is missing; see `expedited doctor`" in said
            assert strikes.stdout.readline() == "skipped||None\n"
    assert strikes.returncode == 0


def follow(scratch: Any, pid: int, runtime: Runtime | None = None, **policy: Any) -> Report:
    with Reapers() as reapers:
        one = Strike(
            Cgroup.find(scratch.path),
            Policy(order=Order.FOLLOW, min_size_bytes=0, **policy),
            init_pid=pid,
            runtime_kills=True,
            reapers=reapers,
        )
        one.signal()
        one.answered(time.monotonic())
        if runtime is not None:
            runtime.start()
        return one.finish()


def test_follow_reaps_as_soon_as_the_runtime_has_killed_and_signals_nothing(
    scratch_cgroup: Any, hog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = hog("--bytes", "64M", cgroup=scratch_cgroup)
    signals: list[object] = []
    monkeypatch.setattr("signal.pidfd_send_signal", lambda *words: signals.append(words))
    runtime = Runtime(process.pid)
    report = follow(scratch_cgroup, process.pid, runtime)
    runtime.join()
    assert (report.outcome, report.order, report.signalled_seconds, signals) == (Outcome.STRUCK, "follow", None, [])
    assert report.answered_seconds is not None
    assert report.processes[0].fate in (Fate.REAPED, Fate.LOST_RACE, Fate.GONE)
    assert report.gone_seconds is not None
    assert report.started_at + report.gone_seconds >= runtime.killed_at


def test_follow_lets_go_when_the_runtime_kills_nobody(
    scratch_cgroup: Any, hog: Any, alive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strike_module, "_FOLLOW_SECONDS", 0.2)
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    report = follow(scratch_cgroup, process.pid)  # long before its deadline of 30 s: the next kill must find it free
    assert (report.outcome, report.reason) == (Outcome.SKIPPED, "the runtime's own SIGKILL did not come")
    assert (report.boosted, [one.fate for one in report.processes]) == ((), [Fate.SURVIVED])
    assert alive(process.pid)
    assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("children", "reap_kill", "busy", "order"),
    [(0, False, False, "follow"), (0, False, True, "lead"), (0, True, False, "lead"), (2, False, False, "lead")],
)
def test_order_auto_follows_a_lone_init_while_there_is_a_cpu_to_be_had(
    scratch_cgroup: Any,
    hog: Any,
    monkeypatch: pytest.MonkeyPatch,
    children: int,
    reap_kill: bool,
    busy: bool,
    order: str,
) -> None:
    process = hog("--bytes", "8M", "--children", children, cgroup=scratch_cgroup)
    # What is not the kernel's is answered by EINVAL, and signalled as ever
    monkeypatch.setattr(strike_module, "mrelease_support", lambda: MreleaseSupport(True, reap_kill, False))
    monkeypatch.setattr(orders_module, "cpus_are_taken", lambda: busy)
    one = Strike(Cgroup.find(scratch_cgroup.path), Policy(), init_pid=process.pid, runtime_kills=True)
    one.signal()
    if order == "follow":
        os.kill(process.pid, signal.SIGKILL)
    report = one.finish()
    assert (report.outcome, report.order) == (Outcome.STRUCK, order)


def test_without_a_runtime_that_kills_the_only_order_is_lead(scratch_cgroup: Any, hog: Any) -> None:
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), Policy(order=Order.FOLLOW), init_pid=process.pid)
    assert (report.outcome, report.order) == (Outcome.STRUCK, "lead")


def test_a_kernel_without_process_mrelease_still_has_its_signals(
    scratch_cgroup: Any, hog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strike_module, "mrelease_support", lambda: MreleaseSupport(False, False, False))
    process = hog("--bytes", "8M", "--children", "2", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), init_pid=process.pid)
    assert report.outcome is Outcome.STRUCK
    assert {one.fate for one in report.processes} == {Fate.KILLED}


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A directory on a real file system: what is in /tmp may be memory, which is no page cache."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.mark.parametrize("page_cache", [PageCache.DROP, PageCache.KEEP, PageCache.AUTO])
def test_page_cache_is_dropped_only_where_the_policy_says_so(
    scratch_cgroup: Any, hog: Any, on_disk: Path, page_cache: PageCache, memory_is_counted: bool
) -> None:
    file = on_disk / "cached"
    hog("--bytes", "8M", "--file", file, "--map", "32M", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), Policy(page_cache=page_cache))
    assert report.outcome is Outcome.STRUCK
    if not memory_is_counted:
        assert report.page_cache_dropped_bytes == 0
        return
    assert report.before is not None
    assert report.after is not None
    assert report.before.file_bytes >= 32 * MIB
    if page_cache is PageCache.DROP:
        assert report.page_cache_dropped_bytes >= 0.9 * 32 * MIB
        assert report.after.file_bytes <= 0.1 * 32 * MIB
    else:
        assert report.page_cache_dropped_bytes == 0
        assert report.after.file_bytes >= 0.9 * 32 * MIB


def read_limits(scratch: Any) -> dict[str, str]:
    names = ("cpu.cfs_quota_us", "cpu.shares", "cpu.rt_runtime_us", "cpu.max", "cpu.weight", "cpuset.cpus")
    return {
        f"{directory}/{name}": (directory / name).read_text()
        for directory in scratch.directories.values()
        for name in names
        if (directory / name).exists()
    }


def narrow(scratch: Any) -> set[str]:
    """Give it a small share, a quota and one CPU, where there is a controller for it; the names of what can be lifted."""
    wanted = {
        "cpu.cfs_quota_us": ("5000", "quota"),
        "cpu.shares": ("2", "weight"),
        "cpu.max": ("5000 100000", "quota"),
        "cpu.weight": ("1", "weight"),
        "cpuset.cpus": ("0", "cpuset"),
    }
    lifted = set()
    for path in map(Path, read_limits(scratch)):
        if path.name in wanted:
            value, word = wanted[path.name]
            path.write_text(value)
            if word != "cpuset" or (os.cpu_count() or 1) > 1:
                lifted.add(word)
    return lifted


def test_what_the_boost_lifts_is_put_back(scratch_cgroup: Any, hog: Any) -> None:
    lifted = narrow(scratch_cgroup)
    hog("--bytes", "8M", "--children", "2", "--threads", "1", cgroup=scratch_cgroup)
    before = read_limits(scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path))
    assert report.outcome is Outcome.STRUCK
    # The CPU set only once they are real-time no more; nothing where they had gone before they could be boosted
    assert set(report.boosted) - {"rt", "rt-bandwidth"} in (lifted, lifted - {"cpuset"}, set())
    assert read_limits(scratch_cgroup) == before


@pytest.mark.parametrize("realtime", [True, False], ids=["realtime", "refused"])
def test_a_process_that_is_slow_to_die_is_boosted(
    scratch_cgroup: Any, hog: Any, monkeypatch: pytest.MonkeyPatch, realtime: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "refused")

    lifted = narrow(scratch_cgroup)
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    while_boosted: dict[str, str] = {}
    before = read_limits(scratch_cgroup)
    one = Strike(Cgroup.find(scratch_cgroup.path), Policy(order=Order.LEAD, deadline_seconds=0.3), init_pid=process.pid)
    # A victim that has its SIGKILL and does not go: nobody can make one, so the signal is left out
    assert one._killing is not None
    one._killing._send = lambda victim: setattr(victim, "signalled", True)  # type: ignore[method-assign]
    one._roster.enrol()
    for victim in one._roster.living.values():
        victim.signalled = True
    with monkeypatch.context() as patch:
        if not realtime:
            patch.setattr(os, "sched_setscheduler", refuse)
        one._boost_the_dying()
    while_boosted.update(read_limits(scratch_cgroup))
    policy = os.sched_getscheduler(process.pid)
    boosted = set(one._boost.lifted)
    one._boost.end()
    assert one._own_reapers is not None
    one._own_reapers.close()
    one._roster.close()
    one._watch.close()
    # Real-time, they would go before whoever else has those CPUs for himself
    assert boosted - {"rt", "rt-bandwidth"} == (lifted - {"cpuset"} if "rt" in boosted else lifted)
    assert realtime or "rt" not in boosted
    assert ("rt" in boosted) == (policy == os.SCHED_RR)
    if lifted:
        assert while_boosted != before
    assert read_limits(scratch_cgroup) == before


def test_who_is_killed_later_is_boosted_as_well(make_cgroup_v1: Any, hog: Any) -> None:
    """The runtime kills init, and the kernel the others when init gets to it: they are the ones who starve."""
    scratch = make_cgroup_v1()
    first, second = (hog("--bytes", "8M", cgroup=scratch) for _ in range(2))

    def is_real_time(pid: int) -> bool:
        return os.sched_getscheduler(pid) == os.SCHED_RR

    with Reapers() as reapers:
        policy = Policy(order=Order.FOLLOW, min_size_bytes=0)
        one = Strike(Cgroup.find(scratch.path), policy, init_pid=first.pid, runtime_kills=True, reapers=reapers)
        one.signal()
        strike = threading.Thread(target=one.finish)
        with scratch.held_up():  # killed, each stays as it is
            strike.start()
            for process in (first, second):
                assert not is_real_time(process.pid)
                process.kill()
                wait_for(partial(is_real_time, process.pid), "it is not boosted")
        strike.join()


def test_without_boost_nothing_is_lifted(scratch_cgroup: Any, hog: Any) -> None:
    narrow(scratch_cgroup)
    hog("--bytes", "8M", "--children", "2", cgroup=scratch_cgroup)
    before = read_limits(scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), Policy(boost=False))
    assert (report.outcome, report.boosted) == (Outcome.STRUCK, ())
    assert read_limits(scratch_cgroup) == before


def test_the_deadline_ends_a_strike_that_nobody_dies_of(
    scratch_cgroup: Any, hog: Any, alive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unkillable process (D state) can't be made at will: the signals are lost instead."""
    monkeypatch.setattr("signal.pidfd_send_signal", lambda *_: None)
    monkeypatch.setattr(Cgroup, "kill", lambda self: True)
    monkeypatch.setattr(reap_module, "process_mrelease", lambda *_: errno.EINVAL)
    process = hog("--bytes", "8M", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), Policy(deadline_seconds=0.3, boost=False))
    assert (report.outcome, report.reason) == (Outcome.DEADLINE, "1 processes are still there")
    assert [one.fate for one in report.processes] == [Fate.SURVIVED]
    assert report.gone_seconds is None
    assert report.steps[-1].what == "deadline"
    assert alive(process.pid)


def test_the_calling_thread_is_as_it_was(scratch_cgroup: Any, hog: Any) -> None:
    hog("--bytes", "8M", cgroup=scratch_cgroup)
    before = (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
    assert strike(Cgroup.find(scratch_cgroup.path)).outcome is Outcome.STRUCK
    after = (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
    assert after == before


def test_the_caller_is_told_when_the_signals_are_out(scratch_cgroup: Any, hog: Any) -> None:
    hog("--bytes", "8M", cgroup=scratch_cgroup)
    told: list[float] = []
    report = strike(Cgroup.find(scratch_cgroup.path), on_signalled=lambda: told.append(time.time()))
    assert len(told) == 1
    assert report.gone_seconds is not None
    assert told[0] <= report.started_at + report.gone_seconds + 0.01


def test_a_report_survives_the_journey_as_json(scratch_cgroup: Any, hog: Any) -> None:
    hog("--bytes", "8M", "--children", "2", cgroup=scratch_cgroup)
    report = strike(Cgroup.find(scratch_cgroup.path), container_id="c1", trigger="test")
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    newer = {**report.to_json(), "a_field_of_a_later_version": 1}
    assert Report.from_json(newer) == report
    older = report.to_json()
    for name in ("lost_races", "boosted", "steps", "before", "after", "processes", "number", "lead_seconds"):
        del older[name]
    read = Report.from_json(older)
    assert (read.steps, read.before, read.processes, read.boosted) == ((), None, (), ())
    assert (read.outcome, read.container_id, read.gone_seconds) == (report.outcome, "c1", report.gone_seconds)
    assert [step.at_seconds for step in report.steps] == sorted(step.at_seconds for step in report.steps)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "maim"},
        {"order": 3},
        {"page_cache": None},
        {"boost": "no"},
        {"min_size_bytes": "1M"},
        {"min_size_bytes": -1},
        {"min_size_bytes": True},
        {"deadline_seconds": "soon"},
        {"deadline_seconds": 0},
        {"deadline_seconds": float("nan")},
        {"deadline_seconds": float("inf")},
        {"no_such_field": 1},
        [],
        "strike",
    ],
)
def test_a_malformed_policy_is_refused(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Policy.from_json(wrong)


def test_a_policy_survives_the_journey_as_json() -> None:
    policy = Policy(Mode.COMPARE, PageCache.DROP, False, 5, Order.FOLLOW, 2.5)
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    assert Policy.from_json({}) == Policy()
