"""Dialling, losing and finding a runtime again; and being started by one."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest
import structlog.testing

from expedited.errors import UsageError
from expedited.nri import NriPlugin, connect, serve, session

_LOST = "no NRI connection: the agent goes on without, and tries again"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dial again after a millisecond or two."""
    monkeypatch.setattr(connect, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(connect, "_LONGEST_PAUSE_SECONDS", 0.002)


class Attempts(NriPlugin):
    """A plugin that counts how often it is to be connected."""

    def __init__(self, heard: Any) -> None:
        super().__init__(heard)
        self.count = 0
        self._more = asyncio.Event()

    def open(self) -> session.Session:
        self.count += 1
        self._more.set()
        return super().open()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while self.count < count:
                self._more.clear()
                await self._more.wait()


# -- dialling ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_an_absent_socket_is_one_line_however_often_it_is_dialled(listener, start_serving, heard):
    plugin = Attempts(heard)
    with structlog.testing.capture_logs() as logged:
        start_serving(listener.path, plugin)
        await plugin.until(30)
    assert [(line["event"], line["log_level"]) for line in logged] == [(_LOST, "warning")]
    assert logged[0]["why"].startswith(f"{listener.path} is not there: the runtime does not run, or has NRI off")
    assert heard.calls == []


@pytest.mark.usefixtures("impatient")
async def test_a_socket_that_appears_is_found(listener, start_serving, heard):
    plugin = Attempts(heard)
    start_serving(listener.path, plugin)
    await plugin.until(3)
    listener.listen()
    await (await listener.next()).take_in()
    await heard.until(lambda: heard.names == ["connected", "synchronize"])


@pytest.mark.usefixtures("impatient")
async def test_each_new_reason_is_one_more_line(listener, start_serving, heard):
    plugin = Attempts(heard)
    with structlog.testing.capture_logs() as logged:
        start_serving(listener.path, plugin)
        await plugin.until(10)
        listener.listen()
        listener.hang_up()
        await plugin.until(plugin.count + 10)
    # That somebody was there for a moment may have been noticed, or not
    whys = [line["why"] for line in logged if "closed" not in line["why"] and "broke" not in line["why"]]
    assert len(whys) == 2
    assert "is not there" in whys[0]
    assert whys[1] == f"nobody listens at {listener.path}: the runtime has ended, or has NRI off"


@pytest.mark.usefixtures("impatient")
async def test_a_runtime_that_hangs_up_is_dialled_again_and_synchronizes_again(listener, start_serving, heard):
    listener.listen()
    start_serving(listener.path)
    for _ in range(3):
        runtime = await listener.next()
        await runtime.take_in()
        await heard.until(lambda: heard.names[-1:] == ["synchronize"])
        runtime.close()
        await heard.until(lambda: heard.names[-1:] == ["disconnected"])
    assert heard.names == ["connected", "synchronize", "disconnected"] * 3
    assert heard.calls[2] == ("disconnected", "the runtime closed the connection")


async def test_the_pauses_grow_and_are_never_in_step(listener, start_serving, heard, monkeypatch):
    plugin = Attempts(heard)
    pauses: list[float] = []

    async def note(seconds: float, stop: asyncio.Event) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(connect, "_sleep", note)
    start_serving(listener.path, plugin)
    await plugin.until(40)
    for number, pause in enumerate(pauses):
        longest = min(0.1 * 2**number, 5.0)
        assert 0.5 * longest <= pause <= longest
    assert len({round(pause, 6) for pause in pauses[10:40]}) > 20


async def test_a_long_pause_ends_at_once_when_the_plugin_is_to_stop(listener, start_serving, heard, monkeypatch):
    monkeypatch.setattr(connect, "_FIRST_PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(connect, "_LONGEST_PAUSE_SECONDS", 3600.0)
    plugin = Attempts(heard)
    served = start_serving(listener.path, plugin)
    await plugin.until(1)
    await served.end()
    assert plugin.count == 1


async def test_stopping_closes_the_connection(runtime, heard, start_serving, listener):
    await runtime.take_in()
    other = start_serving(listener.path)
    second = await listener.next()
    await second.take_in()
    await other.end()
    await second.closed()
    await heard.until(lambda: heard.names[-1] == "disconnected")
    assert heard.calls[-1] == ("disconnected", "the plugin was told to stop")


async def test_stopping_does_not_wait_for_a_runtime_that_says_nothing(runtime, listener, start_serving):
    served = start_serving(listener.path)
    await listener.next()
    await served.end()


async def test_a_stop_that_was_there_first_dials_nobody(listener, heard):
    listener.listen()
    stop = asyncio.Event()
    stop.set()
    plugin = Attempts(heard)
    await serve(plugin, str(listener.path), stop=stop, environ={})
    assert plugin.count == 0


async def test_a_path_too_long_for_a_socket_is_refused(heard):
    with pytest.raises(UsageError, match="too long for a socket's path"):
        await serve(NriPlugin(heard), "/run/" + "x" * 200, stop=asyncio.Event(), environ={})


# -- runtimes that misbehave -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_runtime_that_refuses_the_plugin_is_one_line_and_is_asked_again(listener, start_serving, heard):
    listener.listen()
    with structlog.testing.capture_logs() as logged:
        start_serving(listener.path)
        for _ in range(5):
            runtime = await listener.next()
            stream, _ = await runtime.registration()
            await runtime.refuse(stream, 2, "plugins may not connect from outside")
            await runtime.closed()
        runtime = await listener.next()
    assert [line["why"] for line in logged] == [
        "the runtime did not take the plugin in: plugins may not connect from outside"
    ]
    assert heard.calls == []
    await runtime.take_in()
    await heard.until(lambda: heard.names == ["connected", "synchronize"])


@pytest.mark.usefixtures("impatient")
async def test_a_runtime_that_never_answers_the_registration_is_given_up(listener, start_serving, monkeypatch):
    monkeypatch.setattr(session, "_REGISTER_SECONDS", 0.05)
    listener.listen()
    with structlog.testing.capture_logs() as logged:
        start_serving(listener.path)
        await (await listener.next()).closed()
        await listener.next()
    assert "RegisterPlugin: no answer within 0.05 s" in logged[0]["why"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("garbage", "complaint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "does not speak NRI's protocol"),
        (b"\0\0\0\0\0\0\0\0", "a frame for connection 0"),
        (b"\0\0\0\2\0\0\0\x0d" + b"\0\0\0\3\0\0\0\1\2\0" + b"\xff\xff\xff", "does not speak ttrpc"),
    ],
)
async def test_a_peer_that_is_no_runtime_is_one_line_and_no_traceback(
    listener, start_serving, heard, garbage, complaint
):
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    listener.listen()
    with structlog.testing.capture_logs() as logged:
        start_serving(listener.path)
        for _ in range(4):
            runtime = await listener.next()
            await runtime.registration()
            await runtime.send(garbage)
            await runtime.closed()
        await listener.next()
    assert [line["event"] for line in logged] == [_LOST]
    assert complaint in logged[0]["why"]
    assert heard.calls == []
    assert unhandled == []


# -- a plugin that the runtime starts ----------------------------------------------------------------------------------


class Inherited:
    """What a runtime gives to a plugin that it starts: a descriptor, and the environment."""

    def __init__(self, name: str = "expedited", idx: str = "10") -> None:
        self.theirs, ours = socket.socketpair()
        self.descriptor = ours.detach()
        os.set_inheritable(self.descriptor, True)  # or it would not have got through the runtime's exec
        self.environ = {
            "NRI_PLUGIN_SOCKET": str(self.descriptor),
            "NRI_PLUGIN_NAME": name,
            "NRI_PLUGIN_IDX": idx,
            "PATH": "/bin",
        }


async def test_a_plugin_started_by_a_runtime_uses_what_it_was_given(runtime, heard):
    # `runtime` is there for its class alone: the peer of a socket pair is one like it
    inherited = Inherited("tested", "73")
    peer = type(runtime)(inherited.theirs)
    served = asyncio.create_task(
        serve(NriPlugin(heard), "/nowhere/nri.sock", stop=asyncio.Event(), environ=inherited.environ)
    )
    stream, said = await peer.registration()
    assert (said.plugin_name, said.plugin_idx) == ("tested", "73")
    assert inherited.environ == {"PATH": "/bin"}
    assert not os.get_inheritable(inherited.descriptor)
    await peer.accept(stream)
    await peer.configure()
    await peer.synchronize()
    await heard.until(lambda: heard.names == ["connected", "synchronize"])

    with structlog.testing.capture_logs() as logged:
        peer.close()
        async with asyncio.timeout(20):
            await served
    assert heard.names[-1] == "disconnected"
    # It was the only connection that there will ever be: this is no failure
    assert [(line["log_level"], line["why"]) for line in logged] == [("info", "the runtime closed the connection")]


async def test_a_plugin_started_by_a_runtime_stops_when_it_is_told_to(runtime, heard):
    inherited = Inherited()
    peer, stop = type(runtime)(inherited.theirs), asyncio.Event()
    served = asyncio.create_task(serve(NriPlugin(heard), "", stop=stop, environ=inherited.environ))
    await peer.take_in()
    stop.set()
    async with asyncio.timeout(20):
        await served
    await peer.closed()
    peer.close()


async def _serve_with(heard: Any, **environ: str) -> None:
    await serve(NriPlugin(heard), "/nowhere/nri.sock", stop=asyncio.Event(), environ=dict(environ))


@pytest.mark.parametrize("number", ["three", "-1", "99999", "3.5", "99999999999999999999"])
async def test_a_descriptor_that_is_none_is_refused(heard, number):
    with pytest.raises(UsageError, match=f"NRI_PLUGIN_SOCKET={number}: not the descriptor of a runtime's socket"):
        await _serve_with(heard, NRI_PLUGIN_SOCKET=number)


@pytest.mark.parametrize("kind", ["file", "tcp", "datagram"])
async def test_a_descriptor_of_something_else_is_refused_and_left_open(heard, kind, tmp_path):
    if kind == "file":
        descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    else:
        one = socket.socket() if kind == "tcp" else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        descriptor = one.detach()
    try:
        with pytest.raises(UsageError, match="not the descriptor of a runtime's socket; unset it"):
            await _serve_with(heard, NRI_PLUGIN_SOCKET=str(descriptor))
        os.fstat(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("name", "idx", "complaint"),
    [("a b", "10", "no plugin called 'a b'"), ("", "10", "no plugin called ''"), ("a", "7", "the index '7'")],
)
async def test_a_name_or_index_that_no_runtime_takes_is_refused(heard, name, idx, complaint):
    with pytest.raises(UsageError, match=complaint):
        NriPlugin(heard, name=name, idx=idx)
    inherited = Inherited(name, idx)
    with pytest.raises(UsageError, match=complaint):
        await _serve_with(heard, **inherited.environ)
    inherited.theirs.close()
    os.close(inherited.descriptor)


async def test_a_name_without_a_descriptor_is_no_pre_installed_plugin(listener, heard):
    listener.listen()
    environ, stop = {"NRI_PLUGIN_NAME": "inherited", "NRI_PLUGIN_IDX": "99"}, asyncio.Event()
    served = asyncio.create_task(serve(NriPlugin(heard), str(listener.path), stop=stop, environ=environ))
    _, said = await (await listener.next()).registration()
    assert (said.plugin_name, said.plugin_idx) == ("expedited", "10")
    assert environ == {}
    stop.set()
    await served


@pytest.mark.usefixtures("impatient")
async def test_a_path_that_is_no_socket_is_explained(start_serving, heard, tmp_path):
    plain = tmp_path / "file"
    os.close(os.open(plain, os.O_CREAT))
    plugin = Attempts(heard)
    with structlog.testing.capture_logs() as logged:
        start_serving(plain, plugin)
        await plugin.until(5)
    assert len(logged) == 1
    assert str(plain) in logged[0]["why"]
