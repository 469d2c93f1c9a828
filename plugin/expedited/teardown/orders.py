"""The two orders of a strike: who gets a SIGKILL when, and who reaps.

*Lead*: ours are the signals, and the runtime's own comes after them. *Follow*: the runtime's is the only one, and the
reapers wait for it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from functools import partial

from expedited.teardown.cgroup import Cgroup
from expedited.teardown.kin import may_share_outside
from expedited.teardown.linux import REAP_KILL, MreleaseSupport
from expedited.teardown.policy import Order
from expedited.teardown.proc import cpus_are_taken
from expedited.teardown.reap import WORTH_REAPING_BYTES, Reapers, kill_and_reap, reap, reap_if_killed
from expedited.teardown.roster import Roster, Victim

__all__ = ["Killing", "best_order"]

#: Above this many processes the sizes are not read one by one: that would delay the signals by more than it gains.
_SIZES_READ_AT_MOST = 64
#: How long a kill may wait for a thread of the pool.
_HAND_OVER_SECONDS = 0.002
#: How often a followed process is asked for. runc needs 2 to 5 ms from the gate to its signal, much longer where it waits for
#: a CPU itself.
_KEEN_SECONDS = 0.05
_ASK_EVERY_SECONDS, _ASK_LATER_EVERY_SECONDS = 0.0001, 0.001
#: The longest that a thread of the pool waits for the next one to be asked.
_TURN_SECONDS = 0.0002


def best_order(victims: list[Victim], init_pid: int | None, support: MreleaseSupport) -> Order:
    """What order *auto* comes to for these.

    Lead, but for an init that is alone, on a kernel that can't kill and reap in one call, while there is a CPU to be had: its
    runtime kills it as soon, and a decision that was wrong kills nobody. Where every CPU is taken the runtime has to wait
    for one on its way to the signal (docs/decisions/0003-lead-and-follow.md).
    """
    alone = [victim.pid for victim in victims] == [init_pid]
    return Order.FOLLOW if alone and not support.reap_kill and not cpus_are_taken() else Order.LEAD


class Killing:
    """The killing and reaping of one container's processes, by one thread and a pool of reapers.

    Args:
        cgroup: Theirs.
        roster: Who they are.
        reapers: The pool.
        init_pid: Who is killed first.
        anon_bytes: The cgroup's anonymous memory before; None where it can't be measured.
        support: What the kernel can do.
        keep_file: Have the kernel leave file pages where they are, if it can be told.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        roster: Roster,
        reapers: Reapers,
        *,
        init_pid: int | None,
        anon_bytes: int | None,
        support: MreleaseSupport,
        keep_file: bool,
    ) -> None:
        self._cgroup = cgroup
        self._roster = roster
        self._reapers = reapers
        self._init_pid = init_pid
        self._anon_bytes = anon_bytes
        self._support = support
        self._flags = support.flags(keep_file=keep_file)

    def lead(self, victims: list[Victim]) -> list[Victim]:
        """Init first, then the large ones with their reapers back to back, then all the rest at once.

        Returns:
            Those that a reaper is at, or that are to be given to :meth:`reap`, when the cgroup is thawed.
        """
        kill_flag = REAP_KILL if self._support.reap_kill else 0
        large = self._by_size(victims) if self._support.available else []
        first = large[: self._reapers.count]
        members = self._roster.living
        alone = {victim for victim in first if kill_flag and not may_share_outside(victim.pid, members)}
        init = next((victim for victim in victims if victim.pid == self._init_pid), None)
        if init is not None and init not in first:
            self._send_all([init])
        for victim in sorted(first, key=lambda victim: victim is not init):
            flags = self._flags | (kill_flag if victim in alone else 0)
            self._reapers.submit(partial(kill_and_reap, victim, flags))
            if victim is init:
                self._until_signalled(victim)
        for victim in first:
            self._until_signalled(victim)
        if self._cgroup.kill():
            for victim in victims:
                victim.signalled = True
        else:
            self._send_all(victim for victim in victims if not victim.signalled)
        return large

    def reap(self, large: list[Victim]) -> None:
        """Queue those of :meth:`lead`'s for whom there was no reaper at once."""
        for victim in large[self._reapers.count :]:
            self._reapers.submit(partial(reap, victim, self._flags))

    def follow(self, victims: list[Victim], give_up_at: float) -> None:
        """Signal nothing: have the reapers ask, in turns, until the runtime's own SIGKILL is there.

        Args:
            victims: Who there is.
            give_up_at: When to stop asking, by ``time.monotonic()``.
        """
        patient_from = time.monotonic() + _KEEN_SECONDS

        def turn(victim: Victim, due_at: float) -> None:
            # Short, and then to the end of the queue: the pool is everybody's, and who is waited for may be killed only
            # when somebody behind them in the queue has been reaped
            early = due_at - time.monotonic()
            if early > 0:
                time.sleep(min(early, _TURN_SECONDS))
            else:
                if reap_if_killed(victim, self._flags):
                    victim.signalled = victim.fate is not None
                    return
                now = time.monotonic()
                if now > give_up_at:
                    return
                due_at = now + (_ASK_EVERY_SECONDS if now < patient_from else _ASK_LATER_EVERY_SECONDS)
            self._reapers.submit(partial(turn, victim, due_at))

        large = self._by_size(victims) or victims[:1]
        for victim in sorted(large, key=lambda victim: victim.pid != self._init_pid):
            self._reapers.submit(partial(turn, victim, 0.0))

    def sweep(self, newcomers: list[Victim], *, hold_still: bool) -> None:
        """Kill those who were forked meanwhile.

        Args:
            newcomers: Who was found.
            hold_still: Freeze the cgroup for it, and kill whoever turns up in it until nobody does. Version 1 has no
                ``cgroup.kill``, so what forks faster than we signal is frozen while it is being signalled; a frozen
                process takes its SIGKILL when it is let go.
        """
        if self._cgroup.kill():
            for victim in newcomers:
                victim.signalled = True
            return
        frozen = hold_still and self._cgroup.freeze()
        try:
            while newcomers:
                self._send_all(newcomers)
                newcomers = self._roster.enrol() if frozen else []
        finally:
            self._cgroup.thaw()

    def _by_size(self, victims: list[Victim]) -> list[Victim]:
        """Those worth a reaper, the largest first."""
        total = self._anon_bytes
        if total is not None and total < WORTH_REAPING_BYTES:
            return []
        victims = [victim for victim in victims if victim.fate is None]  # the others are dying, and have been reaped
        if len(victims) > _SIZES_READ_AT_MOST:
            # Sizes only of the first ones (init among them: cgroup.procs starts with the oldest)
            victims = victims[:_SIZES_READ_AT_MOST]
            if total is not None and total / len(self._roster) < WORTH_REAPING_BYTES:
                return []
        for victim in victims:
            victim.read_size()
        large = [victim for victim in victims if (victim.rss_bytes or 0) >= WORTH_REAPING_BYTES]
        return sorted(large, key=lambda victim: victim.rss_bytes or 0, reverse=True)

    def _until_signalled(self, victim: Victim) -> None:
        """Let the pool have the interpreter until its thread is about to make the system call that kills."""
        give_up_at = time.monotonic() + _HAND_OVER_SECONDS
        while not victim.signalled:
            if time.monotonic() > give_up_at:
                # The pool is busy with another container's gigabytes: the kill must not wait for a reaper
                self._send_all([victim])
                return
            time.sleep(0)

    @staticmethod
    def _send_all(victims: Iterable[Victim]) -> None:
        # What is looked up, called and suppressed for each makes a hundred signals half as slow again
        send, kill = signal.pidfd_send_signal, int(signal.SIGKILL)
        for victim in victims:
            victim.signalled = True
            try:
                send(victim.pidfd.number, kill)  # type: ignore[union-attr]  # a strike has let go of nobody yet
            except ProcessLookupError:
                pass  # it was quicker
            except PermissionError:
                victim.signalled = False  # of another user, and without CAP_KILL: the runtime's own signal is to come
