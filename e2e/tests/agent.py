"""The agent as the suite sees it: what it wrote of a stop."""

from __future__ import annotations

import json
from typing import Any

from kubernetes import client

__all__ = ["last_stop"]

NAMESPACE = "expedited"
LINES = 200


def last_stop(api: client.CoreV1Api, pod: str, container: str = "hog") -> dict[str, Any] | None:
    """Its last log line of the stop of this container; None if it wrote none. Its times count from the SIGKILL."""
    for agent in api.list_namespaced_pod(NAMESPACE, label_selector="app.kubernetes.io/name=expedited").items:
        text = api.read_namespaced_pod_log(agent.metadata.name, NAMESPACE, tail_lines=LINES)
        for line in reversed(text.splitlines()):
            if not line.startswith("{"):
                continue
            said: dict[str, Any] = json.loads(line)
            if said.get("event") == "stop" and said["container"] == f"default/{pod}/{container}":
                return said
    return None
