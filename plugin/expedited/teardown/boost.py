"""Getting the dying onto a CPU.

After SIGKILL no user code of theirs runs any more: all that is left is to exit, and that is work for the node. So they
may pass over every weight and quota that was meant for their program:

* their threads become SCHED_RR. Where the kernel has RT_GROUP_SCHED (version 1), the groups along their path need a
  real-time budget for it, which is lent to them for the strike;
* the cgroup's own weight, quota and CPU set are lifted.

Everything is put back when the strike ends, for the case that the cgroup outlives it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable

from expedited.teardown.cgroup import Cgroup
from expedited.teardown.files import read, try_write
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.roster import Victim

__all__ = ["DYING_PRIORITY", "Boost"]

#: SCHED_RR priority of the dying: the lowest, below every thread of ours.
DYING_PRIORITY = 1

# What a group may be lent of its 1 s real-time period, in microseconds; less if its parent has no more to give.
_BUDGETS_US = (300_000, 100_000, 30_000)

# (file of the CPU controller, value that lifts it, name in the report), by cgroup version
_CPU_LIMITS = {
    1: (("cpu.cfs_quota_us", "-1", "quota"), ("cpu.shares", "262144", "weight")),
    2: (("cpu.max", "max", "quota"), ("cpu.weight", "10000", "weight")),
}


class _Budgets:
    """Real-time budgets lent to version 1 groups, counted: neighbours share ancestors, and the last one gives back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lent: dict[str, tuple[int, str, int]] = {}  # directory -> (borrowers, what was there, lent now)

    def lend(self, root: str, directory: str) -> list[tuple[str, int]]:
        """Give every group from below ``root`` down to ``directory`` a budget, from the top.

        Returns:
            (directory, microseconds a period) for each; empty if one of them could get none.
        """
        levels = directory[len(root) :].strip("/").split("/")
        path = root
        lent: list[tuple[str, int]] = []
        with self._lock:
            for level in levels:
                path = f"{path}/{level}"
                amount = self._raise(path)
                if not amount:
                    self._return([name for name, _ in reversed(lent)])
                    return []
                lent.append((path, amount))
        return lent

    def take_back(self, directories: Iterable[str]) -> None:
        with self._lock:
            self._return(directories)

    def _raise(self, directory: str) -> int:
        name = directory + "/cpu.rt_runtime_us"
        borrowers, before, amount = self._lent.get(directory, (0, "", 0))
        if not borrowers:
            try:
                before = _read(name)
                amount = int(before)
            except (OSError, ValueError):
                return 0
            if amount < _BUDGETS_US[-1]:
                amount = next((budget for budget in _BUDGETS_US if _write(name, str(budget))), 0)
                if not amount:
                    return 0
        self._lent[directory] = (borrowers + 1, before, amount)
        return amount

    def _return(self, directories: Iterable[str]) -> None:
        for directory in directories:
            borrowers, before, amount = self._lent.pop(directory)
            if borrowers > 1:
                self._lent[directory] = (borrowers - 1, before, amount)
            else:
                _write(directory + "/cpu.rt_runtime_us", before)


_budgets = _Budgets()


class Boost:
    """The boost of one strike. Only ever for a process that runs no code of its own any more: it has its SIGKILL, or exits."""

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._saved: list[tuple[str, str]] = []
        self._lent: list[tuple[str, int]] = []
        self._realtime = True
        self._stop_at = float("inf")
        self._tids: list[int] = []
        self.lifted: list[str] = []

    def dying(self, victims: Iterable[Victim]) -> None:
        """Make every thread of these real-time; where that is not allowed, nothing happens."""
        if time.monotonic() > self._stop_at:
            self._give_up_realtime()
        for victim in victims:
            if victim.boosted or not victim.signalled:
                continue
            victim.boosted = True
            if not self._realtime:
                continue
            try:
                tids = list(map(int, os.listdir(f"/proc/{victim.pid}/task")))
            except OSError:
                continue
            # The pid could be somebody else's by now only if the victim had exited; and then the listing above may be
            # that process's. Ask the pidfd after the listing: if it has not exited, the threads were its own.
            if victim.has_exited():
                continue
            for tid in tids:
                self._make_realtime(tid)
            if victim.has_exited():
                # It ended while its threads were being raised, and a number may have gone to a newcomer: take it back.
                self._lower(tids)

    def lift_limits(self) -> None:
        """Take the cgroup's own weight and quota off it, and its CPU set (its ancestors' are not ours to change).

        The CPU set only where they can't be real-time: those who can get their turn on the CPUs that they have, and on others' they
        would go before whoever has those for himself.
        """
        if self._cgroup.cpu_dir is not None:
            for name, value, word in _CPU_LIMITS[self._cgroup.version]:
                self._lift(f"{self._cgroup.cpu_dir}/{name}", value, word)
        cpuset = self._cgroup.cpuset_dir
        if cpuset is not None and not self._realtime:
            name = "cpuset.cpus.effective" if self._cgroup.version == 2 else "cpuset.cpus"
            try:
                all_of_parents = _read(f"{os.path.dirname(cpuset)}/{name}")
            except OSError:
                return
            self._lift(f"{cpuset}/cpuset.cpus", all_of_parents, "cpuset")

    def end(self) -> None:
        """Put back what was lifted, the last first; a cgroup that is gone needs nothing."""
        for path, value in reversed(self._saved):
            _write(path, value)
        self._saved.clear()
        self._return_budget()

    def _make_realtime(self, tid: int) -> None:
        parameters = os.sched_param(DYING_PRIORITY)
        for first in (True, False):
            try:
                os.sched_setscheduler(tid, os.SCHED_RR, parameters)
            except ProcessLookupError:
                return
            except PermissionError:
                # No CAP_SYS_NICE, or RT_GROUP_SCHED and a group without a budget: on version 1 that can be lent.
                if not (first and self._borrow_budget()):
                    self._realtime = False
                    return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._realtime = False
                return
            else:
                self._tids.append(tid)
                self._note("rt")
                return

    def _borrow_budget(self) -> bool:
        directory, root = self._cgroup.cpu_dir, hierarchies().controllers.get("cpu")
        if self._cgroup.version != 1 or directory is None or root is None or self._lent:
            return False
        self._lent = _budgets.lend(root, directory)
        if not self._lent:
            return False
        # A group that has used up its budget stands still until the next period, which would be worse than no boost.
        # So be real-time for most of the budget, and an ordinary process, with the limits lifted, after that.
        self._stop_at = time.monotonic() + 0.8e-6 * min(amount for _, amount in self._lent)
        self._note("rt-bandwidth")
        return True

    def _give_up_realtime(self) -> None:
        self._realtime = False
        self._stop_at = float("inf")
        self._lower(self._tids)

    @staticmethod
    def _lower(tids: Iterable[int]) -> None:
        for tid in tids:
            try:
                # A tid that was used again meanwhile: only ever take SCHED_RR at our own priority away.
                if (
                    os.sched_getscheduler(tid) == os.SCHED_RR
                    and os.sched_getparam(tid).sched_priority == DYING_PRIORITY
                ):
                    os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
            except OSError:
                continue

    def _return_budget(self) -> None:
        if self._lent:
            # A group with real-time members can't give its budget back
            self._give_up_realtime()
            _budgets.take_back([directory for directory, _ in reversed(self._lent)])
            self._lent = []

    def _lift(self, path: str, value: str, word: str) -> None:
        try:
            before = _read(path)
        except OSError:
            return
        # Nothing to lift: it is so already, there is no quota, or (version 2, empty) the CPU set is the parent's
        if before in (value, "") or (word == "quota" and before.startswith(("max", "-1"))):
            return
        if _write(path, value):
            self._saved.append((path, before))
            self._note(word)

    def _note(self, word: str) -> None:
        if word not in self.lifted:
            self.lifted.append(word)


def _read(path: str) -> str:
    return read(path).decode("ascii").strip()


def _write(path: str, value: str) -> bool:
    # What was empty (version 2: no CPU set of its own) is put back by an empty line: to write nothing is no order
    return try_write(path, value.encode() or b"\n")
