"""The agent before everybody's work on the CPUs: the runtime waits for each answer of an NRI plugin, and drops one that is late.

A weight does not do it. Beside busy pods a share of 10m is 1% of a core, and an answer took 0.15 s there at the median and
more than a second at worst; from a real-time process it takes 0.3 ms (docs/decisions/0012-the-agents-share.md).
"""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress

from expedited.striker.log import Log

__all__ = ["RUNAWAY_SECONDS", "go_first"]

#: Who computes for so long without a pause does no agent's work, and loses the priority.
RUNAWAY_SECONDS = 5.0
# SCHED_RR: with the thread that makes a strike, above its reapers (teardown.reap), whose one call may last for a second
_PRIORITY = 3


def go_first(runaway_seconds: float = RUNAWAY_SECONDS) -> bool:
    """Make this process real-time, and all threads that it starts from now on.

    Returns:
        False where that is not allowed (`expedited doctor` says why): the agent is then as quick as its share lets it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    except OSError:
        return False
    # Nobody watches over the agent as the supervisor does over the gate: without a limit, an endless loop of ours would
    # take a whole core from the node. Children have it too: the striker's supervisor lifts it.
    signal.signal(signal.SIGXCPU, lambda *_: _step_back(runaway_seconds))
    _, most = resource.getrlimit(resource.RLIMIT_RTTIME)
    resource.setrlimit(resource.RLIMIT_RTTIME, (int(runaway_seconds * 1e6), most))
    return True


def _step_back(after_seconds: float) -> None:
    # Not by structlog: we may have come in the middle of one of its lines, and it has a lock
    Log.of_format("auto", who="agent").warning(f"{after_seconds:g} s without a pause: real-time no longer")
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - names, and no more
        with suppress(OSError):  # it has ended meanwhile
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
