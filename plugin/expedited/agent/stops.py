"""The stops that the agent remembers, and those who want to hear of each as it ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from expedited.errors import ExpeditedError
from expedited.stop import Stop

__all__ = ["StopLog"]

_REMEMBERED = 512
# A watcher that is this far behind does not read any more.
_BEHIND_AT_MOST = 4096


class StopLog:
    """Used from one event loop."""

    def __init__(self) -> None:
        self.count = 0  #: of all stops ever, also those that are forgotten
        self._stops: deque[Stop] = deque(maxlen=_REMEMBERED)
        self._watchers: set[asyncio.Queue[Stop | None]] = set()

    def add(self, stop: Stop) -> None:
        """Remember it, and tell those who watch."""
        self.count += 1
        self._stops.append(stop)
        for queue in list(self._watchers):
            try:
                queue.put_nowait(stop)
            except asyncio.QueueFull:
                self._watchers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)  # which tells its watcher that it has missed something

    def remembered(self) -> list[Stop]:
        """The oldest first."""
        return list(self._stops)

    async def watch(self, *, replay: bool) -> AsyncGenerator[Stop, None]:
        """Each stop as it ends; with ``replay`` the remembered ones before, none twice and none missed.

        Raises:
            ExpeditedError: the caller took them so slowly that some had to be dropped.
        """
        queue: asyncio.Queue[Stop | None] = asyncio.Queue(_BEHIND_AT_MOST)
        self._watchers.add(queue)
        try:
            for stop in self.remembered() if replay else ():
                # Whatever ends while this waits for its reader is in the queue
                yield stop
            while (next_one := await queue.get()) is not None:
                yield next_one
            raise ExpeditedError(f"more than {_BEHIND_AT_MOST} stops behind: watch again, with replay")
        finally:
            self._watchers.discard(queue)
