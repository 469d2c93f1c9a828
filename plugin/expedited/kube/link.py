"""Everything that the agent has to do with Kubernetes, as one thing that runs beside the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from expedited.kube.access import Access
from expedited.kube.api_server import ApiServer
from expedited.kube.errors import KubernetesError
from expedited.kube.node_condition import NodeCondition
from expedited.kube.pods import PodWatch
from expedited.kube.recorder import EventRecorder
from expedited.stop import Stop

__all__ = ["KubernetesLink"]

_LAST_WORD_SECONDS = 3.0


class KubernetesLink:
    """Watches the node's pods, and tells of stops.

    Args:
        access: Which API server, and who we are to it.
        node_name: The node's name in Kubernetes.
        event_min_size_bytes: Stops that gave back less make no Event.
        leaving: Called with the uid of a pod that goes for good, and why.
        annotated: Called with the uid of a pod and the annotations that it has now; None: it is not there any more.
        striker_state: ``ok`` or why not, for the node's condition; None: no condition.
    """

    def __init__(
        self,
        access: Access,
        node_name: str,
        *,
        event_min_size_bytes: int,
        leaving: Callable[[str, str], None],
        annotated: Callable[[str, Mapping[str, str] | None], None],
        striker_state: Callable[[], str] | None = None,
    ) -> None:
        self._api = ApiServer(access)
        self._pods = PodWatch(self._api, node_name, leaving, annotated)
        self._recorder = EventRecorder(self._api, node_name, event_min_size_bytes)
        self._condition = NodeCondition(self._api, node_name, striker_state) if striker_state else None

    @property
    def state(self) -> str:
        """``ok``: the node's pods are watched; else why not."""
        return self._pods.state

    @property
    def connections(self) -> int:
        """How often a watch has begun."""
        return self._pods.connections

    @property
    def leaving(self) -> frozenset[str]:
        """The uids of the pods that go for good and are still there."""
        return frozenset(self._pods.gone_for_good)

    @property
    def events(self) -> tuple[int, int]:
        """Events that the cluster has taken, and that it never got."""
        return self._recorder.created, self._recorder.dropped

    def stop(self, stop: Stop) -> None:
        """A stop has ended: perhaps an Event."""
        self._recorder.add(stop)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pods.run())
                tasks.create_task(self._recorder.run())
                if self._condition is not None:
                    tasks.create_task(self._condition.run())
        finally:
            self._api.close()

    async def last_word(self, why: str = "") -> None:
        """The agent ends: Events that were still being gathered are told; whoever can't be reached is not waited for.

        Args:
            why: It can't work here, which the node's condition says, too.
        """
        try:
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                if why and self._condition is not None:
                    await self._condition.tell(why)
                await self._recorder.last_word()
        except (KubernetesError, TimeoutError):
            pass  # the agent's log says it, too
        finally:
            self._api.close()
