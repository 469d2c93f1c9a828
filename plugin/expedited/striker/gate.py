"""The kill gate: reads what waits, looks at its command line, answers.

The loop does nothing else. A decision that needs more than a command line (which container, what policy, a strike) is a
:class:`Hold`, handed to a worker; the loop answers for a worker that is not done within the budget. Whatever goes wrong
here ends in "allow", and if this process ends, the kernel allows everything that waits.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from expedited.striker import fanotify
from expedited.striker.argv import Command, parse
from expedited.striker.fanotify import FAN_OPEN_EXEC_PERM, Event
from expedited.striker.roots import Roots
from expedited.striker.source import ROUND_SECONDS, Kill, Source
from expedited.teardown.proc import read_proc

__all__ = ["Gate", "Hold"]


class Hold(Kill):
    """A kill that waits for its answer: answered exactly once, by the worker or, when the budget is over, by the loop."""

    __slots__ = ("_gate", "_lock", "deadline", "excused", "pidfd")

    held = True

    def __init__(self, gate: Gate, event: Event, command: Command, seen: float, budget_seconds: float) -> None:
        super().__init__(command, event.fd, seen)
        self.deadline = seen + budget_seconds
        self.excused = False
        self.pidfd = event.pidfd
        self._gate = gate
        self._lock = threading.Lock()

    def answer(self) -> bool:
        """Let the runtime go on; False if that was done before."""
        with self._lock:
            if self.answered_at is not None:
                return False
            fanotify.allow(self._gate.group, self.descriptor)
            self.answered_at = time.monotonic()
        self._gate.counters.latencies.note(self.answered_at - self.seen)
        return True

    def release(self) -> None:
        """Done with it: answers if nobody has, and closes the descriptors; a second call does nothing."""
        self.answer()
        if self.released:
            return
        self._gate.forget(self)
        super().release()
        if self.pidfd >= 0:
            os.close(self.pidfd)


class Gate(Source):
    """The loop around one fanotify group.

    Args:
        group: From :func:`fanotify.open_group`.
        roots: Whose directory events the loop handles, before it lets a runtime binary be executed.
        on_kill: Takes a Hold; must return at once (hand it to a worker).
        on_start: Takes (command line, descriptor) of a command that is no kill, after it was answered; the descriptor is
            closed when it returns.
        on_deleted: Takes the directory of a container that is no more.
        beat: Called in every round.
        budget_seconds: The longest that a decision may take.
    """

    name = "fanotify"

    def __init__(
        self,
        group: int,
        roots: Roots,
        *,
        on_kill: Callable[[Kill], None],
        on_start: Callable[[bytes, int], None],
        on_deleted: Callable[[str], None],
        beat: Callable[[], None],
        budget_seconds: float,
    ) -> None:
        super().__init__(group, roots, on_kill=on_kill, on_deleted=on_deleted, beat=beat)
        self.group = group
        self._on_start = on_start
        self._budget_seconds = budget_seconds
        self._own_pid = os.getpid()
        self._holds: dict[int, Hold] = {}

    def close(self) -> None:
        """Open the gate: everybody who waits goes on."""
        for hold in list(self._holds.values()):
            hold.answer()  # its worker may go on for seconds, and the group's number be another file's by then
        os.close(self.group)

    def forget(self, hold: Hold) -> None:
        """The worker is done with it."""
        self._holds.pop(hold.descriptor, None)

    def _decide_all(self) -> None:
        now = time.monotonic()
        for event in fanotify.events(self.group):
            self._decide(event, now)

    def _decide(self, event: Event, now: float) -> None:
        counters = self.counters
        counters.events += 1
        cmdline = b""
        held = False
        try:
            if event.mask & FAN_OPEN_EXEC_PERM:
                # Every container directory made before this runtime was started is marked before it can open it
                counters.executions += 1
                self._drain()
            elif event.pid != self._own_pid:
                cmdline = read_proc(event.pid, "cmdline")
                command = parse(cmdline)
                if command is not None and (event.pidfd < 0 or _is_there(event.pidfd)):
                    counters.kills += 1
                    hold = self._holds[event.fd] = Hold(self, event, command, now, self._budget_seconds)
                    held = True
                    self._on_kill(hold)
        except Exception:
            # Whatever it was, nobody may wait for it
            if held:
                held = False
                self._holds.pop(event.fd, None)
            raise
        finally:
            if not held:
                fanotify.allow(self.group, event.fd)
                counters.latencies.note(time.monotonic() - now)
                if cmdline:
                    self._on_start(cmdline, event.fd)
                os.close(event.fd)
                if event.pidfd >= 0:
                    os.close(event.pidfd)

    def _patience_ms(self) -> float:
        """Until the next heartbeat, or the next hold that runs over its budget."""
        if not self._holds:
            return ROUND_SECONDS * 1000
        remaining = min((hold.deadline for hold in list(self._holds.values())), default=0.0) - time.monotonic()
        # A hold that was answered stays until its worker lets go of the descriptor: don't spin on it
        return 1000 * min(ROUND_SECONDS, max(0.005, remaining))

    def _stood_still(self) -> None:
        """The workers could not run either: those who are held get another budget, once."""
        for hold in list(self._holds.values()):
            if not hold.excused:
                hold.excused = True
                hold.deadline = time.monotonic() + self._budget_seconds

    def _end_round(self) -> None:
        """Answer for the workers that are not done within the budget."""
        if not self._holds:
            return
        now = time.monotonic()
        for hold in list(self._holds.values()):
            if hold.deadline < now and hold.answer():
                self.counters.overruns += 1


def _is_there(pidfd: int) -> bool:
    """Whether the opener's pid still is its own.

    It is held in its open, so it is, unless it was killed there and its parent has waited for it: then the pid, and with it the
    command line, may be somebody else's by now. No signal, which is signal 0, reaches anybody but those (kill(2)).
    """
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # not ours to signal, and there
    return True
