"""What a look at one thing came to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Area", "Finding", "Level", "works"]


class Level(Enum):
    """How good it is."""

    OK = "ok"
    #: Kills are caught and memory is reaped; something is slower, blinder or less safe than it could be.
    DEGRADED = "degraded"
    #: The main job can't work like this.
    BROKEN = "broken"
    #: It can't be told from here, or not by this user.
    UNKNOWN = "unknown"


class Area(Enum):
    """What a finding is about."""

    KERNEL = "kernel"
    CGROUPS = "cgroups"
    PROCESS = "this process"
    RUNTIME = "runtime"
    OURS = "expedited"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; each text is one line.

    Attributes:
        name: Of the thing.
        found: What is there.
        level: How good that is.
        costs: What it costs where it is missing.
        remedy: How to get it.
    """

    area: Area
    name: str
    found: str
    level: Level
    costs: str
    remedy: str


def works(findings: Iterable[Finding]) -> bool:
    """Whether the main job, catching kills and reaping, can work here."""
    return all(finding.level is not Level.BROKEN for finding in findings)
