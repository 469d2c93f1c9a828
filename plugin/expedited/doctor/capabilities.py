"""Which capabilities and namespaces this process has, of those that the agent needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expedited.doctor.finding import Area, Finding, Level
from expedited.striker import cgroup_namespace

__all__ = ["CAP_SYS_ADMIN", "CAP_SYS_NICE", "effective", "look"]

# include/uapi/linux/capability.h
CAP_DAC_OVERRIDE = 1
CAP_KILL = 5
CAP_IPC_LOCK = 14
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24

# include/linux/proc_ns.h: the inodes of the namespaces that the machine booted with
_FIRST_USER_NAMESPACE = 0xEFFFFFFD
_FIRST_PID_NAMESPACE = 0xEFFFFFFC

# What runs containers, by the name that /proc/PID/comm has (15 characters)
_RUNTIMES = ("containerd", "containerd-shim", "dockerd", "crio", "conmon", "podman")


@dataclass(frozen=True, slots=True)
class _Need:
    """A capability, and how it goes without."""

    number: int
    name: str
    without: Level
    costs: str


# Not among them: DAC_READ_SEARCH, as command lines, sizes and start times in /proc are everybody's to read, state files come open
# with the event, and what else is read is root's; and SYS_PTRACE, which is wanted for process 1's namespaces alone: see there.
_NEEDS = (
    _Need(
        CAP_SYS_ADMIN,
        "SYS_ADMIN",
        Level.DEGRADED,
        "no fanotify permission events, so no kill gate: strikes follow the runtime's own kill, if process events tell of it",
    ),
    _Need(
        CAP_KILL,
        "KILL",
        Level.DEGRADED,
        "only root's processes can be signalled: for all others the strike can only follow the runtime's own kill",
    ),
    _Need(
        CAP_SYS_NICE,
        "SYS_NICE",
        Level.DEGRADED,
        "no real-time priority: on a busy node gate and reapers queue for a CPU",
    ),
    _Need(
        CAP_IPC_LOCK,
        "IPC_LOCK",
        Level.DEGRADED,
        "memory is not locked: under pressure a strike waits for its own pages",
    ),
    _Need(
        CAP_SYS_RESOURCE,
        "SYS_RESOURCE",
        Level.DEGRADED,
        "oom_score_adj can't be lowered: the OOM killer may take the striker first",
    ),
)
_FOR_ORDINARY_USERS = _Need(
    CAP_DAC_OVERRIDE, "DAC_OVERRIDE", Level.BROKEN, "the runtimes' state and the cgroups are root's: none can be read"
)


def effective() -> int:
    """The effective set of this process, a bit each (proc_pid_status(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def look() -> Iterator[Finding]:
    """One finding a capability, and where this process stands in the namespaces."""
    mine = effective()
    needs = _NEEDS if os.geteuid() == 0 else (*_NEEDS, _FOR_ORDINARY_USERS)
    for need in needs:
        have = bool(mine >> need.number & 1)
        yield Finding(
            Area.PROCESS,
            f"CAP_{need.name}",
            "there" if have else "missing" if os.geteuid() == 0 else f"missing: this is user {os.geteuid()}",
            Level.OK if have else need.without,
            need.costs,
            f"run as root; in a pod, securityContext.capabilities.add: [{need.name}]",
        )
    yield _user_namespace()
    yield _pid_namespace()
    yield _cgroup_namespace()


def _user_namespace() -> Finding:
    first = _inode("user") == _FIRST_USER_NAMESPACE
    return Finding(
        Area.PROCESS,
        "user namespace",
        "the machine's own" if first else "one of its own: capabilities count for less in it",
        Level.OK if first else Level.BROKEN,
        "CAP_SYS_ADMIN does not count outside the first one: no fanotify permission events, no kill gate",
        "run outside rootless containers; in a pod, leave hostUsers at true",
    )


def _pid_namespace() -> Finding:
    if _inode("pid") == _FIRST_PID_NAMESPACE:
        found, level = "the machine's own", Level.OK
    else:
        # A node may itself be a container (kind): then the runtime must be in sight from here.
        runtime = _visible_runtime()
        found = f"not the machine's, but {runtime} is in it" if runtime else "a container's: no runtime is in sight"
        level = Level.OK if runtime else Level.BROKEN
    return Finding(
        Area.PROCESS,
        "pid namespace",
        found,
        level,
        "a runtime command is held and can't be read, as its process has no number here: nothing is struck",
        "in a pod, hostPID: true",
    )


def _cgroup_namespace() -> Finding:
    found, level = "the machine's own", Level.OK
    if _inode("cgroup") != cgroup_namespace.FIRST:
        ones = Path("/proc/1/ns/cgroup")
        try:
            ones.open("rb").close()
            found = (
                "process 1's" if ones.samefile("/proc/self/ns/cgroup") else "its own: the striker goes to process 1's"
            )
        except OSError as problem:
            found, level = f"not the machine's, and not known whose: {ones}: {problem.strerror}", Level.DEGRADED
    return Finding(
        Area.PROCESS,
        "cgroup namespace",
        found,
        level,
        "in one of our own other containers' cgroups can't be found by their processes, nor our own container's id",
        "run as root; in a pod, securityContext.capabilities.add: [SYS_PTRACE]",
    )


def _visible_runtime() -> str:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
        except OSError:
            continue  # it ended meanwhile
        if name.startswith(_RUNTIMES):
            return f"{name} ({process.name})"
    return ""


def _inode(kind: str) -> int:
    return Path(f"/proc/self/ns/{kind}").stat().st_ino
