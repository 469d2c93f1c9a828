"""What the agent does about what NRI tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from expedited.nri.records import NriContainer, NriPod

__all__ = ["Handlers"]


class Handlers(Protocol):
    """Called in the event loop, in the order of the events; none may block it.

    All but ``container_starting`` are called when the runtime has its answer already. What a handler raises is logged,
    and changes nothing for the runtime.
    """

    def connected(self, runtime_name: str, version: str) -> None:
        """A runtime has taken the plugin in; ``synchronize`` follows."""

    def disconnected(self, why: str) -> None:
        """The opposite of ``connected``: from now on events are missed, until the next ``synchronize``."""

    def synchronize(self, pods: Sequence[NriPod], containers: Sequence[NriContainer]) -> None:
        """All there are; containers that have ended are not among them."""

    def pod_started(self, pod: NriPod) -> None:
        """Its sandbox runs."""

    def pod_stopped(self, pod: NriPod) -> None:
        """Its sandbox and all its containers have ended."""

    def pod_removed(self, pod: NriPod) -> None:
        """It will not come back."""

    def container_created(self, pod: NriPod, container: NriContainer) -> None:
        """It has a record in the runtime, and no process yet."""

    async def container_starting(self, pod: NriPod, container: NriContainer) -> None:
        """Its init is there and waits; it goes on when this is done, and after START_AT_MOST_SECONDS in any case.

        What takes longer is not cancelled then, but only if the connection ends.
        """

    def container_started(self, pod: NriPod, container: NriContainer) -> None:
        """It runs."""

    def container_stopped(self, pod: NriPod, container: NriContainer) -> None:
        """It has ended, by whatever means."""

    def container_removed(self, pod: NriPod, container: NriContainer) -> None:
        """Its record is gone."""
