"""Pods as the suite makes them, and waiting for what becomes of them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

__all__ = ["NAMESPACE", "Pods", "hog_pod", "kubectl", "template", "wait_for"]

NAMESPACE = "default"
HOG = "expedited.local/hog:1"


def hog_pod(
    name: str,
    *arguments: str,
    mode: str | None = None,
    requests: Mapping[str, str] | None = None,
    limits: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A pod with one container that holds memory or burns CPU, see hog.c; ``spec`` is the pod's."""
    annotations = {"expedited.io/mode": mode} if mode else {}
    container = {
        "name": "hog",
        "image": HOG,
        "imagePullPolicy": "Never",
        "args": list(arguments),
        "resources": {"requests": dict(requests or {}), "limits": dict(limits or {})},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations, "labels": dict(labels or {})},
        "spec": {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container], **spec},
    }


def template(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a controller, which names its pods itself."""
    metadata = {key: value for key, value in pod["metadata"].items() if key != "name"}
    return {"metadata": metadata, "spec": pod["spec"]}


def kubectl(*arguments: str) -> str:
    """What it prints."""
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    """The first true value of the condition; fails with ``what`` if none comes.

    Most conditions ask the API server, which shares the node's one CPU: one that it doesn't answer is asked again.
    """
    deadline = time.monotonic() + seconds
    while True:
        trouble = ""
        try:
            if value := condition():
                return value
        except HTTPError as problem:
            trouble = f" ({problem})"
        except ApiException as problem:
            if problem.status < 500:
                raise
            trouble = f" ({problem.reason})"
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}{trouble}")
        time.sleep(0.5)


class Pods:
    """The API server's pods in one namespace; removes at the end what it made."""

    def __init__(self, api: client.CoreV1Api) -> None:
        self.api = api
        self._made: list[str] = []
        self._undo = ExitStack()

    def make(self, pod: dict[str, Any]) -> str:
        """Create it; returns its uid."""
        name = pod["metadata"]["name"]
        self._made.append(name)
        wait_for("the namespace's service account", lambda: self._service_account())
        return str(self.api.create_namespaced_pod(NAMESPACE, pod).metadata.uid)

    def afterwards(self, undo: Callable[[], object]) -> None:
        """Something else to be done in the end, before the pods are deleted; the last first."""
        self._undo.callback(undo)

    def of(self, **labels: str) -> list[Any]:
        """The pods with these labels that are not being deleted."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        pods = self.api.list_namespaced_pod(NAMESPACE, label_selector=selector).items
        return [pod for pod in pods if pod.metadata.deletion_timestamp is None]

    def ready(self, *names: str, seconds: float = 180) -> None:
        """Wait until each has written READY, which a hog does when all that it is to have is there."""
        for name in names:
            wait_for(f"pod {name} is ready ({self.get(name)})", lambda name=name: "READY" in self.log(name), seconds)

    def log(self, name: str, container: str | None = None) -> str:
        """What it, or one of its containers, has written so far; nothing if it has not started."""
        try:
            return str(self.api.read_namespaced_pod_log(name, NAMESPACE, container=container))
        except ApiException:
            return ""

    def get(self, name: str) -> Any:
        """The pod, or None if the API server has it no more."""
        try:
            return self.api.read_namespaced_pod(name, NAMESPACE)
        except ApiException as answer:
            if answer.status == 404:
                return None
            raise

    def delete(self, name: str, grace_seconds: int | None = None) -> None:
        """Ask for its deletion."""
        self.api.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=grace_seconds)

    def evicted(self) -> list[str]:
        """Names of the pods that kubelet has evicted."""
        pods = self.api.list_namespaced_pod(NAMESPACE).items
        return [pod.metadata.name for pod in pods if pod.status.reason == "Evicted"]

    def clean_up(self) -> None:
        """Undo and delete what was made, and wait until it is gone."""
        self._undo.close()
        for name in self._made:
            wait_for(f"pod {name} can be deleted", lambda name=name: self._deleted(name))
        for name in self._made:
            wait_for(f"pod {name} is gone", lambda name=name: self.get(name) is None)

    def _deleted(self, name: str) -> bool:
        try:
            self.delete(name, 0)
        except ApiException as answer:
            if answer.status != 404:
                raise
        return True

    def _service_account(self) -> bool:
        try:
            return bool(self.api.read_namespaced_service_account("default", NAMESPACE))
        except ApiException:
            return False
