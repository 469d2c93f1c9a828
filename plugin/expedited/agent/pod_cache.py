"""Page cache AUTO, its second half: what a pod that goes for good has left in the page cache.

Whether a container comes back is known to nobody when it is killed: a restart in place and the end of the pod look alike.
The runtime's StopPodSandbox tells, when the containers' own cgroups are gone and what was charged to them has moved up to
the pod's cgroup. kubelet removes that one next; until then its cache can be given back as a whole.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog

from expedited.errors import ExpeditedError
from expedited.sighting import Container
from expedited.teardown.cgroup import Cgroup
from expedited.teardown.policy import Mode, PageCache, Policy

__all__ = ["PodCache"]

# SCHED_RR: below the reapers (teardown.reap), as what somebody waits for comes first
_PRIORITY = 1

_log = structlog.get_logger(__name__)


class PodCache:
    """The pods' cgroups by sandbox, learnt while their containers run. Used from one event loop.

    Args:
        dropped: Told of the bytes of page cache that were given back.
    """

    def __init__(self, dropped: Callable[[int], None] = lambda count: None) -> None:
        self._dropped = dropped
        self._cgroups: dict[str, str] = {}
        self._thread = ThreadPoolExecutor(1, "pod-cache")  # one: as many pods as are drained at once have their turns

    async def learn(self, container: Container) -> None:
        """Where its pod is: while its init lives, as nothing leads there afterwards."""
        sandbox_id, pid = container.seen.sandbox_id, container.seen.pid
        if not sandbox_id or not pid or container.sandbox or sandbox_id in self._cgroups:
            return
        parent = await asyncio.to_thread(_parent_of, pid)
        if parent:
            self._cgroups[sandbox_id] = parent

    async def drop(self, sandbox_id: str, members: Sequence[Container]) -> None:
        """The pod has ended for good: give back what it had cached, if the policies of its containers let us.

        By what they are now: a running pod may have been annotated since it was learnt.
        """
        path = self._cgroups.pop(sandbox_id, None)
        policies = [member.policy for member in members if not member.sandbox]
        if path is None or not policies or not all(map(_may_drop, policies)):
            return
        dropped = await asyncio.get_running_loop().run_in_executor(self._thread, _drop, path)
        if dropped:
            self._dropped(dropped)
            _log.info("the page cache of a pod that has gone was given back", cgroup=path, bytes=dropped)

    def forget(self, sandbox_id: str) -> None:
        """The pod is off the records."""
        self._cgroups.pop(sandbox_id, None)


def _may_drop(policy: Policy) -> bool:
    return policy.page_cache is not PageCache.KEEP and policy.mode in (Mode.STRIKE, Mode.COMPARE)


def _parent_of(pid: int) -> str:
    try:
        return Cgroup.of_process(pid).path.rpartition("/")[0]
    except ExpeditedError:
        return ""  # it has ended


def _drop(path: str) -> int:
    try:
        pod = Cgroup.find(path)
    except ExpeditedError:
        return 0  # kubelet was quicker
    if pod.path == "/" or not pod.is_empty():
        return 0  # somebody is in it: it is no pod's of its own, or the pod is not over
    with suppress(OSError):
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            # Version 1 does it in one call, and who computes for long without a pause may not be real-time (agent.priority)
            policy, priority = (os.SCHED_OTHER, 0) if pod.version == 1 else (os.SCHED_RR, _PRIORITY)
            os.sched_setscheduler(0, policy, os.sched_param(priority))
    return pod.drop_page_cache()
