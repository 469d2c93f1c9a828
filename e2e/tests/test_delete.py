"""`kubectl delete pod` of one that holds memory and has next to no claim on the CPU, beside pods that burn it."""

from __future__ import annotations

import pytest
from agent import last_stop
from conftest import Record
from ending import MODES, burners, delete
from kubernetes import client
from node import Node
from pods import Pods, hog_pod, wait_for


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "arguments", "grace"), [
    ("delete-obeyed", ["--bytes", "512M"], 60),
    ("delete-force", ["--bytes", "512M", "--ignore-term"], 0),
    ("delete-grace", ["--bytes", "512M", "--ignore-term"], 3),
    ("delete-children", ["--bytes", "128M", "--children", "3", "--ignore-term"], 3),
])  # fmt: skip
def test_a_deleted_pod_gives_its_memory_back(
    name: str,
    arguments: list[str],
    grace: int,
    mode: str,
    pods: Pods,
    node: Node,
    record: Record,
    api: client.CoreV1Api,
) -> None:
    """Beside burners, struck or not."""
    victim = f"{name}-{mode}"  # the agent's log has it by name
    uid = pods.make(hog_pod(victim, *arguments, mode=mode))
    pods.ready(victim)
    burners(pods)
    ending, due = delete(pods, node, victim, uid, grace)
    if obeyed := "--ignore-term" not in arguments:
        due = ending.asked
    stop = wait_for("the agent wrote of it", lambda: last_stop(api, victim, since_seconds=ending.began), 180)
    case = record.add(name, mode, *ending.since(due), stop, obeyed=obeyed)
    assert case.ok
    wait_for("the API server has it no more", lambda: pods.get(victim) is None)
