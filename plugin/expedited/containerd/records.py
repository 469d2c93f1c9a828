"""A container as containerd has it on record, and what of that the inventory wants to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expedited.pb.containerd.services.containers.v1 import containers_pb2
from expedited.pb.containerd.types.task import task_pb2
from expedited.sighting import Sighting, State

__all__ = ["RuntimeContainer", "RuntimeTask", "read_container", "read_task"]

# Kubernetes' labels, that kubelet gives to every container (kubernetes pkg/kubelet/types/labels.go), and the annotations
# with which containerd's CRI says the same in the OCI spec, labels or not (containerd internal/cri/annotations).
_POD_NAME = ("io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name")
_POD_NAMESPACE = ("io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace")
_POD_UID = ("io.kubernetes.pod.uid", "io.kubernetes.cri.sandbox-uid")
_NAME = ("io.kubernetes.container.name", "io.kubernetes.cri.container-name")
_SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
_KIND = ("io.cri-containerd.kind", "io.kubernetes.cri.container-type")
# Where containerd's CRI keeps what kubelet said about the pod (containerd internal/cri/labels).
_SANDBOX_METADATA = "io.cri-containerd.sandbox.metadata"

_STATES = {
    task_pb2.CREATED: State.CREATED,
    task_pb2.RUNNING: State.RUNNING,
    task_pb2.STOPPED: State.STOPPED,
    task_pb2.PAUSED: State.PAUSED,
    task_pb2.PAUSING: State.RUNNING,  # not all of it is frozen yet
}


@dataclass(frozen=True, slots=True)
class RuntimeTask:
    """The running side of a container; ``pid`` is its init's, 0 once that is gone."""

    container_id: str
    pid: int
    state: State


@dataclass(frozen=True, slots=True)
class RuntimeContainer:
    """A container's record, running or not.

    Attributes:
        sandbox: Whether it is a pod's sandbox (pause) and not one of its containers.
        sandbox_id: Its pod's sandbox: itself, for a sandbox; empty outside of Kubernetes.
        container_name: In its pod.
        annotations: The pod's, known from its sandbox alone; outside of Kubernetes the container's own; None where
            the record does not say.
    """

    id: str
    namespace: str
    sandbox: bool
    sandbox_id: str
    pod_name: str
    pod_namespace: str
    pod_uid: str
    container_name: str
    annotations: Mapping[str, str] | None

    def sighting(self, task: RuntimeTask | None = None) -> Sighting:
        """What the inventory takes in; without a ``task`` it does not run."""
        return Sighting(
            id=self.id,
            runtime_namespace=self.namespace,
            name=self.container_name,
            pod_uid=self.pod_uid,
            pod_namespace=self.pod_namespace,
            pod_name=self.pod_name,
            sandbox_id=self.sandbox_id,
            sandbox=self.sandbox,
            pid=task.pid if task else 0,
            state=task.state if task else State.STOPPED,
            annotations=self.annotations,
        )


def read_container(record: containers_pb2.Container, namespace: str) -> RuntimeContainer:
    """The record that came over the wire; what of its JSON can't be understood is taken to say nothing."""
    said: Mapping[str, str] = _mapping(_json(record.spec.value), "annotations")
    labels = dict(record.labels)

    def either(keys: tuple[str, str]) -> str:
        return labels.get(keys[0]) or said.get(keys[1], "")

    sandbox = either(_KIND) == "sandbox"
    sandbox_id = record.id if sandbox else record.sandbox or said.get(_SANDBOX_ID, "")
    annotations: Mapping[str, str] | None = None
    if sandbox:
        metadata = _json(record.extensions[_SANDBOX_METADATA].value) if _SANDBOX_METADATA in record.extensions else {}
        config = _mapping(_mapping(metadata, "Metadata"), "Config")
        annotations = _mapping(config, "annotations") if config else None
    elif not sandbox_id:
        annotations = said
    return RuntimeContainer(
        id=record.id,
        namespace=namespace,
        sandbox=sandbox,
        sandbox_id=sandbox_id,
        pod_name=either(_POD_NAME),
        pod_namespace=either(_POD_NAMESPACE),
        pod_uid=either(_POD_UID),
        container_name=either(_NAME),
        annotations=annotations,
    )


def read_task(process: task_pb2.Process) -> RuntimeTask:
    """The task that came over the wire; containerd names its container in ``id`` or ``container_id``, or in both."""
    state = _STATES.get(process.status, State.UNKNOWN)
    pid = 0 if state is State.STOPPED else process.pid
    return RuntimeTask(process.container_id or process.id, pid, state)


def _json(value: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(value) if value else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}
