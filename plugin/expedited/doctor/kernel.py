"""What the kernel offers the strike."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import struct
import subprocess
from collections.abc import Iterator

from expedited.doctor.child import child
from expedited.doctor.finding import Area, Finding, Level
from expedited.striker.fanotify import IN_CREATE, INotify
from expedited.teardown.linux import MreleaseSupport, mrelease_support, process_mrelease

__all__ = ["look"]

# include/uapi/linux/pidfd.h
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, the first version of struct pidfd_info: 64 bytes)
_PIDFD_INFO_CGROUPID = 1 << 2
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("=QQ11Ii")  # mask, cgroupid, then numbers that are not asked for, and exit_code

_EXIT_CODE = 7
_PATIENCE_SECONDS = 1.0
_BTF = "/sys/kernel/btf/vmlinux"
# The member of struct task_struct that task-based throttling hangs its work on (include/linux/sched.h)
_THROTTLE_MEMBER = b"\0sched_throttle_work\0"


def look() -> Iterator[Finding]:
    """process_mrelease(2), its flags, pidfds, inotify, CFS throttling."""
    support = mrelease_support()
    yield _mrelease(support)
    if support.available:
        yield _flags(support)
    yield _pidfd_info()
    yield _inotify()
    throttling = _throttling()
    if throttling is not None:
        yield throttling


def _mrelease(support: MreleaseSupport) -> Finding:
    # Linux kernel commit 884a7e5964e0 ("mm: introduce process_mrelease system call") (in v5.15)
    release = platform.release()
    if support.available:
        found = f"there (Linux {release})"
    elif process_mrelease(-1, 0) == errno.EPERM:
        found = "forbidden to this process, by a seccomp profile"
    else:
        found = f"not in this kernel (Linux {release})"
    return Finding(
        Area.KERNEL,
        "process_mrelease",
        found,
        Level.OK if support.available else Level.BROKEN,
        "no memory can be reaped: it comes back when the dying get round to it",
        "Linux 5.15 or later; in a container, a seccomp profile that allows it (RuntimeDefault does)",
    )


def _flags(support: MreleaseSupport) -> Finding:
    # No upstream kernel has these flags: see deploy/kernel.
    found = {
        (False, False): "none: a stock kernel",
        (True, False): "REAP_KILL: the series as upstream was last sent it",
        (True, True): "REAP_KILL, KEEP_FILE: our series",
    }.get((support.reap_kill, support.keep_file), support.describe())
    return Finding(
        Area.KERNEL,
        "mrelease flags",
        found,
        Level.OK if support.reap_kill and support.keep_file else Level.DEGRADED,
        "a victim quicker than its reaper keeps its memory until it gets a CPU; its mapped files stay cached",
        "build and boot the kernel of deploy/kernel; all else works without it",
    )


def _pidfd_info() -> Finding:
    try:
        pidfd = os.pidfd_open(os.getpid())  # in v5.3
    except OSError as error:
        return Finding(
            Area.KERNEL,
            "pidfds",
            f"none: {error.strerror}",
            Level.BROKEN,
            "a process can't be held, and one that is held by its number alone is never struck",
            "Linux 5.15 or later; in a container, a seccomp profile that allows pidfd_open",
        )
    try:
        tells = {"cgroup": _tells_cgroup(pidfd), "exit status": _tells_exit_status()}
    finally:
        os.close(pidfd)
    told = " and ".join(what for what, told in tells.items() if told)
    return Finding(
        Area.KERNEL,
        "pidfds",
        f"there; PIDFD_GET_INFO tells {told}" if told else "there, without PIDFD_GET_INFO",
        Level.OK,
        "without pidfds nothing; PIDFD_GET_INFO is not needed, as members are listed, held and listed again",
        "Linux 5.15 or later; PIDFD_GET_INFO came in 6.13, the exit status in 6.15",
    )


def _tells_cgroup(pidfd: int) -> bool:
    # Linux kernel commit cdda1f26e74b ("pidfd: add ioctl to retrieve pid info") (in v6.13)
    return _ask_pidfd(pidfd, _PIDFD_INFO_CGROUPID) is not None


def _tells_exit_status() -> bool:
    # PIDFD_INFO_EXIT (in v6.15): the status is kept for whoever holds a pidfd when the parent has waited
    try:
        with child(f"raise SystemExit({_EXIT_CODE})") as process:
            pidfd = os.pidfd_open(process.pid)
            try:
                process.wait(timeout=_PATIENCE_SECONDS)
                told = _ask_pidfd(pidfd, _PIDFD_INFO_EXIT)
            finally:
                os.close(pidfd)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told is not None and os.waitstatus_to_exitcode(told[-1]) == _EXIT_CODE


def _ask_pidfd(pidfd: int, wanted: int) -> tuple[int, ...] | None:
    """PIDFD_GET_INFO: struct pidfd_info with what is wanted filled in; None where the kernel can't."""
    info = bytearray(_PIDFD_INFO.pack(wanted, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    told = _PIDFD_INFO.unpack(info)
    return told if told[0] & wanted else None


def _inotify() -> Finding:
    who = f"user {os.getuid()}"
    remedy = (
        f"raise the sysctl {{}}: as root, sysctl {{}}={{}}; for good, in /etc/sysctl.d; or end what {who} has in excess"
    )
    try:
        inotify = INotify()
    except OSError as error:
        limit, at_most = "fs.inotify.max_user_instances", _limit("max_user_instances")
        found = f"no instance left for {who} ({error.strerror}): {limit} is {at_most}"
        level, costs = Level.BROKEN, "the striker can't follow the runtimes' directories, and does not start"
    else:
        limit, at_most = "fs.inotify.max_user_watches", _limit("max_user_watches")
        try:
            inotify.watch("/", IN_CREATE)
        except OSError as error:
            found, level = f"no watch left for {who} ({error.strerror}): {limit} is {at_most}", Level.DEGRADED
        else:
            found, level = f"an instance and a watch are to be had by {who}", Level.OK
        finally:
            os.close(inotify.descriptor)
        costs = "new containers are found by looking every second, and a kill that is sooner is the runtime's alone"
    return Finding(Area.KERNEL, "inotify", found, level, costs, remedy.format(limit, limit, 2 * at_most or 1024))


def _limit(name: str) -> int:
    """0: it can't be read."""
    try:
        with open(f"/proc/sys/fs/inotify/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _throttling() -> Finding | None:
    # Nothing tells a program how its quota is enforced, short of starving one; but the kernel's type information has
    # the member that came with the series "Defer throttle when task exits to user" (in v6.18).
    try:
        with open(_BTF, "rb") as file:
            by_task = _THROTTLE_MEMBER in file.read()
    except OSError:
        return None
    return Finding(
        Area.KERNEL,
        "CPU quota",
        "throttles a task on its way back to user space"
        if by_task
        else "throttles a whole run queue, in the kernel too",
        Level.OK,
        "where the dying themselves are throttled, a stop takes as long as their quota lets it, unless boosted",
        "Linux 6.18 or later; the boost makes up for it elsewhere",
    )
