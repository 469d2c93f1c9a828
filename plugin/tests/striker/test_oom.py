"""Out of memory, for real: the kernel kills in a container's cgroup, and what it kills is reaped."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from expedited.teardown.report import Fate, Outcome

MIB = 1 << 20
Bells = Callable[[Any], int]
#: On a machine that is busy itself the kernel's kill may come later than anybody waits for it: then there is no report.
_TRIES = 4
_GROWS = """
import sys
block = bytearray(b"x") * (int(sys.argv[1]) << 20)
print("R", flush=True)
sys.stdin.readline()
more = []
while True:
    more.append(bytearray(b"x" * (1 << 20)))
"""


def _limit(cgroup: Any, size: int) -> None:
    name = "memory.max" if cgroup.version == 2 else "memory.limit_in_bytes"
    directory = cgroup.memory_dir
    if not (directory / name).exists():
        pytest.skip("this hierarchy has no memory controller")
    (directory / name).write_text(str(size))


@pytest.fixture
def make_grower(run_script: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., subprocess.Popen[bytes]]:
    """``make_grower(cgroup, mib)``: a process of that size in the cgroup, which grows without end after a line of input."""
    return lambda cgroup, size_mib: run_script(cgroup, _GROWS, size_mib)


def grow(grower: subprocess.Popen[bytes]) -> None:
    assert grower.stdin is not None
    grower.stdin.write(b"\n")
    grower.stdin.flush()


def is_reaped(striker: Any, grower: subprocess.Popen[bytes], cgroup: Any, starved: Any, until: Any) -> bool:
    """Have it grow until the kernel kills it; whether the striker was there in time, and tells of it."""
    with starved(cgroup):
        grow(grower)
        assert grower.wait() == -signal.SIGKILL
    until(lambda: striker.status()["active"] == 0, "the strike does not end")
    return bool(striker.reports())


def test_who_is_killed_is_reaped_and_the_others_live_on(
    node: Any,
    striker: Any,
    scratch_cgroup: Any,
    make_grower: Callable[..., Any],
    bells: Bells,
    alive: Any,
    starved: Any,
    until: Any,
) -> None:
    _limit(scratch_cgroup, 72 * MIB)
    init = node.container("c1", scratch_cgroup, "--bytes", "8M")
    until(lambda: bells(striker) == 1, "it is not listened to")
    growers = []
    for _ in range(_TRIES if scratch_cgroup.version == 1 else 1):
        growers.append(make_grower(scratch_cgroup, 48))
        if (
            is_reaped(striker, growers[-1], scratch_cgroup, starved, until)
            and striker.reports()[-1].bytes_returned >= 16 * MIB
        ):
            break  # else it had gone before the striker could look
    # Version 2 tells late: there may be nobody left to reap, and then nothing to report
    if scratch_cgroup.version == 1:
        report = striker.reports()[-1]
        assert (report.trigger, report.outcome, report.order) == ("oom", Outcome.STRUCK, "follow")
        assert report.reason == "out of memory: the kernel killed 1 of 2 processes"
        (victim,) = report.processes
        assert victim.pid == growers[-1].pid
        assert victim.fate in (Fate.REAPED, Fate.LOST_RACE, Fate.GONE)  # the race can be lost
        assert report.signalled_seconds is None
        assert report.bytes_returned >= 16 * MIB
    assert alive(init.pid)
    # It is in nobody's way: the runtime's kill is another stop
    node.run("kill", "c1", "9")
    until(lambda: any(report.trigger == "gate:kill" for report in striker.reports()), "it was not struck")


def test_a_container_of_one_large_process_is_reported_too(
    node: Any,
    striker: Any,
    make_cgroup_v1: Callable[[], Any],
    make_grower: Callable[..., Any],
    bells: Bells,
    starved: Any,
    until: Any,
) -> None:
    """Nobody waits to be asked then, while the one is being reaped."""
    for number in range(_TRIES):
        cgroup = make_cgroup_v1()
        _limit(cgroup, 424 * MIB)
        grower = make_grower(cgroup, 400)
        node.adopt(f"c{number}", grower.pid, cgroup)
        until(lambda number=number: bells(striker) == number + 1, "it is not listened to")
        if is_reaped(striker, grower, cgroup, starved, until):
            break
    (report,) = striker.reports()
    assert (report.trigger, report.process_count, report.outcome) == ("oom", 1, Outcome.STRUCK)
    assert report.reason == "out of memory: the kernel killed 1 of 1 processes"


@pytest.mark.parametrize("policy", [{"mode": "off"}, {"mode": "observe"}, {"min_size_bytes": 1 << 30}], ids=str)
def test_a_policy_that_forbids_it_leaves_it_to_the_kernel(
    node: Any,
    striker: Any,
    scratch_cgroup: Any,
    make_grower: Callable[..., Any],
    bells: Bells,
    until: Any,
    policy: dict[str, Any],
) -> None:
    _limit(scratch_cgroup, 64 * MIB)
    node.container("c1", scratch_cgroup, "--bytes", "8M")
    grower = make_grower(scratch_cgroup, 16)
    striker.policy(**policy)
    until(lambda: bells(striker) == 1, "it is not listened to")
    grow(grower)
    assert grower.wait() == -signal.SIGKILL
    node.run("state", "c1")
    until(lambda: striker.status()["active"] == 0, "the strike does not end")
    assert striker.reports() == []


def test_a_container_that_starts_again_under_its_id_is_listened_to_again(
    node: Any,
    striker: Any,
    make_cgroup_v1: Callable[[], Any],
    make_grower: Callable[..., Any],
    bells: Bells,
    starved: Any,
    until: Any,
) -> None:
    """`docker restart`: id, state directory and cgroup have the same names, and are others."""
    cgroup = make_cgroup_v1()
    first = node.container("c1", cgroup)
    until(lambda: bells(striker) == 1, "it is not listened to")
    first.kill()
    first.wait()
    for directory in cgroup.directories.values():
        directory.rmdir()
        directory.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems") if "cpuset" in cgroup.directories else ():
        place = cgroup.directories["cpuset"] / name
        place.write_text((place.parent.parent / name).read_text())
    for _ in range(_TRIES):
        _limit(cgroup, 72 * MIB)
        grower = make_grower(cgroup, 48)
        node.adopt("c1", grower.pid, cgroup)
        time.sleep(2)  # it looks once a second
        if is_reaped(striker, grower, cgroup, starved, until):
            break
    assert striker.reports()[0].trigger == "oom"


def test_a_container_that_goes_is_listened_to_no_more(
    node: Any, striker: Any, make_cgroup: Callable[[], Any], bells: Bells, until: Callable[..., None]
) -> None:
    cgroups = [make_cgroup() for _ in range(3)]
    processes = [node.container(f"c{number}", cgroup) for number, cgroup in enumerate(cgroups)]
    until(lambda: bells(striker) == 3, "they are not listened to")
    for process, cgroup in zip(processes, cgroups, strict=True):
        process.kill()
        process.wait()
        for directory in cgroup.directories.values():
            directory.rmdir()
    until(lambda: bells(striker) == 0, "they are still listened to")
    assert striker.reports() == []
