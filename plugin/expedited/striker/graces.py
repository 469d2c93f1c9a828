"""The containers whose grace period runs: held for a strike that may come, and helped, or watched, if they end before it.

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
from expedited.teardown.ending import Ending
from expedited.teardown.held import Held
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
#: How long a kill waits for a turn's end.
_TURN_SECONDS = 0.001
#: How many of those who are dying have their turns as often as they like.
_HELPED_CLOSELY = 4


class _Grace:
    def __init__(self, container: Container, ending: Ending, policy: Policy) -> None:
        self.container = container
        self.ending = ending
        self.since = time.monotonic()
        self.due = self.since
        self.policy = policy
        self.mode = policy.mode  # if that is changed, it is left to itself
        self.in_turn = False
        self.taken = False  # by its kill, or nobody wants it any more
        self.gone = False  # its directory was removed: it is held for the report alone


class Graces:
    """All grace periods that run on the node.

    Args:
        policy_of: The policy of a container, by its id.
        is_being_struck: Whether somebody else is about to tear a container down: then its dying are theirs.
        publish: Takes the report of each that was seen to end; called from the threads that ask.
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
        self._round_seconds = 0.0  # the shortest pause of all
        self._helped = 0
        self._askers = 0
        self._changed = threading.Condition()  # held for a look at these, and for nothing that takes time

    # -- called by the workers -------------------------------------------------------------------------------------------

    def begin(self, container: Container) -> None:
        """Hold its processes from now on; it is asked nothing where it is small.

        Raises:
            TargetError: its cgroup is none of a container's.
        """
        policy = self._policy_of(container.id)
        if policy.mode is Mode.OFF or len(self._held) >= _HELD_AT_MOST:
            return
        with self._changed:
            earlier = self._held.get(container.directory)
            if earlier is not None and not earlier.ending.over and (earlier.ending.helps or earlier.in_turn):
                earlier.since = time.monotonic()
                if not earlier.in_turn and earlier not in self._turns:
                    self._turns.append(earlier)
                    self._changed.notify()
                return
        self.forget(container.directory)  # it is held anew: there may be others by now
        roster = Roster(container.cgroup)
        roster.enrol(ahead=True)
        if not container.is_running():  # asked after its pidfd was opened: so that is init's, if it is
            roster.close()
            return
        ending = Ending(container.cgroup, policy.for_container(container.id), roster, container_id=container.id)
        grace = _Grace(container, ending, policy)
        with self._changed:
            mine = self._held.setdefault(container.directory, grace) is grace
            if mine and not grace.ending.over:
                self._turns.append(grace)
                self._changed.notify()
        if not mine:
            grace.ending.close()
        elif not grace.ending.over:
            self._have_askers()

    def take(self, key: str, *, wait: bool = True) -> Held | None:
        """Its kill has come: nobody is asked any longer.

        Args:
            key: The container's directory, or what its cgroup is listed by.
            wait: For whoever has it in turn, as long as most turns take.

        Returns:
            What was held of it, now the caller's; None where that is nothing, or somebody has it in turn who does not come back.
        """
        # Who asks has a lower priority than a strike, and may hold the lock while other strikes have the CPUs. What is left here then
        # is asked nothing while it is being struck, and is let go of with the container.
        if not self._changed.acquire(timeout=_TURN_SECONDS):
            return None
        try:
            grace = self._held.get(key) or next(
                (each for each in self._held.values() if each.container.cgroup.procs_dir == key), None
            )
            if grace is None:
                return None
            del self._held[grace.container.directory]
            grace.taken = True
            # Most turns take less than the listing that is saved; one that reaps may take long
            if grace.in_turn and not self._changed.wait_for(lambda: not grace.in_turn, _TURN_SECONDS if wait else 0):
                return None
            self._drop_turn(grace)
        finally:
            self._changed.release()
        return grace.ending.hand_over()

    def forget(self, directory: str) -> None:
        """The container is no more; one that is being helped will have its report all the same."""
        with self._changed:
            grace = self._held.get(directory)
            if grace is None:
                return
            if grace.in_turn or (grace.ending.helps and grace in self._turns):
                grace.gone = True
                return
            del self._held[directory]
            self._drop_turn(grace)
        grace.ending.close()

    def close(self) -> None:
        """Put back what was lifted for those who are being helped; for a process that ends."""
        with self._changed:
            idle = [grace for grace in self._held.values() if not grace.in_turn]
            self._held.clear()
            self._turns.clear()
        for grace in idle:
            grace.ending.close()

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
                self._helped = sum(grace.ending.dying > 0 for grace in self._turns)
                now = time.monotonic()
                pauses = [self._pause_of(grace, now) for grace in self._turns]
                self._round_seconds = min((pause for pause in pauses if pause), default=_LONGEST_PAUSE_SECONDS)
                self._changed.wait(self._round_seconds)

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
            if grace.taken:  # and the strike may count on what was lifted
                done, pause = not self._is_being_struck(grace.container), _LONGEST_PAUSE_SECONDS
                self._changed.notify_all()
            else:
                over = grace.ending.over or not grace.ending.dying
                done = report is not None or (grace.gone and (over or pause is None))
            if done:
                if self._held.get(grace.container.directory) is grace:
                    del self._held[grace.container.directory]
            elif pause is not None:
                grace.due = now + pause - self._round_seconds / 2  # the round that comes next to it
                self._turns.append(grace)
        if done:
            grace.ending.close()
        if report is not None and not grace.taken:
            self._publish(report)

    def _turn(self, grace: _Grace) -> Report | None:
        if grace.taken:
            return None
        if not grace.gone:  # what was told of it holds no more then
            grace.policy = self._policy_of(grace.container.id)
        if grace.policy.mode is not grace.mode or self._is_being_struck(grace.container):
            grace.ending.over = grace.gone
            return None
        try:
            return grace.ending.turn(grace.policy)
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
            return grace.ending.pause_seconds * max(1.0, self._helped / _HELPED_CLOSELY)
        return min(_LONGEST_PAUSE_SECONDS, max(pause, self._each_seconds * (1 + len(self._turns)) / _SHARE))


def _pause(age_seconds: float) -> float | None:
    return next((pause for until, pause in _PAUSE_SECONDS if age_seconds <= until), None)
