from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from expedited.doctor import Area, Finding, Level, examine, works
from expedited.doctor.examine import _guarded
from expedited.settings import AgentSettings
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.linux import mrelease_support


@pytest.fixture
def findings(settings: AgentSettings) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(settings)}


def test_each_finding_says_in_one_line_what_it_is_what_was_found_what_it_costs_and_how_to_get_it(
    settings: AgentSettings,
) -> None:
    findings = examine(settings)
    for finding in findings:
        for text in (finding.name, finding.found, finding.costs, finding.remedy):
            assert text.strip() == text != ""
            assert "\n" not in text
    assert len({finding.name for finding in findings}) == len(findings)
    assert [area for area, _ in groupby(findings, key=lambda finding: finding.area)] == list(Area)


def test_nothing_is_broken_off_here(findings: dict[str, Finding]) -> None:
    assert "examination" not in findings


def test_root_on_this_machine_has_a_kill_gate(findings: dict[str, Finding]) -> None:
    assert os.geteuid() == 0
    assert findings["fanotify"].level is Level.OK
    assert findings["process_mrelease"].level is Level.OK
    assert works(findings.values())


def test_the_flags_are_the_kernels(findings: dict[str, Finding]) -> None:
    support = mrelease_support()
    found = findings["mrelease flags"].found
    assert ("REAP_KILL" in found) == support.reap_kill
    assert ("KEEP_FILE" in found) == support.keep_file
    assert (findings["mrelease flags"].level is Level.OK) == (support.reap_kill and support.keep_file)


def test_it_leaves_everything_as_it_was(settings: AgentSettings) -> None:
    examine(settings)  # what is loaded once stays loaded, and may have descriptors
    before = _everything()
    examine(settings)
    assert _everything() == before


def _everything() -> dict[str, object]:
    mounts = hierarchies()
    roots = {mounts.unified, *mounts.controllers.values()} - {None}
    status = Path("/proc/self/status").read_text().splitlines()
    return {
        "descriptors": sorted(Path("/proc/self/fd").iterdir()),
        "children": sorted(
            child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
        ),
        "threads": {thread.ident for thread in threading.enumerate()},
        "locked": [line for line in status if line.startswith("VmLck")],
        "scheduling": (os.sched_getscheduler(0), os.sched_getparam(0), os.getpriority(os.PRIO_PROCESS, 0)),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
        "temporary": list(Path(tempfile.gettempdir()).glob("expedited-doctor-*")),
        "cgroups": [path for root in roots if root for path in Path(root).glob("expedited-doctor-*")],
    }


def test_one_surprise_does_not_hide_the_rest() -> None:
    first = Finding(Area.KERNEL, "first", "there", Level.OK, "nothing", "nothing")

    def look() -> Iterator[Finding]:
        yield first
        int(Path("/proc/self/comm").read_text())

    kept, surprise = _guarded(Area.KERNEL, look)
    assert kept is first
    assert surprise.level is Level.UNKNOWN
    assert "ValueError" in surprise.found


@pytest.mark.parametrize(
    ("level", "expected"), [(Level.OK, True), (Level.DEGRADED, True), (Level.UNKNOWN, True), (Level.BROKEN, False)]
)
def test_only_what_is_broken_keeps_the_main_job_from_working(level: Level, expected: bool) -> None:
    fine = Finding(Area.KERNEL, "fine", "there", Level.OK, "nothing", "nothing")
    assert works([fine, Finding(Area.KERNEL, "other", "so so", level, "nothing", "nothing")]) is expected
