"""The agent as the suite sees it: what it wrote of a stop."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

__all__ = ["agents", "in_log", "last_stop"]

NAMESPACE = "expedited"
LINES = 400


def agents(api: client.CoreV1Api) -> list[Any]:
    """Its pods that are ready."""
    found = api.list_namespaced_pod(NAMESPACE, label_selector="app.kubernetes.io/name=expedited").items
    return [pod for pod in found if all(each.ready for each in pod.status.container_statuses or [])]


def last_stop(
    api: client.CoreV1Api, pod: str, container: str = "hog", since_seconds: float = 0
) -> dict[str, Any] | None:
    """Its last log line since then of the stop of this container; None if none. Its times count from the SIGKILL."""
    for agent in api.list_namespaced_pod(NAMESPACE, label_selector="app.kubernetes.io/name=expedited").items:
        try:
            text = api.read_namespaced_pod_log(agent.metadata.name, NAMESPACE, tail_lines=LINES)
        except ApiException:
            continue  # its container is being started again
        if found := in_log(text, pod, container, since_seconds):
            return found
    return None


def in_log(text: str, pod: str, container: str = "hog", since_seconds: float = 0) -> dict[str, Any] | None:
    """The same in a log's text."""
    for line in reversed(text.splitlines()):
        if '"event": "stop"' not in line:
            continue
        said: dict[str, Any] = json.loads(
            line[line.index("{") :]
        )  # before it, in the node's files, the runtime's stamp
        if said["container"] == f"default/{pod}/{container}":
            # A case that is repeated has a pod of the same name
            written = datetime.fromisoformat(said["timestamp"]).timestamp()
            return said if written >= since_seconds else None
    return None
