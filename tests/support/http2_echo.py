"""A server of the ``http2`` transport that answers with what it is sent, and what its raw client says and sees."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from raw_http2 import DATA, END_STREAM, HEADERS, RawClient

from fathom.serving.transport.contract import Call
from fathom.serving.transport.http2.transport import Http2Transport

TAKEN, CHAT, COUNT = "/test.Service/Taken", "/test.Service/Chat", "/test.Service/Count"


class Echo:
    """A server whose ``Taken`` answers with what it is sent, at once, unless calls are kept."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.keeps = False
        self.kept: list[Call] = []
        self.left = 0
        self.unread: list[tuple[str, grpc.StatusCode]] = []

    def take(self, calls: Iterable[Call], refused: int) -> None:  # noqa: ARG002
        for each in calls:
            if self.keeps:
                each.left = self._leave
                self.kept.append(each)
            else:
                each.respond(each.payload)

    def _leave(self) -> None:
        self.left += 1

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> None:
        async for each in requests:
            await context.write(each)

    async def count(self, request: bytes, context: Any) -> None:
        for _ in range(int(request)):
            await context.write(b"x" * 1_000)


@asynccontextmanager
async def echoing(**options: int) -> AsyncIterator[Echo]:
    server = Http2Transport([(f"grpc.{name}", value) for name, value in {"so_reuseport": 0, **options}.items()])
    echo = Echo(f"127.0.0.1:{server.listen('127.0.0.1:0')}")
    server.take_calls(TAKEN, echo.take)
    server.on_unread = lambda *each: echo.unread.append(each)
    handlers = {
        "Chat": grpc.stream_stream_rpc_method_handler(echo.chat),
        "Count": grpc.unary_stream_rpc_method_handler(echo.count),
    }
    server.add_handlers("test.Service", handlers)
    await server.start()
    yield echo
    await server.stop(None)


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + number(value)


def answered(client: RawClient, stream: int = 1) -> bytes:
    """The messages of an answer, with what comes before each."""
    return b"".join(each.payload for each in client.of(DATA) if each.stream == stream)


async def ended(client: RawClient, stream: int = 1) -> None:
    """Wait for the end of a call."""
    async with asyncio.timeout(10):
        while not any(each.stream == stream and each.flags & END_STREAM for each in client.of(HEADERS)):
            await client.sees(HEADERS, len(client.of(HEADERS)) + 1)
