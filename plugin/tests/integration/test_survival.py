"""What the agent survives, on a real containerd: an end of each of its processes, of the runtime, a second agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from expedited.cli.install import close_gate
from expedited.demo.cri import Pod
from expedited.demo.daemon import PrivateContainerd
from expedited.teardown.hierarchies import hierarchies
from support.waiting import wait_for

Agent = Any
StartAgent = Callable[..., Agent]
MakePod = Callable[..., Pod]
MakeContainer = Callable[..., Any]


def test_a_striker_goes_on_without_its_agent_and_the_next_agent_learns_of_it(
    containerd: PrivateContainerd, start: StartAgent, make_pod: MakePod, make_container: MakeContainer
) -> None:
    first = start()
    pod = make_pod()
    hogs = [make_container("--bytes", "8M", "--ignore-term", pod=pod) for _ in range(13)]
    first.wait_known(*(hog.id for hog in hogs))
    containerd.cri.stop_container(hogs[0].id, 0)
    first.stop_of(hogs[0].id)
    before = first.pids()

    first.process.kill()
    first.process.wait()
    for hog in hogs[1:-1]:  # more than what comes in one packet
        containerd.cri.stop_container(hog.id, 0)
    second = start()
    containerd.cri.stop_container(hogs[-1].id, 0)

    # What the first has told of is known to the second, and not told of again
    assert {second.stop_of(hog.id)["outcome"] for hog in hogs[1:]} == {"struck"}
    assert not second.stops_of(hogs[0].id)
    after = second.pids()
    assert (after["striker"], after["supervisor"]) == (before["striker"], before["supervisor"])
    assert after["agent"] != before["agent"]
    with second.ask() as asked:
        stops = asked.stops()
    assert {stop.pod.uid for stop in stops} == {pod.uid}
    numbers = [stop.number for stop in stops]
    assert numbers == list(range(len(hogs), 0, -1))  # none twice, none missed
    first.process.returncode = 0  # it was killed by this test, and owes no orderly end


def test_a_gate_that_dies_is_brought_up_again_and_told_the_policies(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer, annotated: Callable[..., Pod]
) -> None:
    agent = start()
    observed = make_container("--bytes", "16M", pod=annotated(mode="observe"))
    struck = make_container("--bytes", "16M")
    agent.wait_known(observed.id, struck.id)
    before = agent.pids()

    os.kill(before["striker"], signal.SIGKILL)
    agent.wait_told("the kill gate is up", 2)
    agent.wait_known(observed.id, struck.id)
    containerd.cri.stop_container(observed.id, 0)
    containerd.cri.stop_container(struck.id, 0)

    assert agent.stop_of(observed.id)["outcome"] == "observed"
    assert agent.stop_of(struck.id)["outcome"] == "struck"
    after = agent.pids()
    assert after["supervisor"] == before["supervisor"]
    assert after["striker"] != before["striker"]
    (status,) = agent.json("status")
    assert (status["striker"], status["gate_restarts"]) == ("ok", 1)
    assert not agent.told("kills are not caught")


def test_when_the_supervisor_is_killed_the_agent_starts_another_striker(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer, alive: Callable[[int], bool]
) -> None:
    agent = start()
    hog = make_container("--bytes", "16M")
    before = agent.pids()

    os.kill(before["supervisor"], signal.SIGKILL)
    agent.wait_told("the kill gate is up", 2)
    agent.wait_known(hog.id)
    containerd.cri.stop_container(hog.id, 0)

    assert agent.stop_of(hog.id)["outcome"] == "struck"
    after = agent.pids()
    assert not {before["supervisor"], before["striker"]} & set(after.values())
    assert not alive(before["striker"])


def test_containerd_may_come_go_and_come_back(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer, annotated: Callable[..., Pod]
) -> None:
    observing = annotated(mode="observe")
    early = make_container("--bytes", "16M", pod=observing)
    late = make_container("--bytes", "16M", pod=observing)
    containerd.kill()
    try:
        agent = start(ready=False)
        agent.wait_told("the kill gate is up")
        (status,) = agent.json("status")
        assert status["striker"] == "ok"
        assert "ok" not in (status["nri"], status["containerd"])
        agent.wait(lambda: early.id in [each["id"] for each in agent.json("top")[0]["containers"]], "not gated")
    finally:
        containerd.start()
    agent.wait_told("NRI: synchronized")
    agent.wait_told(" answers")
    agent.wait_known(early.id)
    containerd.cri.stop_container(early.id, 0)
    assert agent.stop_of(early.id)["outcome"] == "observed"

    containerd.kill()
    try:
        agent.wait(lambda: len(agent.told("trying again")) + len(agent.told("no NRI connection")) >= 2, "not noticed")
        os.kill(late.pid, signal.SIGKILL)  # while nobody tells the agent
    finally:
        containerd.start()
    agent.wait_told("NRI: synchronized", 2)
    agent.wait_told(" answers", 2)

    def late_is_over() -> bool:
        with agent.ask() as asked:
            status = asked.status()
            states = {each.id: each.state for each in asked.containers()}
        return status.nri == status.containerd == "ok" and states.get(late.id, "stopped") == "stopped"

    agent.wait(late_is_over, "the one that ended meanwhile is still taken to run")
    fresh = make_container("--bytes", "16M", pod=observing)
    agent.wait_known(fresh.id)
    containerd.cri.stop_container(fresh.id, 0)
    assert agent.stop_of(fresh.id)["outcome"] == "observed"


@contextmanager
def striker_of_version(version: str, run_dir: Path, state_root: str) -> Iterator[int]:
    """A striker that says it is of that version; its supervisor's pid."""
    program = (
        "import sys, expedited; expedited.__version__ = sys.argv[1]; "
        "from expedited.striker.__main__ import main; sys.exit(main(sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, version, f"--run-dir={run_dir}", f"--state-root={state_root}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["ready"]
        yield process.pid
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_striker_of_another_version_is_replaced(
    containerd: PrivateContainerd, start: StartAgent, run_dir: Path, make_container: MakeContainer
) -> None:
    with striker_of_version("0.0.1", run_dir, containerd.state_root) as old:
        agent = start()
        (replaced,) = agent.told("replacing a striker")
        assert replaced["found"] == "0.0.1"
        assert agent.pids()["supervisor"] != old
    hog = make_container("--bytes", "16M")
    agent.wait_known(hog.id)
    containerd.cri.stop_container(hog.id, 0)
    assert agent.stop_of(hog.id)["outcome"] == "struck"


def test_sigterm_ends_both_but_for_a_striker_that_is_to_be_kept(
    start: StartAgent, alive: Callable[[int], bool]
) -> None:
    keeping = start("--keep-striker")
    kept = keeping.pids()
    keeping.close()
    assert not alive(kept["agent"])
    assert alive(kept["striker"])
    agent = start()
    taken_over = agent.pids()
    assert taken_over["striker"] == kept["striker"]
    agent.close()
    assert not any(alive(pid) for pid in taken_over.values())
    assert not list(agent.run_dir.glob("*.sock"))


def test_who_closes_the_gate_means_the_striker_that_is_to_be_kept_as_well(
    start: StartAgent, alive: Callable[[int], bool]
) -> None:
    keeping = start("--keep-striker")
    pids = keeping.pids()
    assert keeping.cli("close").returncode == 0
    assert not alive(pids["striker"])
    assert not alive(pids["supervisor"])
    status = json.loads(keeping.cli("status", "--json").stdout)
    assert (status["striker"], status["gated"]) == ("closed", 0)
    keeping.close()


def test_an_agent_that_nobody_has_stopped_is_not_left_with_an_open_end(
    start: StartAgent, alive: Callable[[int], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    """`expedited install --remove`, where a runtime has started it."""
    agent = start()
    pids = agent.pids()
    close_gate(str(agent.socket))
    assert "it ends with the next restart of what has started it" in capsys.readouterr().out
    assert [alive(pids[each]) for each in ("agent", "striker", "supervisor")] == [True, False, False]
    agent.close()
    close_gate(str(agent.socket))
    assert capsys.readouterr().out == ""


def test_the_last_strike_of_an_agent_that_is_told_to_end_is_reported(
    start: StartAgent, make_cgroup_v1: Callable[[], Any], make_pod: MakePod, make_container: MakeContainer
) -> None:
    agent = start()
    pod = make_pod()
    hog = make_container("--bytes", "16M", pod=pod)
    agent.wait_known(hog.id)
    # Who is in a cgroup below a frozen one does not die, whatever is done to its own
    freezer = Path(hierarchies().controllers["freezer"] + pod.cgroup_parent) / "freezer.state"
    freezer.write_text("FROZEN")
    try:
        command = [agent.program, "kill", hog.id, "--json", f"--run-dir={agent.run_dir}"]
        killer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        agent.wait(lambda: _has_sigkill(hog.pid), "it is not struck")
        agent.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    finally:
        freezer.write_text("THAWED")
    output, _ = killer.communicate(timeout=60)
    assert killer.returncode == 0, output
    assert '"outcome": "struck"' in output
    assert agent.process.wait(60) == 0
    assert [line["outcome"] for line in agent.told("stop") if line.get("id") == hog.id] == ["struck"]


def _has_sigkill(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (signal.SIGKILL - 1) & 1 for mask in pending)


def test_an_agent_that_knows_no_annotations_yet_leaves_a_striker_those_that_it_has(
    start: StartAgent, make_container: MakeContainer, annotated: Callable[..., Pod], containerd: PrivateContainerd
) -> None:
    first = start()
    spared = make_container("--bytes", "16M", pod=annotated(mode="off"))
    first.wait_known(spared.id)
    first.process.kill()
    first.process.wait()
    second = start("--containerd-socket=/absent/containerd.sock", nri=False, api=False)
    second.wait_told("the kill gate is up")
    containerd.cri.stop_container(spared.id, 0)
    struck = make_container("--bytes", "16M")
    second.wait_told("no source has told")  # from here on the default holds
    containerd.cri.stop_container(struck.id, 0)
    assert second.stop_of(struck.id)["outcome"] == "struck"
    assert second.json("stops", spared.id) == []
    first.process.returncode = 0  # it was killed by this test, and owes no orderly end


def test_a_second_agent_in_the_same_run_dir_gives_way(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    first = start()
    before = first.pids()
    second = subprocess.run(
        [first.program, "run", f"--run-dir={first.run_dir}", "--metrics-address=", "--nri-socket="],
        capture_output=True,
        text=True,
        check=False,
        env=first.environment(),
        timeout=60,
    )
    assert (second.returncode, second.stdout) == (1, "")
    # Others may be before it: what this machine lacks is said first
    assert f"expedited: another agent listens at {first.socket}" in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr
    hog = make_container("--bytes", "16M")
    first.wait_known(hog.id)
    containerd.cri.stop_container(hog.id, 0)
    assert first.stop_of(hog.id)["outcome"] == "struck"
    assert first.pids() == before


# -- started by the runtime --------------------------------------------------------------------------------------------


def test_containerd_starts_it_as_a_pre_installed_plugin(
    containerd: PrivateContainerd,
    run_dir: Path,
    make_container: MakeContainer,
    start_agent: StartAgent,
    alive: Callable[[int], bool],
) -> None:
    early = make_container("--bytes", "16M")
    program = Path(sys.executable).with_name("expedited")
    plugin = containerd.nri_plugin_dir / "10-expedited"
    log = run_dir / "plugin.log"
    flags = f"--run-dir={run_dir} --state-root='{containerd.state_root}' --metrics-address= --containerd-socket="
    plugin.write_text(f"#!/bin/sh\nexec {program} run --nri-socket= {flags} --log-format=json >>{log} 2>&1\n")
    plugin.chmod(0o755)

    def told(event: str) -> bool:
        return log.exists() and event in log.read_text()

    def wait_until(condition: Callable[[], bool]) -> None:
        wait_for(condition, lambda: log.read_text() if log.exists() else "it was not started")

    try:
        containerd.restart()
        wait_until(lambda: told("NRI: synchronized") and told("the kill gate is up"))
        asking = [program, "status", "--json", f"--run-dir={run_dir}"]
        status = json.loads(subprocess.run(asking, capture_output=True, check=True).stdout)
        assert (status["nri"], status["striker"]) == ("ok", "ok")
        containerd.cri.stop_container(early.id, 0)
        wait_until(lambda: told(f"expedited/pod-{early.pod.uid}/"))
        plugin.unlink()
    finally:
        plugin.unlink(missing_ok=True)
        containerd.restart()
    wait_until(lambda: told("the agent has ended"))
    for process in status["processes"]:
        wait_until(lambda pid=process["pid"]: not alive(pid))
    assert "Traceback" not in log.read_text()
