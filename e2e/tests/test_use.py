"""What a user does: reads Events and metrics, asks the kubectl plugin."""

from __future__ import annotations

import json
import subprocess

from agent import NAMESPACE as AGENTS
from agent import last_stop
from kubernetes import client
from node import NODE
from pods import NAMESPACE, Pods, hog_pod, kubectl, wait_for

EVENT_SIZE = "300M"  # over the chart's kubernetes.eventMinSize


def test_a_stop_is_told_of(pods: Pods, api: client.CoreV1Api) -> None:
    """By an Event on the pod, a metric, and the plugin: status, stops, why, top and doctor."""
    uid = pods.make(hog_pod("told", "--bytes", EVENT_SIZE, "--ignore-term", mode="strike"))
    pods.ready("told")
    assert "told" in kubectl("expedited", "top", "-n", NAMESPACE)
    before = _struck(api)
    pods.delete("told", 1)
    wait_for("the agent wrote of it", lambda: last_stop(api, "told"), 180)
    chosen = f"involvedObject.uid={uid},reason=MemoryReturned"
    events = wait_for("an Event", lambda: api.list_namespaced_event(NAMESPACE, field_selector=chosen).items, 60)
    assert len(events) == 1
    assert wait_for("the counter rises", lambda: _struck(api) > before, 30)
    assert "told" in kubectl("expedited", "stops", "-n", NAMESPACE)
    assert "told" in kubectl("expedited", "why", f"{NAMESPACE}/told")
    assert NODE in kubectl("expedited", "status")
    assert NODE in kubectl("expedited", "doctor")
    stops = json.loads(kubectl("expedited", "stops", "-n", NAMESPACE, "--output", "json"))
    assert any("told" in json.dumps(stop) for stop in (stops if isinstance(stops, list) else [stops]))


def _struck(api: client.CoreV1Api) -> float:
    """The counter of struck stops, as Prometheus would scrape it."""
    pod = api.list_namespaced_pod(AGENTS, label_selector="app.kubernetes.io/name=expedited").items[0]
    text = str(api.connect_get_namespaced_pod_proxy_with_path(f"{pod.metadata.name}:9788", AGENTS, "metrics"))
    counts = [line for line in text.splitlines() if line.startswith("expedited_stops_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in counts if 'outcome="struck"' in line)


def test_the_agent_may_do_what_it_does_and_no_more(api: client.CoreV1Api) -> None:
    """Asked of the API server, which is what decides."""
    agent = f"system:serviceaccount:{AGENTS}:expedited"
    allowed = {("list", "pods"), ("watch", "pods"), ("create", "events")}
    verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
    for resource in ["pods", "pods/exec", "pods/eviction", "pods/log", "events", "nodes", "nodes/proxy", "secrets"]:
        granted = {verb for verb in verbs if _may(agent, verb, resource)}
        assert granted == {verb for verb, of in allowed if of == resource}, resource
    for pod in api.list_namespaced_pod(AGENTS, label_selector="app.kubernetes.io/name=expedited").items:
        assert "forbidden" not in api.read_namespaced_pod_log(pod.metadata.name, AGENTS)


def _may(user: str, verb: str, resource: str) -> bool:
    name, _, subresource = resource.partition("/")
    asked = ["auth", "can-i", verb, name, f"--as={user}", "--all-namespaces"]
    if subresource:
        asked.append(f"--subresource={subresource}")
    done = subprocess.run(["kubectl", *asked], capture_output=True, text=True)
    assert done.stdout.strip() in ("yes", "no"), done.stderr
    return done.stdout.strip() == "yes"
