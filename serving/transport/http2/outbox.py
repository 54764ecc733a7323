"""What goes out on one connection: within the client's windows, and many answers at a time."""

import asyncio
import struct
from collections.abc import Callable, Iterable
from typing import Final

from fathom.serving.transport.http2 import frames as h2
from fathom.serving.transport.http2.call import Http2Call
from fathom.serving.transport.http2.frames import ConnectionFault, frame
from fathom.serving.transport.http2.headers import OK, OPENING
from fathom.serving.transport.http2.memory import Held
from fathom.serving.transport.http2.messages import PREFIX, MessageFault, too_large

#: The beginnings of frames, up to the number of their call: headers before the only message of an answer, and after it.
_OPENING_FRAME: Final = frame(h2.HEADERS, h2.END_HEADERS, 0, OPENING)[:5]
_OK_FRAME: Final = frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 0, OK)[:5]
#: Length, type, flags and call of a frame; compressed or not, and length, of the message in it.
_MESSAGE: Final = struct.Struct(">BHBBLBL")


class Outbox:
    """``ended``: called with each call of which all has been said. ``most_bytes``: of a message."""

    def __init__(
        self, transport: asyncio.WriteTransport, ended: Callable[[Http2Call], None], held: Held, most_bytes: int
    ) -> None:
        #: Whether messages have been sent since this was set to False.
        self.has_sent = False
        #: The client does not read what it is sent.
        self.is_paused = False
        #: How large frames the client takes.
        self.frame_size = h2.FRAME_SIZE
        #: How much each call may be sent before the client says that it has room for more.
        self._first_window = h2.WINDOW
        #: Calls whose messages wait for room on the connection, in turn.
        self._waiting: dict[Http2Call, None] = {}
        self._held = held
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._ended = ended
        self._most_bytes = most_bytes
        self._window = h2.WINDOW
        self._parts: list[bytes] = []
        self._flushing = False

    def say(self, *parts: bytes) -> None:
        """Send frames, with all that is said until the event loop comes to it."""
        self._parts += parts
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hand over to the system what has been said."""
        self._flushing = False
        if self._parts and not self._transport.is_closing():
            self._transport.write(b"".join(self._parts))
        self._parts.clear()

    # -- answers

    def answer(self, call: Http2Call, payload: bytes) -> None:
        """End a call with its only message."""
        size, number = len(payload) + PREFIX, call.number
        if (
            self.is_paused
            or size > min(self._window, self._first_window + call.window, self.frame_size)
            or len(payload) > self._most_bytes
        ):
            self._answer_in_parts(call, payload)
            return
        self._window -= size
        stream = number.to_bytes(4, "big")
        message = _MESSAGE.pack(size >> 16, size & 0xFFFF, h2.DATA, 0, number, 0, len(payload))
        self._parts += (_OPENING_FRAME, stream, OPENING, message, payload, _OK_FRAME, stream, OK)
        self._flush_soon()
        self._ended(call)

    def _answer_in_parts(self, call: Http2Call, payload: bytes) -> None:
        call.ended = False
        self.send(call, payload)
        if not call.ended:
            call.ended = True
            self.end(call, OK)

    def open(self, call: Http2Call) -> None:
        """Send the headers that come before the first message of an answer."""
        if not call.opened:
            call.opened = True
            self.say(frame(h2.HEADERS, h2.END_HEADERS, call.number, OPENING))

    def send(self, call: Http2Call, payload: bytes) -> None:
        """Send a message, as far as there is room for it; ends its call where the message is too large."""
        try:
            if len(payload) > self._most_bytes:
                raise too_large(len(payload), self._most_bytes)
            self._held.check(len(payload))
        except MessageFault as fault:
            call.fail(fault.code, str(fault))
            return
        self.open(call)
        if call.unsent is None:
            call.unsent = bytearray()
        call.unsent += b"\0" + len(payload).to_bytes(4, "big") + payload
        self._held.add(PREFIX + len(payload))
        self._pump(call)

    def end(self, call: Http2Call, block: bytes) -> None:
        """Send the last headers of a call, after what waits to be sent."""
        call.trailer = block
        self._pump(call)

    def _pump(self, call: Http2Call) -> None:
        """Send what waits of a call, as far as there is room for it."""
        unsent = call.unsent
        while unsent:
            if self.is_paused or self._window <= 0:
                self._waiting[call] = None
                return
            size = min(len(unsent), self._window, self._first_window + call.window, self.frame_size)
            if size <= 0:
                return
            self.say(frame(h2.DATA, 0, call.number, bytes(unsent[:size])))
            self.has_sent = True
            del unsent[:size]
            self._held.add(-size)
            self._window -= size
            call.window -= size
        if call.trailer is not None:
            self.say(frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, call.number, call.trailer))
            self._ended(call)
        else:
            call.wake()

    def forget(self, call: Http2Call) -> None:
        """Nothing of a call is to be sent any more."""
        self._waiting.pop(call, None)
        self._held.add(-len(call.unsent or b""))
        call.unsent = None

    # -- what the client says of its room

    def pause(self) -> None:
        """The client does not read what it is sent."""
        self.is_paused = True

    def resume(self) -> None:
        """It does again."""
        self.is_paused = False
        self._go_on()

    def set_first_window(self, size: int, calls: Iterable[Http2Call]) -> None:
        """So much room new calls have, and those that there are so much more or less."""
        is_more, self._first_window = size > self._first_window, size
        if is_more:
            for call in list(calls):
                if not self.has_room_for(call, 0):
                    raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "too large a window")

    def has_room(self, more: int) -> None:
        """The connection can take so much more, of any of the calls."""
        self._window += more
        if self._window > h2.LARGEST_WINDOW:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "too large a window")
        self._go_on()

    def has_room_for(self, call: Http2Call, more: int) -> bool:
        """The client can take so much more of a call; whether that is no more than it may say."""
        call.window += more
        if self._first_window + call.window > h2.LARGEST_WINDOW:
            return False
        if call.unsent:
            self._pump(call)
        return True

    def _go_on(self) -> None:
        """Send what waits for room on the connection."""
        for call in list(self._waiting):
            if self.is_paused or self._window <= 0:
                return
            del self._waiting[call]
            self._pump(call)
