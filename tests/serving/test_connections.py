"""Connections end when nothing comes of them, and never under a caller who does nothing wrong."""

import asyncio
import json
import resource
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from raw_http2 import (
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    HELLO,
    PING,
    RST,
    call,
    connected,
    frame,
    message,
)

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.serving.config import ServerSettings
from fathom.serving.transport import options as options_module
from fathom.serving.transport.contract import Call
from fathom.serving.transport.http2 import transport as http2_module
from fathom.serving.transport.open import TransportName, open_transport
from fathom.serving.transport.options import allow_connections, server_options

TAKEN = "/test.Service/Taken"
CHAT = "/test.Service/Chat"
TIMES = ("IDLE_S", "AGE_S", "GRACE_S", "HANDSHAKE_S", "PING_EVERY_S", "PING_ANSWER_S")
SOON_S = 0.3


class Echo:
    """A server that answers each message with itself."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answer_after_s = 0.0
        self.peers: set[str] = set()
        self.stream_ended = asyncio.Event()

    def take(self, calls: Sequence[Call], refused: int) -> None:  # noqa: ARG002
        for each in calls:
            self.peers.add(each.peer())
            asyncio.get_running_loop().call_later(self.answer_after_s, each.respond, each.payload)

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> None:
        try:
            async for each in requests:
                await context.write(each)
        finally:
            self.stream_ended.set()


Listening = Callable[..., AbstractAsyncContextManager[Echo]]


@pytest.fixture
def listening(transport: TransportName, monkeypatch: pytest.MonkeyPatch) -> Listening:
    """``async with listening(IDLE_S=0.3) as echo``: on a port whose other times do not matter."""

    @asynccontextmanager
    async def running(**constants: float) -> AsyncIterator[Echo]:
        for name, value in {**dict.fromkeys(TIMES, 3_600.0), **constants}.items():
            monkeypatch.setattr(options_module, name, value)
        server = open_transport(transport, server_options(ServerSettings(max_queue=1), shares_port=False))
        echo = Echo(f"127.0.0.1:{server.listen('127.0.0.1:0')}")
        server.take_calls(TAKEN, echo.take)
        server.add_handlers("test.Service", {"Chat": grpc.stream_stream_rpc_method_handler(echo.chat)})
        await server.start()
        yield echo
        await server.stop(None)

    return running


@pytest.mark.parametrize(
    "sent", [b"", HELLO[:10], HELLO[:-9], b"\x16\x03\x01"], ids=["nothing", "half", "no settings", "tls"]
)
async def test_who_does_not_begin_with_http2_is_cut_off(listening: Listening, sent: bytes) -> None:
    async with listening(HANDSHAKE_S=SOON_S) as echo, connected(echo.address, sent, polite=False) as client:
        await client.ends()


@pytest.mark.parametrize(
    "sent",
    [b"", call(TAKEN)[:5], call(TAKEN)[:40], frame(HEADERS, 0, 1, call(TAKEN)[9:49])],
    ids=["nothing", "half a frame's head", "half a frame", "half of the headers"],
)
async def test_a_connection_without_a_call_is_closed(listening: Listening, sent: bytes) -> None:
    async with listening(IDLE_S=SOON_S) as echo, connected(echo.address, HELLO, sent, polite=False) as client:
        assert GOAWAY in {each.kind for each in await client.ends()}


async def test_a_caller_does_not_see_that_its_idle_connection_was_closed(listening: Listening) -> None:
    async with listening(IDLE_S=SOON_S) as echo, grpc.aio.insecure_channel(echo.address) as channel:
        for _ in range(2):
            assert await channel.unary_unary(TAKEN)(b"question", timeout=10) == b"question"
            while channel.get_state() is grpc.ChannelConnectivity.READY:
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)


async def test_a_message_that_never_ends_is_given_up_with_its_connection(listening: Listening) -> None:
    half = message(b"half", announced=100, last=False)
    async with (
        listening(AGE_S=SOON_S, GRACE_S=SOON_S) as echo,
        connected(echo.address, HELLO, call(TAKEN), half) as silent,
        connected(echo.address, HELLO, call(CHAT), half) as stream,
    ):
        await silent.ends()
        await stream.ends()
        await asyncio.wait_for(echo.stream_ended.wait(), 10)


async def test_a_call_whose_message_does_not_arrive_ends_and_others_of_its_connection_go_on(
    listening: Listening, transport: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    if transport == "aio":
        pytest.skip("grpc.aio tells nothing of a call before its message is there")
    monkeypatch.setattr(http2_module, "MESSAGE_S", SOON_S)
    half, question = message(b"half", announced=100, last=False), message(b"question", 3)
    async with listening() as echo, connected(echo.address, HELLO, call(TAKEN), half) as client:
        assert [each.stream for each in await client.sees(HEADERS)] == [1]
        client.send(call(TAKEN, 3), question)
        assert [each.stream for each in await client.sees(HEADERS, 3)] == [1, 3, 3]


async def test_who_does_not_answer_pings_is_taken_for_dead_and_its_calls_for_cancelled(listening: Listening) -> None:
    async with (
        listening(PING_EVERY_S=SOON_S, PING_ANSWER_S=1) as echo,
        connected(echo.address, HELLO, call(CHAT), polite=False) as dead,
        connected(echo.address, HELLO, call(CHAT)) as alive,
        connected(echo.address, HELLO) as idle,
    ):
        await dead.ends()
        await asyncio.wait_for(echo.stream_ended.wait(), 10)
        await alive.sees(PING, 3)
        await idle.sees(PING, 3)
        assert not alive.of(GOAWAY)
        assert not idle.of(GOAWAY)


async def test_pings_are_welcome_with_and_without_calls(listening: Listening) -> None:
    ping = frame(PING, 0, 0, b"pingpong")
    async with (
        listening(LEAST_PING_S=0.01) as echo,
        connected(echo.address, HELLO) as idle,
        connected(echo.address, HELLO, call(CHAT)) as stream,
    ):
        for number in range(1, 9):
            for each in (idle, stream):
                each.send(ping)
                await each.sees(PING, number)
            await asyncio.sleep(0.05)
        stream.send(message(b"still there"))
        await stream.sees(HEADERS, 2)
        assert not idle.of(GOAWAY)
        assert not stream.of(GOAWAY)


async def test_a_flood_of_pings_is_not_welcome(listening: Listening) -> None:
    async with listening() as echo, connected(echo.address, HELLO, 8 * frame(PING, 0, 0, b"pingpong")) as client:
        await client.ends()
        assert client.of(GOAWAY)[-1].error == ENHANCE_YOUR_CALM


async def test_more_calls_than_a_connection_may_have_are_refused_and_the_others_go_on(listening: Listening) -> None:
    calls = [call(TAKEN, stream) for stream in range(1, 13, 2)]
    async with listening(STREAMS=4) as echo, connected(echo.address, HELLO, *calls) as client:
        assert [each.stream for each in await client.sees(RST, 2)] == [9, 11]
        client.send(*(message(b"question", stream) for stream in (1, 3, 5, 7)))
        await client.sees(HEADERS, 8)


async def test_callers_wait_with_calls_beyond_the_limit_of_their_connection(listening: Listening) -> None:
    async with listening(STREAMS=4) as echo, grpc.aio.insecure_channel(echo.address) as channel:
        ask = channel.unary_unary(TAKEN)
        assert await asyncio.gather(*(ask(b"%d" % n, timeout=20) for n in range(300))) == [
            b"%d" % n for n in range(300)
        ]


async def test_callers_see_no_error_when_their_connections_age(listening: Listening) -> None:
    async with listening(AGE_S=0.4) as echo, grpc.aio.insecure_channel(echo.address) as channel:
        echo.answer_after_s = 0.02
        stream = channel.stream_stream(CHAT)()
        await stream.write(b"before")
        assert await stream.read() == b"before"
        ended: Counter[object] = Counter()

        async def caller() -> None:
            while len(echo.peers) < 4:
                try:
                    await channel.unary_unary(TAKEN)(b"question", timeout=20)
                    ended["answered"] += 1
                except grpc.aio.AioRpcError as error:
                    ended[error.code()] += 1

        await asyncio.wait_for(asyncio.gather(*(caller() for _ in range(64))), 30)
        assert set(ended) == {"answered"}
        # A stream stays on its connection for as long as it needs.
        await stream.write(b"after")
        assert await stream.read() == b"after"


async def test_of_too_many_connections_the_new_ones_are_refused_at_once(listening: Listening) -> None:
    async with listening(MOST_CONNECTIONS=3) as echo, AsyncExitStack() as stack:
        ask = (await stack.enter_async_context(own_channel(echo.address))).unary_unary(TAKEN)
        assert await ask(b"question", timeout=10)
        async with connected(echo.address, HELLO) as one, connected(echo.address, HELLO) as other:
            async with connected(echo.address, HELLO) as refused:
                await refused.ends()
            async with own_channel(echo.address) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await channel.unary_unary(TAKEN)(b"question", timeout=10)
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await ask(b"question", timeout=10)
            assert not one.closed.is_set()
            assert not other.closed.is_set()
        # There is room again.
        async with own_channel(echo.address) as channel:
            assert await channel.unary_unary(TAKEN)(b"question", timeout=10, wait_for_ready=True)


def own_channel(address: str) -> grpc.aio.Channel:
    """A channel that shares no connection with others."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def test_the_limit_of_open_files_is_raised_and_bounds_the_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = options_module._open_files()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 200, hard))
        assert 100 <= connections_of("127.0.0.1") <= 200 - options_module.SPARE_FILES
        assert connections_of("localhost") == connections_of("127.0.0.1") // 2
        allow_connections()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised[0] > open_now + 200
        assert raised[1] == hard
        assert connections_of("127.0.0.1") == min(options_module.MOST_CONNECTIONS, raised[0] - open_now - 64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connections_of(host: str) -> int:
    found = dict(server_options(ServerSettings(host=host), shares_port=False))
    return found["grpc.max_allowed_incoming_connections"]


FEW_FILES = """
import resource, sys
from pathlib import Path
from fathom.serving.config import load_settings
from fathom.serving.process import serve
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
settings = load_settings({"port": 0, "metrics_port": 0, "transport": sys.argv[2]}, environment={})
serve(settings, Path(sys.argv[1]), ready=lambda info: print(info.address, info.metrics_address, flush=True))
"""


async def test_a_server_with_few_files_is_not_locked_up_by_idle_connections(
    synthetic_bundle: Path, transport: str
) -> None:
    program = [sys.executable, "-c", FEW_FILES, str(synthetic_bundle), transport]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        address, metrics = process.stdout.readline().split()
        async with own_channel(address) as old:
            await recommend(old)
            async with AsyncExitStack() as stack:
                for number in range(300):
                    sent = (b"", HELLO[:10], HELLO)[number % 3]
                    await stack.enter_async_context(connected(address, sent, polite=False))
                async with own_channel(address) as new:
                    with pytest.raises(grpc.aio.AioRpcError) as error:
                        await recommend(new)
                    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
                await recommend(old)
                reader, writer = await asyncio.open_connection(*metrics.split(":"))
                writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
                assert b"200 OK" in await asyncio.wait_for(reader.read(100), 10)
                writer.close()
            async with own_channel(address) as new:
                await recommend(new, wait_for_ready=True)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0


async def recommend(channel: grpc.aio.Channel, **more: Any) -> None:
    stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
    assert (await stub.Recommend(pb.RecommendRequest(item_ids=["item-1"]), timeout=10, **more)).items


def test_headers_that_make_no_sense_fill_no_log(synthetic_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "fathom", "serve", str(synthetic_bundle), "--port", "0", "--json"]
    with log.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process:
        assert process.stdout is not None
        try:
            host, _, port = json.loads(process.stdout.readline())["address"].rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as raw:
                calls = [call("/fathom.v1.Recommender/Recommend", stream) for stream in (1, 3, 5)]
                # One more field of the block: literal, not indexed.
                bad = b"\0\x0cgrpc-timeout\x04soon"
                raw.sendall(
                    HELLO + b"".join((len(each) - 9 + len(bad)).to_bytes(3, "big") + each[3:] + bad for each in calls)
                )
                raw.sendall(frame(PING, 0, 0, b"the end."))
                heard = b""
                while b"the end." not in heard:
                    heard += raw.recv(65_536)
        finally:
            process.terminate()
    assert "grpc-timeout" not in log.read_text()
