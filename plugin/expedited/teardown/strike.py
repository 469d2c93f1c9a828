"""The strike: one container, from its kill to its empty cgroup.

In two parts, because whoever called may be waiting with a process held at the gate: :meth:`Strike.signal` gets every
SIGKILL out (about a millisecond), :meth:`Strike.finish` reaps, boosts, sweeps, waits, drops the page cache and reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from expedited.teardown.boost import Boost
from expedited.teardown.cgroup import Cgroup, TargetError
from expedited.teardown.held import Held
from expedited.teardown.linux import mrelease_support, realtime
from expedited.teardown.measure import MemoryWatch
from expedited.teardown.orders import Killing, best_order
from expedited.teardown.policy import Mode, Order, PageCache, Policy
from expedited.teardown.reap import STRIKER_PRIORITY, Reapers
from expedited.teardown.receipt import Story, process_reports
from expedited.teardown.report import Fate, Outcome, Report
from expedited.teardown.roster import Roster, Victim

__all__ = ["Strike", "strike"]

#: How long the runtime's own SIGKILL may take to come after it has passed the gate (order follow).
_FOLLOW_SECONDS = 15.0
#: Rounds of signalling after which a cgroup that still brings forth processes is held still (version 1's freezer).
_PATIENT_SWEEPS = 3
_SWEEPS_REPORTED = 16
#: How long a report waits for its reapers to come back, and for the kernel's counters.
_SETTLE_SECONDS = 0.05

#: How many strikes at once may look as often as they like.
_WATCHED_CLOSELY = 4

# Those of this process that wait for their container to be gone: strikes, and those who only observe
_striking: list[Strike] = []
_observing: list[Strike] = []


class Strike:
    """One strike, or one observation, of one container.

    Args:
        cgroup: What to tear down; see :meth:`Cgroup.find`.
        policy: ``mode`` OBSERVE measures and touches nothing, OFF does neither; ``order`` AUTO is decided by :func:`best_order`.
        init_pid: The container's init, which is killed first: its exit status is the container's, so nobody may give
            it a chance to see its children die and return something else.
        container_id: For the report.
        trigger: For the report.
        runtime_kills: Whether a runtime is about to send its own SIGKILL; without one the order can only be LEAD.
        started: ``time.monotonic()`` of the moment the kill was seen; now, if not given.
        reapers: A warm pool; a strike without one makes its own.
        held: What was held of the container in advance; this strike lets go of it.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        policy: Policy,
        *,
        init_pid: int | None = None,
        container_id: str = "",
        trigger: str = "command",
        runtime_kills: bool = False,
        started: float | None = None,
        reapers: Reapers | None = None,
        held: Held | None = None,
    ) -> None:
        policy = policy.for_container(container_id)
        self.cgroup = cgroup
        self.policy = policy
        self.container_id = container_id
        self.order = policy.order if runtime_kills else Order.LEAD
        self._init_pid = init_pid
        self._runtime_kills = runtime_kills
        self._trigger = trigger
        self._story = Story(started)
        self._own_reapers: Reapers | None = None
        self._signalled: float | None = None
        self._answered: float | None = None
        self._dropped_bytes = 0
        self._sweeps = 0
        self._follow_until = float("inf")
        self._skipped = ""
        self._ending: set[Victim] = set()  # who was dying before the kill
        if held is None:
            held = Held(Roster(cgroup), Boost(cgroup), MemoryWatch(cgroup))
        else:
            held.watch.begin_anew(cgroup)
        self._roster, self._boost, self._watch = held
        self._support = mrelease_support()
        self._killing: Killing | None = None  # of whom only observes there is none
        if policy.mode is Mode.STRIKE:
            if reapers is None:
                reapers = self._own_reapers = Reapers()
            before = self._watch.before
            self._killing = Killing(
                cgroup,
                self._roster,
                reapers,
                init_pid=init_pid,
                anon_bytes=before.anon_bytes if before is not None else None,
                support=self._support,
                keep_file=policy.page_cache is not PageCache.DROP,
            )

    @property
    def _observing(self) -> bool:
        return self._killing is None

    # -- the first part: the signals -----------------------------------------------------------------------------------

    def signal(self) -> Outcome:
        """List, hold and (order lead) kill every process of the container.

        Returns:
            STRUCK when it is on its way, OBSERVED, or SKIPPED where the policy leaves it alone; in each case
            :meth:`finish` must be called, and gives the report.

        Raises:
            TargetError: it is the root, or holds this process or pid 1, or nobody in it may be signalled from here; nothing was
                touched.
        """
        try:
            return self._signal()
        except BaseException as error:
            # Else the wait would begin by killing whoever is there
            if not self._skipped and not self._any_signalled():
                self._skipped = str(error) or type(error).__name__
            raise

    def _signal(self) -> Outcome:
        if self.policy.mode is Mode.OFF:
            self._skipped = "the policy's mode is off"
            return Outcome.SKIPPED
        before = self._watch.before
        if before is not None:
            self._story.tell(f"kill seen: {before.anon_bytes} bytes anonymous, {before.file_bytes} bytes of files")
        self._ending = {victim for victim in self._roster.living.values() if victim.fate is not None}
        if before is not None and before.anon_bytes < self.policy.min_size_bytes and not self._ending:
            self._skipped = f"smaller than min-size ({before.anon_bytes} < {self.policy.min_size_bytes} bytes)"
            return Outcome.SKIPPED
        try:
            victims = self._roster.muster()
        except TargetError as error:
            self._skipped = str(error)
            raise
        self._story.tell(f"{len(victims)} processes held by pidfd")
        if self._killing is None:
            return Outcome.OBSERVED
        if self.order is Order.AUTO:
            living = [victim for victim in victims if victim not in self._ending]
            self.order = best_order(living, self._init_pid, self._support)
        if self.order is Order.LEAD and not self._lead(self._killing, victims):
            why = "its processes are not ours to signal: CAP_KILL is missing"
            if not self._runtime_kills:
                self._skipped = why
                raise TargetError(f"cgroup {self.cgroup.path}: {why}; see `expedited doctor`")
            self._story.tell(why)
            self.order = Order.FOLLOW
        if self.order is Order.FOLLOW:
            give_up_at = time.monotonic() + min(_FOLLOW_SECONDS, self.policy.deadline_seconds)
            if self._support.available:
                self._follow_until = give_up_at
            self._killing.follow(victims, give_up_at)
            self._story.tell("waiting for the runtime's own SIGKILL, to reap at once")
        return Outcome.STRUCK

    def answered(self, at: float) -> None:
        """The runtime's own kill was let go on, at this ``time.monotonic()``."""
        self._answered = at - self._story.began
        self._story.tell("the runtime's own kill was let through the gate", at)

    def _lead(self, killing: Killing, victims: list[Victim]) -> bool:
        """False where nobody of them could be signalled."""
        large = killing.lead(victims)
        if victims and not any(victim.signalled for victim in victims):
            return False
        self._signalled = self._story.now()
        self._story.tell(f"SIGKILL sent to {len(victims)} processes, {len(large)} of them being reaped")
        if self.cgroup.thaw():
            self._story.tell("it was frozen: let go, to die")
        killing.reap(large)
        return True

    # -- the second part: until it is gone -----------------------------------------------------------------------------

    def finish(self) -> Report:
        """Wait until the container is gone, doing what helps; never raises for what a dying container does."""
        alike = _observing if self._observing else _striking
        alike.append(self)
        try:
            if self._skipped:
                return self._report(Outcome.SKIPPED, self._skipped, None)
            gone = self._until_gone()
            if self._observing:
                outcome, reason = Outcome.OBSERVED, "" if gone is not None else "still running at the deadline"
            elif self.order is Order.FOLLOW and gone is None and not self._any_signalled():
                outcome, reason = Outcome.SKIPPED, "the runtime's own SIGKILL did not come"
            elif gone is None:
                outcome, reason = Outcome.DEADLINE, f"{len(self._roster.living)} processes are still there"
            else:
                outcome, reason = Outcome.STRUCK, ""
            if outcome is Outcome.STRUCK and self.policy.page_cache is PageCache.DROP:
                # Once more: what was mapped by the last to die could not be had before
                self._drop_page_cache()
            self._settle()
            return self._report(outcome, reason, gone)
        finally:
            alike.remove(self)
            self._boost.end()
            if self._own_reapers is not None:
                self._own_reapers.close()
            self._roster.close()
            self._watch.close()

    def _until_gone(self) -> float | None:
        deadline = self._story.began + self.policy.deadline_seconds
        memory_back_noted = False
        while True:
            self._roster.wait(self._pause())
            now = self._story.now()
            self._watch.sample(now)
            if self._watch.back_seconds is not None and not memory_back_noted:
                memory_back_noted = True
                self._story.tell("memory back: 95% of the anonymous memory is free")
                if self.policy.page_cache is PageCache.DROP and not self._observing:
                    # Now, and not when the cgroup is empty: the runtime may remove it at once then.
                    self._drop_page_cache()
            if not self._roster.living and self._nobody_left():
                gone = self._story.now()
                self._watch.sample(gone)
                self._story.tell("gone: the cgroup is empty")
                return gone
            if self.policy.boost and not self._observing:
                self._boost_the_dying()
            if time.monotonic() > self._follow_until and not self._any_signalled():
                self._story.tell("the runtime has killed nobody")
                return None
            if time.monotonic() > deadline:
                self._story.tell("deadline")
                return None

    def _settle(self) -> None:
        """An exit is seen before the reaper that brought it about is back from its system call, or the memory counted."""
        give_up_at = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < give_up_at:
            self._watch.sample(self._story.now())
            if self._watch.settled and not any(victim.being_reaped for victim in self._roster.exited):
                return
            time.sleep(0.0002)

    def _pause(self) -> float:
        """Seconds until the next look: short at first, when a millisecond matters, and shared among all who look.

        These threads are real-time: fifty containers that are watched every millisecond would keep their own runtime's
        commands off the CPU.
        """
        elapsed = self._story.now()
        # Who strikes does not wait for those who look on, who may do so for minutes
        all_alike = len(_striking) + (len(_observing) if self._observing else 0)
        share = max(1.0, all_alike / _WATCHED_CLOSELY)
        return share * (0.001 if elapsed < 0.25 else 0.004 if elapsed < 2 else 0.02)

    def _any_signalled(self) -> bool:
        everybody = {*self._roster.living.values(), *self._roster.exited}
        return any(victim.signalled for victim in everybody - self._ending)

    def _boost_the_dying(self) -> None:
        """Those who were killed since the last look; the runtime's own kill takes one after the other, and a sweep newcomers."""
        dying = [victim for victim in self._roster.living.values() if victim.signalled]
        is_timed = "rt-bandwidth" in self._boost.lifted
        if not dying or (not is_timed and all(victim.boosted for victim in dying)):
            return
        dying.sort(key=lambda victim: (victim.pid != self._init_pid, -(victim.rss_bytes or 0)))
        known = len(self._boost.lifted)
        self._boost.dying(dying)
        if self._signalled is None and self._ending.issuperset(dying):
            return  # the kill has yet to come
        self._boost.lift_limits()
        if len(self._boost.lifted) > known:
            self._story.tell(f"boosted: {', '.join(self._boost.lifted)}")

    def _nobody_left(self) -> bool:
        """Whether the cgroup is empty; if somebody was forked meanwhile, strike them too."""
        if self.cgroup.is_empty() or self._roster.is_over():
            return True
        self._roster.close_exited()
        newcomers = self._roster.enrol()
        if self._killing is None or self.order is Order.FOLLOW:
            # The runtime's kill, and the kernel, take these: an exiting init takes its pid namespace along. Where there is none
            # they may live on, so they are not boosted.
            return False
        if newcomers:
            self._sweep(self._killing, newcomers)
        return False

    def _sweep(self, killing: Killing, newcomers: list[Victim]) -> None:
        self._sweeps += 1
        if self._sweeps <= _SWEEPS_REPORTED:
            self._story.tell(f"sweep {self._sweeps}: {len(newcomers)} more processes")
        killing.sweep(newcomers, hold_still=self._sweeps > _PATIENT_SWEEPS)
        self._signalled = self._story.now()

    def _drop_page_cache(self) -> None:
        dropped = self.cgroup.drop_page_cache()
        if dropped:
            self._dropped_bytes += dropped
            self._story.tell(f"page cache dropped: {dropped} bytes")

    # -- the receipt ---------------------------------------------------------------------------------------------------

    def _report(self, outcome: Outcome, reason: str, gone: float | None) -> Report:
        everybody = [*self._roster.living.values(), *self._roster.exited]
        back = self._watch.back_seconds if outcome is not Outcome.SKIPPED else None  # it is not the stop's doing
        return Report(
            container_id=self.container_id,
            cgroup=self.cgroup.path,
            trigger=self._trigger,
            mode=str(self.policy.mode),
            order=str(self.order) if outcome in (Outcome.STRUCK, Outcome.DEADLINE) else "",
            outcome=outcome,
            reason=reason,
            started_at=self._story.began_at,
            before=self._watch.before,
            after=self._watch.after(self.cgroup),
            signalled_seconds=self._signalled,
            answered_seconds=self._answered,
            memory_back_seconds=back,
            gone_seconds=gone,
            lead_seconds=self._answered - back if self._answered is not None and back is not None else None,
            page_cache_dropped_bytes=self._dropped_bytes,
            process_count=len(everybody),
            lost_races=sum(victim.fate is Fate.LOST_RACE for victim in everybody),
            processes=process_reports(everybody, partial(self._fate_of, outcome)),
            boosted=tuple(self._boost.lifted),
            steps=self._story.steps,
        )

    def _fate_of(self, outcome: Outcome, victim: Victim) -> Fate:
        if self._roster.living.get(victim.pid) is victim:
            return Fate.SURVIVED
        return victim.fate or (Fate.GONE if outcome is Outcome.SKIPPED else Fate.KILLED)


def strike(
    cgroup: Cgroup,
    policy: Policy | None = None,
    *,
    init_pid: int | None = None,
    container_id: str = "",
    trigger: str = "command",
    reapers: Reapers | None = None,
    on_signalled: Callable[[], None] | None = None,
) -> Report:
    """Kill everything in a cgroup and give its memory back to the node, now.

    Args:
        cgroup: From :meth:`Cgroup.find`, :meth:`Cgroup.of_process` or :meth:`Cgroup.from_runtime`.
        policy: How; the defaults of :class:`Policy` if not given. Mode OBSERVE only measures, OFF leaves alone, COMPARE is one or the
            other by the ``container_id``.
        init_pid: The process whose exit status counts; it is killed first.
        container_id: For the report.
        trigger: For the report.
        reapers: A pool to use; made for this strike if not given.
        on_signalled: Called once, when the last SIGKILL is out and the waiting begins.

    Returns:
        The receipt.

    Raises:
        TargetError: the cgroup is the root, or holds this process or pid 1; nothing was touched.
    """
    cgroup.refuse_if_not_a_containers()
    one = Strike(
        cgroup,
        policy or Policy(),
        init_pid=init_pid,
        container_id=container_id,
        trigger=trigger,
        reapers=reapers,
    )
    # Above its own reapers, or on a small machine they would keep this thread from sending the other signals
    with realtime(STRIKER_PRIORITY):
        try:
            one.signal()
            if on_signalled is not None:
                on_signalled()
        finally:
            report = one.finish()
    return report
