"""What both transports promise, with a server of a few handlers on a free port."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from raw_http2 import HEADERS, HELLO, RST, connected, frame, message
from raw_http2 import call as headers_of

from fathom.serving.transport.contract import Call, Transport
from fathom.serving.transport.http2 import transport as http2_module
from fathom.serving.transport.http2 import transport as http2_transport
from fathom.serving.transport.http2.transport import Taken
from fathom.serving.transport.open import TransportName, open_transport

TAKEN = "/test.Service/Taken"
SMALL = [("grpc.max_receive_message_length", 1_000)]
RESET = frame(RST, 0, 1, (8).to_bytes(4, "big"))


class Bench:
    """A transport, its client, and the calls that were taken and have no answer yet."""

    def __init__(self, transport: Transport, channel: grpc.aio.Channel, address: str) -> None:
        self.transport, self.channel, self.address = transport, channel, address
        self.calls: asyncio.Queue[Call] = asyncio.Queue()
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled = asyncio.Event()
        self.unread: asyncio.Queue[tuple[str, grpc.StatusCode]] = asyncio.Queue()
        self.room: int | None = None
        self.refused = 0

    def take(self, calls: Sequence[Call], refused: int) -> int | None:
        self.refused += refused
        for call in calls:
            self.calls.put_nowait(call)
        return self.room

    def ask(self, payload: bytes = b"question", **more: Any) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        return self.channel.unary_unary(TAKEN)(payload, **more)

    async def echo(self, request: bytes, context: Any) -> bytes:  # noqa: ARG002
        return request

    async def hang(self, request: bytes, context: Any) -> bytes:  # noqa: ARG002
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return request

    async def refuse(self, request: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, request.decode(), (("why", "so"),))

    async def count(self, request: bytes, context: Any) -> None:
        for number in range(int(request)):
            await context.write(str(number).encode())

    async def join(self, requests: AsyncIterator[bytes], context: Any) -> bytes:  # noqa: ARG002
        return b"".join([each async for each in requests])

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> None:
        async for each in requests:
            await context.write(each.upper())


@pytest.fixture
async def bench(transport: TransportName) -> AsyncIterator[Bench]:
    server = open_transport(transport, SMALL)
    address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
    async with grpc.aio.insecure_channel(address) as channel:
        bench = Bench(server, channel, address)
        server.take_calls(TAKEN, bench.take)
        server.on_unread = lambda *call: bench.unread.put_nowait(call)
        unary = grpc.unary_unary_rpc_method_handler
        handlers = {
            "Echo": unary(bench.echo),
            "Hang": unary(bench.hang),
            "Refuse": unary(bench.refuse),
            "Count": grpc.unary_stream_rpc_method_handler(bench.count),
            "Join": grpc.stream_unary_rpc_method_handler(bench.join),
            "Chat": grpc.stream_stream_rpc_method_handler(bench.chat),
        }
        server.add_handlers("test.Service", handlers)
        await server.start()
        yield bench
        await server.stop(None)


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await call
    return caught.value


async def test_an_answer_that_comes_while_the_server_stops_does_no_harm(bench: Bench) -> None:
    asked = bench.ask()
    call = await bench.calls.get()
    stopping = asyncio.create_task(bench.transport.stop(None))
    await asyncio.sleep(0)
    # The event loop does not hear before its answer that everything has ended.
    time.sleep(0.1)
    call.respond(b"too late")
    await stopping
    with suppress(grpc.aio.AioRpcError):
        assert await asked == b"too late"


async def test_a_taken_call_has_message_metadata_peer_and_deadline_and_gets_its_answer(bench: Bench) -> None:
    asked = bench.ask(metadata=(("name", "value"),), timeout=60)
    call = await bench.calls.get()
    assert call.payload == b"question"
    assert ("name", "value") in [tuple(each) for each in call.invocation_metadata()]
    assert call.peer().startswith("ipv4:127.0.0.1:")
    assert call.deadline_s is not None
    call.respond(b"answer")
    call.respond(b"again")
    assert await asked == b"answer"
    asked = bench.ask()
    call = await bench.calls.get()
    assert call.deadline_s is None
    call.respond(b"")
    assert await asked == b""


async def test_a_taken_call_may_fail_with_text_in_any_alphabet_and_a_retry_hint(bench: Bench) -> None:
    asked = bench.ask()
    hint = (("grpc-retry-pushback-ms", "20"),)
    (await bench.calls.get()).fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "später", hint)
    error = await failure(asked)
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "später")
    assert hint[0] in [tuple(each) for each in error.trailing_metadata()]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_who_leaves_is_noticed_and_cannot_be_answered(bench: Bench, how: str) -> None:
    asked = bench.ask(timeout=0.2 if how == "deadline" else None)
    call = await bench.calls.get()
    left = asyncio.Event()
    call.left = left.set
    if how == "cancel":
        asked.cancel()
    async with asyncio.timeout(10):
        await left.wait()
    call.respond(b"too late")
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await asked


async def test_many_calls_are_handed_over_and_answered_in_any_order(bench: Bench) -> None:
    asked = [bench.ask(str(number).encode()) for number in range(600)]
    calls = [await bench.calls.get() for _ in asked]
    for call in reversed(calls):
        call.respond(b"to " + call.payload)
    assert await asyncio.gather(*asked) == [f"to {number}".encode() for number in range(600)]


@pytest.mark.parametrize("method", ["Taken", "Echo", "Join"])
async def test_a_message_that_is_too_large_is_refused(bench: Bench, method: str) -> None:
    path = f"/test.Service/{method}"
    large = b"x" * 1_001
    if method == "Join":
        error = await failure(bench.channel.stream_unary(path)(iter([large])))
    else:
        error = await failure(bench.channel.unary_unary(path)(large))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_compressed_message_is_read_and_counted_at_its_own_size(bench: Bench) -> None:
    echo = bench.channel.unary_unary("/test.Service/Echo")
    assert await echo(b"x" * 900, compression=grpc.Compression.Gzip) == b"x" * 900
    error = await failure(echo(b"x" * 1_000_000, compression=grpc.Compression.Gzip))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_is_unimplemented(bench: Bench) -> None:
    for path in ("/test.Service/None", "/test.Other/Echo", "/"):
        assert (await failure(bench.channel.unary_unary(path)(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def echoed(bench: Bench) -> bytes | None:
    """What the server answers; None where it has just ended, and is started again."""
    try:
        answer: bytes = await bench.channel.unary_unary("/test.Service/Echo")(b"hello", wait_for_ready=True, timeout=10)
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
            raise
        return None
    return answer


async def test_a_path_that_is_not_text_does_not_end_the_server(bench: Bench) -> None:
    for _ in range(2):
        async with connected(bench.address, HELLO, headers_of(b"/\xff\xfe"), message(b"")) as client:
            await client.sees(HEADERS)
        async with asyncio.timeout(10):
            while await echoed(bench) != b"hello":
                pass


async def test_handlers_answer_refuse_and_stream(bench: Bench) -> None:
    path = "/test.Service/{}".format
    assert await bench.channel.unary_unary(path("Echo"))(b"hello") == b"hello"
    error = await failure(bench.channel.unary_unary(path("Refuse"))(b"lost"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "lost")
    assert ("why", "so") in [tuple(each) for each in error.trailing_metadata()]
    counted = [each async for each in bench.channel.unary_stream(path("Count"))(b"3")]
    assert counted == [b"0", b"1", b"2"]
    assert [each async for each in bench.channel.unary_stream(path("Count"))(b"0")] == []
    assert await bench.channel.stream_unary(path("Join"))(iter([b"a", b"b", b"c"])) == b"abc"
    chat = bench.channel.stream_stream(path("Chat"))()
    for text in (b"one", b"two"):
        await chat.write(text)
        assert await chat.read() == text.upper()
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF
    assert await chat.code() is grpc.StatusCode.OK


async def test_a_handler_whose_caller_leaves_is_cancelled(bench: Bench) -> None:
    asked = bench.channel.unary_unary("/test.Service/Hang")(b"", timeout=0.1)
    assert (await failure(asked)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(10):
        await bench.cancelled.wait()


async def test_stopping_waits_for_calls_in_progress_and_then_ends_them(bench: Bench) -> None:
    asked, forgotten = bench.ask(b"1"), bench.ask(b"2")
    first, _ = await bench.calls.get(), await bench.calls.get()
    stopping = asyncio.create_task(bench.transport.stop(0.2))
    await asyncio.sleep(0)
    first.respond(b"answer")
    assert await (asked if first.payload == b"1" else forgotten) == b"answer"
    await stopping
    error = await failure(forgotten if first.payload == b"1" else asked)
    assert error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    await bench.transport.stop(None)


async def test_a_port_in_use_cannot_be_listened_on(transport: TransportName) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError):
        open_transport(transport, [("grpc.so_reuseport", 0)]).listen(f"127.0.0.1:{taken.getsockname()[1]}")


async def test_a_call_whose_caller_left_before_it_was_read_is_not_handed_over(bench: Bench) -> None:
    asked = [bench.ask(str(number).encode()) for number in range(64)]
    await asyncio.sleep(0)
    for call in asked:
        call.cancel()
    last = bench.ask(b"last")
    async with asyncio.timeout(10):
        while (call := await bench.calls.get()).payload != b"last":
            call.respond(b"to nobody")
    call.respond(b"answer")
    assert await last == b"answer"


async def test_without_room_only_who_can_wait_and_the_first_of_a_connection_are_let_in(
    bench: Bench, transport: TransportName
) -> None:
    if transport == "aio":
        pytest.skip("grpc.aio reads every call")
    bench.room = 0
    answered = bench.ask()
    (await bench.calls.get()).respond(b"now there is no room")
    await answered
    asked = [bench.ask(timeout=0.9) for _ in range(20)]
    # Any of them may be the first that arrives, which is let in.
    ended, _ = await asyncio.wait(map(asyncio.ensure_future, asked), return_when=asyncio.FIRST_COMPLETED)
    error = ended.pop().exception()
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "100") in [tuple(each) for each in error.trailing_metadata()]
    patient = bench.ask(b"patient", timeout=60)
    async with grpc.aio.insecure_channel(bench.address, options=[("grpc.use_local_subchannel_pool", 1)]) as another:
        other = another.unary_unary(TAKEN)(b"other", timeout=0.9)
        async with asyncio.timeout(10):
            seen = set()
            while not {b"patient", b"other"} <= seen:
                call = await bench.calls.get()
                seen.add(call.payload)
                call.respond(b"answer")
        assert (await patient, await other) == (b"answer", b"answer")
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert bench.refused == sum(isinstance(each, grpc.aio.AioRpcError) for each in ends) > 0


async def test_that_there_was_no_room_is_forgotten_when_no_calls_come(
    bench: Bench, transport: TransportName, monkeypatch: pytest.MonkeyPatch
) -> None:
    if transport == "aio":
        pytest.skip("grpc.aio reads every call")
    bench.room = 0
    answered = bench.ask()
    (await bench.calls.get()).respond(b"now there is no room")
    await answered
    monkeypatch.setattr(http2_transport, "STALE_S", 0.0)
    asked = [bench.ask(timeout=0.9) for _ in range(5)]
    for _ in asked:
        (await bench.calls.get()).respond(b"answer")
    assert await asyncio.gather(*asked) == 5 * [b"answer"]


# A server whose transport fails with the first call.
FAILING = """
from fathom.cli import main
from fathom.serving.transport.aio import AioTransport
from fathom.serving.transport.http2.transport import Taken

def fail(*_):
    raise ZeroDivisionError("a fault of its own")

Taken.hand_over = AioTransport._listen_again = fail
main()
"""


async def test_a_fault_of_the_transport_is_logged_and_ends_the_server(
    synthetic_bundle: Path, tmp_path: Path, transport: TransportName
) -> None:
    log = tmp_path / "log"
    options = ["serve", str(synthetic_bundle), "--port", "0", "--json", "--transport", transport]
    with (
        log.open("w") as stderr,
        subprocess.Popen([sys.executable, "-c", FAILING, *options], stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        assert process.stdout is not None
        try:
            address = json.loads(process.stdout.readline())["address"]
            calls = headers_of(b"/\xff\xfe") if transport == "aio" else headers_of("/fathom.v1.Recommender/Recommend")
            async with connected(address, HELLO, calls, message(b"")):
                assert await asyncio.to_thread(process.wait, 30) == 2
        finally:
            process.kill()
    said = log.read_text()
    assert "ZeroDivisionError: a fault of its own" in said
    assert said.splitlines()[-1] == "error: the server has failed and ends; its log says why, start it again"


async def test_after_a_fault_it_can_be_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if bench.transport.name == "aio":
        pytest.skip("another server of grpc.aio is started, or none can be")
    failed = asyncio.Event()
    bench.transport.on_failure = failed.set
    asked = bench.ask()
    await bench.calls.get()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Taken, "hand_over", fail)
    lost = bench.ask()
    async with asyncio.timeout(10):
        await failed.wait()
        await bench.transport.stop(0.1)
    for call in (asked, lost):
        assert (await failure(call)).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


async def begun(bench: Bench) -> None:
    """Wait until a call has begun whose message has not arrived."""
    async with asyncio.timeout(10):
        while not any(each.calls for each in bench.transport._connections):  # type: ignore[attr-defined]
            await asyncio.sleep(0)


@pytest.mark.parametrize("path", [TAKEN, "/test.Service/Echo"])
async def test_calls_that_end_before_their_message_is_read_are_told_once(bench: Bench, path: str) -> None:
    if bench.transport.name == "aio":
        pytest.skip("grpc.aio does not tell of such calls")
    for sent, status in (
        (message(b"x" * 1_001), "RESOURCE_EXHAUSTED"),
        (message(b"half", announced=2_000, last=False), "RESOURCE_EXHAUSTED"),
        (message(b"half", announced=100), "INVALID_ARGUMENT"),
        (message(b"half", announced=100, last=False) + RESET, "CANCELLED"),
        (RESET, "CANCELLED"),
    ):
        async with connected(bench.address, HELLO, headers_of(path)) as client:
            await begun(bench)  # What is reset before that, nobody hears of.
            client.send(sent)
            told = await asyncio.wait_for(bench.unread.get(), 10)
        assert told == (path, grpc.StatusCode[status])
    with pytest.raises(grpc.aio.AioRpcError):
        await bench.channel.unary_unary(path)(b"x" * 1_001)
    assert await asyncio.wait_for(bench.unread.get(), 10) == (path, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert bench.unread.empty()


async def test_a_message_that_never_comes_is_told_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if bench.transport.name == "aio":
        pytest.skip("grpc.aio does not tell of such calls")
    async with connected(bench.address, HELLO, headers_of(TAKEN)) as client:
        await begun(bench)
        monkeypatch.setattr(http2_module, "MESSAGE_S", 0.0)
        await client.sees(HEADERS)
    assert bench.unread.get_nowait() == (TAKEN, grpc.StatusCode.DEADLINE_EXCEEDED)
    monkeypatch.undo()
    asked = bench.ask()
    (await bench.calls.get()).respond(b"answer")
    await asked
    assert bench.unread.empty()
