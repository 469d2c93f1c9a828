"""What NRI tells of pods and containers, as the agent reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from expedited.pb.nri import api_pb2
from expedited.sighting import State

__all__ = ["NriContainer", "NriPod", "read_container", "read_pod"]

_STATES = {
    api_pb2.CONTAINER_CREATED: State.CREATED,
    api_pb2.CONTAINER_PAUSED: State.PAUSED,
    api_pb2.CONTAINER_RUNNING: State.RUNNING,
    api_pb2.CONTAINER_STOPPED: State.STOPPED,
}


@dataclass(frozen=True, slots=True)
class NriPod:
    """A pod's sandbox.

    Attributes:
        id: The sandbox's, in the runtime.
        uid: Kubernetes'.
        pid: The sandbox's own process, in the host's pid namespace; 0 where there is none, or the runtime does not say.
    """

    id: str
    name: str
    uid: str
    namespace: str
    annotations: Mapping[str, str]
    pid: int


@dataclass(frozen=True, slots=True)
class NriContainer:
    """A container of a pod.

    Attributes:
        pod_id: Its sandbox's.
        pid: Its init, in the host's pid namespace; known from START on, and 0 once it has ended.
    """

    id: str
    pod_id: str
    name: str
    state: State
    pid: int


def read_pod(said: api_pb2.PodSandbox) -> NriPod:
    """From the wire's form."""
    return NriPod(
        id=said.id,
        name=said.name,
        uid=said.uid,
        namespace=said.namespace,
        annotations=dict(said.annotations),
        pid=said.pid,
    )


def read_container(said: api_pb2.Container) -> NriContainer:
    """From the wire's form; a state that came after this was written reads as unknown."""
    return NriContainer(
        id=said.id,
        pod_id=said.pod_sandbox_id,
        name=said.name,
        state=_STATES.get(said.state, State.UNKNOWN),
        pid=said.pid,
    )
