"""Who obeys SIGTERM is no kill's: nobody signals them, and their memory comes back at once all the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from expedited.striker.log import Log
from expedited.striker.stops import Stops
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.policy import Mode, Policy
from expedited.teardown.report import Fate, Outcome

MIB = 1 << 20
COMPARE = Policy(Mode.COMPARE)
_TRIES = 4
#: Longer than any report takes
_LATE_SECONDS = 1.0
# Processes of so many MiB; what each does about SIGTERM: `default`, `ignore`, or `exit` with status 7, some time after it
_PROCESS = """
import os, signal, sys, time
block = bytearray(b"x") * (int(sys.argv[2]) << 20)
def leave(*_):
    time.sleep(float(sys.argv[3]))
    os._exit(7)
what = {"default": signal.SIG_DFL, "ignore": signal.SIG_IGN, "exit": leave}[sys.argv[1]]
signal.signal(signal.SIGTERM, what)
print("R", flush=True)
if sys.stdin.readline():
    print("whole" if block == b"x" * len(block) else "harmed", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def make_process(run_script: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., subprocess.Popen[bytes]]:
    """``make_process(cgroup, "exit", mib=64, after=0.2)``: a process in the cgroup that is ready."""
    return lambda cgroup, what, *, mib=64, after=0.0: run_script(cgroup, _PROCESS, what, mib, after)


@pytest.fixture
def pidfds(open_files: Callable[[Any], list[str]]) -> Callable[[Any], int]:
    """``pidfds(striker)``: how many processes it holds."""
    return lambda striker: sum("pidfd" in link for link in open_files(striker))


@pytest.fixture
def adopt(node: Any, striker: Any) -> Callable[..., None]:
    """``adopt("c1", process, cgroup)``: it is a container's init, and gated."""

    def adopt(container_id: str, process: subprocess.Popen[bytes], cgroup: Any) -> None:
        node.adopt(container_id, process.pid, cgroup)
        striker.wait_gated(container_id)
        node.run("start", container_id, idle=True)

    return adopt


@pytest.mark.parametrize(("what", "status"), [("default", -signal.SIGTERM), ("exit", 7)], ids=["default", "handler"])
def test_who_obeys_is_helped_and_signalled_by_nobody(
    node: Any,
    striker: Any,
    adopt: Any,
    make_process: Any,
    scratch_cgroup: Any,
    starved: Any,
    pidfds: Any,
    until: Any,
    what: str,
    status: int,
) -> None:
    for number in range(_TRIES):
        process = make_process(scratch_cgroup, what, mib=256, after=0.2)
        adopt(f"c{number}", process, scratch_cgroup)
        with starved(scratch_cgroup):
            before = pidfds(striker)
            # Its signal after the look at what it has: on a busy machine the striker may be the later of the two
            node.run("kill", f"c{number}", "15", idle=True)
            until(lambda before=before: pidfds(striker) == before + 1, "it is not held")
            process.terminate()
            assert process.wait() == status
        with suppress(AssertionError):  # it got a CPU, and had gone before anybody asked
            until(striker.reports, "no report", _LATE_SECONDS)
            break
    (report,) = striker.reports()
    assert (report.outcome, report.trigger, report.order) == (Outcome.EXITED, "grace", "")
    assert report.reason == "ended within its grace period"
    assert report.signalled_seconds is None
    if report.before is not None:  # else nobody can tell: no memory controller here
        assert report.bytes_returned >= 240 * MIB
    assert report.gone_seconds is not None
    (victim,) = report.processes
    assert victim.pid == process.pid
    assert victim.fate in (Fate.REAPED, Fate.EXITED)
    assert report.lost_races == 0


def test_who_does_not_obey_is_not_harmed_and_is_struck_in_the_end(
    node: Any, striker: Any, adopt: Any, make_process: Any, scratch_cgroup: Any, alive: Any
) -> None:
    process = make_process(scratch_cgroup, "ignore")
    adopt("c1", process, scratch_cgroup)
    node.run("kill", "c1", "15")
    time.sleep(0.5)  # it is asked some eighty times meanwhile
    assert alive(process.pid)
    assert striker.reports() == []
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"whole\n"
    node.run("kill", "c1", "9")
    assert process.wait() == -signal.SIGKILL
    report = striker.report_of("c1")
    assert (report.outcome, report.trigger) == (Outcome.STRUCK, "gate:kill")


def anon_mib(cgroup: Any) -> int:
    memory = Cgroup.find(cgroup.path).memory()
    assert memory is not None
    return memory.anon_bytes // MIB


def test_a_kill_takes_over_from_a_help_that_is_not_done(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup_v1: Any, until: Any
) -> None:
    """A child ends, init does not: the stop has one report, that of its kill."""
    cgroup = make_cgroup_v1()
    init = make_process(cgroup, "ignore")
    child = make_process(cgroup, "ignore", mib=256)
    adopt("c1", init, cgroup)
    node.run("kill", "c1", "15")
    with cgroup.held_up():
        child.send_signal(signal.SIGKILL)
        until(lambda: anon_mib(cgroup) < 128, "it is not helped")
        node.run("kill", "c1", "9")
    assert init.wait() == -signal.SIGKILL
    assert child.wait() == -signal.SIGKILL
    report = striker.report_of("c1")
    assert (report.outcome, report.trigger) == (Outcome.STRUCK, "gate:kill")
    time.sleep(_LATE_SECONDS)
    assert [one.number for one in striker.reports()] == [1]


def test_who_is_helped_has_a_report_though_the_runtime_is_done_with_it(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup_v1: Any, until: Any
) -> None:
    cgroup = make_cgroup_v1()
    process = make_process(cgroup, "ignore", mib=256)
    adopt("c1", process, cgroup)
    striker.link.send("policy", default={"mode": "observe"}, containers={"c1": {"mode": "strike"}})
    striker.status()
    node.run("kill", "c1", "15")
    with cgroup.held_up():
        process.send_signal(signal.SIGKILL)
        until(lambda: anon_mib(cgroup) < 128, "it is not helped")
        shutil.rmtree(node.namespace / "c1")
        until(lambda: "c1" not in striker.status()["gated"], "it is gated still")
        time.sleep(0.1)
    assert process.wait() == -signal.SIGKILL
    report = striker.report_of("c1")
    assert (report.outcome, report.mode, report.process_count) == (Outcome.EXITED, "strike", 1)


def test_a_second_sigterm_does_not_end_a_help(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup_v1: Any, until: Any
) -> None:
    cgroup = make_cgroup_v1()
    first = make_process(cgroup, "ignore", mib=256)
    last = make_process(cgroup, "ignore")
    adopt("c1", last, cgroup)
    node.run("kill", "c1", "15")
    with cgroup.held_up():
        first.send_signal(signal.SIGKILL)
        until(lambda: anon_mib(cgroup) < 128, "it is not helped")
    first.wait()
    node.run("kill", "c1", "15")
    with cgroup.held_up():
        last.send_signal(signal.SIGKILL)
        until(lambda: anon_mib(cgroup) < 32, "it is not helped")
    last.wait()
    report = striker.report_of("c1")
    assert (report.outcome, report.process_count) == (Outcome.EXITED, 2)
    assert report.bytes_returned > 256 * MIB


def test_those_who_end_one_after_the_other_are_one_stop(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup: Any, starved: Any, pidfds: Any, until: Any
) -> None:
    """As the workers of a server do that drains: each is helped, and the last one's end is the container's."""
    for number in range(_TRIES):
        cgroup = make_cgroup()
        init = make_process(cgroup, "exit")
        workers = [make_process(cgroup, "exit") for _ in range(3)]
        adopt(f"c{number}", init, cgroup)
        with starved(cgroup):
            before = pidfds(striker)
            node.run("kill", f"c{number}", "15", idle=True)
            until(lambda before=before: pidfds(striker) == before + 4, "they are not held")
            for one in [*workers, init]:
                one.terminate()
                assert one.wait() == 7
                time.sleep(0.25)
        with suppress(AssertionError):  # all of them got a CPU, and had gone before anybody asked
            until(striker.reports, "no report", _LATE_SECONDS)
            break
    (report,) = striker.reports()
    assert (report.outcome, report.gone_seconds is not None) == (Outcome.EXITED, True)
    assert report.process_count == 4


def of_side(mode: Mode, prefix: str) -> str:
    """A container's id that mode compare has on this side."""
    return next(name for name in (f"{prefix}{n}" for n in range(99)) if COMPARE.for_container(name).mode is mode)


@pytest.mark.parametrize(
    ("mode", "side"),
    [("observe", Mode.OBSERVE), ("compare", Mode.OBSERVE), ("compare", Mode.STRIKE)],
)
def test_who_obeys_is_watched_where_nothing_is_to_be_changed(
    node: Any,
    striker: Any,
    adopt: Any,
    make_process: Any,
    make_cgroup: Any,
    starved: Any,
    until: Any,
    mode: str,
    side: Mode,
) -> None:
    """In mode observe, and one half in mode compare."""
    cgroup = make_cgroup()
    striker.policy(mode=mode)
    for number in range(_TRIES):
        name = of_side(side, f"try{number}-")
        process = make_process(cgroup, "exit", mib=256, after=0.2)
        adopt(name, process, cgroup)
        with starved(cgroup):
            node.run("kill", name, "15")
            assert process.wait() == 7
        with suppress(AssertionError):  # it got a CPU, and had gone before anybody looked
            until(striker.reports, "no report", _LATE_SECONDS)
            break
    (report,) = striker.reports()
    assert (report.trigger, report.mode) == ("grace", mode)
    assert report.bytes_returned >= 240 * MIB
    if side is Mode.STRIKE:
        assert report.outcome is Outcome.EXITED
    else:
        assert (report.outcome, report.boosted) == (Outcome.WATCHED, ())
        assert [process.fate for process in report.processes] == [Fate.EXITED]


@pytest.mark.parametrize("side", [Mode.OBSERVE, Mode.STRIKE])
def test_a_grace_period_and_its_kill_are_on_one_side_of_a_comparison(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup: Any, starved: Any, side: Mode
) -> None:
    """One process obeys, init does not: who was helped must not count as observed."""
    cgroup = make_cgroup()
    striker.policy(mode="compare")
    name = of_side(side, "c")
    init = make_process(cgroup, "ignore")
    worker = make_process(cgroup, "exit", mib=256)
    adopt(name, init, cgroup)
    with starved(cgroup):
        node.run("kill", name, "15")
        worker.terminate()
        time.sleep(0.3)
        node.run("kill", name, "9")
        report = striker.report_of(name, 120.0)  # without help its 256 MiB take as long as the machine lets them
    assert init.wait() == -signal.SIGKILL
    if side is Mode.STRIKE:
        assert report.outcome is Outcome.STRUCK
    else:
        assert (report.outcome, report.boosted, report.signalled_seconds) == (Outcome.OBSERVED, (), None)
        assert Fate.REAPED not in {process.fate for process in report.processes}


def test_who_is_observed_and_does_not_obey_has_one_report(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup: Any
) -> None:
    cgroup = make_cgroup()
    striker.policy(mode="observe")
    process = make_process(cgroup, "ignore")
    adopt("c1", process, cgroup)
    node.run("kill", "c1", "15")
    node.run("kill", "c1", "9")
    assert process.wait() == -signal.SIGKILL
    assert striker.report_of("c1").outcome is Outcome.OBSERVED
    time.sleep(_LATE_SECONDS)
    assert len(striker.reports()) == 1


@pytest.mark.parametrize("policy", [{"mode": "off"}, {"min_size_bytes": 1 << 30}], ids=str)
def test_a_policy_that_forbids_it_leaves_them_to_themselves(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup: Any, starved: Any, policy: dict[str, Any]
) -> None:
    cgroup = make_cgroup()
    process = make_process(cgroup, "exit", mib=256, after=0.1)
    striker.policy(**policy)
    adopt("c1", process, cgroup)
    with starved(cgroup):
        node.run("kill", "c1", "15")
        assert process.wait() == 7
    time.sleep(_LATE_SECONDS)
    assert striker.reports() == []


def test_a_container_without_a_sigterm_is_asked_nothing(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup: Any, starved: Any
) -> None:
    """A natural exit is nobody's business."""
    cgroup = make_cgroup()
    process = make_process(cgroup, "exit", mib=256)
    adopt("c1", process, cgroup)
    with starved(cgroup):
        process.terminate()
        assert process.wait() == 7
    time.sleep(_LATE_SECONDS)
    assert striker.reports() == []


@pytest.mark.parametrize("number", ["QUIT", "SIGINT", "28", "37"])
def test_what_an_image_asks_to_be_stopped_by_begins_a_grace_period(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup: Any, number: str
) -> None:
    cgroup = make_cgroup()
    adopt("c1", make_process(cgroup, "ignore"), cgroup)
    node.run("kill", "c1", number, idle=True)
    assert striker.said("stop_began", id="c1")["signal"] == signal.SIGTERM


def test_a_second_sigterm_changes_nothing(
    node: Any, striker: Any, adopt: Any, make_process: Any, scratch_cgroup: Any, alive: Any
) -> None:
    process = make_process(scratch_cgroup, "ignore")
    adopt("c1", process, scratch_cgroup)
    node.run("kill", "c1", "15")
    node.run("kill", "c1", "15")
    time.sleep(0.2)
    assert alive(process.pid)
    node.run("kill", "c1", "9")
    assert process.wait() == -signal.SIGKILL
    assert striker.report_of("c1").outcome is Outcome.STRUCK
    assert len(striker.reports()) == 1


def test_whoever_strikes_meanwhile_has_the_only_report(
    node: Any, striker: Any, adopt: Any, make_process: Any, scratch_cgroup: Any
) -> None:
    """`expedited kill` of a container whose grace period runs."""
    process = make_process(scratch_cgroup, "ignore")
    adopt("c1", process, scratch_cgroup)
    node.run("kill", "c1", "15")
    striker.link.send("strike", id="c1", trigger="command")
    assert process.wait() == -signal.SIGKILL
    assert striker.report_of("c1").trigger == "command"
    time.sleep(0.2)
    assert len(striker.reports()) == 1


def test_the_loop_does_not_wait_for_who_asks() -> None:
    """Those hold their lock at a low priority: beside thirty containers that were watched, the gate was killed for it."""
    stops = Stops(lambda report: True, lambda container_id, number: None, Log(as_json=True))
    with stops._graces._changed:
        loop = threading.Thread(target=stops.on_deleted, args=("/run/runc/c1",))
        loop.start()
        loop.join(20)
        waited = loop.is_alive()
    loop.join()
    assert not waited


def test_a_kill_does_not_wait_for_who_asks() -> None:
    stops = Stops(lambda report: True, lambda container_id, number: None, Log(as_json=True))
    with stops._graces._changed:
        taken: list[object] = []
        kill = threading.Thread(target=lambda: taken.append(stops._graces.take("/run/runc/c1")))
        kill.start()
        kill.join(20)
        waited = kill.is_alive()
    kill.join()
    assert (waited, taken) == (False, [None])


def test_nothing_of_many_grace_periods_stays(
    node: Any, striker: Any, adopt: Any, make_process: Any, make_cgroup: Any, pidfds: Any, until: Any
) -> None:
    before = pidfds(striker)
    stops = []
    for number in range(20):
        cgroup = make_cgroup()
        process = make_process(cgroup, "exit", mib=8, after=0.3)
        adopt(f"c{number}", process, cgroup)
        stops.append(process)
    for number in range(20):
        node.run("kill", f"c{number}", "15", idle=True)
    # Each once for its container, and once among its processes
    until(lambda: pidfds(striker) == before + 40, "they are not held")
    for process in stops:
        process.terminate()
    assert [process.wait() for process in stops] == [7] * 20
    for number in range(20):
        shutil.rmtree(node.namespace / f"c{number}")
    until(lambda: pidfds(striker) == before, "some are still held")
    # Who ended on a CPU of their own may have gone before anybody asked
    assert {report.outcome for report in striker.reports()} <= {Outcome.EXITED}
