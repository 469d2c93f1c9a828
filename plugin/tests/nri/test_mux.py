"""The trunk, byte by byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expedited.nri.mux import LARGEST_SENT_FRAME_BYTES, Mux, MuxError

_LARGEST_FRAME_BYTES = 4194314


class Ear:
    """A receiver that keeps all it gets."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost_because: list[str] = []

    def received(self, data: bytes) -> None:
        self.data += data

    def lost(self, why: str) -> None:
        self.lost_because.append(why)


class Broken(Ear):
    def received(self, data: bytes) -> None:
        raise MuxError("this stream makes no sense")


@asynccontextmanager
async def connected(*numbers: int, **ears: Any) -> AsyncIterator[tuple[Mux, socket.socket, dict[int, Ear]]]:
    """A mux on one end of a socket pair, the other end, and an ear on each of the connections."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    mux = Mux()
    listening = {number: ears.get("ear", Ear)() for number in numbers}
    for number, ear in listening.items():
        mux.open(number, ear)
    # What would be a traceback on the terminal of the agent
    unhandled: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    try:
        await loop.create_unix_connection(lambda: mux, sock=ours)
        yield mux, theirs, listening
    finally:
        mux.fail("the test is over")
        async with asyncio.timeout(20):
            await mux.closed
        theirs.close()
        assert unhandled == []


def frame(connection: int, payload: bytes) -> bytes:
    return struct.pack(">II", connection, len(payload)) + payload


async def send(theirs: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(theirs, data)


async def read(theirs: socket.socket, count: int) -> bytes:
    data = b""
    async with asyncio.timeout(20):
        while len(data) < count:
            part = await asyncio.get_running_loop().sock_recv(theirs, count - len(data))
            assert part, data
            data += part
    return data


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - an Ear is no event
            await asyncio.sleep(0)


async def why(mux: Mux) -> str:
    async with asyncio.timeout(20):
        return await asyncio.shield(mux.closed)


async def test_what_is_written_is_framed_with_its_connection_and_length():
    async with connected(1) as (mux, theirs, _):
        mux.write(1, b"hello")
        mux.write(2, b"")
        mux.write(0x01020304, b"x")
        assert await read(theirs, 22) == b"\0\0\0\1\0\0\0\5hello" + b"\1\2\3\4\0\0\0\1x"


@pytest.mark.parametrize("size", [4095, 4096, 4097, 8192, 10_000])
async def test_no_frame_is_larger_than_the_peers_buffer(size):
    data = bytes(number % 251 for number in range(size))
    async with connected(1) as (mux, theirs, _):
        mux.write(1, data)
        got, sizes = b"", []
        while len(got) < size:
            number, length = struct.unpack(">II", await read(theirs, 8))
            assert number == 1
            sizes.append(length)
            got += await read(theirs, length)
    assert got == data
    assert max(sizes) <= LARGEST_SENT_FRAME_BYTES == 4096
    assert sizes[:-1] == [4096] * (len(sizes) - 1)


async def test_each_connection_gets_its_own_bytes_and_those_of_nobody_are_dropped():
    async with connected(1, 2) as (_, theirs, ears):
        await send(theirs, frame(1, b"one") + frame(7, b"nobody's") + frame(2, b"two") + frame(1, b" more"))
        await until(lambda: ears[1].data == b"one more")
        assert ears[2].data == b"two"


async def test_an_unfinished_frame_is_handed_on_as_it_comes():
    async with connected(1) as (_, theirs, ears):
        await send(theirs, struct.pack(">II", 1, 1000) + b"begin")
        await until(lambda: ears[1].data == b"begin")
        await send(theirs, b"x" * 995)
        await until(lambda: len(ears[1].data) == 1000)


async def test_the_largest_frame_of_all_is_taken():
    async with connected(1) as (_, theirs, ears):
        await send(theirs, frame(1, bytes(_LARGEST_FRAME_BYTES)) + frame(1, b"next"))
        await until(lambda: len(ears[1].data) == _LARGEST_FRAME_BYTES + 4)


@pytest.mark.parametrize(
    ("garbage", "complaint"),
    [
        (struct.pack(">II", 1, _LARGEST_FRAME_BYTES + 1), "a frame of 4194315 bytes (at most 4194314)"),
        (struct.pack(">II", 9, 0xFFFFFFFF), "a frame of 4294967295 bytes"),
        (frame(0, b"x"), "a frame for connection 0"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "does not speak NRI's protocol: a frame of"),
    ],
)
async def test_what_is_no_frame_ends_the_connection_with_one_reason(garbage, complaint):
    async with connected(1) as (mux, theirs, ears):
        await send(theirs, garbage)
        assert complaint in await why(mux)
        assert len(ears[1].lost_because) == 1
        assert complaint in ears[1].lost_because[0]
        assert ears[1].data == b""


async def test_nothing_is_handed_on_after_a_frame_that_ends_the_connection():
    async with connected(1) as (mux, theirs, ears):
        await send(theirs, frame(1, b"good") + frame(0, b"") + frame(1, b"late"))
        await why(mux)
        assert ears[1].data == b"good"


async def test_a_stream_that_can_not_be_understood_ends_the_whole_trunk():
    async with connected(1, 2, ear=Broken) as (mux, theirs, ears):
        await send(theirs, frame(2, b"whatever"))
        assert await why(mux) == "this stream makes no sense"
        assert [ear.lost_because for ear in ears.values()] == [["this stream makes no sense"]] * 2


async def test_the_peers_end_is_told_from_its_breaking_off():
    async with connected(1) as (mux, theirs, _):
        theirs.shutdown(socket.SHUT_WR)
        assert await why(mux) == "the runtime closed the connection"


@pytest.mark.parametrize("cut", [3, 8, 10])
async def test_an_end_in_the_middle_of_a_frame_is_called_that(cut):
    async with connected(1) as (mux, theirs, _):
        await send(theirs, frame(1, b"payload")[:cut])
        theirs.shutdown(socket.SHUT_WR)
        assert await why(mux) == "the runtime closed the connection in the middle of a frame"


async def test_a_peer_that_does_not_read_is_given_up():
    async with connected(1) as (mux, _, _):
        for _ in range(100):
            mux.write(1, bytes(64 << 10))
        assert "the runtime does not read what it is sent" in await why(mux)


async def test_closing_sends_what_was_written_before_and_nothing_after():
    async with connected(1) as (mux, theirs, ears):
        mux.write(1, b"x" * 4000)
        mux.close("enough")
        mux.write(1, b"too late")
        assert await read(theirs, 4008) == frame(1, b"x" * 4000)
        assert await asyncio.get_running_loop().sock_recv(theirs, 10) == b""
        assert await why(mux) == "enough"
        assert ears[1].lost_because == ["enough"]


async def test_the_first_reason_is_the_one_that_counts():
    async with connected(1) as (mux, _, _):
        mux.fail("the first")
        mux.fail("the second")
        mux.close("the third")
        assert await why(mux) == "the first"


async def test_a_mux_with_no_socket_yet_drops_what_is_written():
    Mux().write(1, b"nobody is there")


async def test_a_connection_is_opened_once_and_none_is_number_zero():
    async with connected(1) as (mux, _, _):
        for number in (0, 1):
            with pytest.raises(ValueError, match="reserved or open already"):
                mux.open(number, Ear())


class _Trunk(asyncio.Transport):
    """Takes what is written; the peer is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.aborted = False

    def write(self, data: Any) -> None:
        self.sent += data

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.aborted = True


def chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut ``data`` at these sizes, again and again until it is used up."""
    cut, at = [], 0
    while at < len(data):
        size = sizes[len(cut) % len(sizes)]
        cut.append(data[at : at + size])
        at += size
    return cut


@given(
    writes=st.lists(st.tuples(st.integers(1, 3), st.binary(max_size=20_000)), max_size=8),
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
)
@settings(deadline=None)
def test_what_one_mux_sends_another_one_hears_however_it_is_cut(writes, sizes):
    async def there_and_back() -> None:
        trunk = _Trunk()
        sender, receiver = Mux(), Mux()
        sender.connection_made(trunk)
        receiver.connection_made(_Trunk())
        ears = {number: Ear() for number in (1, 2)}
        for number, ear in ears.items():
            receiver.open(number, ear)
        expected: dict[int, bytes] = defaultdict(bytes)
        for number, data in writes:
            sender.write(number, data)
            expected[number] += data
        for piece in chunks(bytes(trunk.sent), sizes):
            receiver.data_received(piece)
        assert {number: bytes(ear.data) for number, ear in ears.items()} == {n: expected[n] for n in (1, 2)}

    asyncio.run(there_and_back())


@given(data=st.binary(max_size=200), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5))
@settings(deadline=None)
def test_garbage_is_dropped_or_ends_the_trunk_and_never_raises(data, sizes):
    async def hear() -> None:
        trunk, mux = _Trunk(), Mux()
        mux.connection_made(trunk)
        mux.open(1, Ear())
        for piece in chunks(data, sizes):
            mux.data_received(piece)
        mux.eof_received()
        mux.connection_lost(None)
        assert trunk.aborted
        assert mux.closed.result()

    asyncio.run(hear())
