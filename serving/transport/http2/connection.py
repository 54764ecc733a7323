"""One connection: its calls, from their headers and messages to their end (RFC 9113, sections 5 and 8)."""

import asyncio
import logging
import ssl
import time
from typing import Protocol, cast

import grpc

from fathom.serving.transport.contract import AuthContext, status_of_leaving
from fathom.serving.transport.http2 import frames as h2
from fathom.serving.transport.http2.call import Http2Call
from fathom.serving.transport.http2.frames import ConnectionFault, frame
from fathom.serving.transport.http2.headers import MOST_BYTES, HeaderBlock, HeaderReader, Malformed, Refused
from fathom.serving.transport.http2.inbox import Inbox
from fathom.serving.transport.http2.life import Due, Life
from fathom.serving.transport.http2.limits import TURN, UNSENT, Limits
from fathom.serving.transport.http2.memory import Held
from fathom.serving.transport.http2.messages import PREFIX, MessageFault
from fathom.serving.transport.http2.outbox import Outbox
from fathom.serving.transport.http2.ports import peer_of
from fathom.serving.transport.http2.tls import auth_context_of

#: What the answers to our pings are told apart by.
_ALIVE, _LEAVING = b"alive? \0", b"leaving\0"

log = logging.getLogger("fathom.serving")


class Calls(Protocol):
    """What a connection tells of itself and its calls."""

    def made(self, connection: "Connection") -> bool:
        """A connection has been made; whether it may stay."""

    def lost(self, connection: "Connection") -> None:
        """A connection has ended."""

    def begin(self, call: Http2Call) -> None:
        """A call has come, but none of its messages."""

    def has_message(self, call: Http2Call) -> None:
        """The only message of a call has come."""

    def end(self, call: Http2Call) -> None:
        """There is nothing more to be done for a call."""

    def unread(self, call: Http2Call, code: grpc.StatusCode) -> None:
        """A call has ended before its message was read."""


class Connection(asyncio.Protocol):
    """``age_s``: how old it may become."""

    def __init__(self, server: Calls, limits: Limits, age_s: float, held: Held) -> None:
        self.limits = limits
        #: Those that have not ended, by the numbers of their streams.
        self.calls: dict[int, Http2Call] = {}
        self.peer = ""
        self._inbox: Inbox
        self._outbox: Outbox
        self._server = server
        self._transport: asyncio.Transport
        self._headers = HeaderReader()
        self._block: HeaderBlock | None = None
        self._life = Life(limits, age_s, time.monotonic())
        #: Bytes of a frame that is not complete.
        self._rest = b""
        self._is_greeted = self._is_over = False
        self._newest = 0
        self._held = Held(limits.held_bytes, held)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        self._outbox = Outbox(self._transport, self._end, self._held, self.limits.sent_bytes)
        self._inbox = Inbox(self.limits, self._held, self._outbox)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        address = transport.get_extra_info("peername")  # None: it has left already
        speaks = tls is None or tls.selected_alpn_protocol() == "h2"
        if not self._server.made(self) or not speaks or address is None:
            self.abort()
            return
        self.peer = peer_of(address)
        self._transport.set_write_buffer_limits(UNSENT)
        settings = {
            h2.MAX_CONCURRENT_STREAMS: self.limits.streams,
            h2.INITIAL_WINDOW_SIZE: self.limits.stream_window,
            h2.MAX_HEADER_LIST_SIZE: MOST_BYTES,
        }
        self._outbox.say(h2.settings_frame(settings), h2.window_update(0, self.limits.connection_window - h2.WINDOW))

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self._is_over:
            return
        self._life.hears(time.monotonic())
        self._take_in(data)

    def _take_in(self, data: bytes) -> None:
        """Read what came; some of it later where it holds so much that others would wait."""
        try:
            self._rest = self._read(self._rest + data if self._rest else data)
            if self._inbox.in_turn > TURN and not self._is_over:
                self._transport.pause_reading()
                asyncio.get_running_loop().call_soon(self._next_turn)
        except ConnectionFault as fault:
            self._break(fault.code, str(fault))
        except Exception as error:
            log.error("a connection ends for an error of ours", exc_info=error)
            self._break(h2.INTERNAL_ERROR)

    def _next_turn(self) -> None:
        self._inbox.in_turn = 0
        if not self._is_over:
            if not self._outbox.is_paused and not self._transport.is_closing():
                self._transport.resume_reading()
            self._take_in(b"")

    def pause_writing(self) -> None:
        """The client does not read what it is sent: then it is not read from either."""
        self._outbox.pause()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        if not self._is_over and not self._transport.is_closing():
            self._transport.resume_reading()
            self._outbox.resume()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """See ``asyncio.Protocol``."""
        self._is_over = True
        for call in list(self.calls.values()):
            self._forget(call)
        self._server.lost(self)

    @property
    def outbox(self) -> Outbox:
        """Where what is said goes."""
        return self._outbox

    # -- frames

    def _read(self, data: bytes) -> bytes:
        """Read all frames; returns what belongs to none that is complete."""
        at, size, unpack, calls = 0, len(data), h2.HEAD.unpack_from, self.calls
        if not self._is_greeted:
            if not data.startswith(h2.PREFACE[:size]):
                raise ConnectionFault(h2.PROTOCOL_ERROR, "no HTTP/2")
            if size < len(h2.PREFACE):
                return data
            self._is_greeted, at = True, len(h2.PREFACE)
        while size - at >= h2.HEAD.size:
            high, low, kind, flags, number = unpack(data, at)
            length = high << 16 | low
            if length > h2.FRAME_SIZE:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a frame is too large")
            begin = at + h2.HEAD.size
            at = begin + length
            if at > size:
                return data[begin - h2.HEAD.size :]
            call = calls.get(number)
            # Nearly every message is one whole frame, the last of its call.
            if (
                kind == h2.DATA
                and flags == h2.END_STREAM
                and call is not None
                and self._block is None
                and call.is_whole(length, data, begin)
            ):
                call.payload = data[begin + PREFIX : at]
                call.closed = True
                self._inbox.has_received(length)
                self._server.has_message(call)
            else:
                self._frame(kind, flags, number & h2.LARGEST_WINDOW, data[begin:at])
                if self._inbox.in_turn > TURN:
                    break
        return data[at:]

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if not self._life.is_settled and (kind != h2.SETTINGS or flags & h2.ACK):
            raise ConnectionFault(h2.PROTOCOL_ERROR, "no settings")
        if (self._block is None) is (kind == h2.CONTINUATION):
            raise ConnectionFault(h2.PROTOCOL_ERROR, "headers and their continuation do not follow each other")
        if kind == h2.DATA:
            self._data(number, flags, payload)
        elif kind == h2.HEADERS:
            self._collect(HeaderBlock(number, flags), flags, h2.without_priority(payload, flags))
        elif kind == h2.WINDOW_UPDATE:
            self._has_room(number, payload)
        else:
            self._life.idles()
            if kind == h2.CONTINUATION and self._block is not None:
                self._collect(self._block, flags, payload, number)
            elif kind == h2.SETTINGS:
                self._settings(flags, number, payload)
            elif kind == h2.PING:
                self._ping(flags, number, payload)
            elif kind == h2.RST_STREAM:
                self._is_reset(number, payload)
            elif kind == h2.PUSH_PROMISE:
                raise ConnectionFault(h2.PROTOCOL_ERROR, "a client cannot push")
            else:  # GOAWAY and PRIORITY change nothing here; others mean nothing (RFC 9113, 5.3.2 and 4.1).
                h2.check_ignored(kind, number, payload)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        settings = h2.settings_in(flags, number, payload)
        if flags & h2.ACK:
            return
        self._life.is_settled = True
        # First, since clients may keep to what they said before until they see it.
        self._outbox.say(frame(h2.SETTINGS, h2.ACK, 0))
        if h2.MAX_FRAME_SIZE in settings:
            self._outbox.frame_size = settings[h2.MAX_FRAME_SIZE]
        if h2.INITIAL_WINDOW_SIZE in settings:
            self._outbox.set_first_window(settings[h2.INITIAL_WINDOW_SIZE], self.calls.values())

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != len(_ALIVE):
            raise ConnectionFault(h2.PROTOCOL_ERROR if number else h2.FRAME_SIZE_ERROR, "a wrong ping")
        if not flags & h2.ACK:
            if self._outbox.has_sent:  # Clients measure with pings how fast what they are sent comes.
                self._outbox.has_sent = False
                self._life.answers()
            self._life.is_pinged()
            self._outbox.say(frame(h2.PING, h2.ACK, 0, payload))
        elif payload == _LEAVING:
            self._leave_now()

    def _is_reset(self, number: int, payload: bytes) -> None:
        self._check_begun(number)
        h2.number_in(payload)
        call = self.calls.get(number)
        if call is not None:
            self._forget(call)

    def _has_room(self, number: int, payload: bytes) -> None:
        """The client can take more."""
        more = h2.number_in(payload) & h2.LARGEST_WINDOW
        if not number:
            if not more:
                raise ConnectionFault(h2.PROTOCOL_ERROR, "a window of nothing")
            self._outbox.has_room(more)
            return
        self._check_begun(number)
        call = self.calls.get(number)
        if call is None:
            return
        if not more:
            self._reset(call, h2.PROTOCOL_ERROR)
        elif not self._outbox.has_room_for(call, more):
            self._reset(call, h2.FLOW_CONTROL_ERROR)

    def _check_begun(self, number: int) -> None:
        """A frame is of a call that there is or was, or that was sent before its client heard that we leave."""
        if not number or (number > self._newest and not self._life.has_left):
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a frame of no call")

    # -- calls

    def _collect(self, block: HeaderBlock, flags: int, payload: bytes, number: int | None = None) -> None:
        """Headers have come, or a part of them."""
        block.add(payload, block.number if number is None else number)
        if flags & h2.END_HEADERS:
            self._block = None
            self._begin(block.number, block.fields, last=block.is_last)
        else:
            self._block = block

    def _begin(self, number: int, fields: bytes, *, last: bool) -> None:
        """Headers are complete: a call begins, or there are headers after its messages."""
        if not number & 1:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a call with an even number")
        if number <= self._newest:
            self._headers.skip(fields)
            self._after_messages(number, last=last)
            return
        if self._life.has_left:  # The client will know from GOAWAY that nothing has become of it.
            self._headers.skip(fields)
            return
        self._newest = number
        try:
            head = self._headers.read(fields)
        except Malformed:
            self._outbox.say(h2.reset(number, h2.PROTOCOL_ERROR))
            return
        if len(self.calls) >= self.limits.streams:
            self._outbox.say(h2.reset(number, h2.REFUSED_STREAM))
        elif isinstance(head, Refused):
            self._outbox.say(frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, number, head.block))
            if not last:
                self._outbox.say(h2.reset(number, h2.NO_ERROR))
        else:
            call = self.calls[number] = Http2Call(self, number, head, self._life.heard_s)
            call.closed = last
            self._server.begin(call)
            if last:
                self._close(call)

    def _after_messages(self, number: int, *, last: bool) -> None:
        call = self.calls.get(number)
        if call is None:
            if not last:
                raise ConnectionFault(h2.STREAM_CLOSED, "a call with a number below that of another")
            return  # It has ended, which the client did not know yet.
        if call.closed or not last:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "headers in the middle of a call")
        self._close(call)

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        """Data that is not simply a whole message."""
        size = len(payload)
        self._inbox.has_received(size)
        self._check_begun(number)
        data = h2.unpadded(payload, flags)
        if not data and not flags & h2.END_STREAM:
            self._life.idles()
        call = self.calls.get(number)
        if call is None or call.ended:
            if call is not None and flags & h2.END_STREAM:
                call.closed = True
            return
        call.received += size
        if call.closed or call.received > self.limits.stream_window:
            self._reset(call, h2.STREAM_CLOSED if call.closed else h2.FLOW_CONTROL_ERROR)
            return
        try:
            self._inbox.put(call, data)
        except MessageFault as fault:
            self._fail_unread(call, fault.code, str(fault))
            return
        if flags & h2.END_STREAM:
            self._close(call)
        elif call.is_streaming:
            call.wake()

    def _close(self, call: Http2Call) -> None:
        """The client has sent all that belongs to a call."""
        call.closed = True
        if call.ended:
            return
        if call.is_streaming:
            call.wake()
            return
        try:
            call.payload = self._inbox.pop_only(call)
        except MessageFault as fault:
            self._fail_unread(call, fault.code, str(fault))
        else:
            self._server.has_message(call)

    def next_message(self, call: Http2Call) -> bytes | None:
        """The next message of a stream, None where none has come; ends calls that cannot be read."""
        try:
            return None if call.ended else self._inbox.pop(call)
        except MessageFault as fault:
            self._fail_unread(call, fault.code, str(fault))
            return None

    # -- how calls end

    def _end(self, call: Http2Call) -> None:
        """All has been said."""
        if not call.closed:
            self._outbox.say(h2.reset(call.number, h2.NO_ERROR))
        self._life.answers()
        self._drop(call)

    def _reset(self, call: Http2Call, code: int) -> None:
        """End a call whose client breaks the protocol."""
        self._outbox.say(h2.reset(call.number, code))
        self._forget(call)

    def _forget(self, call: Http2Call) -> None:
        """Its caller does not wait any longer."""
        self._drop(call)
        if not call.ended:
            call.ended = True
            self._tell_left(call, status_of_leaving(call))
        call.wake()

    def _fail_unread(self, call: Http2Call, code: grpc.StatusCode, text: str) -> None:
        """End a call whose messages cannot be read."""
        call.fail(code, text)
        self._tell_left(call, code)

    def expire(self, call: Http2Call, text: str) -> None:
        """End a call that has no time left."""
        if call.unsent:  # Its answer, of which the client fetches nothing more.
            self._reset(call, h2.CANCEL)
        elif not call.ended:
            self._fail_unread(call, grpc.StatusCode.DEADLINE_EXCEEDED, text)

    def _tell_left(self, call: Http2Call, code: grpc.StatusCode) -> None:
        call.wake()
        if call.left is not None:
            call.left()
        elif not call.is_read:
            self._server.unread(call, code)

    def _drop(self, call: Http2Call) -> None:
        del self.calls[call.number]
        self._server.end(call)
        if call.assembly:
            self._inbox.forget(call)
        if call.unsent:
            self._outbox.forget(call)
        if not self.calls:
            self._life.free_s = time.monotonic()
            if self._life.has_left:
                self._hang_up()

    # -- how it ends itself

    def look(self, now_s: float) -> None:
        """End it where it is time to, and ask whether the client is still there."""
        due = self._life.due(now_s, busy=bool(self.calls))
        if due is Due.ABORT:
            self.abort()
        elif due is Due.LEAVE:
            self.leave()
        elif due is Due.LEAVE_NOW:
            self._leave_now()
        elif due is Due.PING:
            self._outbox.say(frame(h2.PING, 0, 0, _ALIVE))

    def leave(self) -> None:
        """Let the client make its calls elsewhere; those that it has made before it hears of it are answered."""
        if self._life.leaving_s is None:
            self._life.leaving_s = time.monotonic()
            self._outbox.say(h2.goaway(h2.LARGEST_WINDOW, h2.NO_ERROR), frame(h2.PING, 0, 0, _LEAVING))

    def _leave_now(self) -> None:
        if self._life.leaving_s is not None and not self._life.has_left:
            self._life.has_left = True
            self._outbox.say(h2.goaway(self._newest, h2.NO_ERROR))
            if not self.calls:
                self._hang_up()

    def fail_all(self) -> None:
        """End all calls, since the server does, and then the connection."""
        for call in list(self.calls.values()):
            if not call.ended:
                call.fail(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
                self._tell_left(call, grpc.StatusCode.UNAVAILABLE)
        self._break(h2.NO_ERROR)

    def _break(self, code: int, text: str = "") -> None:
        """End it with all its calls."""
        if not self._is_over:
            self._outbox.say(h2.goaway(self._newest, code, text))
            self._hang_up()

    def _hang_up(self) -> None:
        """Close it after what has been said."""
        self._is_over = True
        self._outbox.flush()
        self._transport.close()

    def abort(self) -> None:
        """End it at once, whatever has not been sent."""
        self._is_over = True
        self._transport.abort()

    def auth_context(self) -> AuthContext:
        """What TLS has shown of the client."""
        return auth_context_of(self._transport.get_extra_info("ssl_object"))
