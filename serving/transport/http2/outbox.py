"""What goes out on one connection: within the client's windows, and many answers at a time."""

import asyncio
import struct
from collections.abc import Callable, Iterable
from typing import Final

from fathom.serving.transport.http2 import frames as h2
from fathom.serving.transport.http2.call import Http2Call
from fathom.serving.transport.http2.frames import ConnectionFault, frame
from fathom.serving.transport.http2.headers import OK, OPENING
from fathom.serving.transport.http2.messages import PREFIX, too_large

#: The beginnings of frames, up to the number of their call: headers before the only message of an answer, and after it.
_OPENING_FRAME: Final = frame(h2.HEADERS, h2.END_HEADERS, 0, OPENING)[:5]
_OK_FRAME: Final = frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 0, OK)[:5]
#: Length, type, flags and call of a frame; compressed or not, and length, of the message in it.
_MESSAGE: Final = struct.Struct(">BHBBLBL")


class Outbox:
    """``ended``: called with each call of which all has been said. ``most_bytes``: of a message."""

    def __init__(self, transport: asyncio.WriteTransport, ended: Callable[[Http2Call], None], most_bytes: int) -> None:
        #: The client does not read what it is sent.
        self.is_paused = False
        #: How much new calls may be sent before the client says that it has room for more.
        self.first_window = h2.WINDOW
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._ended = ended
        self._most_bytes = most_bytes
        self._window, self._frame_size = h2.WINDOW, h2.FRAME_SIZE
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
        if size > min(self._window, call.window, self._frame_size) or len(payload) > self._most_bytes:
            self._answer_in_parts(call, payload)
            return
        self._window -= size
        stream = number.to_bytes(4, "big")
        message = _MESSAGE.pack(size >> 16, size & 0xFFFF, h2.DATA, 0, number, 0, len(payload))
        self._parts += (_OPENING_FRAME, stream, OPENING, message, payload, _OK_FRAME, stream, OK)
        self._flush_soon()
        self._ended(call)

    def _answer_in_parts(self, call: Http2Call, payload: bytes) -> None:
        if len(payload) > self._most_bytes:
            fault = too_large(len(payload), self._most_bytes)
            call.ended = False
            call.fail(fault.code, str(fault))
        else:
            self.open(call)
            self.send(call, payload)
            self.end(call, OK)

    def open(self, call: Http2Call) -> None:
        """Send the headers that come before the first message of an answer."""
        if not call.opened:
            call.opened = True
            self.say(frame(h2.HEADERS, h2.END_HEADERS, call.number, OPENING))

    def send(self, call: Http2Call, payload: bytes) -> bool:
        """Send a message, as far as there is room for it; whether there was for all of it."""
        if call.unsent is None:
            call.unsent = bytearray()
        call.unsent += b"\0" + len(payload).to_bytes(4, "big") + payload
        self._pump(call)
        return not call.unsent and not self.is_paused

    def end(self, call: Http2Call, block: bytes) -> None:
        """Send the last headers of a call, after what waits to be sent."""
        call.trailer = block
        self._pump(call)

    def _pump(self, call: Http2Call) -> None:
        """Send what waits of a call, as far as there is room for it."""
        unsent = call.unsent
        while unsent:
            size = min(len(unsent), self._window, call.window, self._frame_size)
            if size <= 0:
                return
            self.say(frame(h2.DATA, 0, call.number, bytes(unsent[:size])))
            del unsent[:size]
            self._window -= size
            call.window -= size
        if call.trailer is not None:
            self.say(frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, call.number, call.trailer))
            self._ended(call)
        elif not self.is_paused:
            call.wake()

    # -- what the client says of its room

    def set_frame_size(self, size: int) -> None:
        """So large frames it takes."""
        if not h2.FRAME_SIZE <= size <= h2.LARGEST_FRAME_SIZE:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a wrong frame size")
        self._frame_size = size

    def set_first_window(self, size: int, calls: Iterable[Http2Call]) -> None:
        """So much room new calls have, and those that there are so much more or less."""
        if size > h2.LARGEST_WINDOW:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "too large a window")
        more, self.first_window = size - self.first_window, size
        for call in calls:
            call.window += more

    def has_room(self, more: int, calls: Iterable[Http2Call]) -> None:
        """The connection can take so much more, of any of the calls."""
        self._window += more
        if self._window > h2.LARGEST_WINDOW:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "too large a window")
        self.go_on(calls)

    def go_on(self, calls: Iterable[Http2Call]) -> None:
        """Send what waits, now that there is more room."""
        for call in [each for each in calls if each.unsent]:
            self._pump(call)
