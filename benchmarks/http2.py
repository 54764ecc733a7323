"""One connection of unary gRPC calls over plain HTTP/2, in a few microseconds per call.

It does what such calls need, and no more: it keeps to the server's limit of streams and to flow control, and answers
pings. Headers go as a gRPC client's do: in full once per connection, then as indices. The server is asked for no such
table, so the status of an answer stands in it as text, with its name compressed or not.
"""

import contextlib
import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple

from fathom.errors import ConfigError, ConnectError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4
#: What HTTP/2 allows before anything is agreed: bytes of a frame, in flight, and of a table of headers.
LONGEST_FRAME, WINDOW, TABLE = 16_384, 65_535, 4_096
#: Bytes that the server may send unasked, the most there is, and how many of them are given back at once.
RECEIVE_WINDOW, GIVE_BACK = 2**31 - 1, 2**29
#: gRPC's numbers of statuses.
OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, UNAVAILABLE = 0, 1, 2, 4, 14
#: A call that the server has not looked at, and that may be sent again, as gRPC's clients do.
REFUSED = -1
#: What a stream's reset means, by HTTP/2's code: REFUSED_STREAM, CANCEL.
_RESETS = {7: REFUSED, 8: CANCELLED}
CONNECT_S = 5.0
_READ = 1 << 18
_HEAD = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
#: Its name as text, and as HPACK compresses it.
_STATUS = (b"\x0bgrpc-status", b"\x88\x9a\xca\xc8\xb2\x124\xda\x8f")
_POST_HTTP = b"\x83\x86"


class Frame(NamedTuple):
    """A frame, without the number of its stream: the five bytes before it, and what comes after it."""

    head: bytes
    body: bytes

    @classmethod
    def of(cls, kind: int, flags: int, body: bytes) -> "Frame":
        """Raises ConfigError where one frame is too small."""
        if len(body) > LONGEST_FRAME:
            raise ConfigError(f"{len(body)} bytes in one HTTP/2 frame; there is room for {LONGEST_FRAME}")
        return cls(len(body).to_bytes(3, "big") + bytes([kind, flags]), body)

    def on(self, stream: int) -> bytes:
        """All of it."""
        return self.head + stream.to_bytes(4, "big") + self.body


def message_frame(message: bytes) -> Frame:
    """A gRPC message that ends its stream."""
    return Frame.of(DATA, END_STREAM, b"\0" + len(message).to_bytes(4, "big") + message)


class Headers:
    """Headers of the calls to one method.

    ``first``: of a connection's first call, which teaches the server the fields; ``later``: of the others.
    """

    def __init__(self, authority: str, method: str, metadata: Mapping[str, str], timeout_ms: int | None) -> None:
        fields = {
            ":path": method,
            ":authority": authority,
            "te": "trailers",
            "content-type": "application/grpc",
            "user-agent": "fathom-benchmarks",
            "grpc-accept-encoding": "identity, deflate, gzip",
            **metadata,
            **({} if timeout_ms is None else {"grpc-timeout": f"{timeout_ms}m"}),
        }
        if sum(len(name) + len(value) + 32 for name, value in fields.items()) > TABLE:
            raise ConfigError(f"the calls' metadata does not fit into HTTP/2's table of headers, {TABLE} bytes")
        taught = b"".join(b"\x40" + _text(name) + _text(value) for name, value in fields.items())
        # The newest entry of the table is number 62.
        indices = bytes(0x80 | (61 + len(fields) - place) for place in range(len(fields)))
        self.first = Frame.of(HEADERS, END_HEADERS, _POST_HTTP + taught)
        self.later = Frame.of(HEADERS, END_HEADERS, _POST_HTTP + indices)
        self._without_timeout = _POST_HTTP + indices[:-1]

    def within(self, timeout_ms: int) -> Frame:
        """As ``later``, with less time than the timeout that is taught."""
        timeout = b"\0" + _text("grpc-timeout") + _text(f"{timeout_ms}m")
        return Frame.of(HEADERS, END_HEADERS, self._without_timeout + timeout)


class Ended(NamedTuple):
    """A call that has ended: its number, gRPC's status or REFUSED, and the message that came, empty where none did."""

    number: int
    status: int
    answer: bytes


class Connection:
    """One connection; raises ConnectError where there is no HTTP/2 server.

    ``longest``: bytes of the longest message, for which there must be room. ``keep``: whether answers are kept.
    """

    def __init__(self, address: str, headers: Headers, longest: int, *, keep: bool = False) -> None:
        self._address, self._headers, self._longest, self._keep = address, headers, longest, keep
        #: The number of each open call, by its stream.
        self.calls: dict[int, int] = {}
        #: Whether the server wants no more calls here; whether it has ended the connection.
        self.closing = self.closed = False
        self._answers: dict[int, bytes] = {}
        self._next, self._most, self._window, self._received = 1, 2**31, WINDOW, 0
        self._rest = b""
        self._socket = _connect(address)
        settings = _SETTING.pack(HEADER_TABLE_SIZE, 0) + _SETTING.pack(INITIAL_WINDOW_SIZE, RECEIVE_WINDOW)
        hello = Frame.of(SETTINGS, 0, settings).on(0)
        self._out = [PREFACE, hello, _window_update(RECEIVE_WINDOW - WINDOW)]
        self._greet()

    def fileno(self) -> int:
        """Of its socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """End it, with whatever is open."""
        self._socket.close()

    @property
    def room(self) -> bool:
        """Whether a call may start now."""
        return self._window >= self._longest and len(self.calls) < self._most and not self.closing

    @property
    def unsent(self) -> bool:
        """Whether there is something that ``flush`` could not send yet."""
        return bool(self._out)

    def start(self, number: int, message: Frame, headers: Frame | None = None) -> int:
        """Begin a call, which ``flush`` sends; returns its stream. ``headers``: others than those that are taught."""
        stream = self._next
        if stream == 1 or headers is None:
            headers = self._headers.first if stream == 1 else self._headers.later
        name = stream.to_bytes(4, "big")
        self._out += (headers.head, name, headers.body, message.head, name, message.body)
        self._window -= len(message.body)
        self._next += 2
        self.calls[stream] = number
        return stream

    def cancel(self, stream: int) -> None:
        """Give a call up."""
        del self.calls[stream]
        self._answers.pop(stream, None)
        self._out.append(Frame.of(RST_STREAM, 0, (8).to_bytes(4, "big")).on(stream))

    def flush(self) -> None:
        """Send what the socket takes."""
        data = b"".join(self._out)
        self._out.clear()
        sent = 0
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sent = self._socket.send(data)
        if sent < len(data):
            self._out.append(data[sent:])

    def receive(self) -> list[Ended]:
        """What has come since: calls that ended."""
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if not data:
            return self._lost(0)
        if self._rest:
            data = self._rest + data
        ended: list[Ended] = []
        at, size = 0, len(data)
        while at + 9 <= size:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            begin, end = at + 9, at + 9 + (high << 8 | low)
            if end > size:
                break
            at = end
            if kind == DATA:
                self._received += end - begin
                if self._keep and stream in self.calls:
                    self._answers[stream] = self._answers.get(stream, b"") + data[begin:end]
            elif kind == HEADERS:
                if flags & END_STREAM:
                    self._end(stream, _status(data[begin:end]), ended)
            elif kind != WINDOW_UPDATE:
                ended += self._rare(kind, flags, stream, data[begin:end])
            elif stream == 0:
                self._window += int.from_bytes(data[begin:end], "big")
        self._rest = data[at:]
        if self._received > GIVE_BACK:
            self._out.append(_window_update(self._received))
            self._received = 0
        return ended

    def _end(self, stream: int, status: int, ended: list[Ended]) -> None:
        number = self.calls.pop(stream, None)
        if number is not None:
            ended.append(Ended(number, status, self._answers.pop(stream, b"")[5:]))

    def _rare(self, kind: int, flags: int, stream: int, body: bytes) -> list[Ended]:
        """Frames that do not come with every call."""
        ended: list[Ended] = []
        if kind == SETTINGS and not flags & ACK:
            values = dict(_SETTING.iter_unpack(body))
            self._most = values.get(MAX_CONCURRENT_STREAMS, self._most)
            self._out.append(Frame.of(SETTINGS, ACK, b"").on(0))
        elif kind == PING and not flags & ACK:
            self._out.append(Frame.of(PING, ACK, body).on(0))
        elif kind == RST_STREAM:
            self._end(stream, _RESETS.get(int.from_bytes(body, "big"), UNKNOWN), ended)
        elif kind == GOAWAY:
            self.closing = True
            ended = self._lost(int.from_bytes(body[:4], "big") + 1)
        return ended

    def _lost(self, first: int) -> list[Ended]:
        """Calls from this stream on, which the server says it has not looked at; all where the connection is gone."""
        self.closing = True
        self.closed = self.closed or first == 0
        ended: list[Ended] = []
        for stream in [stream for stream in self.calls if stream >= first]:
            self._end(stream, REFUSED if first else UNAVAILABLE, ended)
        return ended

    def _greet(self) -> None:
        """Wait for the server's settings, so that its limits are known."""
        self.flush()
        self._socket.settimeout(CONNECT_S)
        try:
            first = self._socket.recv(9, socket.MSG_PEEK | socket.MSG_WAITALL)
        except OSError:
            first = b""
        if len(first) < 9 or first[3] != SETTINGS:
            self._socket.close()
            raise ConnectError(f"{self._address}: no HTTP/2 server")
        self._socket.setblocking(False)
        self.receive()


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        found = socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ConnectError(f"{address}: no answer: {error}") from None
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def _status(block: bytes) -> int:
    """grpc-status, which a server without a table of headers writes out; raises ConnectError where it does not."""
    for name in _STATUS:
        at = block.find(name) + len(name)
        if at >= len(name) and not block[at] & 0x80:
            return int(block[at + 1 : at + 1 + block[at]])
    raise ConnectError("an answer ends without a grpc-status, or the server compresses its value")


def _window_update(count: int) -> bytes:
    return Frame.of(WINDOW_UPDATE, 0, count.to_bytes(4, "big")).on(0)


def _text(value: str) -> bytes:
    """A string as HPACK has it, uncompressed."""
    data = value.encode()
    return _length(len(data)) + data


def _length(value: int) -> bytes:
    """An integer as HPACK has it, after a first bit of 0."""
    if value < 127:
        return bytes([value])
    out, value = bytearray([127]), value - 127
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
