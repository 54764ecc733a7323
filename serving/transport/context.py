"""A call that a coroutine answers, with the context that handlers know from grpc.aio."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, Protocol

import grpc

from fathom.serving.transport.contract import Call, Metadata

log = logging.getLogger("fathom.serving")


class RunCall(Call, Protocol):
    """A call of a transport that runs handlers itself; ``handler``: what answers it."""

    path: str
    handler: Any

    async def write(self, payload: bytes) -> None:
        """Send a message of a stream; raises BaseError where the caller has left."""

    def messages(self) -> AsyncIterator[bytes]:
        """The messages of a stream, until the caller ends it."""

    def finish(self) -> None:
        """End it without a message more."""


class Context:
    """What a handler may ask of its call and do with it, as in grpc.aio."""

    def __init__(self, call: RunCall) -> None:
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


async def answer(call: RunCall) -> None:
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
