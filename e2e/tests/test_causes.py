"""What makes kubelet end a container, besides `kubectl delete` and eviction: each beside pods that burn the CPU."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent import last_stop
from conftest import Case, Record
from ending import MODES, Ending, burners, follow
from kubernetes import client
from node import NODE, Node
from pods import NAMESPACE, Pods, hog_pod, kubectl, template, wait_for

HOG = ["--bytes", "512M", "--ignore-term"]
GRACE = 2
DRAINED = 30
MAPPED = 512 << 20


@dataclass(frozen=True)
class Scene:
    """What every case here needs."""

    pods: Pods
    node: Node
    record: Record
    api: client.CoreV1Api

    def cgroup(self, pod: Any) -> Path:
        """Of the pod's first container."""
        return self.node.container_cgroup(pod.metadata.uid, pod.status.container_statuses[0].container_id)

    def told(self, case: str, mode: str, pod: str, ending: Ending, cache_left: int | None = None) -> Case:
        """Put down how the pod's container ended, its times from when kubelet's grace was over."""
        stop = wait_for("the agent wrote of it", lambda: last_stop(self.api, pod, since_seconds=ending.began), 180)
        due = self.node.grace_over(pod, ending.began)
        return self.record.add(case, mode, *ending.since(due), stop, cache_left=cache_left)


@pytest.fixture
def scene(pods: Pods, node: Node, record: Record, api: client.CoreV1Api) -> Scene:
    """Pods are deleted after the case."""
    return Scene(pods, node, record, api)


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_liveness_probe(scene: Scene, mode: str) -> None:
    """A container of 1 GiB is restarted in its pod."""
    name = f"probed-{mode}"
    # The kernel accepts for us until it is closed, however busy we are
    with socket.create_server(("", 0), backlog=1024) as health:
        pod = hog_pod(name, "--bytes", "1G", "--ignore-term", mode=mode, restartPolicy="Always")
        port = health.getsockname()[1]
        pod["spec"]["containers"][0]["livenessProbe"] = {
            "tcpSocket": {"host": scene.node.gateway(), "port": port},
            "periodSeconds": 5,
            "timeoutSeconds": 4,
            "failureThreshold": 2,
            "terminationGracePeriodSeconds": GRACE,
        }
        scene.pods.make(pod)
        scene.pods.ready(name, seconds=300)
        burners(scene.pods)
        ending = follow(scene.node, [scene.cgroup(scene.pods.get(name))], health.close)
    with socket.create_server(("", port), backlog=1024):  # or it is ended again at once
        restarted = wait_for("it is started again", lambda: _restarted(scene.pods.get(name)), 120)
    assert restarted.last_state.terminated.exit_code == 137
    assert scene.told("probe-restart", mode, name, ending).ok


def _restarted(pod: Any) -> Any:
    status = pod.status.container_statuses[0]
    # Kubelet may tell of the new container before it tells how the old one ended
    return status if status.restart_count and status.state.running and status.last_state.terminated else None


@pytest.mark.parametrize("mode", MODES)
def test_a_rollout(scene: Scene, mode: str) -> None:
    """A Deployment that first ends the old pod."""
    name, labels = f"rolled-{mode}", {"app": f"rolled-{mode}"}
    spec = hog_pod(name, *HOG, mode=mode, labels=labels, restartPolicy="Always", terminationGracePeriodSeconds=GRACE)
    apps = client.AppsV1Api()
    deployment = {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "strategy": {"type": "Recreate"}, "template": template(spec)},
    }
    apps.create_namespaced_deployment(NAMESPACE, deployment)
    scene.pods.afterwards(
        lambda: _gone_with(scene.pods, labels, lambda: apps.delete_namespaced_deployment(name, NAMESPACE))
    )
    old = _running(scene.pods, labels)
    burners(scene.pods)
    ending = follow(
        scene.node, [scene.cgroup(old)], lambda: kubectl("rollout", "restart", f"deployment/{name}", "-n", NAMESPACE)
    )
    assert scene.told("rollout", mode, old.metadata.name, ending).ok
    kubectl("rollout", "status", f"deployment/{name}", "-n", NAMESPACE, "--timeout=300s")


@pytest.mark.parametrize("mode", MODES)
def test_a_jobs_deadline(scene: Scene, mode: str) -> None:
    """A Job that has run for too long."""
    name, labels = f"job-{mode}", {"app": f"job-{mode}"}
    spec = hog_pod(name, *HOG, mode=mode, labels=labels, terminationGracePeriodSeconds=GRACE)
    batch = client.BatchV1Api()
    batch.create_namespaced_job(NAMESPACE, {"metadata": {"name": name}, "spec": {"template": template(spec)}})
    background = {"propagationPolicy": "Background"}
    scene.pods.afterwards(
        lambda: _gone_with(scene.pods, labels, lambda: batch.delete_namespaced_job(name, NAMESPACE, body=background))
    )
    pod = _running(scene.pods, labels)
    burners(scene.pods)
    over = {"spec": {"activeDeadlineSeconds": 1}}
    ending = follow(scene.node, [scene.cgroup(pod)], lambda: batch.patch_namespaced_job(name, NAMESPACE, over))
    assert scene.told("job-deadline", mode, pod.metadata.name, ending).ok
    conditions = wait_for(
        "the Job has failed", lambda: batch.read_namespaced_job(name, NAMESPACE).status.conditions, 60
    )
    assert "DeadlineExceeded" in {condition.reason for condition in conditions}


@pytest.mark.parametrize("mode", MODES)
def test_a_pod_of_a_higher_priority(scene: Scene, mode: str) -> None:
    """It needs what the victim has asked for: there is no room for both."""
    scheduling = client.SchedulingV1Api()
    scheduling.create_priority_class({"metadata": {"name": "urgent"}, "value": 1_000_000})
    scene.pods.afterwards(lambda: scheduling.delete_priority_class("urgent"))
    allocatable = scene.api.list_node().items[0].status.allocatable["memory"]
    assert allocatable.endswith("Ki")
    most = {"memory": f"{int(allocatable[:-2]) * 55 // 100}Ki"}
    name = f"preempted-{mode}"
    scene.pods.make(hog_pod(name, *HOG, mode=mode, requests=most, terminationGracePeriodSeconds=GRACE))
    scene.pods.ready(name)
    burners(scene.pods)
    urgent = hog_pod("urgent", "--bytes", "10M", requests=most, priorityClassName="urgent", mode=mode)
    ending = follow(scene.node, [scene.cgroup(scene.pods.get(name))], lambda: scene.pods.make(urgent))
    assert scene.told("preemption", mode, name, ending).ok
    scene.pods.ready("urgent", seconds=300)


@pytest.mark.parametrize("mode", MODES)
def test_a_static_pods_manifest_is_removed(scene: Scene, mode: str) -> None:
    """Kubelet ends it by itself; the API server has only a mirror of it."""
    name = f"static-{mode}"
    manifest = f"/etc/kubernetes/manifests/{name}.yaml"
    pod = hog_pod(name, *HOG, mode=mode, terminationGracePeriodSeconds=GRACE)
    pod["metadata"]["namespace"] = NAMESPACE
    scene.node.write(manifest, json.dumps(pod))
    scene.pods.afterwards(lambda: scene.node.run("rm", "-f", manifest))
    mirror = f"{name}-{NODE}"
    scene.pods.ready(mirror)
    burners(scene.pods)
    found = scene.pods.get(mirror)
    # Kubelet knows it by the hash of its manifest
    uid = found.metadata.annotations["kubernetes.io/config.hash"]
    cgroup = scene.node.container_cgroup(uid, found.status.container_statuses[0].container_id)
    ending = follow(scene.node, [cgroup], lambda: scene.node.run("rm", manifest))
    assert scene.told("static-pod", mode, mirror, ending).ok


@pytest.mark.parametrize("mode", MODES)
def test_a_drain(scene: Scene, mode: str) -> None:
    """`kubectl drain` of thirty pods at once; with no burners, as the API server that is asked for it shares the CPU."""
    labels = {"case": f"drain-{mode}"}
    names = [f"drained-{number}-{mode}" for number in range(DRAINED)]
    sizes = ["--bytes", "24M", "--ignore-term"]
    uids = [scene.pods.make(hog_pod(name, *sizes, mode=mode, labels=labels)) for name in names]
    scene.pods.ready(*names, seconds=900)
    scene.pods.afterwards(lambda: kubectl("uncordon", NODE))
    selector = f"--pod-selector=case=drain-{mode}"
    drain = ["drain", NODE, "--force", "--ignore-daemonsets", f"--grace-period={GRACE}", selector, "--timeout=600s"]
    ending = follow(scene.node, [scene.node.pod_cgroup(uid) for uid in uids], lambda: kubectl(*drain), seconds=600)
    stops = [
        wait_for(f"the agent wrote of {name}", lambda name=name: last_stop(scene.api, name, since_seconds=ending.began))
        for name in names
    ]
    worst = max(stops, key=lambda stop: stop.get("memory_back_seconds") or float("inf"))
    lost = sum(stop["lost_races"] for stop in stops)
    case = scene.record.add("drain", mode, *ending.since(ending.began + GRACE), worst | {"lost_races": lost})
    assert case.ok
    assert {stop["outcome"] for stop in stops} == {case.outcome}


@pytest.mark.parametrize("mode", MODES)
def test_page_cache(scene: Scene, mode: str) -> None:
    """An evicted pod that had read and mapped a file: how much of it stays charged to the cgroups above."""
    name = f"cached-{mode}"
    # On the node, or it would go with the pod's own directory, page cache and all
    directory = f"/var/lib/expedited-{name}"
    scene.node.run("mkdir", "-p", directory)
    scene.pods.afterwards(lambda: scene.node.run("rm", "-rf", directory))
    pod = hog_pod(name, "--file", "/data/file", "--map", str(MAPPED), "--bytes", "64M", "--ignore-term", mode=mode)
    pod["spec"]["volumes"] = [{"name": "data", "hostPath": {"path": directory}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    before = scene.node.besteffort_file_bytes()
    uid = scene.pods.make(pod)
    scene.pods.ready(name, seconds=300)
    scene.node.run("sync")  # what is dirty can't be dropped
    burners(scene.pods)
    cgroup = scene.node.pod_cgroup(uid)
    assert scene.node.besteffort_file_bytes() - before > 0.9 * MAPPED
    eviction = client.V1Eviction(
        metadata=client.V1ObjectMeta(name=name, namespace=NAMESPACE),
        delete_options=client.V1DeleteOptions(grace_period_seconds=GRACE),
    )
    ending = follow(scene.node, [cgroup], lambda: scene.api.create_namespaced_pod_eviction(name, NAMESPACE, eviction))
    wait_for("the pod's cgroup is removed", lambda: not cgroup.exists(), 120)
    left = max(scene.node.besteffort_file_bytes() - before, 0)
    case = scene.told("page-cache", mode, name, ending, left)
    assert case.ok
    if mode == "strike":
        assert left < 0.1 * MAPPED


def test_an_oom_kill(scene: Scene) -> None:
    """The kernel kills in a container over its limit: if anything of it is left, it is reaped; nobody else is touched."""
    began = time.time()
    scene.pods.make(hog_pod("beside", "--bytes", "50M", mode="strike"))
    scene.pods.ready("beside")
    limit = {"memory": "200Mi"}
    scene.pods.make(hog_pod("limited", "--bytes", "400M", limits=limit, restartPolicy="OnFailure", mode="strike"))
    status = wait_for("it was killed", lambda: _ended(scene.pods.get("limited")), 180)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)
    wait_for("it is started again", lambda: scene.pods.get("limited").status.container_statuses[0].restart_count, 120)
    stop = last_stop(scene.api, "limited", since_seconds=began)
    assert stop is None or stop["trigger"] == "oom"
    assert scene.pods.get("beside").status.container_statuses[0].restart_count == 0


def _ended(pod: Any) -> Any:
    for status in pod.status.container_statuses or []:
        if status.last_state.terminated or status.state.terminated:
            return status.last_state.terminated or status.state.terminated
    return None


def _running(pods: Pods, labels: dict[str, str]) -> Any:
    """The one pod with these labels, when its container is ready."""
    name = wait_for("its controller makes a pod", lambda: pods.of(**labels))[0].metadata.name
    pods.ready(name)
    return pods.get(name)


def _gone_with(pods: Pods, labels: dict[str, str], delete: Any) -> None:
    """Delete a controller, and its pods at once."""
    delete()
    for pod in pods.of(**labels):
        pods.delete(pod.metadata.name, 0)
    wait_for("its pods are gone", lambda: not pods.of(**labels), 180)
