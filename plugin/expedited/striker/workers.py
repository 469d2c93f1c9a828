"""Threads for whatever may take its time, so that the source's loop and the link never wait."""

from __future__ import annotations

import threading
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
        self._lock = threading.Lock()
        self._count = 0
        self._idle = 0
        for _ in range(_KEPT):
            self._hire()

    def submit(self, work: Callable[[], None]) -> None:
        """Have one do it; one more is made when all are busy, up to a limit. Returns at once."""
        self._work.put(work)
        if self._idle <= self._work.qsize() and self._count < AT_MOST:
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
            with self._lock:
                self._idle += 1
            try:
                work = self._work.get(timeout=_IDLE_SECONDS)
            except Empty:
                self._at_ease()
                with self._lock:
                    if self._count > _KEPT:
                        self._count -= 1
                        return
                continue
            finally:
                with self._lock:
                    self._idle -= 1
            try:
                work()
            except Exception as error:
                self._log.error(f"a stop could not be handled: {type(error).__name__}: {error}")
