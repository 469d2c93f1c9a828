"""Calls and answers, byte by byte."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
import structlog.testing
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from expedited.nri.mux import MuxError
from expedited.nri.ttrpc import Client, Code, Method, RpcError, RpcLostError, Server
from expedited.pb.ttrpc import ttrpc_pb2

_LARGEST_DATA_BYTES = 4 << 20
_REQUEST, _RESPONSE, _DATA = 1, 2, 3


def message(stream: int, kind: int, data: bytes, flags: int = 0) -> bytes:
    return struct.pack(">IIBB", len(data), stream, kind, flags) + data


def request(stream: int, method: str = "Echo", payload: bytes = b"", *, service: str = "s", flags: int = 0) -> bytes:
    data = ttrpc_pb2.Request(service=service, method=method, payload=payload, timeout_nano=1)
    data.metadata.add(key="traceparent", value="00-1-2-01")
    return message(stream, _REQUEST, data.SerializeToString(), flags)


def response(stream: int, payload: bytes = b"", *, code: int = 0, why: str = "") -> bytes:
    data = ttrpc_pb2.Response(payload=payload)
    if code:
        data.status.code, data.status.message = code, why
    return message(stream, _RESPONSE, data.SerializeToString())


def split(sent: bytes) -> list[tuple[int, int, int, bytes]]:
    """Every (stream, type, flags, data) of a byte stream."""
    found = []
    while sent:
        length, stream, kind, flags = struct.unpack(">IIBB", sent[:10])
        assert len(sent) >= 10 + length
        found.append((stream, kind, flags, sent[10 : 10 + length]))
        sent = sent[10 + length :]
    return found


class Served:
    """A server, and what it has answered."""

    def __init__(self, **methods: Method) -> None:
        self.sent = bytearray()
        self.server = Server(self.sent.extend, {"s": {"Echo": lambda payload: payload, **methods}})

    def answers(self) -> list[tuple[int, int, bytes]]:
        """Every (stream, status code, payload) so far."""
        found = []
        for stream, kind, flags, data in split(bytes(self.sent)):
            assert (kind, flags) == (_RESPONSE, 0)
            said = ttrpc_pb2.Response.FromString(data)
            found.append((stream, said.status.code, said.payload))
        return found

    def why(self) -> str:
        """The last answer's message."""
        return ttrpc_pb2.Response.FromString(split(bytes(self.sent))[-1][3]).status.message


def test_an_answer_goes_out_on_the_calls_stream_before_received_returns():
    served = Served()
    served.server.received(request(1, payload=b"hello"))
    # Response{payload=2}: field 2, length-delimited; no status at all
    assert bytes(served.sent) == b"\0\0\0\7" + b"\0\0\0\1" + b"\2\0" + b"\x12\5hello"


def test_an_empty_answer_has_no_data():
    served = Served()
    served.server.received(request(1))
    assert bytes(served.sent) == b"\0\0\0\0" + b"\0\0\0\1" + b"\2\0"


@pytest.mark.parametrize("call", [{"method": "Nope"}, {"service": "other"}, {"service": "", "method": ""}])
def test_an_unknown_method_is_unimplemented(call):
    served = Served()
    served.server.received(request(1, **call) + request(3, payload=b"next"))
    assert served.answers() == [(1, 12, b""), (3, 0, b"next")]


@pytest.mark.parametrize("streams", [(2,), (0,), (3, 1), (5, 5)])
def test_a_stream_that_is_even_or_not_above_the_last_is_refused(streams):
    served = Served()
    for stream in streams:
        served.server.received(request(stream))
    assert served.answers()[-1] == (streams[-1], Code.INVALID_ARGUMENT, b"")


def test_streams_may_leave_numbers_out():
    served = Served()
    served.server.received(request(5) + request(0x7FFFFFFF))
    assert [code for _, code, _ in served.answers()] == [0, 0]


def test_data_of_a_stream_that_nobody_opened_is_refused():
    served = Served()
    served.server.received(message(1, _DATA, b"x"))
    assert served.answers() == [(1, Code.INVALID_ARGUMENT, b"")]


def test_a_call_that_wants_a_stream_is_unimplemented():
    served = Served()
    served.server.received(request(1, flags=2))
    assert served.answers() == [(1, Code.UNIMPLEMENTED, b"")]


@pytest.mark.parametrize("kind", [_RESPONSE, 0, 77])
def test_a_type_that_is_no_servers_business_is_passed_over(kind):
    served = Served()
    served.server.received(message(1, kind, b"x") + request(1, payload=b"next"))
    assert served.answers() == [(1, 0, b"next")]


def test_a_message_that_is_too_long_is_refused_and_the_next_one_is_answered():
    served = Served()
    served.server.received(struct.pack(">IIBB", _LARGEST_DATA_BYTES + 1, 1, _REQUEST, 0))
    for _ in range(4):
        served.server.received(bytes(1 << 20))
    assert served.answers() == []
    served.server.received(b"\0" + request(3, payload=b"next"))
    assert served.answers() == [(1, Code.RESOURCE_EXHAUSTED, b""), (3, 0, b"next")]


def test_the_longest_message_is_taken():
    served = Served(Count=lambda payload: str(len(payload)).encode())
    overhead = len(request(1, "Count", bytes(_LARGEST_DATA_BYTES))) - 10 - _LARGEST_DATA_BYTES
    served.server.received(request(1, "Count", bytes(_LARGEST_DATA_BYTES - overhead)))
    assert served.answers() == [(1, 0, str(_LARGEST_DATA_BYTES - overhead).encode())]


def test_an_answer_that_the_peer_could_not_queue_is_not_sent():
    served = Served()
    served.server.received(request(1, payload=bytes(600 << 10)) + request(3, payload=b"next"))
    assert served.answers() == [(1, Code.RESOURCE_EXHAUSTED, b""), (3, 0, b"next")]


def test_what_is_no_request_is_refused():
    served = Served()
    served.server.received(message(1, _REQUEST, b"\xff\xff\xff") + request(3, payload=b"next"))
    assert served.answers() == [(1, Code.INVALID_ARGUMENT, b""), (3, 0, b"next")]


def test_a_method_may_refuse_with_a_code_of_its_own():
    def refuse(payload: bytes) -> bytes:
        raise RpcError(8, "too much of it")

    served = Served(Refuse=refuse)
    with structlog.testing.capture_logs() as logged:
        served.server.received(request(1, "Refuse"))
    assert served.answers() == [(1, 8, b"")]
    assert served.why() == "too much of it"
    assert logged == []


def test_a_payload_that_can_not_be_decoded_is_the_callers_fault():
    def decode(payload: bytes) -> bytes:
        raise DecodeError("wrong wire type")

    served = Served(Decode=decode)
    with structlog.testing.capture_logs() as logged:
        served.server.received(request(1, "Decode"))
    assert served.answers() == [(1, Code.INVALID_ARGUMENT, b"")]
    assert logged == []


def test_a_method_that_fails_is_one_line_in_the_log_and_an_internal_error_for_the_caller():
    def fail(payload: bytes) -> bytes:
        raise KeyError("gone")

    served = Served(Fail=fail)
    with structlog.testing.capture_logs() as logged:
        served.server.received(request(1, "Fail") + request(3, payload=b"next"))
    assert served.answers() == [(1, Code.INTERNAL, b""), (3, 0, b"next")]
    assert [(line["log_level"], line["error"]) for line in logged] == [("error", "KeyError('gone')")]
    assert "exc_info" not in logged[0]


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_answer_that_takes_its_time_holds_up_nobody():
    ready = asyncio.Event()

    async def later(payload: bytes) -> bytes:
        await ready.wait()
        return b"at last"

    served = Served(Later=later)
    served.server.received(request(1, "Later") + request(3, payload=b"next"))
    assert served.answers() == [(3, 0, b"next")]
    ready.set()
    await _settle()
    assert served.answers()[1:] == [(1, 0, b"at last")]


async def test_a_late_answer_may_be_a_refusal():
    async def later(payload: bytes) -> bytes:
        raise RpcError(3, "on second thoughts")

    served = Served(Later=later)
    served.server.received(request(1, "Later"))
    await _settle()
    assert served.answers() == [(1, 3, b"")]


async def test_no_more_than_so_many_calls_wait_for_their_answers():
    async def never(payload: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    served = Served(Never=never)
    for number in range(65):
        served.server.received(request(2 * number + 1, "Never"))
    assert served.answers() == [(129, Code.RESOURCE_EXHAUSTED, b"")]
    served.server.lost("the test is over")
    await _settle()


async def test_a_lost_connection_ends_the_calls_that_wait():
    ended: list[str] = []

    async def never(payload: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return b""

    served = Served(Never=never)
    served.server.received(request(1, "Never"))
    await _settle()
    served.server.lost("the runtime closed the connection")
    await _settle()
    assert ended == ["cancelled"]
    assert served.answers() == []


class Caller:
    """A client, and what it has asked."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.client = Client(self.sent.extend)

    def call(self, payload: bytes = b"", timeout_seconds: float = 30.0) -> asyncio.Task[bytes]:
        return asyncio.create_task(self.client.call("s", "Echo", payload, timeout_seconds=timeout_seconds))


async def test_a_call_says_what_it_wants_on_a_stream_of_its_own():
    caller = Caller()
    calls = [caller.call(b"one", 3000.5), caller.call(b"two"), caller.call(b"three")]
    await _settle()
    asked = split(bytes(caller.sent))
    assert [(stream, kind, flags) for stream, kind, flags, _ in asked] == [(1, 1, 0), (3, 1, 0), (5, 1, 0)]
    assert ttrpc_pb2.Request.FromString(asked[0][3]) == ttrpc_pb2.Request(
        service="s", method="Echo", payload=b"one", timeout_nano=3_000_500_000_000
    )
    # Whoever is answered first goes on first
    caller.client.received(response(5, b"3") + response(1, b"1") + response(3, b"2"))
    assert await asyncio.gather(*calls) == [b"1", b"2", b"3"]


async def test_a_refusal_has_the_servers_code_and_words():
    caller = Caller()
    call = caller.call()
    await _settle()
    caller.client.received(response(1, code=12, why="no such thing"))
    with pytest.raises(RpcError, match="no such thing") as refusal:
        await call
    assert refusal.value.code == 12


async def test_a_status_of_zero_is_success():
    caller = Caller()
    call = caller.call()
    await _settle()
    said = ttrpc_pb2.Response(payload=b"fine")
    said.status.message = "all is well"
    caller.client.received(message(1, _RESPONSE, said.SerializeToString()))
    assert await call == b"fine"


async def test_no_answer_in_time_is_an_error_and_the_late_one_is_passed_over():
    caller = Caller()
    with pytest.raises(RpcLostError, match=r"s/Echo: no answer within 0\.01 s"):
        await caller.call(timeout_seconds=0.01)
    assert caller.client._waiting == {}  # or a runtime that never answers would make us grow
    next_call = caller.call()
    await _settle()
    caller.client.received(response(1, b"late") + response(3, b"in time"))
    assert await next_call == b"in time"


async def test_a_lost_connection_is_lost_for_every_call():
    caller = Caller()
    calls = [caller.call(), caller.call()]
    await _settle()
    caller.client.lost("the runtime closed the connection")
    for call in [*calls, caller.call()]:
        with pytest.raises(RpcLostError, match="the runtime closed the connection"):
            await call
    assert len(split(bytes(caller.sent))) == 2


@pytest.mark.parametrize("data", [response(7, b"nobody asked"), message(1, _REQUEST, b"x"), message(1, _DATA, b"x")])
async def test_what_answers_no_call_is_passed_over(data):
    caller = Caller()
    call = caller.call()
    await _settle()
    caller.client.received(data + response(1, b"here"))
    assert await call == b"here"


async def test_an_answer_that_is_too_long_fails_its_call_alone():
    caller = Caller()
    calls = [caller.call(), caller.call()]
    await _settle()
    caller.client.received(struct.pack(">IIBB", _LARGEST_DATA_BYTES + 1, 1, _RESPONSE, 0))
    caller.client.received(bytes(_LARGEST_DATA_BYTES + 1) + response(3, b"fine"))
    with pytest.raises(RpcError, match="4194305 bytes is too long"):
        await calls[0]
    assert await calls[1] == b"fine"


async def test_a_request_that_the_peer_could_not_queue_is_not_sent():
    caller = Caller()
    with pytest.raises(RpcError, match="too long"):
        await caller.call(bytes(600 << 10))
    assert caller.sent == b""


async def test_an_answer_that_is_none_breaks_the_stream():
    caller = Caller()
    call = caller.call()
    await _settle()
    with pytest.raises(MuxError, match="does not speak ttrpc"):
        caller.client.received(message(1, _RESPONSE, b"\xff\xff\xff"))
    call.cancel()


def _pieces(data: bytes, sizes: list[int], deliver: Callable[[bytes], None]) -> None:
    at, turn = 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        deliver(data[at : at + size])
        at, turn = at + size, turn + 1


@given(
    payloads=st.lists(st.binary(max_size=10_000), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_calls_and_answers_get_through_however_the_bytes_are_cut(payloads, sizes):
    async def call() -> None:
        caller, served = Caller(), Served()
        calls = [caller.call(payload) for payload in payloads]
        await _settle()
        _pieces(bytes(caller.sent), sizes, served.server.received)
        _pieces(bytes(served.sent), sizes, caller.client.received)
        assert await asyncio.gather(*calls) == payloads

    asyncio.run(call())


@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4))
@settings(deadline=None)
def test_garbage_never_raises_in_a_server(data, sizes):
    served = Served()
    _pieces(data, sizes, served.server.received)
    assert all(code for _, code, _ in served.answers())


@given(
    messages=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 7), st.binary(max_size=40))),
)
@settings(deadline=None)
def test_messages_of_any_kind_are_answered_once_or_not_at_all(messages: list[Any]):
    served = Served()
    for stream, kind, flags, data in messages:
        served.server.received(message(stream, kind, data, flags))
    expected = [stream for stream, kind, _, _ in messages if kind in (_REQUEST, _DATA)]
    assert [stream for stream, _, _ in served.answers()] == expected
