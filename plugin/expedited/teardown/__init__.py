"""The teardown engine: kills a container's processes, frees their memory and reports what came of it.

Knows nothing of Kubernetes, NRI or gRPC, and imports the standard library only::

    from expedited.teardown import Cgroup, strike

    report = strike(Cgroup.find("/kubepods/besteffort/pod.../..."))
    print(report.bytes_returned, report.memory_back_seconds)
"""

from expedited.teardown.cgroup import Cgroup, CgroupGone, TargetError
from expedited.teardown.policy import Mode, Order, PageCache, Policy
from expedited.teardown.reap import Reapers
from expedited.teardown.report import Fate, Memory, Outcome, ProcessReport, Report, Step
from expedited.teardown.roster import make_room_for_descriptors
from expedited.teardown.strike import Strike, strike

__all__ = [
    "Cgroup",
    "CgroupGone",
    "Fate",
    "Memory",
    "Mode",
    "Order",
    "Outcome",
    "PageCache",
    "Policy",
    "ProcessReport",
    "Reapers",
    "Report",
    "Step",
    "Strike",
    "TargetError",
    "make_room_for_descriptors",
    "strike",
]
