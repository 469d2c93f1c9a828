"""The watch over the pods of one node, against a server that speaks the real wire format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from expedited.kube import Access, ApiServer
from expedited.kube.connection import Response
from expedited.kube.errors import UnreachableError
from expedited.kube.pods import PodWatch
from support.waiting import happens


class _Heard:
    def __init__(self) -> None:
        self.pods: list[tuple[str, str]] = []
        self.annotations: dict[str, Mapping[str, str]] = {}

    def __call__(self, uid: str, why: str) -> None:
        self.pods.append((uid, why))

    def annotated(self, uid: str, annotations: Mapping[str, str] | None) -> None:
        if annotations is None:
            del self.annotations[uid]
        else:
            self.annotations[uid] = annotations


@asynccontextmanager
async def _watching(access: Access, heard: _Heard) -> AsyncIterator[PodWatch]:
    api = ApiServer(access)
    watch = PodWatch(api, "node-1", heard, heard.annotated)
    task = asyncio.create_task(watch.run())
    try:
        await happens(lambda: watch.state == "ok" or task.done(), "the watch is up")
        yield watch
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        api.close()


def _leave(api: Any, name: str) -> None:
    api.put_pod(name, deletionTimestamp="2026-01-01T00:00:00Z")


async def test_a_pod_that_is_deleted_is_leaving_before_it_is_gone(api: Any) -> None:
    api.put_pod("web")
    heard = _Heard()
    async with _watching(api.access(), heard) as watch:
        api.put_pod("web", annotations={"a": "b"})
        _leave(api, "web")
        await happens(lambda: heard.pods, "web is leaving")
        api.put_pod("web", annotations={"a": "c"})
        assert watch.gone_for_good == {"uid-web"}
        api.delete_pod("web")
        await happens(lambda: not watch.gone_for_good, "web is forgotten")
    assert heard.pods == [("uid-web", "deleted")]


async def test_a_pod_that_kubelet_evicts_is_leaving(api: Any) -> None:
    api.put_pod("web")
    heard = _Heard()
    async with _watching(api.access(), heard):
        api.put_pod("web", conditions=[{"type": "DisruptionTarget", "status": "False", "reason": "no"}])
        api.put_pod(
            "web", conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
        )
        await happens(lambda: heard.pods, "web is leaving")
    assert heard.pods == [("uid-web", "TerminationByKubelet")]


async def test_the_annotations_of_the_moment_are_known(api: Any) -> None:
    api.put_pod("old", annotations={"a": "1"})
    api.put_pod("bare")
    api.put_pod("elsewhere", "node-2", annotations={"a": "1"})
    heard = _Heard()
    async with _watching(api.access(), heard):
        assert heard.annotations == {"uid-old": {"a": "1"}, "uid-bare": {}}
        api.put_pod("old", annotations={"a": "2", "b": "3"})
        api.put_pod("new", annotations={"c": "4"})
        await happens(lambda: "uid-new" in heard.annotations, "the new pod")
        assert heard.annotations["uid-old"] == {"a": "2", "b": "3"}
        api.put_pod("old", annotations={})
        await happens(lambda: not heard.annotations["uid-old"], "they were taken away")
        api.delete_pod("old")
        await happens(lambda: "uid-old" not in heard.annotations, "the pod has gone")


async def test_pods_that_went_unseen_are_forgotten(api: Any) -> None:
    api.put_pod("web", annotations={"a": "1"})
    api.put_pod("db", annotations={"a": "1"})
    heard = _Heard()
    async with _watching(api.access(), heard) as watch:
        api.stop()
        await happens(lambda: "127.0.0.1" in watch.state, "it is told that the server is away")
        assert set(heard.annotations) == {"uid-web", "uid-db"}  # what was known goes on to hold
        api.delete_pod("web")
        api.compact()
        api.start()
        await happens(lambda: set(heard.annotations) == {"uid-db"}, "web is forgotten")


async def test_pods_that_leave_already_are_found_by_the_list(api: Any) -> None:
    _leave(api, "old")
    api.put_pod("stays")
    heard = _Heard()
    async with _watching(api.access(), heard):
        assert heard.pods == [("uid-old", "deleted")]


async def test_nothing_of_other_nodes_is_asked_for(api: Any) -> None:
    _leave(api, "mine")
    api.put_pod("theirs", node="node-2", deletionTimestamp="2026-01-01T00:00:00Z")
    heard = _Heard()
    async with _watching(api.access(), heard):
        api.put_pod("also-theirs", node="node-2", deletionTimestamp="2026-01-01T00:00:00Z")
        _leave(api, "mine-too")
        await happens(lambda: len(heard.pods) == 2, "mine-too is leaving")
    assert {uid for uid, _ in heard.pods} == {"uid-mine", "uid-mine-too"}
    assert {request.path for request in api.requests} == {"/api/v1/pods"}
    assert {request.query["fieldSelector"] for request in api.requests} == {"spec.nodeName=node-1"}
    (listed,) = api.asked("GET", "/api/v1/pods", watch=False)
    assert listed.query["resourceVersion"] == "0"
    assert "PartialObjectMetadataList" in listed.accept


async def test_a_watch_that_broke_off_goes_on_without_a_list(api: Any) -> None:
    api.put_pod("web")
    heard = _Heard()
    async with _watching(api.access(), heard) as watch:
        for number in range(1, 4):
            api.drop_connections()
            _leave(api, f"pod-{number}")
            await happens(lambda number=number: len(heard.pods) == number, "what happened in between is heard")
            await happens(lambda: watch.state == "ok", "the watch is up again")
    assert len(api.asked("GET", "/api/v1/pods", watch=False)) == 1


async def test_a_watch_that_is_cut_between_two_chunks_was_closed() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"3\r\n{}\n\r\n")
    reader.feed_eof()
    lines = Response(200, {"transfer-encoding": "chunked"}, reader).lines()
    assert await anext(lines) == b"{}"
    with pytest.raises(UnreachableError, match=r"^watching: the connection was closed$"):
        await anext(lines)


async def test_a_watch_that_the_server_ends_is_renewed_without_a_list(api: Any) -> None:
    api.watch_seconds = 1.1
    heard = _Heard()
    async with _watching(api.access(), heard) as watch:
        await happens(lambda: watch.connections >= 3, "the third watch")
        _leave(api, "web")
        await happens(lambda: heard.pods, "web is leaving")
    assert len(api.asked("GET", "/api/v1/pods", watch=False)) == 1


async def test_a_watch_that_ends_as_soon_as_it_begins_is_renewed_ever_later(api: Any) -> None:
    """Of a server that drains, or a proxy with none behind it: each node would ask a thousand times a second."""
    api.watch_seconds = 0.001
    async with _watching(api.access(), _Heard()) as watch:
        await happens(lambda: "as soon as it had begun" in watch.state, "it is told")
        before = len(api.asked("GET", "/api/v1/pods", watch=True))
        await asyncio.sleep(1)
        assert (
            len(api.asked("GET", "/api/v1/pods", watch=True)) - before < 100
        )  # a hundredth of every pause, see `quick`
        api.watch_seconds = None
        await happens(lambda: watch.state == "ok", "the watch is up again")


@pytest.mark.parametrize("code", ["ClusterUnavailable", None, [], -1])
async def test_an_error_that_is_no_status_is_told_and_asked_again(api: Any, code: Any) -> None:
    """A gateway's own idea of an error."""
    async with _watching(api.access(), _Heard()) as watch:
        api.odd = {"code": code}
        api.refusals = [("/api/v1/pods", 503, {})] * 3
        told: list[str] = []
        api.drop_connections()
        await happens(lambda: told.append(watch.state) or any("503" in state for state in told), "it is told")
        await happens(lambda: watch.state == "ok", "the watch is up again")


async def test_bookmarks_carry_the_watch_past_a_compaction(api: Any) -> None:
    """Nothing happens on this node, everything on the others, and the history of that is forgotten."""
    heard = _Heard()
    async with _watching(api.access(), heard) as watch:
        for number in range(20):
            api.put_pod(f"elsewhere-{number}", node="node-2")
        newest = str(api.store.version)
        await happens(lambda: watch._version == newest, "a bookmark with the newest version")
        with api.store.changed:  # all before is forgotten; the newest is still known
            api.store.compacted = api.store.version
        api.drop_connections()
        await happens(lambda: watch.connections >= 2, "the second watch")
        _leave(api, "web")
        await happens(lambda: heard.pods, "web is leaving")
    assert len(api.asked("GET", "/api/v1/pods", watch=False)) == 1


async def test_when_the_server_has_forgotten_it_is_listed_anew(api: Any) -> None:
    api.bookmarks = False
    _leave(api, "goes")
    heard = _Heard()
    async with _watching(api.access(), heard) as watch:
        assert watch.gone_for_good == {"uid-goes"}
        api.stop()
        api.delete_pod("goes")
        _leave(api, "web")
        api.compact()
        api.start()
        await happens(lambda: ("uid-web", "deleted") in heard.pods, "web is leaving")
        assert watch.gone_for_good == {"uid-web"}
    assert len(api.asked("GET", "/api/v1/pods", watch=False)) == 2


async def test_an_outage_is_survived_and_what_was_missed_is_heard(api: Any) -> None:
    api.put_pod("web")
    heard = _Heard()
    async with _watching(api.access(), heard) as watch:
        api.stop()
        await happens(lambda: "127.0.0.1" in watch.state, "it is told that the server is away")
        _leave(api, "web")
        await asyncio.sleep(0.3)
        api.start()
        await happens(lambda: heard.pods, "web is leaving")
        await happens(lambda: watch.state == "ok", "the watch is up again")


async def test_a_server_that_is_not_there_yet_is_waited_for(api: Any) -> None:
    api.stop()
    _leave(api, "web")
    heard = _Heard()
    client = ApiServer(api.access())
    watch = PodWatch(client, "node-1", heard, heard.annotated)
    task = asyncio.create_task(watch.run())
    await happens(lambda: "127.0.0.1" in watch.state, "nobody is there")
    api.start()
    await happens(lambda: heard.pods, "web is leaving")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    client.close()


async def test_too_many_requests_is_obeyed(api: Any) -> None:
    api.refusals = [("/api/v1/pods", 429, {"Retry-After": "1"})] * 2
    async with _watching(api.access(), _Heard()):
        pass
    first, second, third, _ = (request.at for request in api.requests)
    assert second - first >= 1
    assert third - second >= 1


@pytest.mark.parametrize("status", [403, 500, 503])
async def test_a_refusal_is_told_and_tried_again(api: Any, status: int) -> None:
    api.refusals = [("/api/v1/pods", status, {})] * 3
    async with _watching(api.access(), _Heard()):
        assert len(api.requests) >= 5


async def test_a_new_token_is_used_when_the_old_one_is_no_good(api: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first-token")
    heard = _Heard()
    async with _watching(api.access(token="", token_file=str(token)), heard) as watch:
        api.tokens = {"second-token"}
        api.drop_connections()
        await happens(lambda: "401" in watch.state, "the old token is refused")
        token.write_text("second-token")
        _leave(api, "web")
        await happens(lambda: heard.pods, "web is leaving")


async def test_a_server_with_another_certificate_is_not_believed(api: Any) -> None:
    watch = PodWatch(ApiServer(api.access(ca_file="")), "node-1", _Heard(), _Heard().annotated)
    task = asyncio.create_task(watch.run())
    await happens(lambda: "certificate verify failed" in watch.state, "it is not believed")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert api.requests == []


async def test_a_certificate_for_another_name_is_not_believed(api: Any) -> None:
    watch = PodWatch(ApiServer(api.access(server_name="evil.example")), "node-1", _Heard(), _Heard().annotated)
    task = asyncio.create_task(watch.run())
    await happens(lambda: "evil.example" in watch.state, "it is not believed")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert api.requests == []


async def test_the_name_in_the_certificate_may_be_given(api: Any) -> None:
    async with _watching(api.access(server_name="kubernetes.default.svc"), _Heard()) as watch:
        assert watch.connections == 1
