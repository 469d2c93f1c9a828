"""Waiting for what other processes and threads do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

__all__ = ["happens", "wait_for"]

_PATIENCE_SECONDS = 30.0


def wait_for(
    condition: Callable[[], object], complaint: str | Callable[[], str], patience_seconds: float = _PATIENCE_SECONDS
) -> None:
    """Ask until it is so; a complaint that is called has what is known in the end.

    Raises:
        AssertionError: it is not so yet when patience is over.
    """
    give_up_at = time.monotonic() + patience_seconds
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(complaint if isinstance(complaint, str) else complaint())
        time.sleep(0.01)


async def happens(condition: Callable[[], object], what: str) -> None:
    """The same where the event loop has to go on meanwhile."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110 - what it waits for happens in another thread
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"never: {what}")
