"""Whoever watches the stops hears each of them once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from expedited.agent import stops as stops_module
from expedited.agent.stops import StopLog
from expedited.errors import ExpeditedError
from expedited.stop import Stop
from expedited.teardown.report import Outcome, Report


def stop(number: int) -> Stop:
    return Stop(
        Report(
            number=number,
            container_id=f"c{number}",
            cgroup="/c",
            trigger="gate:kill",
            mode="strike",
            outcome=Outcome.STRUCK,
            reason="",
            started_at=0.0,
        )
    )


async def heard(log: StopLog, count: int, *, replay: bool) -> list[int]:
    async with aclosing(log.watch(replay=replay)) as watched:
        return [(await anext(watched)).report.number for _ in range(count)]


async def test_a_watcher_with_replay_hears_what_was_and_what_comes_each_once() -> None:
    log = StopLog()
    for number in (1, 2, 3):
        log.add(stop(number))
    numbers = []
    async with aclosing(log.watch(replay=True)) as watched:
        for each in range(1, 7):
            numbers.append((await anext(watched)).report.number)
            if each in (1, 2, 3):  # in the middle of the replay, too
                log.add(stop(3 + each))
    assert numbers == [1, 2, 3, 4, 5, 6]


async def test_a_watcher_without_replay_hears_only_what_comes() -> None:
    log = StopLog()
    log.add(stop(1))
    watching = asyncio.create_task(heard(log, 2, replay=False))
    await asyncio.sleep(0)
    log.add(stop(2))
    log.add(stop(3))
    assert await watching == [2, 3]


async def test_each_of_several_watchers_hears_all() -> None:
    log = StopLog()
    watching = [asyncio.create_task(heard(log, 50, replay=False)) for _ in range(5)]
    await asyncio.sleep(0)
    for number in range(50):
        log.add(stop(number))
    for each in watching:
        assert await each == list(range(50))


async def test_a_watcher_that_does_not_read_is_told_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops_module, "_BEHIND_AT_MOST", 3)
    log = StopLog()
    log.add(stop(0))
    async with aclosing(log.watch(replay=True)) as slow:
        assert (await anext(slow)).report.number == 0
        reading = asyncio.create_task(heard(log, 6, replay=True))
        for number in range(1, 6):
            await asyncio.sleep(0)
            log.add(stop(number))
        assert await reading == [0, 1, 2, 3, 4, 5]
        with pytest.raises(ExpeditedError, match="3 stops behind"):
            async for _ in slow:
                pass
    assert log.count == 6


async def test_the_oldest_are_forgotten_and_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops_module, "_REMEMBERED", 2)
    log = StopLog()
    for number in range(5):
        log.add(stop(number))
    assert [each.report.number for each in log.remembered()] == [3, 4]
    assert log.count == 5


async def test_a_watcher_that_leaves_leaves_nothing_behind() -> None:
    log = StopLog()
    log.add(stop(1))
    assert await heard(log, 1, replay=True) == [1]
    assert not log._watchers
