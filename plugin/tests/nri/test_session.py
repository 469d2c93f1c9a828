"""The plugin against a peer that plays the runtime: what is answered, when, and who is told."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import struct
from typing import Any

import pytest
import structlog.testing

from expedited.nri import EVENTS, NriPlugin, session
from expedited.pb.nri import api_pb2 as api
from expedited.sighting import State

POD = api.PodSandbox(
    id="pod-1",
    name="web",
    uid="u-1",
    namespace="shop",
    annotations={"expedited.io/mode": "observe"},
    pid=4711,
)
CONTAINER = api.Container(
    id="container-1",
    pod_sandbox_id="pod-1",
    name="main",
    state=api.CONTAINER_RUNNING,
    pid=4712,
)

# event, the call that tells of it since 0.12, the handler that is told; None: nobody is, but it is answered
_OF_PODS = [
    (api.RUN_POD_SANDBOX, "RunPodSandbox", "pod_started"),
    (api.STOP_POD_SANDBOX, "StopPodSandbox", "pod_stopped"),
    (api.REMOVE_POD_SANDBOX, "RemovePodSandbox", "pod_removed"),
    (api.POST_UPDATE_POD_SANDBOX, "PostUpdatePodSandbox", None),
]
_OF_CONTAINERS = [
    (api.POST_CREATE_CONTAINER, "PostCreateContainer", "container_created"),
    (api.START_CONTAINER, "StartContainer", "container_starting"),
    (api.POST_START_CONTAINER, "PostStartContainer", "container_started"),
    (api.POST_UPDATE_CONTAINER, "PostUpdateContainer", None),
    (api.REMOVE_CONTAINER, "RemoveContainer", "container_removed"),
]
# Calls of their own in every generation
_ALWAYS_CALLS = [
    ("CreateContainer", None),
    ("UpdateContainer", None),
    ("StopContainer", "container_stopped"),
    ("UpdatePodSandbox", None),
    ("ValidateContainerAdjustment", None),
]


def call_of(generation: str, event: int, method: str, **what: Any) -> tuple[str, Any]:
    """How a runtime of that generation tells of an event."""
    if generation == "StateChange":
        return "StateChange", api.StateChangeEvent(event=event, **what)
    return method, getattr(api, f"{method}Request")(**what)


async def told(heard: Any, count: int) -> list[tuple[Any, ...]]:
    """The first so many calls of the handlers."""
    await heard.until(lambda: len(heard.calls) >= count)
    return heard.calls


# -- registration ------------------------------------------------------------------------------------------------------


async def test_the_first_words_are_a_registration_byte_by_byte(runtime):
    head = await runtime.receive()
    request = (
        # Request{service, method, payload, timeout_nano}, its payload RegisterPluginRequest{plugin_name, plugin_idx}
        b"\x0a\x1cnri.pkg.api.v1alpha1.Runtime\x12\x0eRegisterPlugin\x1a\x0f\x0a\x09expedited\x12\x0210"
    )
    number, frame_length, length, stream, kind, flags = struct.unpack(">IIIIBB", head[:18])
    assert (number, stream, kind, flags) == (2, 1, 1, 0)
    assert frame_length == length + 10
    assert head[18:].startswith(request)


async def test_it_registers_with_its_own_name_and_index(listener, start_serving, heard):
    listener.listen()
    start_serving(listener.path, NriPlugin(heard, name="other", idx="42"))
    _, said = await (await listener.next()).registration()
    assert (said.plugin_name, said.plugin_idx) == ("other", "42")


@pytest.mark.parametrize("configure_first", [True, False])
async def test_configure_may_come_before_or_after_the_answer_to_the_registration(runtime, heard, configure_first):
    stream, _ = await runtime.registration()
    if not configure_first:
        await runtime.accept(stream)
    configured = await runtime.configure()
    if configure_first:
        await runtime.accept(stream)
    await runtime.synchronize()
    assert await told(heard, 2) == [("connected", "peer", "v1"), ("synchronize", (), ())]
    assert configured.events == EVENTS


async def test_configure_may_come_in_one_piece_with_the_answer(runtime, heard):
    stream, _ = await runtime.registration()
    accepted = runtime.frame(2, runtime.message(stream, 2, b""))
    await runtime.send(accepted + runtime.request("Configure") + runtime.request("Synchronize"))
    assert [await runtime.answer(), await runtime.answer()] == [
        (1, 0, api.ConfigureResponse(events=EVENTS).SerializeToString()),
        (3, 0, b""),
    ]
    assert [name for name, *_ in await told(heard, 2)] == ["connected", "synchronize"]


async def test_only_events_that_every_runtime_knows_are_asked_for(runtime):
    stream, _ = await runtime.registration()
    await runtime.accept(stream)
    events = (await runtime.configure()).events
    assert events != 0  # it would mean all of them
    assert events & ~0x7FF == 0  # what runtimes up to 0.9 know
    # And none with which a plugin could change a container
    asked_for = {number for number in range(1, 15) if events >> (number - 1) & 1}
    assert asked_for.isdisjoint({api.CREATE_CONTAINER, api.UPDATE_CONTAINER, api.VALIDATE_CONTAINER_ADJUSTMENT})


async def test_configuring_twice_connects_once(runtime, heard):
    await runtime.take_in()
    await runtime.configure()
    await runtime.synchronize()
    assert [name for name, *_ in await told(heard, 3)] == ["connected", "synchronize", "synchronize"]


async def test_an_unknown_method_is_unimplemented_and_nothing_ends(runtime):
    await runtime.take_in()
    await runtime.send(runtime.request("FromTheFuture") + runtime.request("Configure", service="nri.v2.Plugin"))
    assert [code for _, code, _ in [await runtime.answer(), await runtime.answer()]] == [12, 12]
    assert (await runtime.configure()).events == EVENTS


async def test_a_shutdown_is_answered(runtime):
    await runtime.take_in()
    assert await runtime.call("Shutdown") == b""


# -- synchronize -------------------------------------------------------------------------------------------------------


async def test_the_list_of_all_there_is_comes_with_who_they_are(runtime, heard):
    await runtime.take_in(pods=[POD], containers=[CONTAINER])
    _, (name, (pod,), (container,)) = await told(heard, 2)
    assert name == "synchronize"
    assert (pod.id, pod.name, pod.uid, pod.namespace, pod.pid) == ("pod-1", "web", "u-1", "shop", 4711)
    assert dict(pod.annotations) == {"expedited.io/mode": "observe"}
    assert (container.id, container.pod_id, container.name, container.pid) == ("container-1", "pod-1", "main", 4712)
    assert container.state is State.RUNNING


async def test_a_list_in_parts_is_told_when_it_is_complete(runtime, heard):
    stream, _ = await runtime.registration()
    await runtime.accept(stream)
    await runtime.configure()
    for number in range(3):
        answer = await runtime.synchronize(pods=[api.PodSandbox(id=f"pod-{number}")], more=True)
        assert answer == api.SynchronizeResponse(more=True)
        answer = await runtime.synchronize(containers=[api.Container(id=f"container-{number}")], more=True)
        assert answer == api.SynchronizeResponse(more=True)
    assert "synchronize" not in heard.names
    assert await runtime.synchronize() == api.SynchronizeResponse()
    _, (_, pods, containers) = await told(heard, 2)
    assert [pod.id for pod in pods] == ["pod-0", "pod-1", "pod-2"]
    assert [container.id for container in containers] == ["container-0", "container-1", "container-2"]


async def test_a_list_of_many_frames_is_put_together(runtime, heard):
    stream, _ = await runtime.registration()
    await runtime.accept(stream)
    await runtime.configure()
    said = api.SynchronizeRequest(
        containers=[api.Container(id=f"{number:064x}", name="x" * 1000) for number in range(1000)]
    )
    whole = runtime.request("Synchronize", said)
    message = whole[8:]
    # As Go's buffered writer sends it: one full buffer, then all the rest
    await runtime.send(runtime.frame(1, message[:4096]) + runtime.frame(1, message[4096:]))
    assert (await runtime.answer())[1] == 0
    _, (_, _, containers) = await told(heard, 2)
    assert len(containers) == 1000
    assert containers[999].id == f"{999:064x}"


async def test_a_list_without_end_is_refused(runtime, monkeypatch):
    monkeypatch.setattr(session, "_MOST_SYNCHRONIZED", 3)
    await runtime.take_in()
    pods = [api.PodSandbox(id=str(number)) for number in range(2)]
    await runtime.synchronize(pods=pods, more=True)
    await runtime.send(runtime.request("Synchronize", api.SynchronizeRequest(pods=pods, more=True)))
    assert (await runtime.answer())[1] == 8


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["StateChange", "own calls"])
@pytest.mark.parametrize(("event", "method", "handler"), _OF_PODS)
async def test_a_pods_event_is_answered_and_told(runtime, heard, generation, event, method, handler):
    await runtime.take_in()
    assert await runtime.call(*call_of(generation, event, method, pod=POD)) == b""
    await runtime.call(*call_of(generation, api.STOP_POD_SANDBOX, "StopPodSandbox", pod=api.PodSandbox(id="last")))
    expected = [(handler, "pod-1")] if handler else []
    calls = (await told(heard, 3 + len(expected)))[2:]
    assert [(name, pod.id) for name, pod in calls] == [*expected, ("pod_stopped", "last")]


@pytest.mark.parametrize("generation", ["StateChange", "own calls"])
@pytest.mark.parametrize(("event", "method", "handler"), _OF_CONTAINERS)
async def test_a_containers_event_is_answered_and_told(runtime, heard, generation, event, method, handler):
    await runtime.take_in()
    assert await runtime.call(*call_of(generation, event, method, pod=POD, container=CONTAINER)) == b""
    await runtime.call(*call_of(generation, api.STOP_POD_SANDBOX, "StopPodSandbox", pod=api.PodSandbox(id="last")))
    expected = [(handler, "pod-1", "container-1")] if handler else []
    calls = (await told(heard, 3 + len(expected)))[2:]
    assert [(name, *(each.id for each in rest)) for name, *rest in calls] == [*expected, ("pod_stopped", "last")]


@pytest.mark.parametrize(("method", "handler"), _ALWAYS_CALLS)
async def test_a_call_of_both_generations_changes_nothing_and_rejects_nothing(runtime, heard, method, handler):
    await runtime.take_in()
    whom = {"pod": POD} if "Pod" in method else {"pod": POD, "container": CONTAINER}
    assert await runtime.call(method, getattr(api, f"{method}Request")(**whom)) == b""
    await runtime.call("StopPodSandbox", api.StopPodSandboxRequest(pod=api.PodSandbox(id="last")))
    expected = [handler] if handler else []
    assert [name for name, *_ in (await told(heard, 3 + len(expected)))[2:]] == [*expected, "pod_stopped"]


async def test_a_containers_life_is_told_in_order(runtime, heard):
    await runtime.take_in()
    life = [(event, method) for event, method, handler in _OF_CONTAINERS if handler and "Remove" not in method]
    for event, method in life:
        await runtime.call(*call_of("StateChange", event, method, pod=POD, container=CONTAINER))
    await runtime.call("StopContainer", api.StopContainerRequest(pod=POD, container=CONTAINER))
    await runtime.call(*call_of("StateChange", api.REMOVE_CONTAINER, "RemoveContainer", pod=POD, container=CONTAINER))
    await told(heard, 7)
    assert [name for name, *_ in heard.of("container-1")] == [
        *("container_created", "container_starting", "container_started", "container_stopped", "container_removed")
    ]


async def test_a_state_from_the_future_reads_as_unknown(runtime, heard):
    await runtime.take_in()
    await runtime.call("StopContainer", api.StopContainerRequest(pod=POD, container=api.Container(id="c", state=77)))
    assert (await told(heard, 3))[2][2].state is State.UNKNOWN


@pytest.mark.parametrize("event", [0, 15, 99])
async def test_an_event_from_the_future_is_answered_and_passed_over(runtime, heard, event):
    await runtime.take_in()
    assert await runtime.call("StateChange", api.StateChangeEvent(event=event, pod=POD, container=CONTAINER)) == b""
    await runtime.call("StopPodSandbox", api.StopPodSandboxRequest(pod=POD))
    assert [name for name, *_ in (await told(heard, 3))[2:]] == ["pod_stopped"]


async def test_an_event_about_nobody_is_answered_and_passed_over(runtime, heard):
    await runtime.take_in()
    with structlog.testing.capture_logs() as logged:
        assert await runtime.call("StopContainer", api.StopContainerRequest()) == b""
        assert await runtime.call("StartContainer", api.StartContainerRequest()) == b""
        await runtime.call("StopPodSandbox", api.StopPodSandboxRequest(pod=POD))
        await told(heard, 3)
    assert heard.names[2:] == ["pod_stopped"]
    assert [line["event"] for line in logged] == ["an NRI event names nobody, and is passed over"] * 2


@pytest.mark.parametrize("method", ["StateChange", "StartContainer", "StopContainer", "StopPodSandbox"])
async def test_an_event_that_can_not_be_decoded_forbids_nothing(runtime, heard, method):
    await runtime.take_in()
    garbage = runtime.request(method).replace(method.encode(), method.encode() + b"\x1a\x03\xff\xff\xff", 1)
    # The payload is one more field of the request, so both lengths before it grow
    grown = len(garbage) - 8
    garbage = struct.pack(">III", 1, grown, grown - 10) + garbage[12:]
    with structlog.testing.capture_logs() as logged:
        await runtime.send(garbage)
        _, code, payload = await runtime.answer()
    assert (code, payload) == (0, b"")
    assert [line["event"] for line in logged] == ["an NRI event can't be decoded, and is passed over"]
    assert heard.names == ["connected", "synchronize"]


# -- in time -----------------------------------------------------------------------------------------------------------


def _has_answer(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


@pytest.mark.parametrize("generation", ["StateChange", "own calls"])
async def test_the_runtime_has_its_answer_before_the_handler_is_called(runtime, heard, generation):
    await runtime.take_in()
    await told(heard, 2)
    answered: dict[str, bool] = {}
    heard.on_call = lambda name: answered.setdefault(name, _has_answer(runtime.socket))
    for event, method, handler in [
        *_OF_PODS,
        *_OF_CONTAINERS,
        (api.STOP_CONTAINER, "StopContainer", "container_stopped"),
    ]:
        if handler is None or event == api.START_CONTAINER:
            continue
        whom = {"pod": POD} if "Pod" in method else {"pod": POD, "container": CONTAINER}
        await runtime.send(runtime.request(*call_of(generation, event, method, **whom)))
        await heard.until(lambda: heard.names[-1] == handler)  # noqa: B023 - awaited here
        await runtime.answer()
    assert answered == dict.fromkeys(answered, True)
    assert len(answered) == 7


async def test_a_start_waits_for_its_handler(runtime, heard, monkeypatch):
    monkeypatch.setattr(session, "START_AT_MOST_SECONDS", 30)
    await runtime.take_in()
    done = asyncio.Event()
    answered: list[bool] = []

    async def starting(pod: Any, container: Any) -> None:
        await asyncio.sleep(0.01)
        answered.append(_has_answer(runtime.socket))
        done.set()

    heard.starting = starting
    await runtime.send(runtime.request("StartContainer", api.StartContainerRequest(pod=POD, container=CONTAINER)))
    async with asyncio.timeout(20):
        await done.wait()
    assert answered == [False]
    assert await runtime.answer() == (5, 0, b"")


async def test_a_start_does_not_wait_for_ever_and_its_handler_goes_on(runtime, heard):
    await runtime.take_in()
    go_on, done = asyncio.Event(), asyncio.Event()

    async def starting(pod: Any, container: Any) -> None:
        await go_on.wait()
        done.set()

    heard.starting = starting
    with structlog.testing.capture_logs() as logged:
        assert await runtime.call("StartContainer", api.StartContainerRequest(pod=POD, container=CONTAINER)) == b""
    assert not done.is_set()
    assert [line["event"] for line in logged] == ["a container starts before the agent is ready for it"]
    assert (logged[0]["container"], logged[0]["pod"]) == ("container-1", "web")
    go_on.set()
    async with asyncio.timeout(20):
        await done.wait()


async def test_what_comes_during_a_start_is_answered_at_once(runtime, heard):
    await runtime.take_in()
    heard.starting = lambda pod, container: asyncio.Event().wait()  # type: ignore[assignment, return-value]
    start = runtime.request("StartContainer", api.StartContainerRequest(pod=POD, container=CONTAINER))
    stop = runtime.request("StopContainer", api.StopContainerRequest(pod=POD, container=CONTAINER))
    await runtime.send(start + stop)
    assert [(await runtime.answer())[0], (await runtime.answer())[0]] == [7, 5]


async def test_a_start_whose_handler_fails_goes_on(runtime, heard):
    await runtime.take_in()

    async def starting(pod: Any, container: Any) -> None:
        raise OSError(errno.ENOSPC, "no inotify watches left")

    heard.starting = starting
    with structlog.testing.capture_logs() as logged:
        assert await runtime.call("StartContainer", api.StartContainerRequest(pod=POD, container=CONTAINER)) == b""
    assert [(line["handler"], line["log_level"]) for line in logged] == [("container_starting", "error")]
    assert "no inotify watches left" in logged[0]["error"]


async def test_a_handler_that_fails_is_one_line_and_the_next_event_is_told(runtime, heard):
    await runtime.take_in()
    await told(heard, 2)

    def fail(name: str) -> None:
        if name == "container_stopped":
            raise ZeroDivisionError("a mistake of ours")

    heard.on_call = fail
    with structlog.testing.capture_logs() as logged:
        await runtime.call("StopContainer", api.StopContainerRequest(pod=POD, container=CONTAINER))
        await runtime.call("StopPodSandbox", api.StopPodSandboxRequest(pod=POD))
        await told(heard, 4)
    assert heard.names[2:] == ["container_stopped", "pod_stopped"]
    assert [line["handler"] for line in logged] == ["container_stopped"]
    assert "exc_info" not in logged[0]


async def test_a_connection_that_ends_during_a_start_ends_the_start(runtime, heard):
    await runtime.take_in()
    cancelled = asyncio.Event()

    async def starting(pod: Any, container: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    heard.starting = starting
    await runtime.send(runtime.request("StartContainer", api.StartContainerRequest(pod=POD, container=CONTAINER)))
    await heard.until(lambda: "container_starting" in heard.names)
    runtime.close()
    async with asyncio.timeout(20):
        await cancelled.wait()
    await heard.until(lambda: "disconnected" in heard.names)


async def test_no_frame_of_the_plugin_is_larger_than_the_runtimes_buffer(runtime):
    await runtime.take_in()
    await runtime.call("StopContainer", api.StopContainerRequest(pod=POD, container=CONTAINER))
    assert max(runtime.frame_sizes) <= 4096
