"""The agent as it is run, between a real containerd and the API server in test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from expedited.demo.daemon import PrivateContainerd

StartAgent = Callable[..., Any]
MakeContainer = Callable[..., Any]


@pytest.fixture
def kubeconfig(api: Any, tmp_path: Path) -> str:
    """Of the API server in test."""
    path = tmp_path / "kubeconfig"
    cluster = {"server": f"https://127.0.0.1:{api.port}", "certificate-authority": api.ca_file}
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": "first-token"}}],
            }
        )
    )
    return str(path)


@pytest.fixture
def start(containerd: PrivateContainerd, start_agent: StartAgent, kubeconfig: str) -> StartAgent:
    """``start(*flags) -> AgentProcess`` with NRI and containerd, on node-1 of the cluster in test."""

    def start(*flags: str) -> Any:
        agent = start_agent(
            f"--state-root={containerd.state_root}",
            f"--nri-socket={containerd.nri_socket}",
            f"--containerd-socket={containerd.socket}",
            f"--kubernetes={kubeconfig}",
            "--node-name=node-1",
            "--event-min-size=16Mi",
            *flags,
        )
        agent.wait_told("NRI: synchronized")
        return agent

    return start


#: The runtime may remove the cgroup before its page cache can be dropped, or while it is.
_TRIES = 3


def _events_of(api: Any, hog: Any) -> list[dict[str, Any]]:
    return [event for event in api.events if event["involvedObject"]["uid"] == hog.pod.uid]


def _wait_gated(agent: Any, container_id: str) -> None:
    def is_gated() -> bool:
        with agent.ask() as asked:
            return any(each.id == container_id and each.gated and each.pod.uid for each in asked.containers())

    agent.wait(is_gated, "not gated")


def _stop_of(agent: Any, container_id: str) -> dict[str, Any]:
    agent.wait(lambda: any(each["id"] == container_id for each in agent.told("stop") if "id" in each), "no stop")
    (stop,) = agent.json("stops", container_id)
    return dict(stop)


def test_the_page_cache_of_a_pod_that_is_deleted_goes_with_it_and_an_event_tells(
    api: Any, containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    agent = start()
    agent.wait_told("the pods of this node are watched")
    for attempt in range(1, _TRIES + 1):
        leaves, stays = (make_container("--bytes", "32M", "--file", "/tmp/f", "--map", "8M") for _ in range(2))
        for hog in (leaves, stays):
            api.put_pod(f"pod-{hog.pod.uid}", namespace="expedited", uid=hog.pod.uid)
            _wait_gated(agent, hog.id)
        api.put_pod(f"pod-{leaves.pod.uid}", deletionTimestamp="2026-01-01T00:00:00Z")
        agent.wait_told("a pod goes for good", times=attempt)
        for hog in (leaves, stays):
            containerd.cri.stop_container(hog.id, 0)
        assert _stop_of(agent, stays.id)["page_cache_dropped_bytes"] == 0
        dropped = _stop_of(agent, leaves.id)["page_cache_dropped_bytes"]
        if dropped >= 4 << 20:
            break

    assert dropped >= 4 << 20
    agent.wait(lambda: _events_of(api, leaves) and _events_of(api, stays), "two Events")
    (event,) = _events_of(api, leaves)
    assert event["metadata"]["namespace"] == "expedited"
    assert re.match(r"hog-\w+: \d+ MiB of memory back .+ after the kill, and \d+ MiB of page", event["message"])


def test_a_running_pod_may_be_annotated(
    api: Any, containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    agent = start()
    agent.wait_told("the pods of this node are watched")
    hog = make_container("--bytes", "32M", "--ignore-term")
    api.put_pod("web", namespace="expedited", uid=hog.pod.uid)
    _wait_gated(agent, hog.id)

    def mode() -> str:
        with agent.ask() as asked:
            return str(next(each.policy.mode for each in asked.containers() if each.id == hog.id))

    assert mode() == "strike"
    api.put_pod("web", annotations={"expedited.io/mode": "observe"})
    agent.wait(lambda: mode() == "observe", "the annotation is not heeded")
    containerd.cri.stop_container(hog.id, 0)
    assert _stop_of(agent, hog.id)["outcome"] == "observed"


def test_a_striker_that_is_new_hears_which_pods_were_leaving(
    api: Any, containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    agent = start()
    hogs = [make_container("--bytes", "32M", "--file", "/tmp/f", "--map", "8M") for _ in range(_TRIES)]
    for number, hog in enumerate(hogs, 1):
        _wait_gated(agent, hog.id)
        api.put_pod(f"pod-{number}", namespace="expedited", uid=hog.pod.uid, deletionTimestamp="2026-01-01T00:00:00Z")
        agent.wait_told("a pod goes for good", times=number)

    with agent.ask() as asked:
        (supervisor,) = [each.pid for each in asked.status().processes if each.name == "supervisor"]
    os.kill(supervisor, signal.SIGKILL)
    agent.wait_told("the kill gate is up", times=2)
    agent.wait_told("a pod goes for good", times=2 * len(hogs))
    for hog in hogs:
        _wait_gated(agent, hog.id)
        containerd.cri.stop_container(hog.id, 0)

    assert max(_stop_of(agent, hog.id)["page_cache_dropped_bytes"] for hog in hogs) >= 4 << 20


def test_with_the_api_server_gone_the_agent_does_its_whole_job(
    api: Any, containerd: PrivateContainerd, start: StartAgent, make_container: MakeContainer
) -> None:
    api.stop()
    agent = start()
    hog = make_container("--bytes", "32M", "--ignore-term")
    _wait_gated(agent, hog.id)
    containerd.cri.stop_container(hog.id, 0)

    assert _stop_of(agent, hog.id)["outcome"] == "struck"
    with agent.ask() as asked:
        assert "127.0.0.1" in asked.status().kubernetes
    api.start()
    agent.wait(lambda: api.events, "the Event, when the API server is back")
    with agent.ask() as asked:
        # It looks every half a minute by now, if it was away for long
        agent.wait(lambda: asked.status().kubernetes == "ok", "the watch, when the API server is back", 90)


def test_without_a_cluster_kubernetes_is_said_to_be_off(start_agent: StartAgent) -> None:
    agent = start_agent()
    with agent.ask() as asked:
        assert asked.status().kubernetes == "off"


def test_a_kubeconfig_that_is_wrong_is_one_line_and_no_agent(run_dir: Path) -> None:
    program = Path(sys.executable).with_name("expedited")
    command = [program, "run", f"--run-dir={run_dir}", "--metrics-address=", "--kubernetes=/absent/kubeconfig"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1  # it may be written later
    # What this machine lacks may be said before
    assert (
        answer.stderr.splitlines()[-1]
        == "expedited: kubeconfig /absent/kubeconfig can't be read: No such file or directory"
    )
