"""How kills are seen: what the gate and the observer, its stand-in, have in common.

A source is a loop: wait for the kernel, decide what each event is, hand kills to a worker, beat, and follow the runtimes'
directories as they come and go. It never does anything that may block.
"""

from __future__ import annotations

import os
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from expedited.striker.argv import Command
from expedited.striker.latency import Latencies
from expedited.striker.roots import Roots

__all__ = ["ROUND_SECONDS", "Counters", "Kill", "Source"]

#: The longest time between two beats.
ROUND_SECONDS = 0.2
# Later than a real-time thread ever is on a machine that runs
_STOOD_STILL_SECONDS = 0.1


class Counters:
    """What a source has seen since it was opened."""

    def __init__(self) -> None:
        self.events = 0
        self.kills = 0
        self.executions = 0
        self.overruns = 0  #: answered by the budget, not by the decision
        self.lost = 0  #: times that the kernel has dropped events, as we were too slow
        self.latencies = Latencies()


class Kill:
    """One runtime command that ends a container, on its way.

    The worker that has it may read ``descriptor`` (the container's state file) and calls :meth:`answer` when the runtime
    may go on, then :meth:`release`.

    Attributes:
        seen: ``time.monotonic()`` of when it was seen.
        held: Whether the runtime waits for :meth:`answer`.
        answered_at: ``time.monotonic()`` of when it was let go on; None before, and where it is not held.
    """

    __slots__ = ("answered_at", "command", "descriptor", "released", "seen")

    held = False

    def __init__(self, command: Command, descriptor: int, seen: float) -> None:
        self.command = command
        self.descriptor = descriptor
        self.seen = seen
        self.answered_at: float | None = None
        self.released = False  # only ever touched by the one worker that has it

    def answer(self) -> bool:
        """Let the runtime go on; False if it does so anyway, or that was done before."""
        return False

    def release(self) -> None:
        """Done with it: answers if nobody has, and closes the descriptor; a second call does nothing."""
        if not self.released:
            self.released = True
            os.close(self.descriptor)


class Source(ABC):
    """The loop around one descriptor of the kernel's.

    Args:
        descriptor: Readable when there is something to decide.
        roots: Whose directory events the loop handles.
        on_kill: Takes a :class:`Kill`; must return at once (hand it to a worker).
        on_deleted: Takes the directory of a container that is no more.
        beat: Called in every round.

    Attributes:
        name: As status, metrics and log have it.
    """

    name: str

    def __init__(
        self,
        descriptor: int,
        roots: Roots,
        *,
        on_kill: Callable[[Kill], None],
        on_deleted: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        self.counters = Counters()
        self._descriptor = descriptor
        self._roots = roots
        self._on_kill = on_kill
        self._on_deleted = on_deleted
        self._beat = beat
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Until :meth:`stop`; :meth:`close` comes after."""
        poller = select.poll()
        for descriptor in (self._descriptor, self._roots.inotify.descriptor, self._stop_reader):
            poller.register(descriptor, select.POLLIN)
        while True:
            patience_ms, asked = self._patience_ms(), time.monotonic()
            ready = poller.poll(patience_ms)
            self._beat()
            if time.monotonic() - asked - patience_ms / 1000 > _STOOD_STILL_SECONDS:
                self._stood_still()
            for descriptor, _ in ready:
                if descriptor == self._descriptor:
                    self._decide_all()
                elif descriptor == self._stop_reader:
                    return
                else:
                    self._drain()
            self._tell_deleted(self._roots.look_again())
            self._end_round()

    def stop(self) -> None:
        """Make :meth:`run` return; from any thread or a signal handler."""
        os.write(self._stop_writer, b"x")

    @abstractmethod
    def close(self) -> None:
        """Let go of the kernel's descriptor: whoever is held by it goes on."""

    @abstractmethod
    def _decide_all(self) -> None:
        """Handle everything that is there to be read."""

    def _patience_ms(self) -> float:
        return 1000 * ROUND_SECONDS

    def _stood_still(self) -> None:  # noqa: B027 (most sources have nothing to do there)
        """A round came late: for that long nobody could run, on this CPU at least."""

    def _end_round(self) -> None:  # noqa: B027 (most sources have nothing to do there)
        """What is to be looked at once a round."""

    def _drain(self) -> None:
        self._tell_deleted(self._roots.drain())

    def _tell_deleted(self, directories: list[str]) -> None:
        for directory in directories:
            self._on_deleted(directory)
