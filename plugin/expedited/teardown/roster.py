"""The processes of one container, each held by a pidfd.

The rule that keeps a stranger from being struck: *list, open, list again*, and strike only what is in the second list
too. A pidfd names one process for ever. If pid P is in the cgroup's list after the pidfd of P was opened, then either the
pidfd's process still is P, and so is a member; or it has died since and its number went to another process, and then
the pidfd leads to nobody and a signal through it reaches nobody. See docs/decisions/0002-list-open-list.md.
"""

from __future__ import annotations

import errno
import os
import select

from expedited.teardown.cgroup import Cgroup
from expedited.teardown.report import Fate

__all__ = ["MOST_AT_ONCE", "Roster", "Victim"]

#: How many pidfds one strike holds at once; a fork bomb is taken in several bites.
MOST_AT_ONCE = 4096

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Victim:
    """One process of the container, from when it was first seen until it has exited."""

    __slots__ = ("boosted", "fate", "pid", "pidfd", "rss_bytes", "signalled")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.rss_bytes: int | None = None
        self.fate: Fate | None = None
        self.signalled = False
        self.boosted = False

    def read_size(self) -> None:
        """Read how much memory is resident, from /proc/PID/statm.

        Only before it is signalled: reading /proc of a dying process holds its mm, and with it the very memory that
        it should give back.
        """
        try:
            descriptor = os.open(f"/proc/{self.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self.rss_bytes = int(os.read(descriptor, 128).split(b" ", 2)[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            pass
        finally:
            os.close(descriptor)

    def has_exited(self) -> bool:
        """Whether it is a zombie or gone: then its pidfd is readable (pidfd_open(2))."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(0))


class Roster:
    """Who is in the cgroup, and who of them is still alive.

    Not safe for several threads: one strike owns it.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self.cgroup = cgroup
        self.living: dict[int, Victim] = {}
        self.exited: list[Victim] = []
        self._by_descriptor: dict[int, Victim] = {}
        self._poller = select.poll()

    def __len__(self) -> int:
        return len(self.living) + len(self.exited)

    def enrol(self) -> list[Victim]:
        """Take in every member that is not known yet.

        Returns:
            The newcomers. Empty when the cgroup holds nobody that was not known before.
        """
        living = self.living
        opened: list[tuple[int, int]] = []
        for pid in self.cgroup.pids():
            if pid in living:
                continue
            if len(opened) >= MOST_AT_ONCE:
                break
            try:
                opened.append((pid, os.pidfd_open(pid)))
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    break  # strike those we have; the next round takes the rest
                # ESRCH: it is gone; EINVAL: a thread's number, so not the process that was listed
        if not opened:
            return []
        members = set(self.cgroup.pids())
        newcomers = []
        for pid, pidfd in opened:
            if pid not in members:
                os.close(pidfd)  # moved away, or died: not ours to strike
                continue
            victim = living[pid] = Victim(pid, pidfd)
            self._by_descriptor[pidfd] = victim
            self._poller.register(pidfd, select.POLLIN)
            newcomers.append(victim)
        return newcomers

    def wait(self, timeout_seconds: float) -> bool:
        """Sleep until somebody exits, or for that long; the dead leave the living.

        Returns:
            Whether anybody exited.
        """
        if not self.living:
            return False
        dead = self._poller.poll(timeout_seconds * 1000)
        for descriptor, _ in dead:
            victim = self._by_descriptor.pop(descriptor)
            self._poller.unregister(descriptor)
            del self.living[victim.pid]
            self.exited.append(victim)
        return bool(dead)

    def close(self) -> None:
        """Let go of every pidfd."""
        for victim in [*self.living.values(), *self.exited]:
            if victim.pidfd >= 0:
                os.close(victim.pidfd)
                victim.pidfd = -1

    def close_exited(self) -> None:
        """Let go of the pidfds of the dead, so that a fork bomb's can't use up the descriptors."""
        for victim in self.exited:
            if victim.pidfd >= 0:
                os.close(victim.pidfd)
                victim.pidfd = -1
