"""What a runtime's command line asks for: runc, crun and youki alike (`[flags] kill [flags] ID [SIGNAL]`).

Strict on purpose. Only a program that is being run as a runtime's `kill` or `delete --force`, on the very container whose
state file it opens, is a kill; an editor, a backup or a `grep kill` that happens to open the file is not.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Command", "Verb", "parse", "root_of"]

# Flags before the subcommand whose value is a word of its own (runc(8), crun(1), youki); `--flag=value` needs no table.
_FLAGS_WITH_VALUE = frozenset(
    (b"--root", b"-r", b"--log", b"-l", b"--log-format", b"--log-level", b"--criu", b"--rootless", b"--cgroup-manager")
)
_DELETE_OR_KILL = (b"\0kill\0", b"\0delete\0")


class Verb(StrEnum):
    """The two subcommands that can end a container."""

    KILL = "kill"
    DELETE = "delete"


class Command(NamedTuple):
    """A `kill`, or a `delete --force`.

    ``signal`` is what is sent to the container; ``pattern`` says that the id is a regular expression (crun --regex).
    """

    verb: Verb
    container_id: str
    signal: int
    pattern: bool

    def ends(self, directory: str) -> bool:
        """Whether it is meant for the container with this state directory's name."""
        return self.pattern or self.container_id == directory


def parse(cmdline: bytes) -> Command | None:
    """Read /proc/PID/cmdline.

    Returns:
        The command; None for everything that sends no signal, and for what is no runtime's command line.
    """
    # The quick way out for create, start, exec, state and the like: most of what passes the gate.
    if not (_DELETE_OR_KILL[0] in cmdline or _DELETE_OR_KILL[1] in cmdline):
        return None
    words = cmdline.rstrip(b"\0").split(b"\0")
    at = 1
    while at < len(words) and words[at].startswith(b"-"):
        at += 2 if words[at] in _FLAGS_WITH_VALUE else 1
    if at >= len(words) or words[at] not in (b"kill", b"delete"):
        return None
    verb = Verb(words[at].decode())
    flags = [word for word in words[at + 1 :] if word.startswith(b"-")]
    operands = [word for word in words[at + 1 :] if not word.startswith(b"-")]
    pattern = b"--regex" in flags or b"-r" in flags
    if not operands or len(operands) > 2:
        return None
    container_id = operands[0].decode(errors="replace")
    if verb is Verb.DELETE:
        forced = len(operands) == 1 and (b"-f" in flags or b"--force" in flags or b"--force=true" in flags)
        return Command(verb, container_id, signal.SIGKILL, pattern) if forced else None
    number = _signal_number(operands[1]) if len(operands) == 2 else int(signal.SIGTERM)
    return Command(verb, container_id, number, pattern) if number else None


def root_of(cmdline: bytes) -> str:
    """Where a runtime keeps its containers, by its command line: what ``--root`` names, else its own default (runc(8), crun(1))."""
    words = cmdline.rstrip(b"\0").split(b"\0")
    at = 1
    while at < len(words) and words[at].startswith(b"-"):
        flag, equals, value = words[at].partition(b"=")
        if flag in (b"--root", b"-r"):
            return os.fsdecode(value if equals else b"".join(words[at + 1 : at + 2]))
        at += 2 if words[at] in _FLAGS_WITH_VALUE else 1
    return f"/run/{os.path.basename(os.fsdecode(words[0]))}"


def _signal_number(word: bytes) -> int:
    """``9``, ``KILL``, ``SIGKILL``, in any case of letters; 0 for what is no signal."""
    if word.isdigit():
        number = int(word)
        return number if number < signal.NSIG else 0
    name = word.decode(errors="replace").upper()
    member = getattr(signal, name if name.startswith("SIG") else "SIG" + name, None)
    return int(member) if isinstance(member, signal.Signals) else 0
