"""The agent as it is run, with a real containerd: what it tells of stops, whom it leaves alone, what it survives."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from expedited.agent.priority import RUNAWAY_SECONDS
from expedited.demo.cri import ContainerSpec, Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE

Agent = Any
StartAgent = Callable[..., Agent]
MakePod = Callable[..., Pod]
MakeContainer = Callable[..., Any]


@pytest.fixture
def start(containerd: PrivateContainerd, start_agent: StartAgent) -> StartAgent:
    """``start(*flags) -> AgentProcess`` on the private containerd, connected to all of it."""

    def start(*flags: str, nri: bool = True, api: bool = True, ready: bool = True, **options: Any) -> Agent:
        sockets = [f"--nri-socket={containerd.nri_socket}"] if nri else []
        sockets += [f"--containerd-socket={containerd.socket}"] if api else []
        agent = start_agent(f"--state-root={containerd.state_root}", *sockets, *flags, ready=ready, **options)
        if ready and nri:
            agent.wait_told("NRI: synchronized")
        if ready and api:
            agent.wait_told(" answers")
        return agent

    return start


def stop_of(agent: Agent, container_id: str) -> dict[str, Any]:
    """The one stop of this container that the agent tells of."""
    agent.wait(lambda: _stops_of(agent, container_id), f"no stop of {container_id}")
    (stop,) = _stops_of(agent, container_id)
    return stop


def _stops_of(agent: Agent, container_id: str) -> list[dict[str, Any]]:
    return [line for line in agent.told("stop") if line["event"] == "stop" and line["id"] == container_id]


def wait_known(agent: Agent, *container_ids: str, gated: bool = True) -> dict[str, Any]:
    """Until the agent knows them with their pods, and gates them; all that it knows, by id."""
    known: dict[str, Any] = {}

    def here() -> bool:
        with agent.ask() as asked:
            known.update({each.id: each for each in asked.containers(sandboxes=True)})
        return all(
            name in known
            and known[name].pod.name
            and known[name].state == "running"
            and known[name].gated in (gated, True)
            for name in container_ids
        )

    agent.wait(here, f"{container_ids} not all known")
    return known


def pids(agent: Agent) -> dict[str, int]:
    with agent.ask() as asked:
        return {process.name: process.pid for process in asked.status().processes}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_stop_is_told_with_its_names_by_every_command(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    agent = start()
    hog = make_container("--bytes", "64M", "--ignore-term")
    pod = {"uid": hog.pod.uid, "namespace": "expedited", "name": f"pod-{hog.pod.uid}"}
    wait_known(agent, hog.id)

    (top,) = agent.json("top")
    (before,) = [each for each in top["containers"] if each["id"] == hog.id]
    assert (before["pod"], before["state"], before["gated"], before["pid"]) == (pod, "running", True, hog.pid)
    assert before["memory"]["anon_bytes"] >= 64 << 20
    assert hog.pod.id not in [each["id"] for each in top["containers"]]  # pause is no news

    follower = subprocess.Popen(
        [agent.program, "stops", "--follow", "--json", f"--run-dir={agent.run_dir}"], stdout=subprocess.PIPE, text=True
    )
    containerd.cri.stop_container(hog.id, 0)
    assert follower.stdout is not None
    followed = json.loads(follower.stdout.readline())
    follower.send_signal(signal.SIGINT)
    assert follower.wait(20) == 0
    assert follower.stdout.read() == ""
    follower.stdout.close()

    (stop,) = agent.json("stops", hog.id[:10])
    assert followed == stop
    assert (stop["container_id"], stop["pod"], stop["container_name"]) == (hog.id, pod, before["name"])
    assert (stop["outcome"], stop["trigger"], stop["mode"]) == ("struck", "gate:kill", "strike")
    assert stop["bytes_returned"] >= 64 << 20
    assert stop["memory_back_seconds"] is not None
    assert [process["pid"] for process in stop["processes"]] == [hog.pid]
    assert agent.json("stops", f"expedited/{pod['name']}") == [stop]
    assert agent.json("stops", "expedited/other") == []

    shown = agent.cli("top", "--once").stdout
    assert f"expedited/{pod['name']}/{before['name']}" in shown
    assert "striker ok" in shown
    story = agent.cli("stops", "--steps").stdout
    assert "struck" in story
    assert " ms  " in story
    told = [line["event"] for line in agent.log() if line.get("stop") == stop["number"]]
    assert told == [*(step["what"] for step in stop["steps"]), "stop"]


def test_a_stop_in_its_grace_is_shown_and_over_when_the_container_is(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    agent = start()
    hog, other = (make_container("--bytes", "16M", "--ignore-term") for _ in range(2))
    wait_known(agent, hog.id)
    wait_known(agent, other.id)

    def stopping() -> dict[str, float]:
        (top,) = agent.json("top")
        return {each["id"]: each["stopping_since"] for each in top["containers"] if each.get("stopping_since")}

    assert stopping() == {}
    before = time.time()
    stop = containerd.cri.begin_stop(hog.id, 10)
    deadline = time.monotonic() + 5
    while not (seen := stopping()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(seen) == [hog.id]
    assert before <= seen[hog.id] <= time.time()
    assert "stopping " in agent.cli("top", "--once").stdout
    stop.result()
    stop_of(agent, hog.id)
    assert stopping() == {}


def test_status_tells_how_things_are_and_what_memory_they_take(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = start()
    hogs = [make_container("--bytes", "8M") for _ in range(3)]
    wait_known(agent, *(hog.id for hog in hogs))
    for hog in hogs:
        containerd.cri.stop_container(hog.id, 0)
        stop_of(agent, hog.id)

    (status,) = agent.json("status")

    assert (status["striker"], status["nri"], status["containerd"], status["stops"]) == ("ok", "ok", "ok", 3)
    assert status["gated"] >= 3
    assert status["gate_events"] > 0
    assert status["gate_restarts"] == 0
    size = {process["name"]: (process["rss_bytes"], process["pss_bytes"]) for process in status["processes"]}
    assert size.keys() == {"agent", "striker", "supervisor"}
    rss, pss = (sum(column) for column in zip(*size.values(), strict=True))
    with capsys.disabled():
        each = ", ".join(f"{name} {rss >> 10}/{pss >> 10}" for name, (rss, pss) in size.items())
        print(f"\n  KiB resident/proportional: {each}; all {rss >> 10}/{pss >> 10}")
    assert size["striker"][0] <= 16 << 20
    assert pss <= 64 << 20


# -- kill --------------------------------------------------------------------------------------------------------------


def test_the_agent_is_real_time_for_a_while_and_its_striker_for_as_long_as_it_takes(start: StartAgent) -> None:
    agent = start()
    ours = pids(agent)
    if os.sched_getscheduler(ours["agent"]) != os.SCHED_RR:
        pytest.skip("no real-time priority here")
    assert resource.prlimit(ours["agent"], resource.RLIMIT_RTTIME)[0] == int(RUNAWAY_SECONDS * 1e6)
    for name in ("supervisor", "striker"):
        assert resource.prlimit(ours[name], resource.RLIMIT_RTTIME)[0] == resource.RLIM_INFINITY, name


def test_kill_by_a_prefix_of_the_id_by_pod_and_by_cgroup(
    start: StartAgent, make_pod: MakePod, make_container: MakeContainer, make_cgroup_v1: Callable[[], Any]
) -> None:
    agent = start()
    one = make_container("--bytes", "16M", "--ignore-term")
    pod = make_pod()
    two = [make_container("--bytes", "16M", "--ignore-term", pod=pod) for _ in range(2)]
    wait_known(agent, one.id, pod.id, *(hog.id for hog in two))

    (answer,) = agent.json("kill", one.id[:12])
    (stop,) = answer["stops"]
    assert (stop["container_id"], stop["outcome"], stop["trigger"]) == (one.id, "struck", "api")
    assert stop["pod"]["uid"] == one.pod.uid
    assert not is_running(one.pid)

    (answer,) = agent.json("kill", "--pod", f"expedited/pod-{pod.uid}")
    struck = [stop["container_id"] for stop in answer["stops"]]
    assert sorted(struck[:2]) == sorted(hog.id for hog in two)
    assert struck[2:] == [pod.id]  # who holds the pod's namespaces goes last
    assert {stop["outcome"] for stop in answer["stops"]} == {"struck"}
    assert not any(is_running(hog.pid) for hog in two)

    scratch = make_cgroup_v1()
    sleeper = subprocess.Popen(["sleep", "1000"])
    scratch.add(sleeper.pid)
    (answer,) = agent.json("kill", "--cgroup", scratch.path)
    assert [(stop["cgroup"], stop["process_count"]) for stop in answer["stops"]] == [(scratch.path, 1)]
    assert sleeper.wait(20) == -signal.SIGKILL
    with agent.ask() as asked:
        assert len(asked.stops()) == 5


# -- policy ------------------------------------------------------------------------------------------------------------


def annotated(make_pod: MakePod, **annotations: str) -> Pod:
    named = {f"expedited.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return make_pod(PodSpec(annotations={**named, "other.io/mode": "off"}))


@pytest.mark.parametrize("nri", [True, False], ids=["nri", "containerd-alone"])
def test_annotations_hold_from_the_first_stop_on(
    containerd: PrivateContainerd, start: StartAgent, make_pod: MakePod, make_container: MakeContainer, nri: bool
) -> None:
    agent = start(nri=nri)
    default = make_pod()
    pods = {
        "observe": annotated(make_pod, mode="observe"),
        "off": annotated(make_pod, mode="off"),
        "large": annotated(make_pod, min_size="1Gi"),
        "wrong": annotated(make_pod, mode="strik"),
    }
    outcomes: dict[str, str] = {}
    for name, pod in [*pods.items(), ("default", default)]:
        hog = make_container("--bytes", "16M", "--ignore-term", pod=pod)
        containerd.cri.stop_container(hog.id, 0)
        assert containerd.cri.container(hog.id).exit_code == 137
        if name not in ("off", "wrong"):
            outcomes[name] = stop_of(agent, hog.id)["outcome"]
        else:
            outcomes[name] = str(_stops_of(agent, hog.id))
    assert outcomes == {"observe": "observed", "off": "[]", "large": "skipped", "wrong": "[]", "default": "struck"}
    (problem,) = agent.told("is left alone")
    assert problem["level"] == "warning"
    assert (
        "expedited.io/mode takes strike, observe, compare or off, not 'strik'; did you mean strike?" in problem["event"]
    )

    compared = annotated(make_pod, mode="compare")
    kept = annotated(make_pod, page_cache="drop", boost="off")
    both = []
    for _ in range(2):
        hog = make_container("--bytes", "16M", "--ignore-term", pod=compared)
        containerd.cri.stop_container(hog.id, 0)
        both.append(stop_of(agent, hog.id))
    assert [(stop["mode"], stop["outcome"]) for stop in both] == [("compare", "struck"), ("compare", "observed")]
    dropped = []
    for _ in range(
        3
    ):  # on a busy machine the runtime may be the first to remove the cgroup, and there is nothing to drop then
        hog = make_container("--bytes", "16M", "--file", "/tmp/f", "--map", "8M", pod=kept)
        known = wait_known(agent, hog.id)[hog.id]
        assert (known.policy.page_cache, known.policy.boost, known.policy.mode) == ("drop", False, "strike")
        containerd.cri.stop_container(hog.id, 0)
        stop_of(agent, hog.id)
        (stop,) = agent.json("stops", hog.id)
        assert (stop["outcome"], stop["boosted"]) == ("struck", [])
        dropped.append(stop["page_cache_dropped_bytes"])
        if dropped[-1]:
            break
    assert dropped[-1] >= 4 << 20


def test_with_nri_the_policy_is_there_before_the_container_runs(
    containerd: PrivateContainerd, start: StartAgent, make_pod: MakePod
) -> None:
    agent = start(api=False)
    pod = annotated(make_pod, mode="observe", min_size="0")
    for number in range(5):
        spec = ContainerSpec(HOG_IMAGE, ("/hog", "--ignore-term"), name=f"short-{number}")
        container_id = containerd.cri.create_container(pod, spec)
        containerd.cri.start_container(container_id)
        containerd.cri.stop_container(container_id, 0)  # before it has done anything
        assert stop_of(agent, container_id)["outcome"] == "observed"


def test_the_file_has_a_default_for_a_namespace(
    containerd: PrivateContainerd, start: StartAgent, make_pod: MakePod, make_container: MakeContainer, run_dir: str
) -> None:
    file = Path(run_dir) / "config.yaml"
    file.write_text("policy: {mode: observe}\nnamespaces:\n  web: {mode: strike, min-size: 2Mi}\n")
    agent = start(f"--config={file}")
    outcomes = []
    for namespace in ("web", "other"):
        pod = make_pod(PodSpec(namespace=namespace))
        hog = make_container("--bytes", "16M", pod=pod)
        containerd.cri.stop_container(hog.id, 0)
        outcomes.append(stop_of(agent, hog.id)["outcome"])
    assert outcomes == ["struck", "observed"]


# -- what it survives --------------------------------------------------------------------------------------------------


def test_a_striker_goes_on_without_its_agent_and_the_next_agent_learns_of_it(
    containerd: PrivateContainerd, start: StartAgent, make_pod: MakePod, make_container: MakeContainer
) -> None:
    first = start()
    pod = make_pod()
    hogs = [make_container("--bytes", "8M", "--ignore-term", pod=pod) for _ in range(13)]
    wait_known(first, *(hog.id for hog in hogs))
    containerd.cri.stop_container(hogs[0].id, 0)
    stop_of(first, hogs[0].id)
    before = pids(first)

    first.process.kill()
    first.process.wait()
    for hog in hogs[1:-1]:  # more than what comes in one packet
        containerd.cri.stop_container(hog.id, 0)
    second = start()
    containerd.cri.stop_container(hogs[-1].id, 0)

    assert {stop_of(second, hog.id)["outcome"] for hog in hogs} == {"struck"}
    after = pids(second)
    assert (after["striker"], after["supervisor"]) == (before["striker"], before["supervisor"])
    assert after["agent"] != before["agent"]
    with second.ask() as asked:
        stops = asked.stops()
    assert {stop.pod.uid for stop in stops} == {pod.uid}
    numbers = [stop.number for stop in stops]
    assert numbers == list(range(len(hogs), 0, -1))  # none twice, none missed
    first.process.returncode = 0  # it was killed by this test, and owes no orderly end


def test_a_gate_that_dies_is_brought_up_again_and_told_the_policies(
    containerd: PrivateContainerd, start: StartAgent, make_pod: MakePod, make_container: MakeContainer
) -> None:
    agent = start()
    observed = make_container("--bytes", "16M", pod=annotated(make_pod, mode="observe"))
    struck = make_container("--bytes", "16M")
    wait_known(agent, observed.id, struck.id)
    before = pids(agent)

    os.kill(before["striker"], signal.SIGKILL)
    agent.wait_told("the kill gate is up", 2)
    wait_known(agent, observed.id, struck.id)
    containerd.cri.stop_container(observed.id, 0)
    containerd.cri.stop_container(struck.id, 0)

    assert stop_of(agent, observed.id)["outcome"] == "observed"
    assert stop_of(agent, struck.id)["outcome"] == "struck"
    after = pids(agent)
    assert after["supervisor"] == before["supervisor"]
    assert after["striker"] != before["striker"]
    (status,) = agent.json("status")
    assert (status["striker"], status["gate_restarts"]) == ("ok", 1)
    assert not agent.told("kills are not caught")


def test_when_the_supervisor_is_killed_the_agent_starts_another_striker(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    agent = start()
    hog = make_container("--bytes", "16M")
    before = pids(agent)

    os.kill(before["supervisor"], signal.SIGKILL)
    agent.wait_told("the kill gate is up", 2)
    wait_known(agent, hog.id)
    containerd.cri.stop_container(hog.id, 0)

    assert stop_of(agent, hog.id)["outcome"] == "struck"
    after = pids(agent)
    assert not {before["supervisor"], before["striker"]} & set(after.values())
    assert not is_running(before["striker"])


def test_containerd_may_come_go_and_come_back(
    containerd: PrivateContainerd, start: StartAgent, make_pod: MakePod, make_container: MakeContainer
) -> None:
    observing = annotated(make_pod, mode="observe")
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
    wait_known(agent, early.id)
    containerd.cri.stop_container(early.id, 0)
    assert stop_of(agent, early.id)["outcome"] == "observed"

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
    wait_known(agent, fresh.id)
    containerd.cri.stop_container(fresh.id, 0)
    assert stop_of(agent, fresh.id)["outcome"] == "observed"


@contextmanager
def striker_of_version(version: str, run_dir: str, state_root: str) -> Iterator[int]:
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
    containerd: PrivateContainerd, start: StartAgent, run_dir: str, make_container: MakeContainer
) -> None:
    with striker_of_version("0.0.1", run_dir, containerd.state_root) as old:
        agent = start()
        (replaced,) = agent.told("replacing a striker")
        assert replaced["found"] == "0.0.1"
        assert pids(agent)["supervisor"] != old
    hog = make_container("--bytes", "16M")
    wait_known(agent, hog.id)
    containerd.cri.stop_container(hog.id, 0)
    assert stop_of(agent, hog.id)["outcome"] == "struck"


def test_sigterm_ends_both_but_for_a_striker_that_is_to_be_kept(start: StartAgent) -> None:
    keeping = start("--keep-striker")
    kept = pids(keeping)
    keeping.close()
    assert not is_running(kept["agent"])
    assert is_running(kept["striker"])
    agent = start()
    taken_over = pids(agent)
    assert taken_over["striker"] == kept["striker"]
    agent.close()
    assert not any(is_running(pid) for pid in taken_over.values())
    assert not list(agent.run_dir.glob("*.sock"))


def test_a_second_agent_in_the_same_run_dir_gives_way(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    first = start()
    before = pids(first)
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
    wait_known(first, hog.id)
    containerd.cri.stop_container(hog.id, 0)
    assert stop_of(first, hog.id)["outcome"] == "struck"
    assert pids(first) == before


# -- started by the runtime --------------------------------------------------------------------------------------------


def test_containerd_starts_it_as_a_pre_installed_plugin(
    containerd: PrivateContainerd, run_dir: str, make_container: MakeContainer, start_agent: StartAgent
) -> None:
    early = make_container("--bytes", "16M")
    program = Path(sys.executable).with_name("expedited")
    plugin = containerd.nri_plugin_dir / "10-expedited"
    log = Path(run_dir) / "plugin.log"
    flags = f"--run-dir={run_dir} --state-root='{containerd.state_root}' --metrics-address= --containerd-socket="
    plugin.write_text(f"#!/bin/sh\nexec {program} run --nri-socket= {flags} --log-format=json >>{log} 2>&1\n")
    plugin.chmod(0o755)

    def told(event: str) -> bool:
        return log.exists() and event in log.read_text()

    def wait_until(condition: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < give_up_at, log.read_text() if log.exists() else "it was not started"
            time.sleep(0.02)

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
        wait_until(lambda pid=process["pid"]: not is_running(pid))
    assert "Traceback" not in log.read_text()
