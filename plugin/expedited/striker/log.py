"""What the striker says: lines for a person on stderr, in the agent's form, as the agent's log and its own are one.

And the agent where it has not loaded its own log yet, or can't use it: in a signal handler, which may have come in the middle of
one of its lines.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress

__all__ = ["Log"]


class Log:
    """One line each, with a level.

    A line is lost where nobody reads it any more: that must not stop a strike.

    Args:
        as_json: One JSON object a line, with the agent's keys; else readable.
        who: Which of our processes speaks.
    """

    def __init__(self, *, as_json: bool = False, who: str = "striker") -> None:
        self._as_json = as_json
        self._who = who

    @classmethod
    def of_format(cls, log_format: str, *, who: str = "striker") -> Log:
        """By what ``log-format`` takes: ``console``, ``json``, or ``auto``: console on a terminal, else JSON."""
        return cls(as_json=log_format == "json" or (log_format == "auto" and not sys.stderr.isatty()), who=who)

    def info(self, line: str) -> None:
        """What happened, as it should."""
        self._say("info", line)

    def warning(self, line: str) -> None:
        """It works, with less than it could."""
        self._say("warning", line)

    def error(self, line: str) -> None:
        """Something does not work: a person has to look."""
        self._say("error", line)

    def _say(self, level: str, line: str) -> None:
        clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._as_json:
            line = json.dumps({"event": line, "level": level, "timestamp": clock, self._who: os.getpid()})
        else:
            line = f"{clock} [{level:9}] {self._who}[{os.getpid()}]: {line}"
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)
