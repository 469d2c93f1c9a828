"""Freeing the memory of the dying from threads of our own: process_mrelease(2).

A few threads made beforehand, real-time where the kernel allows it: under load a reaper that has to queue for a CPU
behind the very load is worth nothing. Parallelism tops out near two to four threads (they meet at the memory zone's
lock), so the pool is small, and the largest processes are served first.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from expedited.teardown.linux import REAP_KILL, be_realtime, process_mrelease
from expedited.teardown.pidfd import Pidfd
from expedited.teardown.report import Fate
from expedited.teardown.roster import Victim

__all__ = [
    "NOT_NOW",
    "REAPER_PRIORITY",
    "STRIKER_PRIORITY",
    "WORTH_REAPING_BYTES",
    "Reapers",
    "kill_and_reap",
    "reap",
    "reap_if_killed",
]

#: SCHED_RR priority of the reaping threads: below the gate, above the boosted dying.
REAPER_PRIORITY = 2
#: SCHED_RR priority of the thread that makes a strike: above its reapers.
STRIKER_PRIORITY = 3

#: A smaller process frees its memory faster than a reaper is woken for it.
WORTH_REAPING_BYTES = 2 << 20
#: What process_mrelease(2) says of who is not dying (yet), or whose mm is held by somebody else.
NOT_NOW = (errno.EINVAL, errno.EAGAIN, errno.EINTR)

_RETRY_SECONDS = 0.0005
# How long a mm may refuse us: EAGAIN while somebody else holds its lock for writing, EINVAL while a process that
# shares it has not been killed yet. The strike's own wait goes on meanwhile; this only bounds one reaper's patience.
_PATIENCE_SECONDS = 2.0


def _without_memory(victim: Victim) -> Fate:
    """Of whom ESRCH was said; unless it was reaped before."""
    return victim.fate or (Fate.GONE if victim.has_exited() else Fate.LOST_RACE)


def _signal(victim: Victim, pidfd: int) -> None:
    victim.signalled = True
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it was quicker
    except PermissionError:
        victim.signalled = False
        raise


def reap(victim: Victim, flags: int = 0, *, give_up_at: float | None = None) -> Fate | None:
    """Free the memory of one process that was killed, trying again while the kernel says "not now".

    Args:
        victim: A process that has, or is about to have, a SIGKILL pending.
        flags: PROCESS_MRELEASE_* that this kernel knows.
        give_up_at: ``time.monotonic()`` after which to stop trying; 2 s from now if not given.

    Returns:
        REAPED, LOST_RACE, GONE, or None where the kernel kept saying no.
    """
    with _reaping(victim) as pidfd:
        return None if pidfd is None else _reap(victim, pidfd.number, flags, give_up_at)


def _reap(victim: Victim, pidfd: int, flags: int, give_up_at: float | None = None) -> Fate | None:
    give_up_at = give_up_at or time.monotonic() + _PATIENCE_SECONDS
    while True:
        code = process_mrelease(pidfd, flags)
        if code == 0:
            victim.fate = Fate.REAPED
            return victim.fate
        if code == errno.ESRCH:
            # No mm: either it exited, or it is past exit_mm() and frees its memory by itself, when it gets a CPU.
            victim.fate = _without_memory(victim)
            return victim.fate
        if code not in NOT_NOW or time.monotonic() > give_up_at:
            return None
        time.sleep(_RETRY_SECONDS)


def kill_and_reap(victim: Victim, flags: int) -> Fate | None:
    """SIGKILL and reap, back to back, or in one call where ``flags`` has REAP_KILL."""
    with _reaping(victim) as pidfd:
        if pidfd is None:
            return None
        if flags & REAP_KILL:
            victim.signalled = True
            code = process_mrelease(pidfd.number, flags)
            if code == 0:
                victim.fate = Fate.REAPED
                return victim.fate
            if code == errno.ESRCH:
                victim.fate = victim.fate or Fate.GONE
                return victim.fate
            # EAGAIN: killed, not reaped yet. EBUSY, EPERM, EINVAL: nobody was killed, so do it the old way. A second
            # signal to a dying process is nothing, so both end here.
        _signal(victim, pidfd.number)
        return _reap(victim, pidfd.number, flags & ~REAP_KILL)


def reap_if_killed(victim: Victim, flags: int) -> bool:
    """Reap a process whose killer is somebody else (order *follow*), if its SIGKILL is there; nothing is ever signalled.

    Returns:
        Whether there is nothing more to ask: its fate is known, or nobody wants to know it any more. False: the kernel says
        EINVAL, as it is not being killed yet, or "not now".
    """
    with _reaping(victim) as pidfd:
        if pidfd is None:
            return True
        code = process_mrelease(pidfd.number, flags)
        if code in NOT_NOW:
            return False
        if code == 0:
            victim.fate = Fate.REAPED
        elif code == errno.ESRCH:
            victim.fate = _without_memory(victim)
        return True


@contextmanager
def _reaping(victim: Victim) -> Iterator[Pidfd | None]:
    """Keep the pidfd open while a reaper is at it, even if the strike ends meanwhile; None if it has."""
    victim.being_reaped = True
    try:
        yield victim.pidfd
    finally:
        victim.being_reaped = False


class Reapers:
    """A small pool of threads that reap; made once, kept warm."""

    def __init__(self, count: int | None = None, *, priority: int = REAPER_PRIORITY) -> None:
        self.count = count or max(2, min(4, os.cpu_count() or 2))
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(priority,), name=f"reaper-{number}", daemon=True)
            for number in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], object]) -> None:
        """Have one thread do it, in the order of submission."""
        self._work.put(work)

    def close(self) -> None:
        """Let the threads end when they have done what was submitted."""
        for _ in self._threads:
            self._work.put(None)

    def __enter__(self) -> Reapers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, priority: int) -> None:
        be_realtime(priority)
        while (work := self._work.get()) is not None:
            try:
                work()
            except OSError:
                pass  # what this one process says no to is in its report; the pool is there for the next
            del work  # with it the pidfd
