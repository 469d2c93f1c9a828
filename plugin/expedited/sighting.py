"""One container: what a source tells of it, how two such words become one, and what the agent makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum

from expedited.errors import UsageError
from expedited.teardown.cgroup import Cgroup, CgroupGone
from expedited.teardown.policy import Policy

__all__ = ["Container", "Sighting", "Source", "State", "merge"]


class State(StrEnum):
    """What a container is doing."""

    UNKNOWN = "unknown"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Source(StrEnum):
    """Who told of a container."""

    NRI = "nri"
    CONTAINERD = "containerd"
    STRIKER = "striker"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one source knows of one container; a field that it does not know stays as it is here.

    Attributes:
        id: The runtime's id.
        runtime_namespace: containerd's namespace: k8s.io, default, moby.
        name: In its pod.
        sandbox_id: The pod's sandbox; a sandbox's own id for itself.
        sandbox: Whether it is the pod's sandbox (pause) itself.
        pid: Its init, in the host's pid namespace.
        annotations: The pod's; where there is no pod, its own.
    """

    id: str
    runtime_namespace: str = ""
    name: str = ""
    pod_uid: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    sandbox_id: str = ""
    sandbox: bool | None = None
    pid: int = 0
    state: State = State.UNKNOWN
    annotations: Mapping[str, str] | None = None

    @property
    def group(self) -> str:
        """What the containers of one pod have in common, as far as it is known."""
        return self.pod_uid or self.sandbox_id or self.id


@dataclass(frozen=True, slots=True)
class Container:
    """One container, as all sources together know it, with the policy that holds for it.

    Attributes:
        seen: Everything that was told of it; ``seen.annotations`` has its pod's that are meant for the agent.
        policy: The node's default, else its namespace's, with the pod's annotations over it.
        problems: What is wrong with the pod's annotations, a line each; then ``policy.mode`` is off.
        sources: Who knows it, and when each last told (monotonic seconds).
        stopping_since: When SIGTERM was sent to it, or SIGKILL without one before, in seconds since the epoch; None when
            no stop is in progress.
    """

    seen: Sighting
    policy: Policy
    problems: tuple[str, ...]
    sources: Mapping[Source, float] = field(repr=False)
    stopping_since: float | None = None

    @property
    def id(self) -> str:
        """The runtime's id."""
        return self.seen.id

    @property
    def sandbox(self) -> bool:
        """Whether it is a pod's sandbox."""
        return bool(self.seen.sandbox)

    @property
    def gated(self) -> bool:
        """Whether the striker says that a kill of it passes the gate."""
        return Source.STRIKER in self.sources

    @property
    def pod(self) -> str:
        """``NAMESPACE/NAME`` of its pod; empty without one."""
        return f"{self.seen.pod_namespace}/{self.seen.pod_name}" if self.seen.pod_name else ""

    @property
    def label(self) -> str:
        """How to name it to a person."""
        return "/".join(part for part in (self.pod, self.seen.name) if part) or self.id

    def find_cgroup(self) -> Cgroup | None:
        """Its cgroup, by its init process; None where that is gone, or not known."""
        try:
            return Cgroup.of_process(self.seen.pid) if self.seen.pid else None
        except (CgroupGone, UsageError):
            return None


_UNKNOWN: Mapping[str, object] = {spec.name: spec.default for spec in fields(Sighting) if spec.name != "id"}


def merge(before: Sighting, news: Sighting, *, newer: bool) -> Sighting:
    """What is known once ``news`` is: it fills gaps, and where it is the newer of the two it wins.

    A container that stopped has no process, which is then no gap to be filled from an older word.
    """
    told = {name: getattr(news, name) for name, nothing in _UNKNOWN.items() if getattr(news, name) != nothing}
    if not newer:
        told = {name: value for name, value in told.items() if getattr(before, name) == _UNKNOWN[name]}
        if before.state is State.STOPPED:
            told.pop("pid", None)
    if told.get("state") is State.STOPPED:
        told["pid"] = 0
    return replace(before, **told)
