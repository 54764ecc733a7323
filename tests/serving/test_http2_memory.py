"""What the ``http2`` transport keeps for clients that send and fetch slowly, or never: so much, and not for ever."""

import asyncio
import gzip
import time
from dataclasses import dataclass, replace
from typing import Any, Self

import grpc
import pytest
from hpack import Encoder
from http2_echo import CHAT, COUNT, TAKEN, answered, echoing, ended, number, setting
from raw_http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HELLO,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    RawClient,
    call,
    connected,
    frame,
    message,
)

from fathom.serving.transport.contract import Options
from fathom.serving.transport.http2 import limits
from fathom.serving.transport.http2 import transport as transport_module
from fathom.serving.transport.http2.deadlines import Deadlines
from fathom.serving.transport.http2.headers import Head, HeaderReader
from fathom.serving.transport.http2.limits import Limits
from fathom.serving.transport.http2.memory import Held

WINDOW_UPDATE = 8
CANCEL = 8
PINGS = {"http2.min_ping_interval_without_data_ms": 0}
OK = b"\0\x0bgrpc-status\x010"
NO_ROOM = PREFACE + frame(SETTINGS, 0, 0, setting(4, 0))


class SmallLimits(Limits):
    """A connection has a window of 100,000 bytes, and 200,000 are kept for it."""

    @classmethod
    def of(cls, options: Options) -> Self:
        return replace(super().of(options), connection_window=100_000)

    @property
    def held_bytes(self) -> int:
        return 200_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "Limits", SmallLimits)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """What is kept for all connections of a transport."""
    held = Held(2**30)
    monkeypatch.setattr(transport_module, "Held", lambda _: held)
    return held


def beginning(stream: int, size: int, announced: int = 1_000_000) -> bytes:
    """The beginning of a message."""
    whole = b"\0" + number(announced) + b"x" * size
    return b"".join(frame(DATA, 0, stream, whole[at : at + 16_384]) for at in range(0, len(whole), 16_384))


async def sees_end(client: RawClient, stream: int) -> bytes:
    await ended(client, stream)
    return next(each.payload for each in client.of(HEADERS) if each.stream == stream and each.flags & END_STREAM)


@pytest.mark.usefixtures("small")
async def test_messages_that_arrive_side_by_side_are_complete_at_last() -> None:
    # 180,000 bytes of messages of which none is complete: more than the window of a connection.
    streams = range(1, 13, 2)
    async with echoing() as echo, connected(echo.address, HELLO, frame(WINDOW_UPDATE, 0, 0, number(2**20))) as client:
        for stream in streams:
            client.send(call(TAKEN, stream), beginning(stream, 30_000, 31_000))
        await client.sees(WINDOW_UPDATE, 2)
        client.send(*(frame(DATA, END_STREAM, stream, b"x" * 1_000) for stream in streams))
        for stream in streams:
            assert await sees_end(client, stream) == OK


async def test_a_message_may_be_larger_than_what_is_kept_for_others(held: Held) -> None:
    most = limits.HELD + 1_000_000
    sizes = {"max_receive_message_length": most, "max_send_message_length": most}
    options = [(f"grpc.{name}", value) for name, value in sizes.items()]
    large = bytes(most)
    async with echoing(**sizes) as echo, grpc.aio.insecure_channel(echo.address, options=options) as channel:
        assert await channel.unary_unary(TAKEN)(large, timeout=60) == large
    assert held.size == 0


@pytest.mark.usefixtures("small")
async def test_who_sends_more_than_is_kept_of_messages_without_end_is_told_so(held: Held) -> None:
    async with echoing() as echo, connected(echo.address, HELLO) as client:
        for stream in range(1, 31, 2):
            client.send(call(TAKEN, stream), beginning(stream, 30_000))
        # The first six are kept, and those after them are not.
        assert b"grpc-status\x018" in await sees_end(client, 29)
        assert 180_000 <= held.size <= 200_000
        client.send(call(TAKEN, 31), message(b"small", 31))
        assert await sees_end(client, 31) == OK
        client.send(*(frame(RST, 0, stream, number(8)) for stream in range(1, 31, 2)), frame(PING, 0, 0, b"pingpong"))
        await client.sees(PING)
        assert held.size == 0


@pytest.mark.usefixtures("small")
async def test_answers_that_a_client_does_not_fetch_are_kept_up_to_a_limit(held: Held) -> None:
    async with echoing() as echo, connected(echo.address, NO_ROOM) as client:
        for stream in range(1, 41, 2):
            client.send(call(TAKEN, stream), message(b"x" * 16_000, stream))
        assert b"grpc-status\x018" in await sees_end(client, 39)
        assert 184_000 <= held.size <= 200_000
        client.send(frame(SETTINGS, 0, 0, setting(4, 65_535)), frame(WINDOW_UPDATE, 0, 0, number(2**20)))
        assert await sees_end(client, 23) == OK
        assert held.size == 0


async def test_a_connection_that_is_lost_leaves_nothing_that_is_kept(held: Held) -> None:
    async with echoing() as echo:
        async with connected(echo.address, NO_ROOM, call(CHAT), message(b"x" * 99), beginning(1, 500)) as client:
            client.send(call(TAKEN, 3), beginning(3, 2_000), call(TAKEN, 5), message(b"x" * 2_000, 5))
            client.send(call(COUNT, 7), message(b"1000", 7), frame(PING, 0, 0, b"pingpong"))
            await client.sees(PING)
            assert held.size > 4_000
        async with asyncio.timeout(10):
            while held.size:
                await asyncio.sleep(0.01)


async def test_an_answer_that_is_not_fetched_before_its_deadline_is_thrown_away(held: Held) -> None:
    block = call(TAKEN)[9:] + b"\0\x0cgrpc-timeout\x0350m"
    async with echoing() as echo:
        sent = NO_ROOM + frame(HEADERS, END_HEADERS, 1, block) + message(b"question")
        async with connected(echo.address, sent) as client:
            assert (await client.sees(RST))[0].error == CANCEL
            assert held.size == 0


async def test_a_stream_whose_client_sends_but_does_not_fetch_is_not_read_any_more(held: Held) -> None:
    one = message(b"x" * 1_000, last=False)
    async with echoing(**PINGS) as echo, connected(echo.address, NO_ROOM, call(CHAT)) as client:
        for _ in range(50):
            client.send(one, frame(PING, 0, 0, b"pingpong"))
            await asyncio.sleep(0)
        await client.sees(PING, 50)
        # One answer that waits, and the messages that nobody reads meanwhile.
        assert held.size == 50 * 1_005


async def test_messages_stay_compressed_until_they_are_read(held: Held) -> None:
    packed = gzip.compress(bytes(3_000_000))
    one = frame(DATA, 0, 1, b"\x01" + number(len(packed)) + packed)
    block = call(CHAT)[9:] + b"\0\x0dgrpc-encoding\x04gzip"
    sent = NO_ROOM + frame(HEADERS, END_HEADERS, 1, block) + one * 20
    async with echoing() as echo, connected(echo.address, sent, frame(PING, 0, 0, b"pingpong")) as client:
        await client.sees(PING)
        assert held.size < 3_000_005 + 20 * len(one)


async def test_messages_that_unpack_to_many_bytes_do_not_keep_other_connections_waiting() -> None:
    packed = gzip.compress(bytes(3_000_000))
    one = b"\x01" + number(len(packed)) + packed
    block = call(TAKEN)[9:] + b"\0\x0dgrpc-encoding\x04gzip"
    bombs = b"".join(
        frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, one) for stream in range(1, 41, 2)
    )
    async with echoing() as echo, connected(echo.address, HELLO) as client, connected(echo.address, HELLO) as other:
        echo.keeps = True
        client.send(bombs)
        while not echo.kept:
            await asyncio.sleep(0)
        other.send(call(TAKEN), message(b"other"))
        async with asyncio.timeout(10):
            while not any(each.payload == b"other" for each in echo.kept):
                await asyncio.sleep(0)
        assert len(echo.kept) < 15
        async with asyncio.timeout(10):
            while len(echo.kept) < 21:
                await asyncio.sleep(0)


async def test_calls_take_turns_where_the_window_of_a_connection_is_what_they_wait_for() -> None:
    async with echoing() as echo:
        wide = PREFACE + frame(SETTINGS, 0, 0, setting(4, 2**20))
        async with connected(echo.address, wide, call(COUNT), message(b"1000")) as client:
            client.send(call(COUNT, 3), message(b"1000", 3), frame(PING, 0, 0, b"pingpong"))
            await client.sees(PING)
            for _ in range(4):
                client.send(frame(WINDOW_UPDATE, 0, 0, number(5_000)))
                client.send(frame(PING, 0, 0, b"pingpong"))
                await client.sees(PING, len(client.of(PING)) + 1)
            assert len(answered(client, 3)) >= 4_000


@pytest.mark.parametrize("flood", ["settings", "windows"])
async def test_a_flood_of_windows_costs_the_same_however_many_calls_there_are(flood: str) -> None:
    """65,000 settings in 24 frames, or 20,000 windows of a byte, with 1,000 calls that wait for room."""
    calls = b"".join(call(TAKEN, stream) + message(b"x" * 99, stream) for stream in range(1, 2_001, 2))
    many = frame(SETTINGS, 0, 0, b"".join(setting(4, n % 2) for n in range(2_700))) * 24
    sent = many if flood == "settings" else frame(WINDOW_UPDATE, 0, 0, number(1)) * 20_000
    async with echoing() as echo, connected(echo.address, NO_ROOM, calls, frame(PING, 0, 0, b"pingpong")) as client:
        await client.sees(PING)
        began_s = time.process_time()
        client.send(sent, frame(PING, 0, 0, b"pingpong"))
        await client.sees(PING, 2)
        assert time.process_time() - began_s < 1.0


async def test_pings_of_a_client_that_measures_its_stream_are_answered() -> None:
    async with echoing() as echo, connected(echo.address, HELLO, call(CHAT)) as client:
        for count in range(1, 20):
            client.send(message(b"one", last=False))
            await client.sees(DATA, count)
            client.send(frame(PING, 0, 0, b"pingpong"))
            await client.sees(PING, count)
        assert not client.of(GOAWAY)


async def test_a_status_is_sent_however_long_its_text_is() -> None:
    async with echoing() as echo, grpc.aio.insecure_channel(echo.address) as channel:
        echo.keeps = True
        asked = channel.unary_unary(TAKEN)(b"", timeout=10)
        while not echo.kept:
            await asyncio.sleep(0.01)
        echo.kept[0].fail(grpc.StatusCode.NOT_FOUND, "\U0001f600" * 1_000_000 + "\ud800")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "\U0001f600" * 500


async def test_a_message_of_a_stream_may_not_be_larger_than_those_of_a_call() -> None:
    options = [("grpc.max_receive_message_length", 2**23)]
    async with (
        echoing(max_send_message_length=900) as echo,
        grpc.aio.insecure_channel(echo.address, options=options) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(channel.unary_stream(COUNT)(b"1", timeout=10)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_deadlines_of_years_leave_nothing_behind() -> None:
    expired: list[Any] = []
    deadlines = Deadlines(asyncio.get_running_loop(), expired.append)
    now_s = time.monotonic()
    calls = [_DeadlineOf(now_s, now_s + hours * 3_600.0) for hours in range(0, 99_999_999, 1_001)]
    for each in calls:
        deadlines.add(each, each.deadline_s)  # type: ignore[arg-type]
    assert len(deadlines._moments) < 5
    deadlines.close()


@dataclass(eq=False)
class _DeadlineOf:
    begun_s: float
    deadline_s: float
    due_s: float | None = None


def test_large_headers_are_not_known_by_heart() -> None:
    reader = HeaderReader()
    encoder = Encoder()
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", TAKEN.encode())]
    fields += [(b"content-type", b"application/grpc"), *((b"name", b"x" * 3_000) for _ in range(4))]
    for _ in range(3):
        assert isinstance(reader.read(encoder.encode(fields)), Head)
    assert not reader._known
