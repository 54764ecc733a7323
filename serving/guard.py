"""Wraps every RPC handler so that each call ends in a documented status, whatever the client sent.

grpc.aio turns an exception in a handler, or in the decoding of a message, into UNKNOWN with the exception's text.
So the bytes are decoded by ``decoder``, which never raises, and errors are mapped here by ``status_of``.
"""

import asyncio
import inspect
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, NoReturn

import grpc

from fathom.errors import InvalidRequestError
from fathom.serving.status import INTERNAL_TEXT, retry_after_s, status_of

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
    """Takes handlers from the generated ``add_..._to_server`` functions and hands them, wrapped, to the server."""

    def __init__(self, server: grpc.aio.Server, observe: Observe) -> None:
        self._server = server
        self._observe = observe

    def add_generic_rpc_handlers(self, handlers: Iterable[object]) -> None:
        """Called by generated code with what ``add_registered_method_handlers`` gets too, so there is nothing to do."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Called by generated code: register the wrapped handlers of one service."""
        wrapped = {name: self._wrap(name, handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))

    def _wrap(self, name: str, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        codec = {
            "request_deserializer": decoder(handler.request_deserializer),
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
                    raise _undecodable()
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
        code, text = _status(error, context)
        self._observe(name, code, time.perf_counter() - started)
        if isinstance(error, grpc.aio.BaseError) or not isinstance(error, Exception):
            raise error  # grpc.aio has already ended this call
        if text is INTERNAL_TEXT:
            log.error("unexpected error in %s", name, exc_info=error)
        await context.abort(code, text, _pushback(error))
        raise AssertionError("abort raises")


def _pushback(error: Exception) -> tuple[tuple[str, str], ...]:
    """When to try again, as gRPC's own retries read it (gRFC A6)."""
    seconds = retry_after_s(error)
    return () if seconds is None else (("grpc-retry-pushback-ms", str(math.ceil(seconds * 1e3))),)


def _undecodable() -> InvalidRequestError:
    return InvalidRequestError("the message cannot be decoded; compare it with the .proto of this service")


async def _decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is UNDECODABLE:
            raise _undecodable()
        yield request


def _status(error: BaseException, context: Any) -> tuple[grpc.StatusCode, str]:
    """The status of a call that ended with an error."""
    if isinstance(error, grpc.aio.AbortError):  # the handler has set a status itself
        return context.code(), ""
    if isinstance(error, grpc.aio.BaseError):  # a message could not be sent: the client has left
        return grpc.StatusCode.CANCELLED, ""
    if not isinstance(error, Exception):
        remaining = context.time_remaining()
        late = remaining is not None and remaining <= 0
        return (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED), ""
    return status_of(error)
