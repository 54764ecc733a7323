"""HTTP/2 as the ``http2`` transport reads and writes it: what RFC 9113 says of frames that no gRPC client sends."""

import asyncio
import random
from collections.abc import Iterable

import grpc
import pytest
from hpack import Encoder
from http2_echo import CHAT, COUNT, TAKEN, answered, echoing, ended, number, setting
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    HELLO,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    call,
    connected,
    frame,
    message,
)

from fathom.serving.transport.http2.frames import ConnectionFault
from fathom.serving.transport.http2.headers import Head, HeaderReader, Malformed, Refused
from fathom.serving.transport.http2.messages import Assembly, MessageFault

PRIORITY, PUSH_PROMISE, WINDOW_UPDATE, CONTINUATION = 2, 5, 8, 9
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
COMPRESSION_ERROR = 9
PADDED, PRIORITIZED = 0x8, 0x20
OK = b"\x00\x0bgrpc-status\x010"


ENDS = {
    "another protocol": (b"GET / HTTP/1.1\r\nHost: test\r\n\r\n", PROTOCOL_ERROR),
    "no settings first": (PREFACE + frame(PING, 0, 0, b"pingpong"), PROTOCOL_ERROR),
    "too large a frame": (HELLO + frame(DATA, 0, 1, b"x" * 16_385), FRAME_SIZE_ERROR),
    "data of no call": (HELLO + message(b"x", 1), PROTOCOL_ERROR),
    "data of stream 0": (HELLO + message(b"x", 0), PROTOCOL_ERROR),
    "an even stream": (HELLO + call(TAKEN, 2), PROTOCOL_ERROR),
    "headers of stream 0": (HELLO + call(TAKEN, 0), PROTOCOL_ERROR),
    "headers twice": (HELLO + call(TAKEN) + call(TAKEN), PROTOCOL_ERROR),
    "a call below another": (HELLO + call(TAKEN, 5) + call(TAKEN, 3), STREAM_CLOSED),
    "a priority that is cut": (HELLO + frame(HEADERS, PRIORITIZED | END_HEADERS, 1, b"\0" * 4), FRAME_SIZE_ERROR),
    "too large a window of a call by settings": (
        HELLO
        + call(TAKEN)
        + frame(WINDOW_UPDATE, 0, 1, number(2**31 - 65_536))
        + frame(SETTINGS, 0, 0, setting(4, 65_536)),
        FLOW_CONTROL_ERROR,
    ),
    "a continuation of nothing": (HELLO + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL_ERROR),
    "a continuation of another": (
        HELLO + frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, END_HEADERS, 3, b""),
        PROTOCOL_ERROR,
    ),
    "a frame between headers": (HELLO + frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, b"pingpong"), PROTOCOL_ERROR),
    "data between headers": (HELLO + call(TAKEN) + frame(HEADERS, 0, 3, b"") + message(b"x"), PROTOCOL_ERROR),
    "no HPACK": (HELLO + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
    "more padding than data": (HELLO + call(TAKEN) + frame(DATA, PADDED, 1, b"\x05abc"), PROTOCOL_ERROR),
    "no room for padding": (HELLO + call(TAKEN) + frame(DATA, PADDED, 1, b""), PROTOCOL_ERROR),
    "a reset of nothing": (HELLO + frame(RST, 0, 1, number(8)), PROTOCOL_ERROR),
    "a reset of a wrong size": (HELLO + call(TAKEN) + frame(RST, 0, 1, b"\0"), FRAME_SIZE_ERROR),
    "settings of a call": (HELLO + frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    "settings of a wrong size": (HELLO + frame(SETTINGS, 0, 0, b"\0"), FRAME_SIZE_ERROR),
    "an acknowledgement with settings": (HELLO + frame(SETTINGS, ACK, 0, setting(4, 1)), FRAME_SIZE_ERROR),
    "a wrong frame size": (HELLO + frame(SETTINGS, 0, 0, setting(5, 100)), PROTOCOL_ERROR),
    "a wrong first window": (HELLO + frame(SETTINGS, 0, 0, setting(4, 2**31)), FLOW_CONTROL_ERROR),
    "a wrong push": (HELLO + frame(SETTINGS, 0, 0, setting(2, 2)), PROTOCOL_ERROR),
    "a push": (HELLO + frame(PUSH_PROMISE, END_HEADERS, 1, number(2)), PROTOCOL_ERROR),
    "a ping of a call": (HELLO + frame(PING, 0, 1, b"pingpong"), PROTOCOL_ERROR),
    "a ping of a wrong size": (HELLO + frame(PING, 0, 0, b"ping"), FRAME_SIZE_ERROR),
    "a window of nothing": (HELLO + frame(WINDOW_UPDATE, 0, 0, number(0)), PROTOCOL_ERROR),
    "a window of no call": (HELLO + frame(WINDOW_UPDATE, 0, 1, number(1)), PROTOCOL_ERROR),
    "a window of a wrong size": (HELLO + frame(WINDOW_UPDATE, 0, 0, b"\0"), FRAME_SIZE_ERROR),
    "too large a window": (HELLO + frame(WINDOW_UPDATE, 0, 0, number(2**31 - 1)), FLOW_CONTROL_ERROR),
    "a priority of nothing": (HELLO + frame(PRIORITY, 0, 0, b"\0" * 5), PROTOCOL_ERROR),
    "a priority of a wrong size": (HELLO + frame(PRIORITY, 0, 1, b"\0" * 4), FRAME_SIZE_ERROR),
    "GOAWAY of a call": (HELLO + frame(GOAWAY, 0, 1, b"\0" * 8), PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", ENDS)
async def test_a_connection_that_breaks_the_protocol_ends_with_its_error(name: str) -> None:
    sent, code = ENDS[name]
    async with echoing() as echo, connected(echo.address, sent) as client:
        await client.ends()
        assert client.of(GOAWAY)[-1].error == code


BROKEN_CALLS = {
    "data after its end": (call(CHAT) + message(b"one") + message(b"two"), RST, STREAM_CLOSED),
    "a window of nothing": (call(TAKEN) + frame(WINDOW_UPDATE, 0, 1, number(0)), RST, PROTOCOL_ERROR),
    "too large a window": (call(TAKEN) + frame(WINDOW_UPDATE, 0, 1, number(2**31 - 1)), RST, FLOW_CONTROL_ERROR),
}


@pytest.mark.parametrize("name", BROKEN_CALLS)
async def test_a_call_that_breaks_the_protocol_ends_and_others_of_its_connection_go_on(name: str) -> None:
    sent, kind, code = BROKEN_CALLS[name]
    async with echoing() as echo, connected(echo.address, HELLO, sent) as client:
        assert (await client.sees(kind))[0].error == code
        client.send(call(TAKEN, 3), message(b"question", 3))
        await ended(client, 3)
        assert answered(client, 3) == b"\0\0\0\0\x08question"


def headers(stream: int, fields: Iterable[tuple[bytes, bytes]], *, flags: int = END_HEADERS) -> bytes:
    block = b"".join(b"\0" + len(name).to_bytes() + name + len(value).to_bytes() + value for name, value in fields)
    return frame(HEADERS, flags, stream, block)


PSEUDO = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", TAKEN.encode())]
GRPC = (b"content-type", b"application/grpc")


@pytest.mark.parametrize(
    "fields",
    [
        [*PSEUDO[:2], GRPC],
        [*PSEUDO, PSEUDO[0], GRPC],
        [GRPC, *PSEUDO],
        [*PSEUDO, (b":status", b"200"), GRPC],
        [*PSEUDO, GRPC, (b"Upper", b"x")],
        [*PSEUDO, GRPC, (b"", b"x")],
        [*PSEUDO, GRPC, (b"connection", b"close")],
        [*PSEUDO, GRPC, (b"te", b"gzip")],
        [*PSEUDO, GRPC, (b"name", b"two\r\nlines")],
        [*PSEUDO, GRPC, (b"name", b" around ")],
    ],
    ids=["no path", "twice", "late", "of an answer", "upper case", "no name", "connection", "te", "lines", "spaces"],
)
async def test_headers_that_are_no_request_end_their_call_only(fields: list[tuple[bytes, bytes]]) -> None:
    async with echoing() as echo, connected(echo.address, HELLO, headers(1, fields)) as client:
        assert (await client.sees(RST))[0].error == PROTOCOL_ERROR
        client.send(call(TAKEN, 3), message(b"question", 3))
        await ended(client, 3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([(b":method", b"GET"), *PSEUDO[1:], GRPC], b"405"),
        ([*PSEUDO, (b"content-type", b"text/html")], b"415"),
        ([*PSEUDO], b"415"),
        ([*PSEUDO, (b"content-type", b"application/grpc-web")], b"415"),
        ([*PSEUDO, GRPC, (b"grpc-timeout", b"soon")], b"grpc-timeout is no time"),
        ([*PSEUDO, GRPC, (b"key-bin", b"...")], b"key-bin is not base64"),
        ([*PSEUDO, GRPC, *((b"name", b"x" * 100) for _ in range(200))], b"at most 16,384"),
    ],
    ids=["GET", "HTML", "nothing", "gRPC-Web", "timeout", "base64", "large"],
)
async def test_requests_that_are_no_call_get_an_answer_that_says_so(
    fields: list[tuple[bytes, bytes]], says: bytes
) -> None:
    raw = headers(1, fields)
    if len(raw) - 9 > 16_384:
        block = raw[9:]
        raw = frame(HEADERS, 0, 1, block[:16_384]) + frame(CONTINUATION, END_HEADERS, 1, block[16_384:])
    async with echoing() as echo, connected(echo.address, HELLO, raw) as client:
        (answer,) = await client.sees(HEADERS)
        assert says in answer.payload
        assert answer.flags & END_STREAM


async def test_padding_priorities_and_what_nobody_knows_do_no_harm() -> None:
    block, body = call(TAKEN)[9:], message(b"question")[9:]
    async with (
        echoing() as echo,
        connected(
            echo.address,
            HELLO,
            frame(0xAA, 0xFF, 7, b"what?"),
            frame(PRIORITY, 0, 9, b"\0" * 5),
            frame(HEADERS, PADDED | PRIORITIZED, 1, b"\x03" + b"\0\0\0\0\x10" + block[:20] + b"\0" * 3),
            frame(CONTINUATION, 0, 1, block[20:30]),
            frame(CONTINUATION, END_HEADERS, 1, block[30:]),
            frame(DATA, PADDED, 1, b"\x02" + body[:4] + b"\0\0"),
            frame(DATA, 0, 1, b""),
            frame(DATA, PADDED | END_STREAM, 1, b"\x00" + body[4:]),
        ) as client,
    ):
        await ended(client)
        assert answered(client) == body


async def test_headers_after_the_messages_end_a_call() -> None:
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0\x01a\x01b")
    async with (
        echoing() as echo,
        connected(echo.address, HELLO, call(TAKEN), message(b"question", last=False), trailers) as client,
    ):
        await ended(client)
        assert answered(client) == b"\0\0\0\0\x08question"


async def test_an_answer_keeps_to_the_windows_of_call_and_connection() -> None:
    small = frame(SETTINGS, 0, 0, setting(4, 10))
    async with (
        echoing(max_receive_message_length=2**20) as echo,
        connected(echo.address, PREFACE, small, call(TAKEN), message(b"0123456789abcdef")) as client,
    ):
        await client.sees(DATA)
        assert answered(client) == b"\0\0\0\0\x1001234"
        client.send(frame(WINDOW_UPDATE, 0, 1, number(6)))
        await client.sees(DATA, 2)
        assert answered(client) == b"\0\0\0\0\x100123456789a"
        client.send(frame(SETTINGS, 0, 0, setting(4, 100)))  # 90 more for each call
        await ended(client)
        assert answered(client) == b"\0\0\0\0\x100123456789abcdef"
        # Of the connection 65,535 - 21 are left; that of the call is not what stands in the way.
        client.send(frame(SETTINGS, 0, 0, setting(4, 2**20)), call(TAKEN, 3))
        large = b"x" * 100_000
        whole = b"\0" + number(len(large)) + large
        client.send(*(frame(DATA, 0, 3, whole[at : at + 16_384]) for at in range(0, len(whole), 16_384)))
        client.send(frame(DATA, END_STREAM, 3))
        async with asyncio.timeout(10):
            while len(answered(client, 3)) < 65_535 - 21:
                await client.sees(DATA, len(client.of(DATA)) + 1)
        assert len(answered(client, 3)) == 65_535 - 21
        client.send(frame(WINDOW_UPDATE, 0, 0, number(2**20)))
        await ended(client, 3)
        assert answered(client, 3) == whole
        assert max(len(each.payload) for each in client.of(DATA)) <= 16_384


async def test_settings_are_acknowledged_before_they_are_made_use_of() -> None:
    none, more = (frame(SETTINGS, 0, 0, setting(4, size)) for size in (0, 100))
    async with echoing() as echo, connected(echo.address, PREFACE, none, call(TAKEN), message(b"question")) as client:
        await client.sees(HEADERS)
        client.send(more)
        await ended(client)
        kinds = [each.kind for each in client.seen]
        assert kinds.index(DATA) > max(place for place, kind in enumerate(kinds) if kind == SETTINGS)


async def test_large_messages_go_both_ways_in_calls_and_streams() -> None:
    large = random.Random(1).randbytes(3_000_000)
    most = [("grpc.max_receive_message_length", 2**23), ("grpc.max_send_message_length", 2**23)]
    async with (
        echoing(max_receive_message_length=2**23) as echo,
        grpc.aio.insecure_channel(echo.address, options=most) as channel,
    ):
        ask = channel.unary_unary(TAKEN)
        assert await asyncio.gather(*(ask(large + bytes((n,))) for n in range(8))) == [
            large + bytes((n,)) for n in range(8)
        ]
        chat = channel.stream_stream(CHAT)(iter([large, b"", b"small", large]))
        assert [each async for each in chat] == [large, b"", b"small", large]


async def test_who_sends_more_than_a_stream_takes_is_reset() -> None:
    # Its handler waits for room to send, so that messages which come meanwhile stay unread.
    one = frame(DATA, 0, 1, b"\0" + number(16_000) + b"x" * 16_000)
    async with echoing() as echo, connected(echo.address, HELLO, call(CHAT), one * 40) as client:
        assert (await client.sees(RST))[0].error == FLOW_CONTROL_ERROR


async def test_a_stream_that_nobody_reads_is_not_sent_more_than_it_takes() -> None:
    async with (
        echoing() as echo,
        connected(echo.address, HELLO, call(COUNT), message(b"100000")) as client,
    ):
        async with asyncio.timeout(10):
            while len(answered(client)) < 65_535:
                await client.sees(DATA, len(client.of(DATA)) + 1)
        client.send(frame(PING, 0, 0, b"pingpong"))
        await client.sees(PING)
        assert len(answered(client)) == 65_535


FLOODS = {
    "settings": frame(SETTINGS, 0, 0, setting(3, 1)),
    "priorities": frame(PRIORITY, 0, 1, b"\0" * 5),
    "empty data": frame(DATA, 0, 1, b""),
    "what nobody knows": frame(0xAA, 0, 0, b""),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_floods_of_frames_that_ask_for_nothing_end_their_connection(name: str) -> None:
    async with echoing() as echo, connected(echo.address, HELLO, call(CHAT), FLOODS[name] * 10_002) as client:
        await client.ends()
        assert client.of(GOAWAY)[-1].error == ENHANCE_YOUR_CALM


@pytest.mark.parametrize("part", [b"", b"\0\x01a\x01b"], ids=["empty", "full"])
async def test_headers_without_end_are_cut_off(part: bytes) -> None:
    flood = frame(CONTINUATION, 0, 1, part * 2_000) * 10_002
    async with echoing() as echo, connected(echo.address, HELLO, frame(HEADERS, 0, 1), flood[:4_000_000]) as client:
        await client.ends()
        assert client.of(GOAWAY)[-1].error == ENHANCE_YOUR_CALM


async def test_headers_that_unpack_to_very_many_end_their_connection() -> None:
    # One entry of 3,000 bytes in the table, and then thousands of references to it of a byte each.
    bomb = b"\x40\x01a\x7f\xb9\x16" + b"x" * 3_000 + b"\xbe" * 10_000
    async with echoing() as echo, connected(echo.address, HELLO, frame(HEADERS, END_HEADERS, 1, bomb)) as client:
        await client.ends()
        assert client.of(GOAWAY)[-1].error == ENHANCE_YOUR_CALM


async def test_calls_that_are_begun_and_reset_again_and_again_leave_nothing_behind() -> None:
    async with echoing(max_concurrent_streams=100) as echo, connected(echo.address, HELLO) as client:
        echo.keeps = True
        for stream in range(1, 10_001, 2):
            client.send(call(TAKEN, stream), message(b"question", stream), frame(RST, 0, stream, number(8)))
        client.send(call(TAKEN, 10_001), message(b"last", 10_001))
        async with asyncio.timeout(30):
            while not any(each.payload == b"last" for each in echo.kept):
                await asyncio.sleep(0.01)
        assert not client.of(RST)
        assert len(echo.kept) - echo.left == 1
        echo.kept[-1].respond(b"answer")
        await ended(client, 10_001)


async def test_a_client_that_reads_nothing_is_not_read_either() -> None:
    async with echoing(max_concurrent_streams=1_000_000) as echo:
        reader, writer = await asyncio.open_connection(*echo.address.split(":"), limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        window = frame(SETTINGS, 0, 0, setting(4, 2**31 - 1)) + frame(WINDOW_UPDATE, 0, 0, number(2**31 - 65_536))
        writer.write(PREFACE + window)
        sent = 0
        question = b"x" * 16_000
        for stream in range(1, 200_001, 2):
            writer.write(call(TAKEN, stream) + message(question, stream))
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                break
            sent = stream
        assert sent < 200_001 - 2
        async with connected(echo.address, HELLO, call(TAKEN), message(b"other")) as client:
            await ended(client)
        writer.transport.abort()
        del reader


async def test_a_connection_that_is_to_end_lets_in_what_its_client_sent_before_it_heard_of_that() -> None:
    async with (
        echoing(max_connection_age_ms=100) as echo,
        connected(echo.address, HELLO, polite=False) as client,
    ):
        first = (await client.sees(GOAWAY))[0]
        assert int.from_bytes(first.payload[:4], "big") == 2**31 - 1
        (asked,) = client.of(PING)
        echo.keeps = True
        client.send(call(TAKEN), message(b"question"), frame(PING, ACK, 0, asked.payload))
        second = (await client.sees(GOAWAY, 2))[1]
        assert (int.from_bytes(second.payload[:4], "big"), second.error) == (1, NO_ERROR)
        # Later ones are none of ours any more, and the client knows.
        client.send(call(TAKEN, 3), message(b"late", 3), frame(RST, 0, 3, number(8)))
        async with asyncio.timeout(10):
            while not echo.kept:
                await asyncio.sleep(0.01)
        echo.kept[0].respond(b"answer")
        await client.ends()
        assert answered(client) == b"\0\0\0\0\x06answer"
        assert not answered(client, 3)


NAMES, VALUES = st.sampled_from([b"one", b"two", b"user-agent"]), st.sampled_from([b"1", b"2", b"x" * 200])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=3)
TIMEOUTS = {b"1S": 1.0, b"2M": 120.0, b"300m": 0.3, b"7u": 7e-6}
BLOCKS = st.tuples(FIELDS, st.sampled_from(sorted(TIMEOUTS)), st.sampled_from([4_096, 4_096, 100, 0]))


@settings(max_examples=200, deadline=None)
@given(blocks=st.lists(BLOCKS, min_size=1, max_size=30))
def test_a_block_that_is_known_by_heart_means_what_hpack_says(
    blocks: list[tuple[list[tuple[bytes, bytes]], bytes, int]],
) -> None:
    encoder, reader = Encoder(), HeaderReader()
    for fields, timeout, table in blocks:
        if encoder.header_table_size != table:
            encoder.header_table_size = table
        sent = [*PSEUDO, GRPC, (b"grpc-timeout", timeout), *fields]
        block = encoder.encode(sent, huffman=bool(len(fields) % 2))
        head = reader.read(block)
        assert isinstance(head, Head)
        assert head.path == TAKEN
        assert list(head.metadata) == [(name.decode(), value.decode()) for name, value in fields]
        assert head.timeout_s == pytest.approx(TIMEOUTS[timeout])


@settings(max_examples=500, deadline=None)
@given(block=st.binary(max_size=200))
def test_any_bytes_are_headers_or_are_refused(block: bytes) -> None:
    try:
        assert isinstance(HeaderReader().read(block), Head | Refused)
    except (Malformed, ConnectionFault):
        return


@settings(max_examples=300, deadline=None)
@given(
    messages=st.lists(st.binary(max_size=50), max_size=8),
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=50),
)
def test_messages_come_out_as_they_went_in_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    raw = b"".join(b"\0" + number(len(each)) + each for each in messages)
    assembly, found, at, turn = Assembly(50, b"identity"), [], 0, 0
    while at < len(raw):
        size = cuts[turn % len(cuts)]
        assembly.feed(raw[at : at + size])
        while assembly.has_message:
            found.append(assembly.pop())
        at, turn = at + size, turn + 1
    assert found == messages
    assert not assembly


@pytest.mark.parametrize(
    ("raw", "encoding", "code"),
    [
        (b"\x01\0\0\0\x01x", b"identity", grpc.StatusCode.INTERNAL),
        (b"\x02\0\0\0\x01x", b"gzip", grpc.StatusCode.INTERNAL),
        (b"\x01\0\0\0\x01x", b"gzip", grpc.StatusCode.INTERNAL),
        (b"\x01\0\0\0\x01x", b"snappy", grpc.StatusCode.UNIMPLEMENTED),
        (b"\x00\xff\xff\xff\xff", b"identity", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_messages_that_cannot_be_read_say_why(raw: bytes, encoding: bytes, code: grpc.StatusCode) -> None:
    with pytest.raises(MessageFault) as caught:
        assembly = Assembly(1_000, encoding)
        assembly.feed(raw)
        assembly.pop()
    assert caught.value.code is code


async def test_any_frames_leave_the_server_as_it_was() -> None:
    chance = random.Random(7)
    whole = [
        call(TAKEN),
        message(b"question"),
        call(CHAT, 3),
        message(b"one", 3, last=False),
        frame(RST, 0, 1, number(8)),
    ]
    async with echoing() as echo:
        for _ in range(300):
            sent = bytearray(b"".join(chance.choices(whole, k=6)))
            for _ in range(chance.randrange(1, 6)):
                sent[chance.randrange(len(sent))] = chance.randrange(256)
            async with connected(echo.address, HELLO, bytes(sent), polite=False) as client:
                client.send(frame(PING, 0, 0, b"pingpong"))
                await asyncio.sleep(0)
        async with connected(echo.address, HELLO, call(TAKEN), message(b"question")) as client:
            await ended(client)
            assert answered(client) == b"\0\0\0\0\x08question"
