"""What happens to containers, as containerd tells it: its events, decoded.

None of them comes before a kill, and an exit is told after the reaping: they are for the inventory and for confirmation.
And containerd loses one now and then (containerd issues 13814, 13849), so a list has to be asked for every so often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from expedited.pb.containerd.events import container_pb2, task_pb2
from expedited.pb.containerd.types import event_pb2

__all__ = [
    "TOPICS",
    "ContainerCreate",
    "ContainerDelete",
    "Event",
    "TaskDelete",
    "TaskExit",
    "TaskPaused",
    "TaskResumed",
    "TaskStart",
    "decode",
]


@dataclass(frozen=True, slots=True)
class TaskStart:
    """A container's init runs; ``pid`` is the host's."""

    namespace: str
    container_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class TaskExit:
    """A process of a container was reaped.

    Attributes:
        process_id: The container's own id for its init, else the id of what was exec'd into it.
    """

    namespace: str
    container_id: str
    process_id: str

    @property
    def is_init(self) -> bool:
        """Whether the container itself ended by it."""
        return self.process_id == self.container_id


@dataclass(frozen=True, slots=True)
class TaskPaused:
    """All of a container is frozen."""

    namespace: str
    container_id: str


@dataclass(frozen=True, slots=True)
class TaskResumed:
    """A container that was frozen runs again."""

    namespace: str
    container_id: str


@dataclass(frozen=True, slots=True)
class TaskDelete:
    """The running side of a container was cleared away; its record stays. Not told of what was exec'd into it."""

    namespace: str
    container_id: str


@dataclass(frozen=True, slots=True)
class ContainerCreate:
    """A container has a record, and no process yet."""

    namespace: str
    container_id: str


@dataclass(frozen=True, slots=True)
class ContainerDelete:
    """A container's record was removed: it will not start again."""

    namespace: str
    container_id: str


Event = TaskStart | TaskExit | TaskPaused | TaskResumed | TaskDelete | ContainerCreate | ContainerDelete


def _start(namespace: str, value: bytes) -> Event:
    said = task_pb2.TaskStart.FromString(value)
    return TaskStart(namespace, said.container_id, said.pid)


def _exit(namespace: str, value: bytes) -> Event:
    said = task_pb2.TaskExit.FromString(value)
    return TaskExit(namespace, said.container_id, said.id or said.container_id)


def _paused(namespace: str, value: bytes) -> Event:
    return TaskPaused(namespace, task_pb2.TaskPaused.FromString(value).container_id)


def _resumed(namespace: str, value: bytes) -> Event:
    return TaskResumed(namespace, task_pb2.TaskResumed.FromString(value).container_id)


def _delete(namespace: str, value: bytes) -> Event | None:
    said = task_pb2.TaskDelete.FromString(value)
    if said.id not in ("", said.container_id):
        return None
    return TaskDelete(namespace, said.container_id)


def _created(namespace: str, value: bytes) -> Event:
    return ContainerCreate(namespace, container_pb2.ContainerCreate.FromString(value).id)


def _removed(namespace: str, value: bytes) -> Event:
    return ContainerDelete(namespace, container_pb2.ContainerDelete.FromString(value).id)


# By type: containerd's type_url is the bare name of the message, with nothing before it (containerd/typeurl).
_DECODERS: Mapping[str, Callable[[str, bytes], Event | None]] = {
    "containerd.events.TaskStart": _start,
    "containerd.events.TaskExit": _exit,
    "containerd.events.TaskPaused": _paused,
    "containerd.events.TaskResumed": _resumed,
    "containerd.events.TaskDelete": _delete,
    "containerd.events.ContainerCreate": _created,
    "containerd.events.ContainerDelete": _removed,
}

#: The topics on which these come (containerd core/runtime/events.go).
TOPICS = (
    "/tasks/start",
    "/tasks/exit",
    "/tasks/paused",
    "/tasks/resumed",
    "/tasks/delete",
    "/containers/create",
    "/containers/delete",
)


def decode(envelope: event_pb2.Envelope) -> Event | None:
    """The event in an envelope; None for one that is not ours to know.

    Raises:
        ValueError: it is no event of the type that it says.
    """
    decoder = _DECODERS.get(envelope.event.type_url)
    if decoder is None:
        return None
    try:
        return decoder(envelope.namespace, envelope.event.value)
    except DecodeError as problem:
        raise ValueError(f"containerd's event on {envelope.topic} can't be read: {problem}") from problem
