"""The agent as the suite sees it: what it wrote of a stop."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from kubernetes import client

__all__ = ["last_stop"]

NAMESPACE = "expedited"
LINES = 200


def last_stop(
    api: client.CoreV1Api, pod: str, container: str = "hog", since_seconds: float = 0
) -> dict[str, Any] | None:
    """Its last log line since then of the stop of this container; None if none. Its times count from the SIGKILL."""
    for agent in api.list_namespaced_pod(NAMESPACE, label_selector="app.kubernetes.io/name=expedited").items:
        text = api.read_namespaced_pod_log(agent.metadata.name, NAMESPACE, tail_lines=LINES)
        for line in reversed(text.splitlines()):
            if not line.startswith("{"):
                continue
            said: dict[str, Any] = json.loads(line)
            if said.get("event") == "stop" and said["container"] == f"default/{pod}/{container}":
                # A case that is repeated has a pod of the same name
                written = datetime.fromisoformat(said["timestamp"]).timestamp()
                return said if written >= since_seconds else None
    return None
