"""The observer: the gate's stand-in where the kernel has no permission events. It sees kills and holds nobody.

It hears of every execution, a moment after the fact, and decides by the same command line as the gate. The runtime is on its
way to the kill by then, so a strike can only follow its signal: see docs/decisions/0010-observer.md.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from expedited.striker.argv import Command, parse, root_of
from expedited.striker.container import open_state
from expedited.striker.log import Log
from expedited.striker.proc_connector import ProcConnector
from expedited.striker.roots import Roots
from expedited.striker.source import Kill, Source
from expedited.teardown.proc import read_proc

__all__ = ["Observer"]

_SAY_AT_MOST_EVERY_SECONDS = 60.0


class Observer(Source):
    """The loop around one :class:`ProcConnector`; the arguments are those of :class:`Source`."""

    name = "proc-connector"

    def __init__(
        self,
        connector: ProcConnector,
        roots: Roots,
        log: Log,
        *,
        on_kill: Callable[[Kill], None],
        on_deleted: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        super().__init__(connector.descriptor, roots, on_kill=on_kill, on_deleted=on_deleted, beat=beat)
        self._connector = connector
        self._log = log
        self._said_at = -_SAY_AT_MOST_EVERY_SECONDS

    def close(self) -> None:
        """End the subscription."""
        self._connector.close()

    def _decide_all(self) -> None:
        try:
            for pid in self._connector.executions():
                self.counters.events += 1
                # Of who has ended meanwhile, or whose number is another's by now: no kill
                cmdline = read_proc(pid, "cmdline")
                command = parse(cmdline)
                if command is not None:
                    self._kill(command, root_of(cmdline))
        except OSError as problem:
            if problem.errno != errno.ENOBUFS:
                raise
            self._say_that_some_were_lost()

    def _kill(self, command: Command, root: str) -> None:
        now = time.monotonic()
        self._drain()  # its container may be as young as this command
        directory = self._roots.find(command.container_id, root)
        descriptor = open_state(directory) if directory else None
        if descriptor is not None:
            self.counters.kills += 1
            self._on_kill(Kill(command, descriptor, now))

    def _say_that_some_were_lost(self) -> None:
        self.counters.lost += 1
        if time.monotonic() - self._said_at >= _SAY_AT_MOST_EVERY_SECONDS:
            self._said_at = time.monotonic()
            self._log.warning(
                "executions came faster than they could be looked at, and the kernel has dropped some: kills among them"
                " are the runtime's alone; the kill gate has no such limit, see `expedited doctor`"
            )
