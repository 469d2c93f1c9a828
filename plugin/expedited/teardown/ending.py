"""A container that ends by itself, within its grace period: who of it is dying is helped or watched, and nobody is signalled.

process_mrelease(2) without a flag says EINVAL, at once, to whoever is not dying. Who is, is reaped by the same call. Who has let
go of their mm already (whoever ends by exit() does so within microseconds) frees it alone, and is put on a CPU for it: no code of
their own runs any more. See docs/decisions/0013-ends-within-the-grace-period.md.

That question changes what it asks about, so where the policy only observes, /proc/PID/oom_score is read instead: it is 0 for whoever
has let go of their mm, and is found out without taking hold of it, as most files of /proc do.
"""

from __future__ import annotations

import errno
import time
from dataclasses import replace

from expedited.teardown.boost import Boost
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.held import Held
from expedited.teardown.linux import mrelease_support, process_mrelease
from expedited.teardown.measure import MemoryWatch
from expedited.teardown.policy import Mode, PageCache, Policy
from expedited.teardown.proc import read_proc
from expedited.teardown.reap import NOT_NOW, WORTH_REAPING_BYTES
from expedited.teardown.receipt import Story, process_reports
from expedited.teardown.report import Fate, Outcome, Report, Step
from expedited.teardown.roster import Roster, Victim

__all__ = ["Ending"]

_ASKED_AT_MOST = 64
_LOOK_AT_MEMORY_EVERY_SECONDS = 1.0


class Ending:
    """One container, from its SIGTERM until nobody of it is left.

    Not safe for several threads: one at a time.

    Args:
        cgroup: Its cgroup.
        policy: Its mode (STRIKE: help; OBSERVE: watch; else nobody is asked) and size are what counts here, once; :meth:`turn`
            takes the policy of its time.
        roster: Its processes, which stay enrolled until :meth:`close`.
        container_id: For the report.

    Attributes:
        roster: For a strike that takes over, as is the boost.
        helps: Whether somebody of it has been found dying, so that there will be a report.
        dying: How many of them are dying now.
        over: There is nothing more to be asked: nobody is worth it, it is reported, or to help it takes longer than the policy's deadline.
    """

    def __init__(self, cgroup: Cgroup, policy: Policy, roster: Roster, *, container_id: str) -> None:
        self.roster = roster
        self.boost = Boost(cgroup)
        self.helps = False
        self.dying = 0
        self._observing = policy.mode is Mode.OBSERVE
        self._cgroup = cgroup
        self._container_id = container_id
        self._watch = MemoryWatch(cgroup)
        self._story = Story()
        self._looked_at = self._story.began
        self._dropped_bytes: int | None = None
        self._limits_are_lifted = False
        self._asked: list[Victim] = []
        before = self._watch.before
        if (self._observing or (policy.mode is Mode.STRIKE and mrelease_support().available)) and not (
            before is not None and before.anon_bytes < policy.min_size_bytes
        ):
            self._ask_also(list(roster.living.values()))
        self.over = not self._asked

    def turn(self, policy: Policy) -> Report | None:
        """Ask everybody who may be dying, and help who is.

        Returns:
            The report, when the last process of the container has gone; that is the last turn.
        """
        began = time.monotonic()
        if self._observing:
            policy = replace(policy, boost=False, page_cache=PageCache.KEEP)
        flags = mrelease_support().flags(keep_file=policy.page_cache is not PageCache.DROP)
        if sum(self._is_dying(victim, flags) for victim in list(self._asked)):
            self.helps = True
        if self.helps and not self.dying:
            # Of several that end one after the other the last counts: what lies between them is their own time
            self._begin(began)
        if not self.helps:
            self.over = not self._asked
            self._look_at_memory(began)
            return None
        if policy.boost:
            self._put_on_a_cpu(self._who_is_dying())
        self.roster.wait(0)
        self._watch.sample(self._story.now())
        self.dying = len(self._who_is_dying())
        if policy.page_cache is PageCache.DROP and self.dying and self._watch.settled and self._nobody_else():
            self._drop_page_cache(policy)
        if self.roster.living:
            # Who is only watched is watched to the end: what takes long is what there is to be measured
            self.over = not self._observing and self.dying > 0 and self._story.now() > policy.deadline_seconds
            return None
        if not (self._cgroup.is_empty() or self.roster.is_over()):
            # Somebody was started meanwhile, or was beyond what one enrolment takes
            self.roster.close_exited()
            self._ask_also(self.roster.enrol(ahead=True))
            return None
        self._drop_page_cache(policy)
        self.over = True
        return self._report(policy)

    @property
    def pause_seconds(self) -> float:
        """Until the next turn, once somebody of it is dying.

        Who is only watched is looked at less and less often, as by a strike that only observes: each look is CPU that they have not.
        """
        since = self._story.now()
        return 0.002 if since < 0.25 or not self._observing else 0.004 if since < 2 else 0.02

    def close(self) -> None:
        """Let go of its processes, and put back what was lifted."""
        self.boost.end()
        self.roster.close()
        self._watch.close()

    def hand_over(self) -> Held:
        """To a strike: the kill has come, and may help who was only watched."""
        for victim in self._who_is_dying():
            victim.signalled = True
        return Held(self.roster, self.boost, self._watch)

    def _ask_also(self, victims: list[Victim]) -> None:
        for victim in victims[: _ASKED_AT_MOST - len(self._asked)]:
            victim.read_size()
            # Of oom_score_adj -1000 the score is 0 all its life
            if (victim.rss_bytes or 0) >= WORTH_REAPING_BYTES and not (self._observing and _scores_nothing(victim)):
                self._asked.append(victim)

    def _is_dying(self, victim: Victim, flags: int) -> bool:
        if victim.pidfd is None:  # it has exited before it could be asked
            self._asked.remove(victim)
            return False
        if self._observing:
            code = errno.ESRCH if _scores_nothing(victim) or victim.has_exited() else errno.EINVAL
        else:
            code = process_mrelease(victim.pidfd.number, flags)
        if code in NOT_NOW:
            return False
        self._asked.remove(victim)
        if code == 0:
            victim.fate = Fate.REAPED
        elif code == errno.ESRCH and not victim.has_exited():
            victim.fate = Fate.EXITED
        return victim.fate is not None

    def _who_is_dying(self) -> list[Victim]:
        return [victim for victim in self.roster.living.values() if victim.fate is not None]

    def _begin(self, now: float) -> None:
        self._story = Story(now)
        self._watch.back_seconds = None

    def _look_at_memory(self, now: float) -> None:
        if now - self._looked_at > _LOOK_AT_MEMORY_EVERY_SECONDS:
            self._looked_at = now
            self._watch.begin_anew(self._cgroup)

    def _nobody_else(self) -> bool:
        """Whether all who are in the cgroup now are dying; some kernels don't list those any more."""
        return set(self._cgroup.pids()) <= {victim.pid for victim in self._who_is_dying()}

    def _put_on_a_cpu(self, dying: list[Victim]) -> None:
        if not dying:
            return
        for victim in dying:
            victim.signalled = True  # as good as: it runs no code of its own any more
        known = len(self.boost.lifted)
        self.boost.dying(dying)
        if not self._limits_are_lifted and self._nobody_else():  # else the limits hold for who lives on
            self._limits_are_lifted = True
            self.boost.lift_limits()
        if len(self.boost.lifted) > known:
            self._story.tell(f"boosted: {', '.join(self.boost.lifted)}")

    def _drop_page_cache(self, policy: Policy) -> None:
        # Once, as soon as nobody is left who could want it: the runtime may remove the cgroup at once then
        if policy.page_cache is PageCache.DROP and self._dropped_bytes is None:
            self._dropped_bytes = self._cgroup.drop_page_cache()
            if self._dropped_bytes:
                self._story.tell(f"page cache dropped: {self._dropped_bytes} bytes")

    def _report(self, policy: Policy) -> Report:
        self._story.tell("gone: the cgroup is empty")
        everybody = self.roster.exited
        steps = self._story.steps
        reaped = sum(victim.fate is Fate.REAPED for victim in everybody)
        seen = "seen to end" if self._observing else f"seen to end: {reaped} of {len(everybody)} processes were reaped"
        return Report(
            container_id=self._container_id,
            cgroup=self._cgroup.path,
            trigger="grace",
            mode=str(policy.mode),
            outcome=Outcome.WATCHED if self._observing else Outcome.EXITED,
            reason="ended within its grace period",
            started_at=self._story.began_at,
            before=self._watch.before,
            after=self._watch.after(self._cgroup),
            memory_back_seconds=self._watch.back_seconds,
            gone_seconds=steps[-1].at_seconds,
            page_cache_dropped_bytes=self._dropped_bytes or 0,
            process_count=len(everybody),
            processes=process_reports(everybody, lambda victim: victim.fate or Fate.EXITED),
            boosted=tuple(self.boost.lifted),
            steps=(Step(0.0, seen), *steps),
        )


def _scores_nothing(victim: Victim) -> bool:
    """Whether it has no mm, by proc_pid_oom_score(5), or is never to be killed for want of memory."""
    return read_proc(victim.pid, "oom_score").strip() == b"0"
