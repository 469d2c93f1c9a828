"""The processes of one container, each held by a pidfd.

The rule that keeps a stranger from being struck: *list, open, list again*, and strike only what is in the second list
too. A pidfd names one process for ever. If pid P is in the cgroup's list after the pidfd of P was opened, then either the
pidfd's process still is P, and so is a member; or it has died since and its number went to another process, and then
the pidfd leads to nobody and a signal through it reaches nobody. See docs/decisions/0002-list-open-list.md.
"""

from __future__ import annotations

import errno
import os
import resource
import select
from contextlib import suppress

from expedited.teardown.cgroup import Cgroup
from expedited.teardown.files import inode
from expedited.teardown.pidfd import Pidfd, highest_ahead
from expedited.teardown.report import Fate

__all__ = ["DESCRIPTORS", "MOST_AT_ONCE", "Roster", "Victim", "make_room_for_descriptors"]

#: How many pidfds one strike holds at once; a fork bomb is taken in several bites.
MOST_AT_ONCE = 4096
#: Room for two strikes at their largest; 64 KiB of the kernel's memory.
DESCRIPTORS = 2 * MOST_AT_ONCE

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Descriptors left free for everything else that a strike, and whoever called it, opens. When there is none for the file that
# somebody held at the gate is opening, the kernel doesn't let them through: it refuses them.
_SPARE_DESCRIPTORS = 128
_THREADS_LOOKED_AT = 8


def make_room_for_descriptors() -> None:
    """For a process that strikes, before it has threads: let it have as many descriptors as it may, and room for them.

    The kernel's table of them grows under a process with threads only after an RCU grace period (fs/file.c). A strike on a hundred
    processes was seen to wait 20 ms for that between two pidfds; a table that is large already never shrinks.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open(os.devnull, "rb") as file, suppress(OSError):
        os.close(os.dup2(file.fileno(), min(hard, DESCRIPTORS) - 1, inheritable=False))


class Victim:
    """One process of the container, from when it was first seen until it has exited.

    Attributes:
        pidfd: None once the strike has let go of it. A thread other than the strike's own takes a reference first.
        being_reaped: A reaper is at it; its ``fate`` may be about to change.
    """

    __slots__ = ("being_reaped", "boosted", "fate", "pid", "pidfd", "rss_bytes", "signalled")

    def __init__(self, pid: int, pidfd: Pidfd) -> None:
        self.pid = pid
        self.pidfd: Pidfd | None = pidfd
        self.rss_bytes: int | None = None
        self.fate: Fate | None = None
        self.being_reaped = False
        self.signalled = False
        self.boosted = False

    def read_size(self) -> None:
        """Read how much memory is resident, from /proc/PID/statm.

        Only before it is signalled: reading /proc of a dying process holds its mm, and with it the very memory that
        it should give back.
        """
        self.rss_bytes = _resident_bytes(f"/proc/{self.pid}/statm")
        if self.rss_bytes == 0:
            # A leader that has exited before its threads has no mm any more; they do.
            try:
                tids = os.listdir(f"/proc/{self.pid}/task")[:_THREADS_LOOKED_AT]
            except OSError:
                return
            sizes = (_resident_bytes(f"/proc/{self.pid}/task/{tid}/statm") for tid in tids)
            self.rss_bytes = next(filter(None, sizes), 0)

    def has_exited(self) -> bool:
        """Whether it is a zombie or gone."""
        pidfd = self.pidfd
        return pidfd is None or pidfd.has_exited()


def _resident_bytes(statm: str) -> int | None:
    """The second field of proc_pid_statm(5), in bytes; None where there is no such process."""
    try:
        descriptor = os.open(statm, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(descriptor, 128).split(b" ", 2)[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None
    finally:
        os.close(descriptor)


class Roster:
    """Who is in the cgroup, and who of them is still alive.

    Not safe for several threads: one strike owns it.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self.cgroup = cgroup
        self.living: dict[int, Victim] = {}
        self.exited: list[Victim] = []
        self._listed: frozenset[int] = frozenset()
        self._by_descriptor: dict[int, Victim] = {}
        self._unwatched: list[Victim] = []  # whose exit nobody has had to wait for yet
        self._poller = select.poll()
        self._inode = inode(cgroup.procs_dir)

    def __len__(self) -> int:
        return len(self.living) + len(self.exited)

    def enrol(self, *, ahead: bool = False) -> list[Victim]:
        """Take in every member that is not known yet.

        Args:
            ahead: In advance of a kill: half of the descriptors stay for those whose time has come.

        Returns:
            The newcomers. Empty when the cgroup holds nobody that was not known before.

        Raises:
            TargetError: it holds this process, or pid 1; nobody was taken in.
        """
        living = self.living
        self._listed = frozenset(self.cgroup.pids())
        if self.is_over():  # asked after the list was made
            self._listed = frozenset()
            return []
        self.cgroup.refuse_members(self._listed)
        unknown = self._listed - living.keys()
        if not unknown:
            return []
        opened: list[tuple[int, Pidfd]] = []
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        highest = highest_ahead() if ahead else limit - min(_SPARE_DESCRIPTORS, limit // 4)
        for pid in sorted(unknown):  # the oldest first, and init with them
            if len(opened) >= MOST_AT_ONCE:
                break
            try:
                pidfd = Pidfd.open(pid)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    break
                continue  # ESRCH: it is gone; EINVAL: a thread's number, so not the process that was listed
            if pidfd.number >= highest and (ahead or opened or living):
                break  # strike those we have; the next round takes the rest
            opened.append((pid, pidfd))
        if not opened:
            return []
        members = set(self.cgroup.pids())
        newcomers = []
        for pid, pidfd in opened:
            if pid not in members:
                continue  # moved away, or died: not ours to strike
            victim = living[pid] = Victim(pid, pidfd)
            newcomers.append(victim)
        self._unwatched += newcomers
        return newcomers

    def is_over(self) -> bool:
        """Whether the cgroup was removed; another of the same name, as of a container that was started again, is not this one."""
        return inode(self.cgroup.procs_dir) != self._inode

    def muster(self) -> list[Victim]:
        """Take in who is new, and let go of those enrolled earlier who are members no more: they moved away, or died.

        Who was found dying stays: newer kernels (seen in 7.3, not in 6.12) leave a process out of cgroup.procs once its last thread
        exits, before it has let go of its memory.

        Whoever was enrolled before this list was made, and is in it, is a member still, by the rule above.

        Returns:
            All who are members now, and those who were found dying.

        Raises:
            TargetError: it holds this process, or pid 1.
        """
        earlier = list(self.living.values())
        newcomers = self.enrol()
        for pid in self.living.keys() - self._listed:
            if self.living[pid].fate is None:
                self._dismiss(self.living[pid])
        return [victim for victim in earlier if victim.pid in self.living] + newcomers

    def _dismiss(self, victim: Victim) -> None:
        self._watch()
        assert victim.pidfd is not None
        del self._by_descriptor[victim.pidfd.number]
        self._poller.unregister(victim.pidfd.number)
        del self.living[victim.pid]
        victim.pidfd = None

    def wait(self, timeout_seconds: float) -> bool:
        """Sleep until somebody exits, or for that long; the dead leave the living.

        Returns:
            Whether anybody exited.
        """
        self._watch()
        dead = self._poller.poll(timeout_seconds * 1000)
        for descriptor, _ in dead:
            victim = self._by_descriptor.pop(descriptor)
            self._poller.unregister(descriptor)
            del self.living[victim.pid]
            self.exited.append(victim)
        return bool(dead)

    def _watch(self) -> None:
        """Have the newcomers' exits waited for: not before somebody waits, as their signals don't have to wait for it."""
        for victim in self._unwatched:
            assert victim.pidfd is not None
            self._by_descriptor[victim.pidfd.number] = victim
            self._poller.register(victim.pidfd.number, select.POLLIN)
        self._unwatched.clear()

    def close(self) -> None:
        """Let go of every pidfd."""
        self._unwatched.clear()
        for victim in [*self.living.values(), *self.exited]:
            victim.pidfd = None

    def close_exited(self) -> None:
        """Let go of the pidfds of the dead, so that a fork bomb's can't use up the descriptors."""
        for victim in self.exited:
            victim.pidfd = None
