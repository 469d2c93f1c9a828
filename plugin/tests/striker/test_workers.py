"""The threads that stops run in: nobody waits for one while there may be another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from expedited.striker import workers as module
from expedited.striker.log import Log
from expedited.striker.workers import Workers

_PATIENCE_SECONDS = 30.0


def make_workers() -> Workers:
    return Workers(Log(as_json=True), lambda: None)


def all_at_once(workers: Workers, count: int) -> None:
    """As many pieces of work, each of which goes on only when all have begun."""
    begun = threading.Barrier(count + 1)
    for _ in range(count):
        workers.submit(lambda: begun.wait(_PATIENCE_SECONDS) and None)
    begun.wait(_PATIENCE_SECONDS)


def test_as_many_as_there_is_work_for() -> None:
    workers = make_workers()
    for count in (1, 2, 10, 3):
        all_at_once(workers, count)


def test_who_has_work_and_has_not_begun_it_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kills within microseconds: the third waited for the first two to end, minutes for one that is only observed."""
    may_begin = threading.Event()

    class Slow(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            work = super().get(block, timeout)
            may_begin.wait(_PATIENCE_SECONDS)
            return work

    monkeypatch.setattr(module, "SimpleQueue", Slow)
    workers = make_workers()
    begun = threading.Barrier(4)
    for _ in range(3):
        workers.submit(lambda: begun.wait(_PATIENCE_SECONDS) and None)
    may_begin.set()
    begun.wait(_PATIENCE_SECONDS)


def test_the_idle_leave_and_none_too_many(monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]) -> None:
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.01)
    workers = make_workers()
    for _ in range(20):
        all_at_once(workers, 8)
        until(lambda: workers._count == 2, "they don't leave")
    all_at_once(workers, 8)


def test_one_that_fails_takes_nobody_along(capsys: pytest.CaptureFixture[str]) -> None:
    workers = make_workers()
    for _ in range(5):
        workers.submit(lambda: 1 // 0)
    all_at_once(workers, 5)
    assert capsys.readouterr().err.count("ZeroDivisionError") == 5
