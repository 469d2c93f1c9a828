"""The containers whose grace period runs: held for a strike that may come, and helped if they end before it.

The kernel announces no such end, so they are asked, in turns, by two threads for the whole node. Whoever has a container in its
turn is the only one to touch it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from expedited.striker.container import Container
from expedited.striker.log import Log
from expedited.teardown.boost import Boost
from expedited.teardown.ending import Ending
from expedited.teardown.linux import be_realtime
from expedited.teardown.policy import Mode, Policy
from expedited.teardown.reap import REAPER_PRIORITY
from expedited.teardown.report import Report
from expedited.teardown.roster import Roster

__all__ = ["Graces"]

#: Containers whose processes are held in advance: each may take thousands of descriptors.
_HELD_AT_MOST = 256
_ASKERS = 2
#: (until so long after the last SIGTERM, the pause between a container's turns): most end at once or never, and who ends after a
#: while is helped a little later. After the last, nobody asks any more: whoever lived that long was not to be stopped.
_PAUSE_SECONDS = ((1.0, 0.005), (30.0, 0.02), (3600.0, 0.1))
#: The share of a CPU that the asking may take, however many there are to be asked; but for the longest pause.
_SHARE = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
#: The pause between the turns of who is helped; longer where they are many.
_HELP_SECONDS = 0.002
_HELPED_CLOSELY = 4


class _Grace:
    def __init__(self, container: Container, ending: Ending) -> None:
        self.container = container
        self.ending = ending
        self.since = time.monotonic()
        self.due = self.since
        self.in_turn = False
        self.taken = False  # by its kill, or nobody wants it any more
        self.gone = False  # its directory was removed: it is held for the report alone


class Graces:
    """All grace periods that run on the node.

    Args:
        policy_of: The policy of a container, by its id.
        is_being_struck: Whether somebody else is about to tear a container down: then its dying are theirs.
        publish: Takes the report of each that has ended with our help; called from the threads that ask.
        log: What a person is told by.
    """

    def __init__(
        self,
        policy_of: Callable[[str], Policy],
        is_being_struck: Callable[[Container], bool],
        publish: Callable[[Report], object],
        log: Log,
    ) -> None:
        self._policy_of = policy_of
        self._is_being_struck = is_being_struck
        self._publish = publish
        self._log = log
        self._held: dict[str, _Grace] = {}  # by the container's directory
        self._turns: deque[_Grace] = deque()  # those that nobody has in turn, and that are to be asked
        self._each_seconds = 0.0  # what a turn takes of late
        self._askers = 0
        self._changed = threading.Condition()  # held for a look at these, and for nothing that takes time

    # -- called by the workers; the last three by the source's loop, too ---------------------------------------------------

    def begin(self, container: Container) -> None:
        """Hold its processes from now on; it is asked nothing where the policy doesn't strike, or it is small.

        Raises:
            TargetError: its cgroup is none of a container's.
        """
        policy = self._policy_of(container.id)
        if policy.mode in (Mode.OFF, Mode.OBSERVE) or len(self._held) >= _HELD_AT_MOST:
            return
        self.forget(container.directory)  # what is held since an earlier SIGTERM, if it is not being helped
        roster = Roster(container.cgroup)
        roster.enrol(ahead=True)
        if not container.is_running():  # asked after its pidfd was opened: so that is init's, if it is
            roster.close()
            return
        grace = _Grace(container, Ending(container.cgroup, policy, roster, container_id=container.id))
        with self._changed:
            mine = self._held.setdefault(container.directory, grace) is grace
            if mine and not grace.ending.over:
                self._turns.append(grace)
                self._changed.notify()
        if not mine:
            grace.ending.close()
        elif not grace.ending.over:
            self._have_askers()

    def take(self, directory: str) -> tuple[Roster, Boost] | None:
        """Its kill has come: nobody is asked any longer.

        Returns:
            Its processes, and what they were helped by, now the caller's; None where none are held, or somebody has them in turn.
        """
        with self._changed:
            grace = self._held.pop(directory, None)
            if grace is None:
                return None
            grace.taken = True
            if grace.in_turn:
                return None
            self._drop_turn(grace)
        return grace.ending.hand_over()

    def forget(self, directory: str) -> None:
        """The container is no more; one that is being helped will have its report all the same."""
        with self._changed:
            grace = self._held.get(directory)
            if grace is None:
                return
            if grace.ending.helps and not grace.ending.over:
                grace.gone = True
                return
            del self._held[directory]
            grace.taken = True
            if grace.in_turn:
                return
            self._drop_turn(grace)
        grace.ending.close()

    def holds(self, directory: str, pid: int) -> bool:
        """Whether a pidfd that was opened for this process of the container is held, and it has not exited."""
        grace = self._held.get(directory)
        return grace is not None and grace.ending.roster.holds(pid)

    def _drop_turn(self, grace: _Grace) -> None:
        if grace in self._turns:
            self._turns.remove(grace)

    # -- the threads that ask --------------------------------------------------------------------------------------------

    def _have_askers(self) -> None:
        with self._changed:
            wanted = _ASKERS - self._askers
            self._askers = _ASKERS
        for _ in range(wanted):
            try:
                threading.Thread(target=self._run, name="asker", daemon=True).start()
            except RuntimeError:  # no more threads to be had
                with self._changed:
                    self._askers -= 1

    def _run(self) -> None:
        be_realtime(REAPER_PRIORITY)
        while True:
            for _ in range(len(self._turns)):
                self._ask_next()
            with self._changed:
                while not self._turns:
                    self._changed.wait()
                # Several at a time: to wake up costs more than to ask
                pauses = [self._pause_of(grace, time.monotonic()) or _LONGEST_PAUSE_SECONDS for grace in self._turns]
                self._changed.wait(min(pauses))

    def _ask_next(self) -> None:
        """Have one turn, if it is due."""
        began = time.monotonic()
        with self._changed:
            if not self._turns:
                return  # the other asker has them
            grace = self._turns.popleft()
            if grace.due > began:
                self._turns.append(grace)
                return
            grace.in_turn = True
        report = self._turn(grace)
        now = time.monotonic()
        with self._changed:
            grace.in_turn = False
            if not grace.ending.helps:
                self._each_seconds += (now - began - self._each_seconds) / 16
            pause = self._pause_of(grace, now)
            over = grace.ending.over or not grace.ending.dying
            done = report is not None or grace.taken or (grace.gone and over)
            if done and self._held.get(grace.container.directory) is grace:
                del self._held[grace.container.directory]
            elif not done and pause is not None:
                grace.due = now + pause / 2  # or the next round, which comes somewhat later, would be too early
                self._turns.append(grace)
        if done:
            grace.ending.close()
        if report is not None and not grace.taken:
            self._publish(report)

    def _turn(self, grace: _Grace) -> Report | None:
        policy = self._policy_of(grace.container.id)
        if policy.mode is not Mode.STRIKE or self._is_being_struck(grace.container):
            grace.ending.over = grace.gone
            return None
        try:
            return grace.ending.turn(policy)
        except Exception as error:
            grace.ending.over = True
            self._log.warning(f"an end within the grace period was left to the kernel: {type(error).__name__}: {error}")
            return None

    def _pause_of(self, grace: _Grace, now: float) -> float | None:
        """Until its next turn; None: it has no more."""
        pause = _pause(now - grace.since)
        if grace.ending.over or pause is None:
            return None
        if grace.ending.dying:
            helped = sum(other.ending.dying > 0 for other in self._held.values())
            return _HELP_SECONDS * max(1.0, helped / _HELPED_CLOSELY)
        return min(_LONGEST_PAUSE_SECONDS, max(pause, self._each_seconds * len(self._held) / _SHARE))


def _pause(age_seconds: float) -> float | None:
    return next((pause for until, pause in _PAUSE_SECONDS if age_seconds <= until), None)
