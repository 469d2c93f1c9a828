"""`kubectl delete pod` of one that holds memory and has next to no claim on the CPU, beside pods that burn it."""

from __future__ import annotations

import time

import pytest
from agent import last_stop
from conftest import Record
from kubernetes import client
from node import MemoryWatch, Node
from pods import Pods, hog_pod, wait_for

MODES = ["observe", "strike"]
BURNERS = 4


def burners(pods: Pods) -> None:
    """Pods that would use all of the CPU, in the class above that of the victims."""
    names = [f"burner-{number}" for number in range(BURNERS)]
    for name in names:
        pods.make(hog_pod(name, "--threads", "1", requests={"cpu": "10m", "memory": "10Mi"}, mode="off"))
    pods.ready(*names)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "arguments", "grace"), [
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
    watch = MemoryWatch(node, node.pod_cgroup(uid))
    began = time.time()
    pods.delete(victim, grace)
    decided = time.time() + grace
    try:
        wait_for("the memory is back", lambda: watch.back_at(decided), 300)
        wait_for("the pod has no process", lambda: watch.gone_at(decided), 300)
    finally:
        watch.stop()
    back, gone = watch.back_at(decided), watch.gone_at(decided)
    stop = wait_for("the agent wrote of it", lambda: last_stop(api, victim, since_seconds=began), 60)
    case = record.add(name, mode, back and back - decided, gone and gone - decided, stop)
    assert case.ok
    wait_for("the API server has it no more", lambda: pods.get(victim) is None)
