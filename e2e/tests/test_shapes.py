"""Shapes of pods: several containers, init containers, a shared pid namespace, the node's own pid namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agent import last_stop
from conftest import Record
from ending import MODES, burners, delete
from kubernetes import client
from node import Node
from pods import Pods, hog_pod, wait_for

HOG = ["--bytes", "256M", "--ignore-term"]
GRACE = 3


def containers(name: str, mode: str) -> dict[str, Any]:
    """Three containers, each with memory of its own."""
    return with_container(with_container(hog_pod(name, *HOG, mode=mode), "second", *HOG), "third", *HOG)


def init_container(name: str, mode: str) -> dict[str, Any]:
    """Its init container runs, the other has yet to come."""
    pod = hog_pod(name, *HOG, mode=mode)
    pod["spec"]["initContainers"] = [pod["spec"]["containers"][0] | {"name": "init"}]
    return pod


def shared_pid(name: str, mode: str) -> dict[str, Any]:
    """Two containers whose pid 1 is the sandbox's."""
    return with_container(hog_pod(name, *HOG, mode=mode, shareProcessNamespace=True), "second", *HOG)


def host_pid(name: str, mode: str) -> dict[str, Any]:
    """No pid namespace: nobody dies because pid 1 does."""
    return hog_pod(name, "--bytes", "128M", "--children", "3", "--ignore-term", mode=mode, hostPID=True)


def with_container(pod: dict[str, Any], name: str, *arguments: str) -> dict[str, Any]:
    """The pod with one more container like its first."""
    first = pod["spec"]["containers"][0]
    pod["spec"]["containers"].append(first | {"name": name, "args": list(arguments)})
    return pod


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "names"), [
    (containers, ["hog", "second", "third"]),
    (init_container, ["init"]),
    (shared_pid, ["hog", "second"]),
    (host_pid, ["hog"]),
])  # fmt: skip
def test_a_pod_of_any_shape_gives_its_memory_back(
    shape: Callable[[str, str], dict[str, Any]],
    names: list[str],
    mode: str,
    pods: Pods,
    node: Node,
    record: Record,
    api: client.CoreV1Api,
) -> None:
    """All its containers are struck, and nothing else on the node dies."""
    case_name = shape.__name__.replace("_", "-")
    victim = f"{case_name}-{mode}"
    uid = pods.make(shape(victim, mode))
    for name in names:
        wait_for(f"{name} is ready", lambda name=name: "READY" in pods.log(victim, name), 180)
    burners(pods)
    outside = node.processes_outside(node.pod_cgroup(uid))
    ending, due = delete(pods, node, victim, uid, GRACE)
    stops = [
        wait_for(f"the agent wrote of {name}", lambda name=name: last_stop(api, victim, name, ending.began), 180)
        for name in names
    ]
    worst = max(stops, key=lambda stop: stop.get("memory_back_seconds") or float("inf"))
    lost = sum(stop.get("lost_races", 0) for stop in stops)
    case = record.add(case_name, mode, *ending.since(due), worst | {"lost_races": lost})
    assert case.ok
    assert {stop["outcome"] for stop in stops} == {case.outcome}
    died = outside - node.processes_outside(node.cgroup / "none")
    assert not [name for _, name in died if name == "hog"], "burners died with it"
    wait_for("the API server has it no more", lambda: pods.get(victim) is None)
