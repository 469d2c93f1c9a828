"""The kernel calls that Python's standard library does not have, and nothing else.

Thin on purpose: one function a call, errno given back where the caller decides by it (the hot path), ``OSError`` where
it does not. What is in :mod:`os` and :mod:`signal` already (pidfd_open, pidfd_send_signal, sched_setscheduler) is used
from there. Out of scope: anything that knows what a container is.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

__all__ = [
    "KEEP_FILE",
    "REAP_KILL",
    "MreleaseSupport",
    "be_realtime",
    "lock_memory",
    "mrelease_support",
    "process_mrelease",
    "realtime",
]

# include/uapi/asm-generic/unistd.h; the number is the same on every architecture
_NR_PROCESS_MRELEASE = 448

# include/uapi/linux/mman.h, with the series of deploy/kernel
REAP_KILL = 1 << 0
KEEP_FILE = 1 << 1

# include/uapi/asm-generic/mman.h
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4

_libc = ctypes.CDLL(None, use_errno=True)
# Through CDLL (not PyDLL) the interpreter lock is let go for the length of the call: reaping a gigabyte takes long.
_syscall = _libc.syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_ulong)
_syscall.restype = ctypes.c_long
_get_errno = ctypes.get_errno


def process_mrelease(pidfd: int, flags: int) -> int:
    """Free the memory of a dying process by the system call of that name.

    Returns:
        0, or the errno: ESRCH (it has no memory any more), EINVAL (it is not dying, or the flag is unknown),
        EAGAIN (its mm is locked by somebody else, try again), EPERM, EBADF, ENOSYS (before Linux 5.15).
    """
    if _syscall(_NR_PROCESS_MRELEASE, pidfd, flags) == 0:
        return 0
    return _get_errno()


@dataclass(frozen=True, slots=True)
class MreleaseSupport:
    """What this kernel's process_mrelease can do."""

    available: bool
    reap_kill: bool
    keep_file: bool

    def flags(self, *, keep_file: bool) -> int:
        """Of a reap that leaves file pages where they are, if the kernel can be told."""
        return KEEP_FILE if keep_file and self.keep_file else 0

    def describe(self) -> str:
        """One word for people and for the status: none, stock, reap-kill or reap-kill+keep-file."""
        if not self.available:
            return "none"
        return "+".join(["reap-kill"] * self.reap_kill + ["keep-file"] * self.keep_file) or "stock"


@cache
def mrelease_support() -> MreleaseSupport:
    """Ask the kernel, without a victim.

    The flags are checked before the descriptor is looked at, so that a descriptor of -1 gives EBADF where the flag is
    known and EINVAL where it is not (stock kernel, mm/oom_kill.c).
    """
    return MreleaseSupport(
        available=process_mrelease(-1, 0) == errno.EBADF,
        reap_kill=process_mrelease(-1, REAP_KILL) == errno.EBADF,
        keep_file=process_mrelease(-1, KEEP_FILE) == errno.EBADF,
    )


def lock_memory() -> None:
    """Keep every page that this process has touched, and will touch, in memory: mlockall(2).

    On fault only: stacks and arenas are locked as they are used, not at their full reserved size.

    Raises:
        OSError: CAP_IPC_LOCK is missing and the limit (RLIMIT_MEMLOCK) too small.
    """
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        code = _get_errno()
        raise OSError(code, f"mlockall: {os.strerror(code)}")


@contextmanager
def realtime(priority: int) -> Iterator[None]:
    """Be SCHED_RR for the length of a block, where that is allowed, and what it was before after it."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    be_realtime(priority)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def be_realtime(priority: int) -> bool:
    """Make the calling thread SCHED_RR, or at least the nicest-treated of the ordinary ones.

    Returns:
        Whether it is real-time now: not without CAP_SYS_NICE, nor in a CPU cgroup that has no real-time budget
        (RT_GROUP_SCHED).
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        except OSError:
            pass
        return False
    return True
