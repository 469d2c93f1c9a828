"""Pods and containers as they are asked for, and as the runtime has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from expedited.pb.cri import api_pb2 as api

__all__ = ["ContainerSpec", "ContainerState", "ExecResult", "Mount", "Pod", "PodSpec"]


@dataclass(frozen=True, slots=True)
class PodSpec:
    """A pod to run.

    Attributes:
        cgroup_parent: Absolute cgroup path; empty: the client's own default.
        host_pid: In the host's pid namespace; ``share_pid``: all its containers in one.
    """

    name: str = "pod"
    namespace: str = "expedited"
    cgroup_parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    host_pid: bool = False
    share_pid: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the host in a container."""

    host_path: Path
    container_path: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container to make; a CPU or memory value of 0 sets no limit.

    Attributes:
        command: What to run, with its arguments, in place of the image's own.
    """

    image: str
    command: tuple[str, ...] = ()
    name: str = "main"
    cpu_shares: int = 0
    cpu_quota_us: int = 0
    cpu_period_us: int = 100_000
    cpuset_cpus: str = ""
    memory_limit_bytes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that runs.

    Attributes:
        config: What it was made of: CreateContainer wants it again.
    """

    id: str
    uid: str
    cgroup_parent: str
    config: api.PodSandboxConfig


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What the runtime says of a container; ``state`` is created, running, exited or unknown."""

    id: str
    state: str
    exit_code: int
    reason: str
    message: str
    pid: int
    log_path: Path


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command in a container came to."""

    exit_code: int
    stdout: bytes
    stderr: bytes
