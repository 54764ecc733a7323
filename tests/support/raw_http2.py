"""A client of HTTP/2 that sends what no library would send, and sees what comes back."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame, encoded."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


#: What every connection begins with.
HELLO = PREFACE + frame(SETTINGS, 0, 0)


def call(path: str | bytes, stream: int = 1) -> bytes:
    """The headers of a call, which is then open."""
    fields: dict[str, str | bytes] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


def message(payload: bytes, stream: int = 1, *, announced: int | None = None, last: bool = True) -> bytes:
    """A message of a call; ``announced``: its length as it is said, where that is not what is sent."""
    length = len(payload) if announced is None else announced
    return frame(DATA, END_STREAM if last else 0, stream, b"\0" + length.to_bytes(4, "big") + payload)


def _text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return bytes((len(raw),)) + raw


@dataclass(frozen=True)
class Seen:
    """A frame that came: what, of which stream, with what in it, and when."""

    kind: int
    flags: int
    stream: int
    payload: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def error(self) -> int:
        """The error code of a GOAWAY or RST_STREAM."""
        return int.from_bytes(self.payload[4:8] if self.kind == GOAWAY else self.payload[:4], "big")


class RawClient:
    """A connection; ``polite``: answers pings and settings, once anything has been sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, polite: bool) -> None:
        self._reader, self._writer = reader, writer
        self._polite = polite
        self.seen: list[Seen] = []
        self.closed = asyncio.Event()
        self._news = asyncio.Condition()
        self.listening = asyncio.create_task(self._listen())

    def send(self, *parts: bytes) -> None:
        """Send bytes."""
        self._writer.write(b"".join(parts))

    def of(self, kind: int) -> list[Seen]:
        """All frames of a kind that came."""
        return [each for each in self.seen if each.kind == kind]

    async def sees(self, kind: int, count: int = 1, within_s: float = 10) -> list[Seen]:
        """Wait for frames of a kind."""
        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    async def ends(self, within_s: float = 10) -> list[Seen]:
        """Wait until the server closes the connection; all that it said."""
        async with asyncio.timeout(within_s):
            await self.closed.wait()
        return self.seen

    async def _listen(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                seen = Seen(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
                if self._polite and seen.kind in (SETTINGS, PING) and not seen.flags & ACK:
                    self.send(frame(seen.kind, ACK, 0, payload if seen.kind == PING else b""))
                async with self._news:
                    self.seen.append(seen)
                    self._news.notify_all()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()


@asynccontextmanager
async def connected(address: str, *parts: bytes, polite: bool = True) -> AsyncIterator[RawClient]:
    """A connection on which ``parts`` have been sent."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    client = RawClient(reader, writer, polite=polite)
    client.send(*parts)
    try:
        yield client
    finally:
        client.listening.cancel()
        writer.transport.abort()
