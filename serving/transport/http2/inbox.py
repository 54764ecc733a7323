"""What comes in on one connection: messages, until they are read, and how much more the client may send."""

import grpc

from fathom.serving.transport.http2 import frames as h2
from fathom.serving.transport.http2.call import Http2Call
from fathom.serving.transport.http2.limits import Limits
from fathom.serving.transport.http2.memory import Held
from fathom.serving.transport.http2.messages import Assembly, MessageFault
from fathom.serving.transport.http2.outbox import Outbox


class Inbox:
    """``outbox``: where the client is told that it may send more."""

    def __init__(self, limits: Limits, held: Held, outbox: Outbox) -> None:
        self._limits = limits
        self._held = held
        self._outbox = outbox
        #: Bytes that came since the client was told that it may send more.
        self._received = 0
        #: Bytes of messages since other connections had their turn.
        self.in_turn = 0

    def has_received(self, size: int) -> None:
        """So many bytes came, and so many more may come: what waits to be read is bounded by call, and by ``Held``."""
        self._received += size
        if self._received >= self._limits.connection_window >> 3:
            self._outbox.say(h2.window_update(0, self._received))
            self._received = 0

    def put(self, call: Http2Call, data: bytes) -> None:
        """Keep data of a call until it is read; raises MessageFault."""
        if call.assembly is None:
            call.assembly = Assembly(self._limits.received_bytes, call.encoding)
        self._held.check(len(data))
        self._held.add(len(data))
        call.assembly.feed(data)
        self._let_send(call)

    def pop(self, call: Http2Call) -> bytes | None:
        """The next message of a call that nobody has read; None where none has come. Raises MessageFault."""
        assembly = call.assembly
        if not assembly:
            return None
        if not assembly.has_message:
            if call.closed:
                raise MessageFault(grpc.StatusCode.INVALID_ARGUMENT, "the call ends in the middle of a message")
            return None
        size = len(assembly)
        try:
            message = assembly.pop()
        finally:
            self._held.add(len(assembly) - size)
        self.in_turn += len(message)
        self._let_send(call)
        return message

    def pop_only(self, call: Http2Call) -> bytes:
        """The message of a call that has one; raises MessageFault."""
        message = self.pop(call)
        if message is None:
            raise MessageFault(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        if call.assembly:
            raise MessageFault(grpc.StatusCode.INTERNAL, "the call has more than one message")
        return message

    def forget(self, call: Http2Call) -> None:
        """Nothing of a call is to be read any more."""
        self._held.add(-len(call.assembly or b""))
        call.assembly = None

    def _let_send(self, call: Http2Call) -> None:
        """The client may send more of a call of which no message waits to be read."""
        if call.closed or (call.assembly and call.assembly.has_message):
            return
        if call.received >= self._limits.stream_window >> 1:
            self._outbox.say(h2.window_update(call.number, call.received))
            call.received = 0
