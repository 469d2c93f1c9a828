"""Tells of stops by Events on their pods: together for one pod, seldom, and never more than the cluster can bear.

Only `create` on events is asked of the cluster: what belongs together is gathered before it is told, as an Event that
was made can't be added to without `patch`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from expedited.kube.api_server import ApiServer
from expedited.kube.errors import ApiError, KubernetesError, strange
from expedited.kube.messages import returned, slow
from expedited.kube.patience import Patience
from expedited.stop import Stop
from expedited.teardown.report import Outcome

__all__ = ["EventRecorder"]

_RETURNED, _SLOW = "MemoryReturned", "MemoryReturnSlow"

# A pod's containers end within moments of each other; a pod that is killed again and again says so once a minute.
_GATHER_SECONDS = 2.0
_SAME_POD_SECONDS = 60.0
# At most 20 + 5 in any second: so many Events of one node nobody has to bear for long
_BURST, _EACH_SECOND = 20, 5.0
_WAITING_AT_MOST = 512
# The cluster itself forgets Events after an hour (kube-apiserver --event-ttl)
_OLDEST_SECONDS = 3600.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Gathered:
    """What will be one Event."""

    due_at: float
    began_at: float
    reason: str
    stops: list[Stop] = field(default_factory=list)
    suffix: str = field(default_factory=lambda: secrets.token_hex(8))


class EventRecorder:
    """Used from one event loop.

    Args:
        api: Where to.
        node_name: The node's name in Kubernetes.
        min_size_bytes: Stops that gave back less are nobody's news.
        clock: Monotonic seconds.

    Attributes:
        created: How many Events the cluster has taken.
        dropped: How many were too old, too many, or refused.
    """

    def __init__(
        self, api: ApiServer, node_name: str, min_size_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.created = 0
        self.dropped = 0
        self._api = api
        self._node_name = node_name
        self._min_size_bytes = min_size_bytes
        self._clock = clock
        self._waiting: OrderedDict[tuple[str, str], _Gathered] = OrderedDict()
        self._told_at: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._news = asyncio.Event()
        self._allowance, self._counted_at = float(_BURST), clock()

    def add(self, stop: Stop) -> None:
        """Tell of this stop, if it is worth it."""
        reason = self._reason_for(stop)
        if not reason:
            return
        key, now = (stop.pod_uid, reason), self._clock()
        gathered = self._waiting.get(key)
        if gathered is None:
            due_at = max(now + _GATHER_SECONDS, self._told_at.get(key, -_SAME_POD_SECONDS) + _SAME_POD_SECONDS)
            gathered = self._waiting[key] = _Gathered(due_at, now, reason)
            if len(self._waiting) > _WAITING_AT_MOST:
                self._waiting.popitem(last=False)
                self.dropped += 1
        gathered.stops.append(stop)
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        patience = Patience()
        while True:
            now = self._clock()
            due = next((key for key, gathered in self._waiting.items() if gathered.due_at <= now), None)
            if due is None:
                await self._sleep(min((each.due_at for each in self._waiting.values()), default=now + 3600) - now)
            elif (wait := self._until_allowed(now)) > 0:
                await asyncio.sleep(wait)
            else:
                gathered = self._waiting.pop(due)
                self._told_at[due] = now  # what ends while it is on its way waits for the next one
                if len(self._told_at) > _WAITING_AT_MOST:
                    self._told_at.popitem(last=False)
                try:
                    await self._create(gathered)
                    patience.renew()
                except Exception as problem:
                    said = strange(problem)
                    self._put_back(due, gathered, said)
                    await asyncio.sleep(patience.after(said))
                except asyncio.CancelledError:
                    self._waiting[due] = gathered  # for the last word
                    raise

    async def last_word(self) -> None:
        """Tell now of what would have been told later, as the agent ends: what the burst allows, each tried once.

        Raises:
            KubernetesError: the API server could not be told.
        """
        while self._waiting and not self._until_allowed(self._clock()):
            _, gathered = self._waiting.popitem(last=False)
            await self._create(gathered)

    async def _sleep(self, seconds: float) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass

    def _reason_for(self, stop: Stop) -> str:
        report = stop.report
        if not (stop.pod_uid and stop.pod_name and stop.pod_namespace):
            return ""
        enough = report.bytes_returned >= self._min_size_bytes
        match report.outcome:
            case Outcome.DEADLINE if report.before is None or report.before.anon_bytes >= self._min_size_bytes:
                return _SLOW
            case Outcome.STRUCK | Outcome.EXITED | Outcome.OBSERVED | Outcome.WATCHED if enough:
                return _RETURNED
            case _:
                return ""

    def _until_allowed(self, now: float) -> float:
        """A token bucket: the seconds until the next Event may go; 0, and it is counted, when it may now."""
        self._allowance = min(_BURST, self._allowance + (now - self._counted_at) * _EACH_SECOND)
        self._counted_at = now
        if self._allowance < 1:
            return (1 - self._allowance) / _EACH_SECOND
        self._allowance -= 1
        return 0.0

    async def _create(self, gathered: _Gathered) -> None:
        namespace = gathered.stops[0].pod_namespace
        try:
            await self._api.create(f"/api/v1/namespaces/{namespace}/events", self._event(gathered))
        except ApiError as problem:
            if problem.status in (401, 429) or problem.status >= 500:
                raise  # another time
            if problem.status != 409:  # there already: an answer to the same Event was lost
                # Not allowed, or its namespace is going: no later time would be better
                self.dropped += 1
                _log.warning("Kubernetes: an Event was refused", why=str(problem))
                return
        self.created += 1

    def _put_back(self, key: tuple[str, str], gathered: _Gathered, problem: KubernetesError) -> None:
        if self._clock() - gathered.began_at > _OLDEST_SECONDS:
            self.dropped += 1
            _log.warning("Kubernetes: an Event has become too old", why=str(problem))
            return
        # Under a name of its own: the cluster may have it, with only the answer lost, so nothing may be added to it
        key = (key[0], gathered.suffix)
        self._waiting[key] = gathered
        self._waiting.move_to_end(key, last=False)  # the oldest first

    def _event(self, gathered: _Gathered) -> dict[str, Any]:
        """Event of kubernetes api/core/v1; its name is made here, so that to create it twice makes one."""
        stop, is_slow = gathered.stops[0], gathered.reason == _SLOW
        is_one = len(gathered.stops) == 1 and stop.container_name
        began = min(each.report.started_at for each in gathered.stops)
        ended = max(each.report.started_at for each in gathered.stops)
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": stop.pod_namespace, "name": f"{stop.pod_name[:236]}.{gathered.suffix}"},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": stop.pod_namespace,
                "name": stop.pod_name,
                "uid": stop.pod_uid,
                **({"fieldPath": f"spec.containers{{{stop.container_name}}}"} if is_one else {}),
            },
            "type": "Warning" if is_slow else "Normal",
            "reason": gathered.reason,
            "message": (slow if is_slow else returned)(gathered.stops),
            "source": {"component": "expedited", "host": self._node_name},
            "reportingComponent": "expedited.io/agent",
            "reportingInstance": self._node_name,
            "firstTimestamp": _time(began),
            "lastTimestamp": _time(ended),
            "count": len(gathered.stops),
        }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
