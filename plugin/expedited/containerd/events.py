"""What happens to containers, as containerd tells it: its events, decoded.

None of them comes before a kill, and an exit is told after the reaping: they are for the inventory and for confirmation.
And containerd loses one now and then (containerd issues 13814, 13849), so a list has to be asked for every so often.
"""

from __future__ import annotations

from collections.abc import Callable
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
class _OfContainer:
    namespace: str
    container_id: str


@dataclass(frozen=True, slots=True)
class TaskStart(_OfContainer):
    """A container's init runs; ``pid`` is the host's."""

    pid: int


@dataclass(frozen=True, slots=True)
class TaskExit(_OfContainer):
    """A process of a container was reaped.

    Attributes:
        process_id: The container's own id for its init, else the id of what was exec'd into it.
    """

    process_id: str

    @property
    def is_init(self) -> bool:
        """Whether the container itself ended by it."""
        return self.process_id == self.container_id


@dataclass(frozen=True, slots=True)
class TaskPaused(_OfContainer):
    """All of a container is frozen."""


@dataclass(frozen=True, slots=True)
class TaskResumed(_OfContainer):
    """A container that was frozen runs again."""


@dataclass(frozen=True, slots=True)
class TaskDelete(_OfContainer):
    """The running side of a container was cleared away; its record stays. Not told of what was exec'd into it."""


@dataclass(frozen=True, slots=True)
class ContainerCreate(_OfContainer):
    """A container has a record, and no process yet."""


@dataclass(frozen=True, slots=True)
class ContainerDelete(_OfContainer):
    """A container's record was removed: it will not start again."""


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


# The topic on which it comes (containerd core/runtime/events.go), its type, and who reads it. containerd's type_url is the bare name of
# the message, with nothing before it (containerd/typeurl).
_KINDS: tuple[tuple[str, str, Callable[[str, bytes], Event | None]], ...] = (
    ("/tasks/start", "containerd.events.TaskStart", _start),
    ("/tasks/exit", "containerd.events.TaskExit", _exit),
    ("/tasks/paused", "containerd.events.TaskPaused", _paused),
    ("/tasks/resumed", "containerd.events.TaskResumed", _resumed),
    ("/tasks/delete", "containerd.events.TaskDelete", _delete),
    ("/containers/create", "containerd.events.ContainerCreate", _created),
    ("/containers/delete", "containerd.events.ContainerDelete", _removed),
)
_DECODERS = {type_url: decoder for _, type_url, decoder in _KINDS}

#: What to subscribe to.
TOPICS = tuple(topic for topic, _, _ in _KINDS)


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
