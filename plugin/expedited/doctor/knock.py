"""Whether anybody listens at a unix socket."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from expedited.doctor.finding import Level
from expedited.striker.link import peer

__all__ = ["ANSWER_SECONDS", "Door", "Knock", "knock", "unopened"]

#: How long anybody has to answer: the whole examination is to take less than three seconds, whatever hangs.
ANSWER_SECONDS = 2.0


class Door(Enum):
    """What is at a path, as a person would say it."""

    OPEN = "listening"
    ABSENT = "not there"
    NOT_A_SOCKET = "not a socket"
    DESERTED = "there, and nobody listens"
    BUSY = "there, and whoever listens does not answer"
    CLOSED = "closed to this user"


@dataclass(frozen=True, slots=True)
class Knock:
    """What came of it; ``pid`` is who listens, or 0 where that can't be told."""

    door: Door
    pid: int = 0


def knock(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Knock:
    """Connect and hang up."""
    try:
        if not Path(path).is_socket():
            # is_socket() takes a broken link and a missing directory for "no"
            return Knock(Door.NOT_A_SOCKET if Path(path).exists() else Door.ABSENT)
        with socket.socket(socket.AF_UNIX, kind) as visitor:
            visitor.settimeout(ANSWER_SECONDS)
            visitor.connect(path)
            return Knock(Door.OPEN, peer(visitor).pid)
    except PermissionError:
        return Knock(Door.CLOSED)
    except ConnectionRefusedError:
        return Knock(Door.DESERTED)
    except (TimeoutError, BlockingIOError):
        return Knock(Door.BUSY)  # its queue of connections is full
    except OSError:
        return Knock(Door.NOT_A_SOCKET)  # EPROTOTYPE: a socket, but of another kind; or a path too long for one


def unopened(path: str, door: Door) -> tuple[str, Level]:
    """What is found, and how good it is, where nobody of ours came to the door."""
    return f"{path}: {door.value}", Level.UNKNOWN if door is Door.CLOSED else Level.DEGRADED
