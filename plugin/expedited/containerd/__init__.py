"""containerd's gRPC API, as far as the agent uses it: who is there, and what happens to them."""

from expedited.containerd.client import ContainerdClient, ContainerdError, NotFoundError
from expedited.containerd.events import (
    ContainerCreate,
    ContainerDelete,
    Event,
    TaskDelete,
    TaskExit,
    TaskPaused,
    TaskResumed,
    TaskStart,
)
from expedited.containerd.records import RuntimeContainer, RuntimeTask

__all__ = [
    "ContainerCreate",
    "ContainerDelete",
    "ContainerdClient",
    "ContainerdError",
    "Event",
    "NotFoundError",
    "RuntimeContainer",
    "RuntimeTask",
    "TaskDelete",
    "TaskExit",
    "TaskPaused",
    "TaskResumed",
    "TaskStart",
]
