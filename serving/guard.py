"""Wraps every RPC handler so that each call ends in a documented status, whatever the client sent.

gRPC turns an exception in a handler, or in the decoding of a message, into UNKNOWN with the exception's text.
So the bytes are decoded by ``decoder``, which never raises, and errors are mapped here by ``status_of``.
"""

import asyncio
import inspect
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn

import grpc

from fathom.errors import InvalidRequestError
from fathom.serving.access.caller import CallContext, Caller
from fathom.serving.access.control import AccessControl
from fathom.serving.access.principal import COUNTED_BY_CONTENT
from fathom.serving.audit import AuditLog
from fathom.serving.status import INTERNAL_TEXT, retry_after_s, status_of
from fathom.serving.tracing import Tracing
from fathom.serving.transport.contract import Metadata, Transport

# method, status, seconds of the whole call
Observe = Callable[[str, grpc.StatusCode, float], None]

#: Callers are asked to wait no longer than that before they try again.
LONGEST_PUSHBACK_S = 10.0

log = logging.getLogger("fathom.serving")


class Undecodable:
    """Stands for a message whose bytes are not what the contract says."""


UNDECODABLE = Undecodable()


def decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """``decode``, with UNDECODABLE in place of an exception (wrong wire format, text that is not UTF-8)."""

    def safe(raw: bytes) -> Any:
        try:
            return decode(raw)
        except Exception as error:
            log.debug("undecodable message of %d bytes: %s", len(raw), error)
            return UNDECODABLE

    return safe


def encoder(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """``encode``, for handlers that may have encoded a message themselves."""
    return lambda message: message if type(message) is bytes else encode(message)


class Guard:
    """Takes handlers from the generated ``add_..._to_server`` functions and hands them, wrapped, to a transport.

    ``taken``: methods that it leaves out, as those that the transport takes without tasks. ``encoded``: those whose
    handlers decode messages themselves. ``access``: whoever calls must be known to it and have a method's role; the
    handlers then get a ``CallContext``. None: anybody may call.
    """

    def __init__(
        self,
        transport: Transport,
        observe: Observe,
        *,
        taken: Collection[str] = (),
        encoded: Collection[str] = (),
        access: AccessControl | None = None,
        audit: AuditLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._transport = transport
        self._observe = observe
        self._taken = taken
        self._encoded = encoded
        self._access = access
        self._audit = audit
        self._tracing = tracing

    def add_generic_rpc_handlers(self, handlers: Iterable[object]) -> None:
        """Called by generated code with what ``add_registered_method_handlers`` gets too, so there is nothing to do."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Called by generated code: register the wrapped handlers of one service."""
        wrapped = {name: self._wrap(name, handler) for name, handler in handlers.items() if name not in self._taken}
        self._transport.add_handlers(service, wrapped)

    def _wrap(self, name: str, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        codec = {
            "request_deserializer": None if name in self._encoded else decoder(handler.request_deserializer),
            "response_serializer": encoder(handler.response_serializer),
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._coroutine(name, handler.unary_unary), **codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._coroutine(name, handler.unary_stream), **codec)
        if handler.stream_unary:
            upload = self._coroutine(name, lambda requests, context: handler.stream_unary(_decoded(requests), context))
            return grpc.stream_unary_rpc_method_handler(upload, **codec)
        return grpc.stream_stream_rpc_method_handler(self._stream(name, handler.stream_stream), **codec)

    def _coroutine(self, name: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """One request in; the answer is returned, or written to the context."""

        async def call(request: Any, context: Any) -> Any:
            ending = _Ending(self, name, context)
            try:
                context = ending.admitted()
                if request is UNDECODABLE:
                    raise undecodable()
                response = await behaviour(request, context)
            except (Exception, asyncio.CancelledError) as error:
                await ending.fail(error)
            ending.note(grpc.StatusCode.OK)
            return response

        return call

    def _stream(self, name: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """Requests in; answers are written to the context, or yielded (as the reflection service does)."""
        yields = inspect.isasyncgenfunction(behaviour)

        async def call(requests: AsyncIterator[Any], context: Any) -> None:
            ending = _Ending(self, name, context)
            try:
                context = ending.admitted()
                if yields:
                    async for response in behaviour(_decoded(requests), context):
                        await context.write(response)
                else:
                    await behaviour(_decoded(requests), context)
            except (Exception, asyncio.CancelledError) as error:
                await ending.fail(error)
            ending.note(grpc.StatusCode.OK)

        return call


class _Ending:
    """One call, from who begins it to how it ends."""

    def __init__(self, guard: Guard, method: str, context: Any) -> None:
        self._guard, self._method, self._context = guard, method, context
        self._started_s = time.perf_counter()
        self._caller: Caller | None = None

    def admitted(self) -> Any:
        """The context for the method's handler; raises where the caller may not call it."""
        access = self._guard._access
        if access is None:
            return self._context
        self._caller = access.caller_of(self._context)
        self._caller.principal.check(self._method)
        if self._method not in COUNTED_BY_CONTENT:
            self._caller.principal.charge(1, time.monotonic())
        return CallContext(self._context, self._caller)

    def note(self, code: grpc.StatusCode) -> None:
        """It has ended: count it, and write it down where it matters."""
        seconds = time.perf_counter() - self._started_s
        self._guard._observe(self._method, code, seconds)
        if self._guard._tracing is not None:
            self._guard._tracing.ended(self._method, self._context.invocation_metadata() or (), code, seconds)
        if self._guard._audit is not None:
            self._guard._audit.note(self._method, self._caller, self._context, code)

    async def fail(self, error: BaseException) -> NoReturn:
        """End the call with an error's status, and log unexpected errors."""
        if isinstance(error, grpc.aio.BaseError) or not isinstance(error, Exception):
            self.note(_status(error, self._context))
            raise error  # this call has been ended already
        code, text, trailing = ending_of(error, self._method)
        self.note(code)
        await self._context.abort(code, text, trailing)
        raise AssertionError("abort raises")


def ending_of(error: Exception, method: str) -> tuple[grpc.StatusCode, str, Metadata]:
    """How a call of a method ends with an error: status, text, and when to try again; logs what is unexpected."""
    code, text = status_of(error)
    if text is INTERNAL_TEXT:
        log.error("unexpected error in %s", method, exc_info=error)
    seconds = retry_after_s(error)
    if seconds is None:
        return code, text, ()
    # As gRPC's own retries read it (gRFC A6): they would wait for however long, so that the caller would hear nothing.
    pushback_ms = math.ceil(seconds * 1e3) if seconds <= LONGEST_PUSHBACK_S else -1
    return code, text, (("grpc-retry-pushback-ms", str(pushback_ms)),)


def undecodable() -> InvalidRequestError:
    """The message is not what the contract says."""
    return InvalidRequestError("the message cannot be decoded; compare it with the .proto of this service")


async def _decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is UNDECODABLE:
            raise undecodable()
        yield request


def _status(error: BaseException, context: Any) -> grpc.StatusCode:
    """The status of a call that has been ended already."""
    if isinstance(error, grpc.aio.AbortError):  # the handler has set a status itself
        code: grpc.StatusCode = context.code()
        return code
    if isinstance(error, grpc.aio.BaseError):  # a message could not be sent: the client has left
        return grpc.StatusCode.CANCELLED
    remaining = context.time_remaining()
    late = remaining is not None and remaining <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
