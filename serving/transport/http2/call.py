"""A call: a ``contract.Call`` that is handed over, or one whose coroutine reads and writes its messages."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc

from fathom.serving.transport.contract import AuthContext, Metadata
from fathom.serving.transport.http2.headers import MOST_TEXT, OK, OPENING, Head, trailers
from fathom.serving.transport.http2.limits import Limits
from fathom.serving.transport.http2.messages import PREFIX, Assembly


class Answers(Protocol):
    """Where what a call says goes; see ``Outbox``."""

    def answer(self, call: "Http2Call", payload: bytes) -> None:
        """End it with its only message."""

    def open(self, call: "Http2Call") -> None:
        """Send the headers that come before its first message."""

    def send(self, call: "Http2Call", payload: bytes) -> None:
        """Send a message, as far as there is room for it."""

    def end(self, call: "Http2Call", block: bytes) -> None:
        """Send its last headers."""


class Line(Protocol):
    """The connection that a call is on; see ``Connection``."""

    limits: Limits
    peer: str

    @property
    def outbox(self) -> Answers:
        """Where what it says goes."""

    def auth_context(self) -> AuthContext:
        """What TLS has shown of the client."""

    def next_message(self, call: "Http2Call") -> bytes | None:
        """The next of its messages that nobody has read; None where none has come."""

    def expire(self, call: "Http2Call", text: str) -> None:
        """End it, since it has no time left."""


class Http2Call:
    """``handler``: what answers it, None where it is handed over. ``ended``: we have nothing more to say or to do."""

    __slots__ = (
        "_connection",
        "assembly",
        "begun_s",
        "closed",
        "deadline_s",
        "drained",
        "due_s",
        "encoding",
        "ended",
        "handler",
        "is_read",
        "is_streaming",
        "left",
        "metadata",
        "news",
        "number",
        "opened",
        "path",
        "payload",
        "received",
        "trailer",
        "unsent",
        "window",
    )

    def __init__(self, connection: Line, number: int, head: Head, now_s: float) -> None:
        self._connection = connection
        self.number = number
        self.path = head.path
        self.metadata = head.metadata
        self.encoding = head.encoding
        #: Until its method is known.
        self.handler: Any = None
        self.is_streaming = False
        self.begun_s = now_s
        self.deadline_s = None if head.timeout_s is None else now_s + head.timeout_s
        #: When its deadline is looked at; None: never.
        self.due_s: float | None = None
        self.payload = b""
        self.left: Callable[[], object] | None = None
        #: Whether it has been handed over, or begun.
        self.is_read = self.ended = False
        #: Whether the caller has sent all that it will send, and whether we have sent headers.
        self.closed = self.opened = False
        # What comes: messages that nobody has read, and how many bytes have come since the caller was told that it may
        # send more.
        self.assembly: Assembly | None = None
        self.received = 0
        self.news: asyncio.Future[None] | None = None
        # What goes: messages that the caller has no room for yet, how much more room it has than every call has at
        # first, and what comes at the end.
        self.window = 0
        self.unsent: bytearray | None = None
        self.trailer: bytes | None = None
        self.drained: asyncio.Future[None] | None = None

    def invocation_metadata(self) -> Metadata:
        """See ``Call``."""
        return self.metadata

    def peer(self) -> str:
        """See ``Call``."""
        return self._connection.peer

    def auth_context(self) -> AuthContext:
        """See ``Call``."""
        return self._connection.auth_context()

    def is_whole(self, size: int, data: bytes, begin: int) -> bool:
        """Whether a frame of so many bytes is all that a plain call says."""
        return (
            not (self.is_streaming or self.closed or self.ended)
            and self.assembly is None
            and size >= PREFIX
            and not data[begin]
            and int.from_bytes(data[begin + 1 : begin + PREFIX], "big") == size - PREFIX
            and size - PREFIX <= self._connection.limits.received_bytes
        )

    def respond(self, payload: bytes) -> None:
        """See ``Call``."""
        if not self.ended:
            self.ended = True
            self._connection.outbox.answer(self, payload)

    def fail(self, code: grpc.StatusCode, text: str, trailing: Metadata = ()) -> None:
        """See ``Call``."""
        if not self.ended:
            self.ended = True
            block = trailers(code, text[:MOST_TEXT], tuple((name, value) for name, value in trailing))
            self._connection.outbox.end(self, block if self.opened else OPENING + block)

    def finish(self) -> None:
        """End it without a message more."""
        if not self.ended:
            self.ended = True
            self._connection.outbox.open(self)
            self._connection.outbox.end(self, OK)

    async def write(self, payload: bytes) -> None:
        """Send a message of a stream, when the caller has room for it; raises BaseError where it has left."""
        if not self.ended:
            self._connection.outbox.send(self, payload)
            while self.unsent and not self.ended:
                self.drained = asyncio.get_running_loop().create_future()
                await self.drained
            if not self.ended:
                return
        raise grpc.aio.InternalError("the caller has left")

    async def messages(self) -> AsyncIterator[bytes]:
        """The messages of a stream, until the caller ends it."""
        while True:
            while (message := self._connection.next_message(self)) is not None:
                yield message
            if self.closed or self.ended:
                return
            self.news = asyncio.get_running_loop().create_future()
            await self.news

    def expire(self) -> None:
        """End it, since it has no time left."""
        self._connection.expire(self, "the deadline has passed")

    def wake(self) -> None:
        """Let those go on who wait for messages, or for room; they see for themselves what there is."""
        for waiting in (self.news, self.drained):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
