"""Node-pressure eviction by memory, with what Kubernetes' own eviction test asserts."""

from __future__ import annotations

import time

import pytest
from agent import last_stop
from conftest import Record
from ending import MODES, burners
from kubernetes import client
from node import MemoryWatch, Node, SummaryWatch
from pods import NAMESPACE, Pods, hog_pod, wait_for

THRESHOLD = 2760 << 20  # kind/cluster.yaml
# Of the node's memory, so that nothing is short before the push
ROOM = 200 << 20
SHORT = 2400 << 20  # by so much the node is short if nobody is evicted
PUSH = ROOM + SHORT


def push_by_a_pod(pods: Pods, node: Node) -> None:
    """A pod within its request, so that it is not to blame: it grows for seconds, and kubelet decides meanwhile.

    Page faults are dear in user-mode Linux. For it to grow quicker than a hog dies, as elsewhere, it asks for most of the CPU.
    """
    requests = {"memory": str(PUSH + (50 << 20)), "cpu": "220m"}
    pods.make(hog_pod("push", "--bytes", str(PUSH), requests=requests, mode="off"))


def push_at_once(pods: Pods, node: Node) -> None:
    """Something of the node's own, quicker than kubelet: when it decides, all of the memory is short."""
    node.take(PUSH >> 20)


#: What pushes the node over the threshold, what each burner asks for beside it, and what the hog does about its SIGTERM
CASES = {
    "eviction": (push_by_a_pod, "10m", "--ignore-term"),
    "eviction-sudden": (push_at_once, "40m", "--ignore-term"),
    "eviction-obeyed": (push_at_once, "40m", ""),
}


def pressure(api: client.CoreV1Api) -> bool:
    """Whether the node says that it is short of memory."""
    conditions = {each.type: each.status for each in api.list_node().items[0].status.conditions}
    return conditions["MemoryPressure"] == "True"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case_name", CASES)
def test_an_evicted_hog_is_the_only_one(
    case_name: str, mode: str, pods: Pods, node: Node, record: Record, api: client.CoreV1Api
) -> None:
    """The hog goes, its memory comes back, and nobody else pays for it."""
    wait_for("no memory pressure before", lambda: not pressure(api), 180)
    innocent = {"memory": "200Mi", "cpu": "20m"}
    pods.make(hog_pod("innocent", "--bytes", "150M", requests=innocent, mode=mode))
    pods.make(hog_pod("bystander-1", "--bytes", "30M", mode=mode))
    pods.make(hog_pod("bystander-2", "--bytes", "30M", mode=mode))
    pods.ready("innocent", "bystander-1", "bystander-2")
    room = node.available_bytes() - THRESHOLD - ROOM
    hog = f"hog-{mode}"
    push, burners_cpu, about_term = CASES[case_name]
    uid = pods.make(hog_pod(hog, "--bytes", str(room), *about_term.split(), mode=mode))
    pods.ready(hog, seconds=300)
    container = pods.get(hog).status.container_statuses[0].container_id
    burners(pods, burners_cpu)
    watch = MemoryWatch(node, [node.pod_cgroup(uid)])
    summary = SummaryWatch(api)
    began = time.time()
    try:
        push(pods, node)
        wait_for("kubelet evicts", lambda: hog in pods.evicted(), 300)
        decided = _decision(node, began)
        wait_for("the hog has no process", lambda: watch.gone_at(decided), 300)
        wait_for("memory is available again", lambda: watch.available_at(decided, THRESHOLD), 300)
        wait_for("kubelet's summary says so", lambda: summary.available_at(decided, THRESHOLD), 120)
    finally:
        watch.stop()
        summary.stop()
        node.give_back()
    moments = (
        watch.available_at(decided, THRESHOLD),
        watch.gone_at(decided),
        summary.available_at(decided, THRESHOLD),
        watch.back_at(decided),
        node.kill_began(container, decided),
    )
    back, gone, told, whole, kill = (moment and moment - decided for moment in moments)
    others = [name for name in pods.evicted() if name != hog]
    stop = wait_for("the agent wrote of it", lambda: last_stop(api, hog, since_seconds=began), 180)
    case = record.add(case_name, mode, back, gone, stop, len(others), told, whole, to_kill=kill, obeyed=not about_term)
    assert case.ok
    assert pods.get("innocent").status.phase == "Running"
    # Without a strike kubelet may well go on evicting while the first is still dying: that is what the record is for
    assert mode == "observe" or not others
    events = [
        event
        for event in api.list_namespaced_event(NAMESPACE, field_selector="reason=Evicted").items
        if event.involved_object.uid == uid
    ]
    # After 40 s kubelet decides once more, and as the hog still has the most it may evict it for the second time
    assert len(events) == 1 or (events and mode == "observe")
    assert all("memory" in event.message for event in events)
    wait_for("memory pressure is over", lambda: not pressure(api), 180)
    stays_clear = time.monotonic() + 60
    while time.monotonic() < stays_clear:
        assert not pressure(api)
        time.sleep(2)
    pods.make(hog_pod("afterwards", "--bytes", "10M"))
    pods.ready("afterwards")


def _decision(node: Node, began: float) -> float:
    """When kubelet first wrote that it must evict."""
    return next(moment for moment, line in node.kubelet_log(began) if "must evict pod(s) to reclaim" in line)
