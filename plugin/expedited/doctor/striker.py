"""The striker that is at work: what it lacks, and which kills its source can't see."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from expedited.doctor.finding import Area, Finding, Level
from expedited.doctor.knock import ANSWER_SECONDS, Door, knock, unopened
from expedited.errors import ExpeditedError
from expedited.settings import AgentSettings
from expedited.striker.link import StrikerLink
from expedited.striker.status import StrikerStatus

__all__ = ["look"]


@dataclass(frozen=True, slots=True)
class _Without:
    """What it costs to go without something, and how to get it."""

    costs: str
    remedy: str


_A_STRIKER = _Without(
    "nothing is gated and nothing is struck: kills go the runtime's way",
    "expedited run starts it and keeps it up; alone, python -m expedited.striker; what it lacks is listed above",
)
_AN_ANSWER = _Without(
    "it can't be told whether anything is gated and struck",
    "its lines in the agent's log; end it, and expedited run starts another",
)
_A_LOOK = _Without("it can't be told whether anything is gated and struck", "ask as root")
_THE_GATE = _Without(
    "strikes only follow the runtime's kill, and what was over at once is missed",
    "source: auto or gate in the configuration, and what fanotify above lacks",
)
_PRIORITY = _Without(
    "on a busy node its loop and its reapers queue for a CPU behind the load: memory comes back later",
    "what real-time above lacks: mostly CAP_SYS_NICE",
)
_LOCKED_MEMORY = _Without(
    "under memory pressure a strike waits for its own pages to be read back",
    "what memory lock above lacks: CAP_IPC_LOCK, or a larger RLIMIT_MEMLOCK",
)

# docs/decisions/0010-observer.md and 0011-oom.md. Version 1 rings for a cgroup's own limit and those above it alone; version 2 counts
# in the victim's cgroup whatever made the kernel kill.
_UNSEEN = (
    "a SIGKILL that no runtime command sends (kill -9, an exec'd process's, cgroup.kill); an OOM kill in a container's"
    " first second, or, on cgroup version 1, for the node's own lack of memory"
)
_UNSEEN_BY_THE_OBSERVER = (
    "a runtime's kill that was over before it could be followed, or that was among events which the kernel dropped"
)


def look(settings: AgentSettings) -> Iterator[Finding]:
    """Whether there is one and how it is; and its source."""
    path = settings.striker_socket
    door = knock(path, socket.SOCK_SEQPACKET).door
    status = None
    if door is Door.OPEN:
        try:
            with StrikerLink.connect(path) as link:
                status = link.status(timeout_seconds=ANSWER_SECONDS)
        except (ExpeditedError, ValueError) as error:
            yield _striker(str(error), Level.DEGRADED, _AN_ANSWER)
        else:
            yield _at_work(status)
    else:
        found, level = unopened(path, door)
        without = {Door.CLOSED: _A_LOOK, Door.BUSY: _AN_ANSWER}.get(door, _A_STRIKER)
        yield _striker(found, level, without)
    yield _source(status, settings.source)


def _at_work(status: StrikerStatus) -> Finding:
    needs = ((status.holds, _THE_GATE), (status.realtime, _PRIORITY), (status.memory_locked, _LOCKED_MEMORY))
    lacks = [without for has, without in needs if not has]
    return _striker(_describe(status), Level.DEGRADED if lacks else Level.OK, *lacks or [_A_STRIKER])


def _striker(found: str, level: Level, *lacks: _Without) -> Finding:
    costs, remedy = "; ".join(lack.costs for lack in lacks), "; ".join(lack.remedy for lack in lacks)
    return Finding(Area.OURS, "striker", found, level, costs, remedy)


def _describe(status: StrikerStatus) -> str:
    return ", ".join(
        (
            f"pid {status.pid}, by {status.source}",
            f"{status.gated_count} gated",
            f"kernel {status.kernel}",
            "real-time" if status.realtime else "not real-time",
            "memory locked" if status.memory_locked else "memory not locked",
            f"{status.overruns} over budget, events lost {status.lost} times, {status.restarts} restarts",
        )
    )


def _source(status: StrikerStatus | None, configured: str) -> Finding:
    unseen = "kills by no runtime command, OOM kills within a container's first second"
    costs = f"not seen, and so not struck: {_UNSEEN}"
    remedy = "for what no runtime command kills, expedited kill in place of kill -9; for the rest there is none"
    if status is None:
        found, level = f"none in use, as no striker answers; configured: {configured}", Level.UNKNOWN
    elif status.holds:
        found, level = f"{status.source}, the kill gate; it can't see {unseen}", Level.OK
    else:
        found = f"{status.source}, the observer; it can't see what was over at once, {unseen}"
        level, remedy = Level.DEGRADED, _THE_GATE.remedy
        costs = f"not seen, and so not struck: {_UNSEEN_BY_THE_OBSERVER}; as with the gate, {_UNSEEN}"
    return Finding(Area.OURS, "source", found, level, costs, remedy)
