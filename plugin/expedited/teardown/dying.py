"""Reaping those whom somebody else has killed: the kernel's OOM killer in a container.

Nothing is signalled here. process_mrelease says EINVAL to whoever is not dying, so everybody in the cgroup is asked, and
again, until the kill has come. The kernel reaps its victims too, but only two seconds later (OOM_REAPER_DELAY in
mm/oom_kill.c), as by then most have exited by themselves, if they had a CPU to do it on.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from expedited.teardown.cgroup import Cgroup
from expedited.teardown.linux import mrelease_support, process_mrelease
from expedited.teardown.measure import MemoryWatch
from expedited.teardown.policy import PageCache, Policy
from expedited.teardown.reap import NOT_NOW, Reapers
from expedited.teardown.receipt import Story, process_reports
from expedited.teardown.report import Fate, Outcome, Report, Step
from expedited.teardown.roster import Roster, Victim

__all__ = ["reap_dying"]

_REAPERS = 2
#: How long a kill may take after it was announced, by cgroup version. Version 1 tells of it first, and then whoever wanted the
#: memory, and may have next to no CPU, chooses the victim: seen after 1.4 s. Version 2 tells when it has killed.
_KILL_SECONDS = {1: 5.0, 2: 0.1}
#: Where all are killed (memory.oom.group), they are within this of each other.
_APART_SECONDS = 0.1
# Who is killed runs on, for some microseconds on a CPU of its own, and lets go of its mm: then nobody can reap it. But asking
# a thousand processes must not take a CPU of the node for itself.
_ASK_EVERY_SECONDS, _ASK_LATER_EVERY_SECONDS = 0.0002, 0.001
_KEEN_SECONDS = 1.0
_PAUSE_FOR_ASKING = 3
_LOOK_EVERY_SECONDS = 0.002


def reap_dying(cgroup: Cgroup, policy: Policy, *, container_id: str, started: float) -> Report | None:
    """Free the memory of everybody in a cgroup who is being killed, and wait until they are gone.

    Args:
        cgroup: In which the kernel kills.
        policy: Its mode is the caller's to heed.
        container_id: For the report.
        started: ``time.monotonic()`` of when the kill was announced.

    Returns:
        The report, of those who died; None where nobody did, or it is smaller than the policy's minimum.

    Raises:
        TargetError: it is the root, or holds this process or pid 1.
    """
    watch = MemoryWatch(cgroup)
    roster = Roster(cgroup)
    try:
        if watch.before is None or watch.before.anon_bytes < policy.min_size_bytes:
            return None
        victims = roster.muster()
        one = _Hunt(roster, watch, victims, policy, started)
        with Reapers(_REAPERS) as reapers:
            for _ in range(reapers.count):
                reapers.submit(one.ask)
            one.wait()
        return one.report(cgroup, container_id) if one.dead else None
    finally:
        roster.close()
        watch.close()


class _Hunt:
    def __init__(
        self, roster: Roster, watch: MemoryWatch, victims: list[Victim], policy: Policy, started: float
    ) -> None:
        self.dead: list[Victim] = []
        self._roster = roster
        self._watch = watch
        self._policy = policy
        self._story = Story(started)
        self._kill_by = started + _KILL_SECONDS[roster.cgroup.version]
        self._flags = mrelease_support().flags(keep_file=policy.page_cache is not PageCache.DROP)
        # Asked in turns by all reapers; whoever is being reaped is in nobody's turn
        self._waiting = deque((victim, victim.pidfd) for victim in victims)
        self._turn = threading.Lock()
        self._asking = 0  # who is in no queue, but at a reaper
        self._last_at = 0.0
        self._gone: float | None = None
        for victim in victims:
            victim.read_size()

    def ask(self) -> None:
        """In a reaper: ask everybody who waits to be asked, until there is no kill to be expected any more."""
        while not self._over():
            began = time.monotonic()
            for _ in range(len(self._waiting)):
                if not self._ask_next():
                    break
            now = time.monotonic()
            pause = _ASK_EVERY_SECONDS if now < self._story.began + _KEEN_SECONDS else _ASK_LATER_EVERY_SECONDS
            time.sleep(max(pause, _PAUSE_FOR_ASKING * (now - began)))

    def _ask_next(self) -> bool:
        """Ask who is next; False when the other reapers have them all."""
        with self._turn:
            if not self._waiting:
                return False
            victim, pidfd = self._waiting.popleft()
            self._asking += 1
        assert pidfd is not None
        code = process_mrelease(pidfd.number, self._flags)
        if code == 0:
            victim.fate = Fate.REAPED
        elif code not in NOT_NOW:
            victim.fate = Fate.GONE if victim.has_exited() else Fate.LOST_RACE
        with self._turn:
            self._asking -= 1
            if victim.fate is None:
                self._waiting.append((victim, pidfd))
            else:
                self._last_at = time.monotonic()
                self.dead.append(victim)
        return True

    def wait(self) -> None:
        """Until those who were killed are gone, or nobody was."""
        deadline = self._story.began + self._policy.deadline_seconds
        while time.monotonic() < deadline:
            self._roster.wait(_LOOK_EVERY_SECONDS)
            self._watch.sample(self._story.now())
            if not self._roster.living and self._gone is None:
                self._gone = self._story.now()
            if self._asking:
                continue  # its fate is in the report
            if self._gone is not None or (
                self._over() and not any(victim.pid in self._roster.living for victim in self.dead)
            ):
                return

    def _over(self) -> bool:
        with self._turn:
            if self._asking:
                return False
            since = max(self._kill_by if not self.dead else 0.0, self._last_at + _APART_SECONDS)
            return not self._waiting or time.monotonic() > since

    def report(self, cgroup: Cgroup, container_id: str) -> Report:
        """What came of it."""
        dead, left = len(self.dead), len(self._roster.living)
        reaped = Step(self._last_at - self._story.began, f"{dead} killed by the kernel, their memory reaped")
        if left:
            self._story.tell(f"{left} more processes live on")
        return Report(
            container_id=container_id,
            cgroup=cgroup.path,
            trigger="oom",
            mode=str(self._policy.mode),
            order="follow",
            outcome=Outcome.STRUCK,
            reason=f"out of memory: the kernel killed {dead} of {dead + left} processes",
            started_at=self._story.began_at,
            before=self._watch.before,
            after=self._watch.after(cgroup),
            memory_back_seconds=self._watch.back_seconds,
            gone_seconds=self._gone,
            process_count=dead,
            lost_races=sum(victim.fate is Fate.LOST_RACE for victim in self.dead),
            processes=process_reports(self.dead, lambda victim: victim.fate or Fate.KILLED),
            steps=(reaped, *self._story.steps),
        )
