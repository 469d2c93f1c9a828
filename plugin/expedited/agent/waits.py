"""Waiting for one of several things, where another may end the waiting."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any

__all__ = ["either", "readable", "unless"]


async def readable(descriptor: int, timeout_seconds: float) -> bool:
    """Until it is, or for that long; whether it is."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ready.set)
    try:
        async with asyncio.timeout(timeout_seconds):
            await ready.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do it, or give it up when ``stop`` is set; whether it was done. What it raises is raised."""
    task = asyncio.create_task(work)
    try:
        await either(asyncio.shield(task), stop.wait())
    finally:
        if not task.done():
            task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return not task.cancelled()


async def either(*waits: Any) -> None:
    """Until the first of them is done; the others are cancelled."""
    tasks: Iterable[asyncio.Task[Any]] = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
