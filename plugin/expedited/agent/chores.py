"""What is done beside everything else, and ends with the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from expedited.errors import ExpeditedError

__all__ = ["Chores"]

_log = structlog.get_logger(__name__)


class Chores:
    """Tasks that nobody waits for. Used from one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def do(self, chore: Coroutine[Any, Any, Any]) -> None:
        """Have it done; what it raises is logged."""
        task = asyncio.create_task(chore)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def end(self) -> None:
        """Cancel those that go on, and wait for their ends."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        problem = None if task.cancelled() else task.exception()
        if isinstance(problem, ExpeditedError):
            _log.warning(str(problem))
        elif problem is not None:
            _log.error("a chore failed", error=repr(problem))
