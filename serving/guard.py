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
from fathom.serving.status import INTERNAL_TEXT, retry_after_s, status_of
from fathom.serving.transport.contract import Metadata, Transport

# method, status, seconds of the whole call
Observe = Callable[[str, grpc.StatusCode, float], None]

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

    ``taken``: methods that the transport takes without tasks. ``encoded``: those whose handlers decode messages
    themselves.
    """

    def __init__(
        self, transport: Transport, observe: Observe, *, taken: Collection[str] = (), encoded: Collection[str] = ()
    ) -> None:
        self._transport = transport
        self._observe = observe
        self._taken = taken
        self._encoded = encoded

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
            started = time.perf_counter()
            try:
                if request is UNDECODABLE:
                    raise undecodable()
                response = await behaviour(request, context)
            except (Exception, asyncio.CancelledError) as error:
                await self._fail(name, started, error, context)
            self._observe(name, grpc.StatusCode.OK, time.perf_counter() - started)
            return response

        return call

    def _stream(self, name: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """Requests in; answers are written to the context, or yielded (as the reflection service does)."""
        yields = inspect.isasyncgenfunction(behaviour)

        async def call(requests: AsyncIterator[Any], context: Any) -> None:
            started = time.perf_counter()
            try:
                if yields:
                    async for response in behaviour(_decoded(requests), context):
                        await context.write(response)
                else:
                    await behaviour(_decoded(requests), context)
            except (Exception, asyncio.CancelledError) as error:
                await self._fail(name, started, error, context)
            self._observe(name, grpc.StatusCode.OK, time.perf_counter() - started)

        return call

    async def _fail(self, name: str, started: float, error: BaseException, context: Any) -> NoReturn:
        """End a call with its status, count it, and log unexpected errors."""
        if isinstance(error, grpc.aio.BaseError) or not isinstance(error, Exception):
            self._observe(name, _status(error, context), time.perf_counter() - started)
            raise error  # this call has been ended already
        code, text, trailing = ending_of(error, name)
        self._observe(name, code, time.perf_counter() - started)
        await context.abort(code, text, trailing)
        raise AssertionError("abort raises")


def ending_of(error: Exception, method: str) -> tuple[grpc.StatusCode, str, Metadata]:
    """How a call of a method ends with an error: status, text, and when to try again; logs what is unexpected."""
    code, text = status_of(error)
    if text is INTERNAL_TEXT:
        log.error("unexpected error in %s", method, exc_info=error)
    seconds = retry_after_s(error)
    # As gRPC's own retries read it (gRFC A6).
    return code, text, () if seconds is None else (("grpc-retry-pushback-ms", str(math.ceil(seconds * 1e3))),)


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
