"""What NRI tells of pods and containers, as the agent reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from expedited.pb.nri import api_pb2

__all__ = ["ContainerState", "NriContainer", "NriPod", "read_container", "read_pod"]


class ContainerState(StrEnum):
    """What a container is doing."""

    UNKNOWN = "unknown"
    CREATED = "created"
    PAUSED = "paused"
    RUNNING = "running"
    STOPPED = "stopped"


_STATES = {
    api_pb2.CONTAINER_CREATED: ContainerState.CREATED,
    api_pb2.CONTAINER_PAUSED: ContainerState.PAUSED,
    api_pb2.CONTAINER_RUNNING: ContainerState.RUNNING,
    api_pb2.CONTAINER_STOPPED: ContainerState.STOPPED,
}


@dataclass(frozen=True, slots=True)
class NriPod:
    """A pod's sandbox.

    Attributes:
        id: The sandbox's, in the runtime.
        uid: Kubernetes'.
        cgroup_parent: Cgroup path or slice that the pod's containers are put below; empty where the runtime does not say.
        pid: The sandbox's own process, in the host's pid namespace; 0 where there is none, or the runtime does not say.
    """

    id: str
    name: str
    uid: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    cgroup_parent: str
    pid: int


@dataclass(frozen=True, slots=True)
class NriContainer:
    """A container of a pod.

    Attributes:
        pod_id: Its sandbox's.
        pid: Its init, in the host's pid namespace; known from START on, and 0 once it has ended.
        cgroups_path: As the OCI specification has it: a path, or with the systemd driver SLICE:PREFIX:NAME.
    """

    id: str
    pod_id: str
    name: str
    state: ContainerState
    pid: int
    cgroups_path: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def read_pod(said: api_pb2.PodSandbox) -> NriPod:
    """From the wire's form."""
    return NriPod(
        id=said.id,
        name=said.name,
        uid=said.uid,
        namespace=said.namespace,
        labels=dict(said.labels),
        annotations=dict(said.annotations),
        cgroup_parent=said.linux.cgroup_parent,
        pid=said.pid,
    )


def read_container(said: api_pb2.Container) -> NriContainer:
    """From the wire's form; a state that came after this was written reads as unknown."""
    return NriContainer(
        id=said.id,
        pod_id=said.pod_sandbox_id,
        name=said.name,
        state=_STATES.get(said.state, ContainerState.UNKNOWN),
        pid=said.pid,
        cgroups_path=said.linux.cgroups_path,
        labels=dict(said.labels),
        annotations=dict(said.annotations),
    )
