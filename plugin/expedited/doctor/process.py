"""What this process may do to be quick and to stay alive: real-time priority, locked memory, OOM score."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from expedited.doctor.capabilities import CAP_SYS_NICE, effective
from expedited.doctor.finding import Area, Finding, Level
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.hierarchies import hierarchies
from expedited.teardown.linux import lock_memory

__all__ = ["look"]

_OWN_SCORE = Path("/proc/self/oom_score_adj")
_STRIKERS_SCORE = "-999"
_RT_RUNTIME = Path("/proc/sys/kernel/sched_rt_runtime_us")


def look() -> Iterator[Finding]:
    """Each is done for a moment, and undone."""
    yield _realtime()
    yield _memory_lock()
    yield _oom_score()


def _realtime() -> Finding:
    failures: list[OSError] = []
    # In a thread, which takes the priority with it when it ends
    thread = threading.Thread(target=_become_realtime, args=(failures,))
    thread.start()
    thread.join()
    limit = _rt_limit()
    if not failures:
        found, level = f"allowed{limit}", Level.OK
    else:
        found, level = f"{_why_not_realtime(failures[0])}{limit}", Level.DEGRADED
    return Finding(
        Area.PROCESS,
        "real-time",
        found,
        level,
        "on a busy node gate and reapers queue for a CPU behind the load: memory comes back later",
        "CAP_SYS_NICE; with RT_GROUP_SCHED a cpu.rt_runtime_us above 0 in our own cgroup, or the root cgroup",
    )


def _become_realtime(failures: list[OSError]) -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError as error:
        failures.append(error)


def _why_not_realtime(error: OSError) -> str:
    if error.errno != errno.EPERM:
        return f"refused: {error.strerror}"
    if not effective() >> CAP_SYS_NICE & 1:
        return "refused: CAP_SYS_NICE is missing"
    # RT_GROUP_SCHED: a group has to have a budget of its own (version 1), or only the root group has one (version 2).
    root = hierarchies().controllers.get("cpu", "")
    for directory in Cgroup.own_directories():
        budget = Path(directory, "cpu.rt_runtime_us")
        if root and directory.startswith(root) and budget.exists() and budget.read_text().strip() == "0":
            return f"refused: {budget} is 0"
    return "refused, though CAP_SYS_NICE is there: RT_GROUP_SCHED, and our cgroup is not the root"


def _rt_limit() -> str:
    try:
        budget_us = int(_RT_RUNTIME.read_text())
    except (OSError, ValueError):
        return ""
    return "" if budget_us < 0 else f"; {budget_us:,} us in each second for all (sched_rt_runtime_us)"


def _memory_lock() -> Finding:
    try:
        lock_memory()
    except OSError as error:
        found, level = f"refused ({os.strerror(error.errno or 0)})", Level.DEGRADED
    else:
        ctypes.CDLL(None).munlockall()
        found, level = "allowed", Level.OK
    return Finding(
        Area.PROCESS,
        "memory lock",
        found,
        level,
        "under memory pressure a strike waits for its own pages to be read back",
        "CAP_IPC_LOCK, or a RLIMIT_MEMLOCK that is large enough (LimitMEMLOCK=infinity)",
    )


def _oom_score() -> Finding:
    before = _OWN_SCORE.read_text()
    try:
        # Less than before, or what it is already
        _OWN_SCORE.write_text(_STRIKERS_SCORE)
    except OSError as error:
        found, level = f"{before.strip()}, and can't be lowered ({error.strerror})", Level.DEGRADED
    else:
        _OWN_SCORE.write_text(before)
        found, level = "can be lowered", Level.OK
    return Finding(
        Area.PROCESS,
        "oom_score_adj",
        found,
        level,
        "the kernel's OOM killer may take the striker first, when it is needed most",
        "CAP_SYS_RESOURCE, or a supervisor that sets it (OOMScoreAdjust=-999)",
    )
