"""The agent as it is run, with a real containerd: what it tells of stops, whom it leaves alone, what it survives."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expedited.agent.priority import RUNAWAY_SECONDS
from expedited.demo.cri import ContainerSpec, Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE
from expedited.teardown import Mode, Policy
from support.ctr import run_by_ctr

Agent = Any
StartAgent = Callable[..., Agent]
MakePod = Callable[..., Pod]
MakeContainer = Callable[..., Any]


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_stop_is_told_with_its_names_by_every_command(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    agent = start()
    hog = make_container("--bytes", "64M", "--ignore-term")
    pod = {"uid": hog.pod.uid, "namespace": "expedited", "name": f"pod-{hog.pod.uid}"}
    agent.wait_known(hog.id)

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
    assert stop["bytes_returned"] >= 0.9 * (64 << 20)  # the counters may lag
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
    agent.wait_known(hog.id)
    agent.wait_known(other.id)

    def stopping() -> dict[str, float]:
        (top,) = agent.json("top")
        return {each["id"]: each["stopping_since"] for each in top["containers"] if each.get("stopping_since")}

    assert stopping() == {}
    before = time.time()
    stop = containerd.cri.begin_stop(hog.id, 20)
    deadline = time.monotonic() + 15
    while not (seen := stopping()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(seen) == [hog.id]
    assert before <= seen[hog.id] <= time.time()
    assert "stopping " in agent.cli("top", "--once").stdout
    stop.result()
    agent.stop_of(hog.id)
    assert stopping() == {}


def test_a_container_that_is_paused_or_resumed_is_shown_so_before_the_next_list(
    containerd: PrivateContainerd, start: StartAgent
) -> None:
    agent = start()
    run_by_ctr(containerd, "paused", "/hog", "--bytes", "8M")

    def shown(state: str) -> bool:
        (top,) = agent.json("top")
        return [each["state"] for each in top["containers"] if each["id"] == "paused"] == [state]

    try:
        agent.wait(lambda: shown("running"), "it is not shown to run")
        # Each wait is shorter than from one list of all containers to the next: had only lists told, one would fail
        for _ in range(2):
            containerd.ctr("task", "pause", "paused", namespace="default")
            agent.wait(lambda: shown("paused"), "it is not shown as paused")
            containerd.ctr("task", "resume", "paused", namespace="default")
            agent.wait(lambda: shown("running"), "it is not shown to run again")
    finally:
        containerd.ctr("task", "delete", "-f", "paused", namespace="default", check=False)
        containerd.ctr("container", "delete", "paused", namespace="default", check=False)
    agent.wait(lambda: not any(shown(state) for state in ("paused", "running")), "it is shown after its end")


def test_status_tells_how_things_are_and_what_memory_they_take(
    containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = start()
    hogs = [make_container("--bytes", "8M") for _ in range(3)]
    agent.wait_known(*(hog.id for hog in hogs))
    for hog in hogs:
        containerd.cri.stop_container(hog.id, 0)
        agent.stop_of(hog.id)

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
    # Not proportional: what they share with the tests' own interpreter is theirs on a node. Its supervisor is the striker's copy
    assert size["agent"][0] + size["striker"][0] <= 64 << 20


# -- kill --------------------------------------------------------------------------------------------------------------


def test_the_agent_is_real_time_for_a_while_and_its_striker_for_as_long_as_it_takes(start: StartAgent) -> None:
    agent = start()
    ours = agent.pids()
    if os.sched_getscheduler(ours["agent"]) != os.SCHED_RR:
        pytest.skip("no real-time priority here")
    assert resource.prlimit(ours["agent"], resource.RLIMIT_RTTIME)[0] == int(RUNAWAY_SECONDS * 1e6)
    for name in ("supervisor", "striker"):
        assert resource.prlimit(ours[name], resource.RLIMIT_RTTIME)[0] == resource.RLIM_INFINITY, name


def test_kill_by_a_prefix_of_the_id_by_pod_and_by_cgroup(
    start: StartAgent,
    make_pod: MakePod,
    make_container: MakeContainer,
    make_cgroup: Callable[[], Any],
    alive: Callable[[int], bool],
) -> None:
    agent = start()
    one = make_container("--bytes", "16M", "--ignore-term")
    pod = make_pod()
    two = [make_container("--bytes", "16M", "--ignore-term", pod=pod) for _ in range(2)]
    agent.wait_known(one.id, pod.id, *(hog.id for hog in two))

    (answer,) = agent.json("kill", one.id[:12])
    (stop,) = answer["stops"]
    assert (stop["container_id"], stop["outcome"], stop["trigger"]) == (one.id, "struck", "api")
    assert stop["pod"]["uid"] == one.pod.uid
    assert not alive(one.pid)

    (answer,) = agent.json("kill", "--pod", f"expedited/pod-{pod.uid}")
    struck = [stop["container_id"] for stop in answer["stops"]]
    assert sorted(struck[:2]) == sorted(hog.id for hog in two)
    assert struck[2:] == [pod.id]  # who holds the pod's namespaces goes last
    assert {stop["outcome"] for stop in answer["stops"]} == {"struck"}
    assert not any(alive(hog.pid) for hog in two)

    scratch = make_cgroup()
    sleeper = subprocess.Popen(["sleep", "1000"])
    scratch.add(sleeper.pid)
    (answer,) = agent.json("kill", "--cgroup", scratch.path)
    assert [(stop["cgroup"], stop["process_count"]) for stop in answer["stops"]] == [(scratch.path, 1)]
    assert sleeper.wait(20) == -signal.SIGKILL
    with agent.ask() as asked:
        assert len(asked.stops()) == 5


# -- policy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nri", [True, False], ids=["nri", "containerd-alone"])
def test_annotations_hold_from_the_first_stop_on(
    containerd: PrivateContainerd,
    start: StartAgent,
    make_pod: MakePod,
    make_container: MakeContainer,
    nri: bool,
    annotated: Callable[..., Pod],
) -> None:
    agent = start(nri=nri)
    default = make_pod()
    pods = {
        "observe": annotated(mode="observe"),
        "off": annotated(mode="off"),
        "large": annotated(min_size="1Gi"),
        "wrong": annotated(mode="strik"),
    }
    outcomes: dict[str, str] = {}
    for name, pod in [*pods.items(), ("default", default)]:
        hog = make_container("--bytes", "16M", "--ignore-term", pod=pod)
        if not nri:
            agent.wait_known(hog.id)  # no start waits until containerd's event has come
        containerd.cri.stop_container(hog.id, 0)
        assert containerd.cri.container(hog.id).exit_code == 137
        if name not in ("off", "wrong"):
            outcomes[name] = agent.stop_of(hog.id)["outcome"]
        else:
            outcomes[name] = str(agent.stops_of(hog.id))
    assert outcomes == {"observe": "observed", "off": "[]", "large": "skipped", "wrong": "[]", "default": "struck"}
    (problem,) = agent.told("is left alone")
    assert problem["level"] == "warning"
    assert (
        "expedited.io/mode takes strike, observe, compare or off, not 'strik'; did you mean strike?" in problem["event"]
    )

    compared = annotated(mode="compare")
    kept = annotated(page_cache="drop", boost="off")
    hog = make_container("--bytes", "16M", "--ignore-term", pod=compared)
    containerd.cri.stop_container(hog.id, 0)
    stop = agent.stop_of(hog.id)
    side = Policy(Mode.COMPARE).for_container(hog.id).mode
    assert (stop["mode"], stop["outcome"]) == ("compare", "struck" if side is Mode.STRIKE else "observed")
    dropped = []
    # On a busy machine the runtime may be the first to remove the cgroup, and there is nothing to drop then
    for _ in range(3):
        hog = make_container("--bytes", "16M", "--file", "/tmp/f", "--map", "8M", pod=kept)
        known = agent.wait_known(hog.id)[hog.id]
        assert (known.policy.page_cache, known.policy.boost, known.policy.mode) == ("drop", False, "strike")
        containerd.cri.stop_container(hog.id, 0)
        agent.stop_of(hog.id)
        (stop,) = agent.json("stops", hog.id)
        assert (stop["outcome"], stop["boosted"]) == ("struck", [])
        dropped.append(stop["page_cache_dropped_bytes"])
        if dropped[-1]:
            break
    assert dropped[-1] >= 4 << 20


def test_with_nri_the_policy_is_there_before_the_container_runs(
    containerd: PrivateContainerd, start: StartAgent, annotated: Callable[..., Pod]
) -> None:
    agent = start(api=False)
    pod = annotated(mode="observe", min_size="0")
    for number in range(5):
        spec = ContainerSpec(HOG_IMAGE, ("/hog", "--ignore-term"), name=f"short-{number}")
        container_id = containerd.cri.create_container(pod, spec)
        containerd.cri.start_container(container_id)
        containerd.cri.stop_container(container_id, 0)  # before it has done anything
        assert agent.stop_of(container_id)["outcome"] == "observed"


def test_the_file_has_a_default_for_a_namespace(
    containerd: PrivateContainerd, start: StartAgent, make_pod: MakePod, make_container: MakeContainer, run_dir: Path
) -> None:
    file = run_dir / "config.yaml"
    file.write_text("policy: {mode: observe}\nnamespaces:\n  web: {mode: strike, min-size: 2Mi}\n")
    agent = start(f"--config={file}")
    outcomes = []
    for namespace in ("web", "other"):
        pod = make_pod(PodSpec(namespace=namespace))
        hog = make_container("--bytes", "16M", pod=pod)
        containerd.cri.stop_container(hog.id, 0)
        outcomes.append(agent.stop_of(hog.id)["outcome"])
    assert outcomes == ["struck", "observed"]
