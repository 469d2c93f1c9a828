"""Threads for whatever may take its time, so that the source's loop and the link never wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from expedited.striker.log import Log
from expedited.teardown.linux import be_realtime
from expedited.teardown.reap import STRIKER_PRIORITY

__all__ = ["AT_MOST", "Workers"]

AT_MOST = 64
_KEPT = 2
_IDLE_SECONDS = 10.0


class Workers:
    """A pool that grows when all are busy, and shrinks again.

    Args:
        log: Told of what failed.
        at_ease: Called now and then by one who has nothing to do.
    """

    def __init__(self, log: Log, at_ease: Callable[[], None]) -> None:
        self._log = log
        self._at_ease = at_ease
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # One for each that is not done. Its steps are atomic, so that the source's loop waits for no lock: whoever adds to it looks at
        # the count after that, and whoever lowers the count looks at this after that; one of the two sees the other.
        self._undone: deque[None] = deque()
        self._lock = threading.Lock()  # of those who change the count
        self._count = 0
        for _ in range(_KEPT):
            self._hire()

    def submit(self, work: Callable[[], None]) -> None:
        """Have one do it; one more is made when all are busy, up to a limit. Returns at once."""
        self._undone.append(None)
        self._work.put(work)
        if self._count < min(len(self._undone), AT_MOST):
            self._hire()

    def _hire(self) -> None:
        with self._lock:
            self._count += 1
        try:
            threading.Thread(target=self._run, name=f"worker-{self._count}", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._count -= 1  # no more threads to be had: those there are do it one after the other

    def _run(self) -> None:
        be_realtime(STRIKER_PRIORITY)
        while True:
            try:
                work = self._work.get(timeout=_IDLE_SECONDS)
            except Empty:
                self._at_ease()
                if self._may_leave():
                    return
                continue
            try:
                work()
            except Exception as error:
                self._log.error(f"a stop could not be handled: {type(error).__name__}: {error}")
            self._undone.pop()

    def _may_leave(self) -> bool:
        with self._lock:
            if self._count <= _KEPT:
                return False
            self._count -= 1
            if len(self._undone) > self._count:
                self._count += 1  # something has come meanwhile, and may be counting on this one
                return False
        return True
