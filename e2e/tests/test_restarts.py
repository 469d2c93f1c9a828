"""The agent, the runtime, kubelet and the API server come and go while pods are being killed: no stop fails."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from agent import NAMESPACE as AGENTS
from agent import agents, in_log, last_stop
from conftest import Record
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from node import NODE, Node
from pods import NAMESPACE, Pods, hog_pod, kubectl, wait_for
from urllib3.exceptions import HTTPError

from expedited.demo.leftovers import processes_naming

VICTIMS = 6
GRACE = 4
MANIFESTS = "/etc/kubernetes/manifests"
ASIDE = "/etc/kubernetes/kube-apiserver.yaml"


@pytest.fixture
def victims(pods: Pods, api: client.CoreV1Api) -> list[str]:
    """Pods to be killed, the agent ready."""
    _agent_is_ready(api)
    names = [f"victim-{number}" for number in range(VICTIMS)]
    for name in names:
        pods.make(hog_pod(name, "--bytes", "48M", "--ignore-term", mode="strike"))
    pods.ready(*names)
    return names


def test_the_daemonset_is_rolled(
    victims: list[str], pods: Pods, api: client.CoreV1Api, node: Node, record: Record
) -> None:
    """A new version of the agent comes while pods are deleted one after another."""
    began = time.time()
    kubectl("-n", AGENTS, "rollout", "restart", "daemonset/expedited")
    for name in victims:
        pods.delete(name, GRACE)
        time.sleep(3)
    kubectl("-n", AGENTS, "rollout", "status", "daemonset/expedited", "--timeout=300s")
    _all_went(victims, pods, api, node, began)
    _strikes_again(pods, api, record, "daemonset-roll")


@pytest.mark.parametrize("who", ["agent", "striker"])
def test_one_of_its_processes_crashes(
    who: str, victims: list[str], pods: Pods, api: client.CoreV1Api, node: Node, record: Record
) -> None:
    """SIGKILL for the agent or its striker, while pods are in their grace."""
    began = _delete(victims, pods)
    running = processes_naming(f"expedited.{who}")  # the node's processes are this machine's
    assert running
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    _all_went(victims, pods, api, node, began)
    _strikes_again(pods, api, record, f"{who}-crash")


@pytest.mark.parametrize("unit", ["containerd", "kubelet"])
def test_a_service_of_the_node_restarts(
    unit: str, victims: list[str], pods: Pods, api: client.CoreV1Api, node: Node, record: Record
) -> None:
    """While pods are in their grace."""
    began = _delete(victims, pods)
    node.run("systemctl", "restart", unit)
    _all_went(victims, pods, api, node, began)
    _strikes_again(pods, api, record, f"{unit}-restart")


def test_the_api_server_is_down(pods: Pods, api: client.CoreV1Api, node: Node, record: Record) -> None:
    """A static pod is struck without it, and its Event comes when it is back."""
    _agent_is_ready(api)
    name, began = "cut-off", time.time()
    pod = hog_pod(name, "--bytes", "300M", "--ignore-term", mode="strike", terminationGracePeriodSeconds=GRACE)
    pod["metadata"]["namespace"] = NAMESPACE
    node.write(f"{MANIFESTS}/{name}.yaml", json.dumps(pod))
    pods.afterwards(lambda: node.run("rm", "-f", f"{MANIFESTS}/{name}.yaml"))
    mirror = f"{name}-{NODE}"
    pods.ready(mirror)
    node.run("mv", f"{MANIFESTS}/kube-apiserver.yaml", ASIDE)
    try:
        wait_for("the API server is down", lambda: not _answers(api), 120)
        node.run("rm", f"{MANIFESTS}/{name}.yaml")
        stop = wait_for("it is struck all the same", lambda: in_log(_log(node), mirror, since_seconds=began), 120)
    finally:
        node.run("mv", ASIDE, f"{MANIFESTS}/kube-apiserver.yaml")
        wait_for("the API server is back", lambda: _answers(api), 300)
    assert stop["outcome"] == "struck"
    chosen = f"involvedObject.name={mirror},reason=MemoryReturned"
    wait_for("its Event", lambda: api.list_namespaced_event(NAMESPACE, field_selector=chosen).items, 300)
    _agent_is_ready(api)
    _strikes_again(pods, api, record, "api-server-down")


def _agent_is_ready(api: client.CoreV1Api) -> None:
    wait_for("the agent is ready", lambda: len(agents(api)) == 1, 300)


def _delete(victims: list[str], pods: Pods) -> float:
    """All at once; when that began."""
    began = time.time()
    for name in victims:
        pods.delete(name, GRACE)
    return began


def _all_went(victims: list[str], pods: Pods, api: client.CoreV1Api, node: Node, began: float) -> None:
    """The pods are gone, in order, and neither kubelet nor the runtime had trouble with it."""
    for name in victims:
        wait_for(f"pod {name} is gone", lambda name=name: pods.get(name) is None, 180)
    failures = [
        event.message
        for event in api.list_namespaced_event(NAMESPACE, field_selector="reason=FailedKillPod").items
        if event.involved_object.name in victims and event.last_timestamp.timestamp() >= began - 1
    ]
    # While the runtime itself is away kubelet can't stop anything, and tries again
    assert not [message for message in failures if "containerd.sock: connect" not in message]
    assert not [
        line for _, line in node.kubelet_log(began) if "context deadline exceeded" in line and "victim-" in line
    ]


def _strikes_again(pods: Pods, api: client.CoreV1Api, record: Record, case: str) -> None:
    """A pod that is made and deleted after all that is struck."""
    _agent_is_ready(api)
    began, name = time.time(), f"after-{case}"
    pods.make(hog_pod(name, "--bytes", "48M", "--ignore-term", mode="strike"))
    pods.ready(name)
    pods.delete(name, 1)
    stop = wait_for("the agent wrote of it", lambda: last_stop(api, name, since_seconds=began), 180)
    record.survived(case, stop["outcome"], stop["outcome"] == "struck")
    assert stop["outcome"] == "struck", stop


def _answers(api: client.CoreV1Api) -> bool:
    try:
        api.list_node(_request_timeout=5)
    except (ApiException, HTTPError):
        return False
    return True


def _log(node: Node) -> str:
    """The agent's log as it lies on the node."""
    return node.run("sh", "-c", f"cat /var/log/pods/{AGENTS}_*/*/*.log")
