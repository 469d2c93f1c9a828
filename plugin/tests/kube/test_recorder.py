"""Events about stops: what they say, which are made, and how many at most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from expedited.kube import ApiServer
from expedited.kube.recorder import EventRecorder
from expedited.teardown.report import Memory, Outcome
from support.waiting import happens

MakeStop = Callable[..., Any]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expedited.kube.recorder._GATHER_SECONDS", 0.1)


@asynccontextmanager
async def _recording(api: Any, **changes: Any) -> AsyncIterator[EventRecorder]:
    client = ApiServer(api.access(**changes))
    recorder = EventRecorder(client, "node-1", 256 << 20)
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        client.close()


async def test_a_stop_becomes_an_event_on_its_pod(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop(page_cache_dropped_bytes=64 << 20))
        await happens(lambda: api.events, "an Event")
    (event,) = api.events
    assert event["type"] == "Normal"
    assert event["reason"] == "MemoryReturned"
    assert event["message"] == "nginx: 1.0 GiB of memory back 0.250 s after the kill, and 64 MiB of page cache"
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "shop",
        "name": "web",
        "uid": "uid-web",
        "fieldPath": "spec.containers{nginx}",
    }
    assert event["source"] == {"component": "expedited", "host": "node-1"}
    assert event["firstTimestamp"] == "2023-11-14T22:13:20Z"


async def test_the_containers_of_one_pod_are_told_together(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop(container="nginx"))
        recorder.add(make_stop(container="sidecar", before=Memory(512 << 20, 0, 0, 0), memory_back_seconds=0.5))
        await happens(lambda: api.events, "an Event")
    (event,) = api.events
    assert event["count"] == 2
    assert event["message"] == (
        "2 stops: 1.5 GiB of memory back 0.500 s or less after the kill "
        "(nginx 1.0 GiB in 0.250 s, sidecar 512 MiB in 0.500 s)"
    )


async def test_a_pod_that_is_killed_again_and_again_is_told_of_seldom(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop())
        await happens(lambda: api.events, "the first Event")
        for _ in range(50):
            recorder.add(make_stop())
        recorder.add(make_stop(pod="other"))
        await happens(lambda: len(api.events) == 2, "the other pod's Event")
    assert [event["involvedObject"]["name"] for event in api.events] == ["web", "other"]


async def test_a_strike_that_failed_its_deadline_is_a_warning(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(
            make_stop(
                outcome=Outcome.DEADLINE,
                after=Memory(768 << 20, 0, 0, 0),
                memory_back_seconds=None,
                gone_seconds=None,
            )
        )
        await happens(lambda: api.events, "an Event")
    (event,) = api.events
    assert (event["type"], event["reason"]) == ("Warning", "MemoryReturnSlow")
    assert event["message"] == (
        "nginx: not gone by the strike's deadline, 256 MiB of 1.0 GiB of memory back: see `kubectl expedited why shop/web`"
    )


async def test_what_was_only_observed_says_so(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop(outcome=Outcome.OBSERVED, mode="observe", memory_back_seconds=24.0))
        await happens(lambda: api.events, "an Event")
    assert api.events[0]["message"] == (
        "nginx: 1.0 GiB of memory back 24.0 s after the kill; the runtime's own kill, observed only"
    )


async def test_who_ended_within_the_grace_period_was_killed_by_nobody(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop(outcome=Outcome.EXITED, trigger="grace", memory_back_seconds=0.06))
        await happens(lambda: api.events, "an Event")
    assert api.events[0]["message"] == "nginx: 1.0 GiB of memory back 0.060 s after the end was seen"


async def test_an_end_that_was_only_observed_says_so(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop(outcome=Outcome.WATCHED, mode="observe", trigger="grace", memory_back_seconds=24.0))
        await happens(lambda: api.events, "an Event")
    assert api.events[0]["message"] == "nginx: 1.0 GiB of memory back 24.0 s after the end was seen; observed only"


async def test_what_is_nobodys_news_makes_no_event(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop(pod="small", before=Memory((256 << 20) - 1, 0, 0, 0)))
        recorder.add(make_stop(pod="skipped", outcome=Outcome.SKIPPED))
        recorder.add(make_stop(pod="failed", outcome=Outcome.FAILED))
        recorder.add(make_stop(pod="small-and-slow", outcome=Outcome.DEADLINE, before=Memory(1, 0, 0, 0)))
        recorder.add(make_stop(pod=""))
        recorder.add(make_stop(pod="just-enough", before=Memory(256 << 20, 0, 0, 0)))
        await happens(lambda: api.events, "an Event")
        await asyncio.sleep(0.3)
    assert [event["involvedObject"]["name"] for event in api.events] == ["just-enough"]


async def test_a_drain_of_a_hundred_pods_makes_at_most_25_events_a_second(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop(pod="before"))  # with a connection that is there, the times are those of the sending
        await happens(lambda: recorder.created == 1, "the first")
        await asyncio.sleep(0.5)
        for number in range(100):
            recorder.add(make_stop(pod=f"pod-{number}"))
        await happens(lambda: recorder.created == 101, "all hundred")
    times = [request.at for request in api.asked("POST", "/api/v1/namespaces/shop/events")][1:]
    busiest = max(sum(start <= at < start + 1 for at in times) for start in times)
    print(f"busiest second: {busiest} Events; all 100 within {times[-1] - times[0]:.1f} s")
    assert busiest <= 25
    told = {event["involvedObject"]["name"] for event in api.events}
    assert told == {"before", *(f"pod-{number}" for number in range(100))}


async def test_events_wait_for_a_server_that_is_away_and_come_once(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        api.stop()
        recorder.add(make_stop(pod="one"))
        recorder.add(make_stop(pod="two"))
        await asyncio.sleep(0.3)
        api.start()
        await happens(lambda: recorder.created == 2, "both")
        assert recorder.dropped == 0
    assert sorted(event["involvedObject"]["name"] for event in api.events) == ["one", "two"]


async def test_an_event_whose_answer_was_lost_is_not_made_twice(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        recorder.add(make_stop(pod="before"))
        await happens(lambda: api.events, "a connection that is kept")
        api.drop_connections()
        recorder.add(make_stop(pod="after"))
        await happens(lambda: len(api.events) == 2, "the second")
        await happens(lambda: recorder.created == 2, "it is counted")
        assert recorder.dropped == 0


async def test_what_ends_after_an_answer_was_lost_is_another_event(api: Any, make_stop: MakeStop) -> None:
    """The cluster may have the first: what is added to it then, nobody would ever read."""
    async with _recording(api) as recorder:
        api.refusals = [("/api/v1/namespaces/shop/events", 503, {})] * 3
        recorder.add(make_stop(pod="web", container="first"))
        await happens(lambda: not api.refusals, "three tries")
        recorder.add(make_stop(pod="web", container="second"))
        await happens(lambda: recorder.created == 1, "the first")
    assert [event["count"] for event in api.events] == [1]
    assert "first" in api.events[0]["message"]


async def test_what_was_still_being_gathered_is_told_at_the_end(
    api: Any, make_stop: MakeStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expedited.kube.recorder._GATHER_SECONDS", 60)
    monkeypatch.setattr("expedited.kube.recorder._EACH_SECOND", 0.001)  # nothing comes back while it is told
    async with _recording(api) as recorder:
        for number in range(30):
            recorder.add(make_stop(pod=f"pod-{number}"))
        await asyncio.sleep(0.1)
        assert not api.events
        await recorder.last_word()
    assert len(api.events) == 20  # what the burst allows


async def test_the_connection_is_kept_between_events(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        for number in range(5):
            recorder.add(make_stop(pod=f"pod-{number}"))
        await happens(lambda: len(api.events) == 5, "all five")
        assert len(api._open) == 1


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_a_server_that_is_busy_is_asked_again(api: Any, make_stop: MakeStop, status: int) -> None:
    api.refusals = [("/api/v1/namespaces/shop/events", status, {})] * 3
    async with _recording(api) as recorder:
        recorder.add(make_stop())
        await happens(lambda: api.events, "an Event")
        assert recorder.dropped == 0
    assert len(api.requests) == 4


@pytest.mark.parametrize("status", [403, 404, 422])
async def test_what_is_refused_for_good_is_dropped(api: Any, make_stop: MakeStop, status: int) -> None:
    """403 comes while a namespace is being deleted, with all pods in it."""
    api.refusals = [("/api/v1/namespaces/shop/events", status, {})]
    async with _recording(api) as recorder:
        recorder.add(make_stop(pod="refused"))
        await happens(lambda: recorder.dropped, "it is dropped")
        recorder.add(make_stop(pod="next"))
        await happens(lambda: api.events, "the next")
    assert [event["involvedObject"]["name"] for event in api.events] == ["next"]


async def test_what_waits_is_bounded_the_oldest_goes(api: Any, make_stop: MakeStop) -> None:
    api.stop()
    client = ApiServer(api.access())
    recorder = EventRecorder(client, "node-1", 0)
    for number in range(600):
        recorder.add(make_stop(pod=f"pod-{number}"))
    assert len(recorder._waiting) == 512
    assert recorder.dropped == 88
    assert next(iter(recorder._waiting))[0] == "uid-pod-88"


async def test_an_event_of_yesterday_is_not_told(api: Any, make_stop: MakeStop) -> None:
    now = [1000.0]
    api.stop()
    client = ApiServer(api.access())
    recorder = EventRecorder(client, "node-1", 0, clock=lambda: now[0])
    recorder.add(make_stop())
    task = asyncio.create_task(recorder.run())
    now[0] += 3700
    recorder._news.set()
    await happens(lambda: recorder.dropped == 1, "it is dropped")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_long_names_make_events_that_kubernetes_takes(api: Any, make_stop: MakeStop) -> None:
    async with _recording(api) as recorder:
        for number in range(30):
            recorder.add(make_stop(pod="p" * 253, container=f"{number:02}{'c' * 61}"))
        await happens(lambda: recorder.created or recorder.dropped, "an Event")
        assert recorder.created == 1
    assert "and 24 more" in api.events[0]["message"]


def test_two_events_of_a_pod_have_different_names(make_stop: MakeStop) -> None:
    from expedited.kube.recorder import _Gathered

    names = [_Gathered(0, 0, "MemoryReturned").suffix for _ in range(3)]
    assert all(one != other for one, other in pairwise(names))
