"""What a runtime's state says of its container, and the stops that it does not suffice for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from expedited.striker.argv import Command, Verb
from expedited.striker.known import Known
from expedited.striker.log import Log
from expedited.striker.source import Kill
from expedited.striker.stops import Stops
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.report import Outcome


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


@pytest.mark.parametrize("recorded", ["another's", "none", "no word of it"])
def test_without_a_cgroup_of_its_own_nobody_is_struck(
    node: Any, striker: Any, make_cgroup: Any, alive: Any, recorded: str
) -> None:
    """podman's --cgroups=disabled: init is in the cgroup of whoever has called crun, with who knows whom else."""
    callers, anothers = make_cgroup(), make_cgroup()
    process = node.container("c1", callers, "--bytes", "8M", "--children", "1", crun=True)
    bystander = node.container("bystander", callers, "--bytes", "8M", crun=True)
    status = json.loads((node.namespace / "c1" / "status").read_text())
    status["cgroup-path"] = {"another's": anothers.path, "none": ""}.get(recorded)
    node.state("c1", {key: value for key, value in status.items() if value is not None}, name="status")
    striker.wait_gated("c1")
    node.run("kill", "c1", "15", idle=True, file="status")
    node.run("kill", "c1", "9", idle=True, file="status")
    report = striker.report_of("c1")
    assert (report.outcome, report.cgroup) == (Outcome.FAILED, "")
    assert "no cgroup of its own" in report.reason
    assert alive(process.pid)
    assert alive(bystander.pid)


def test_a_record_made_in_a_cgroup_namespace_is_found_by_init(node: Any, striker: Any, make_cgroup: Any) -> None:
    """As crun in a container has it: its paths begin where its own cgroup namespace does."""
    engine = make_cgroup()
    container = engine.child("libpod-1")
    init = node.container("c1", container.child("init.scope"), "--bytes", "8M", "--children", "1", crun=True)
    status = json.loads((node.namespace / "c1" / "status").read_text())
    node.state("c1", {**status, "cgroup-path": "/libpod-1"}, name="status")
    striker.wait_gated("c1")
    node.run("kill", "c1", "9", idle=True, file="status")
    assert (striker.report_of("c1").cgroup, init.wait(30)) == (container.path, -9)
