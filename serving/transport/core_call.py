"""A call of gRPC's core: a ``contract.Call``, or a coroutine with the context that handlers know from grpc.aio."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined, unused-ignore]

from fathom.serving.transport.contract import REFUSAL, AuthContext, Metadata

#: No deadline is so late, in seconds since 1970: without one, the core gives the end of time.
NEVER_S = 1e11

log = logging.getLogger("fathom.serving")


# What an event of the core is about; its tag is one of these and whom it concerns. Plain numbers: an enumeration would
# cost as much as the rest of the thread's Python.
#: A new call.
NEW = 0
#: The only message of a call.
MESSAGE = 1
#: A call whose handler reads the messages itself.
STREAM = 2
#: A call is over, for whatever reason.
END = 3
#: What a coroutine waits for.
STEP = 4
#: An answer is on its way.
SENT = 5
#: The server has stopped.
STOPPED = 6
#: Calls were refused for want of room.
REFUSED = 7
#: The thread that reads events has failed.
FAILED = 8

_SENT = (SENT, None)
_NUMBERS: dict[grpc.StatusCode, int] = {code: code.value[0] for code in grpc.StatusCode}


class Core:
    """What the calls of a server share: whether its core still takes anything from them."""

    def __init__(self) -> None:
        self.takes = True


class CoreCall:
    """``contract.Call``; ``handler``: what answers it, None where it is handed over. ``ended``: nothing more to do."""

    __slots__ = ("call", "core", "deadline_s", "ended", "handler", "left", "metadata", "opened", "path", "payload")

    def __init__(self, event: Any, path: str, handler: Any, core: Core) -> None:
        self.call = event.call
        self.core = core
        self.path = path
        self.handler = handler
        self.metadata: Metadata = event.invocation_metadata
        until_s = event.call_details.deadline
        self.deadline_s = None if until_s > NEVER_S else time.monotonic() + until_s - time.time()
        self.payload = b""
        self.left: Callable[[], object] | None = None
        self.ended = False
        self.opened = False

    def invocation_metadata(self) -> Metadata:
        """See ``Call``."""
        return self.metadata

    def peer(self) -> str:
        """See ``Call``."""
        peer: bytes = self.call.peer()
        return peer.decode()

    def auth_context(self) -> AuthContext:
        """See ``Call``."""
        found = cygrpc.auth_context(self.call) or {}
        return {name.decode(): values for name, values in found.items()}

    def respond(self, payload: bytes) -> None:
        """See ``Call``."""
        self._end((cygrpc.SendMessageOperation(payload, 0), cygrpc.SendStatusFromServerOperation((), 0, b"", 0)))

    def fail(self, code: grpc.StatusCode, text: str, trailing: Metadata = ()) -> None:
        """See ``Call``."""
        self._end((_status(code, text, trailing),))

    def try_to_fail(self, code: grpc.StatusCode, text: str) -> None:
        """The same for a call whose caller may have left; what became of it, its END says."""
        if self.core.takes:
            self.call.start_server_batch((*self._opening(), _status(code, text)), _SENT)

    def finish(self) -> None:
        """End it without a message more."""
        self._end((cygrpc.SendStatusFromServerOperation((), 0, b"", 0),))

    def _end(self, operations: tuple[Any, ...]) -> None:
        if not self.ended and self.core.takes:
            self.ended = True
            self.call.start_server_batch((*self._opening(), *operations), _SENT)

    def _opening(self) -> tuple[Any, ...]:
        if self.opened:
            return ()
        self.opened = True
        return (cygrpc.SendInitialMetadataOperation((), 0),)

    async def write(self, payload: bytes) -> None:
        """Send a message of a stream; raises BaseError where the caller has left."""
        if not self.ended:
            event = await self._step((*self._opening(), cygrpc.SendMessageOperation(payload, 0)))
            if event.success:
                return
        raise grpc.aio.InternalError("the caller has left")

    async def messages(self) -> AsyncIterator[bytes]:
        """The messages of a stream, until the caller ends it."""
        while not self.ended:
            event = await self._step((cygrpc.ReceiveMessageOperation(0),))
            payload = event.batch_operations[0].message()
            if payload is None:
                return
            yield payload

    def _step(self, operations: tuple[Any, ...]) -> Awaitable[Any]:
        if not self.core.takes:
            raise grpc.aio.InternalError("the server has stopped")
        step = asyncio.get_running_loop().create_future()
        self.call.start_server_batch(operations, (STEP, step))
        return step


def refuse(call: Any) -> None:
    """End a call of the core whose message is not read."""
    code, text, trailing = REFUSAL
    operations = (
        cygrpc.ReceiveCloseOnServerOperation(0),
        cygrpc.SendInitialMetadataOperation((), 0),
        _status(code, text, trailing),
    )
    call.start_server_batch(operations, _SENT)


def _status(code: grpc.StatusCode, text: str, trailing: Metadata = ()) -> Any:
    return cygrpc.SendStatusFromServerOperation(tuple(trailing), _NUMBERS[code], text.encode(), 0)


class Context:
    """What a handler may ask of its call and do with it, as in grpc.aio."""

    def __init__(self, call: CoreCall) -> None:
        self._call = call
        self._code: grpc.StatusCode | None = None
        self.invocation_metadata = call.invocation_metadata
        self.peer = call.peer
        self.auth_context = call.auth_context

    def code(self) -> grpc.StatusCode | None:
        """The status that the call was ended with."""
        return self._code

    def time_remaining(self) -> float | None:
        """Seconds to the deadline, not below 0; None without one."""
        deadline_s = self._call.deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())

    async def write(self, message: Any) -> None:
        """Send one of many answers."""
        await self._call.write(_same(self._call.handler.response_serializer)(message))

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Metadata = ()) -> NoReturn:
        """End the call with a status."""
        self._code = code
        self._call.fail(code, text, trailing)
        raise grpc.aio.AbortError(text)


def _same(codec: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """A codec of a handler, which may be None: bytes stay bytes."""
    return codec or (lambda message: message)


async def answer(call: CoreCall) -> None:
    """Let the handler of a call answer it; never raises."""
    handler: Any = call.handler
    context, decode, encode = Context(call), _same(handler.request_deserializer), _same(handler.response_serializer)
    try:
        if handler.request_streaming:
            request: Any = (decode(each) async for each in call.messages())
            behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
        else:
            request = decode(call.payload)
            behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        response = await behaviour(request, context)
        if handler.response_streaming:
            call.finish()
        else:
            call.respond(encode(response))
    except grpc.aio.BaseError as error:
        log.debug("%s has ended: %r", call.path, error)
    except asyncio.CancelledError:
        call.fail(grpc.StatusCode.CANCELLED, "the call was cancelled")
    except Exception as error:
        log.error("unexpected error in %s", call.path, exc_info=error)
        call.fail(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
