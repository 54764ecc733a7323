"""Wraps every RPC handler so that each call ends in a documented status, whatever the client sent.

grpc.aio turns an exception in a handler, or in the decoding of a message, into UNKNOWN with the exception's text.
So the bytes are decoded by ``decoder``, which never raises, and errors are mapped here by ``status_of``.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import grpc

from fathom.errors import InvalidRequestError
from fathom.serving.status import INTERNAL_TEXT, status_of

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
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._coroutine(name, handler.unary_unary), **codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._coroutine(name, handler.unary_stream), **codec)
        return grpc.stream_stream_rpc_method_handler(self._stream(name, handler.stream_stream), **codec)

    def _coroutine(self, name: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """One request in; the answer is returned, or written to the context."""

        async def call(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            try:
                if request is UNDECODABLE:
                    raise _undecodable()
                return await behaviour(request, context)
            except (Exception, asyncio.CancelledError) as error:
                code, text = _status(name, error, context)
                await _end(context, code, text, error)
            finally:
                self._observe(name, code, time.perf_counter() - started)

        return call

    def _stream(self, name: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """Requests in; answers are written to the context, or yielded (as the reflection service does)."""

        async def call(requests: AsyncIterator[Any], context: Any) -> None:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            try:
                if inspect.isasyncgenfunction(behaviour):
                    async for response in behaviour(_decoded(requests), context):
                        await context.write(response)
                else:
                    await behaviour(_decoded(requests), context)
            except (Exception, asyncio.CancelledError) as error:
                code, text = _status(name, error, context)
                await _end(context, code, text, error)
            finally:
                self._observe(name, code, time.perf_counter() - started)

        return call


def _undecodable() -> InvalidRequestError:
    return InvalidRequestError("the message cannot be decoded; compare it with the .proto of this service")


async def _decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is UNDECODABLE:
            raise _undecodable()
        yield request


def _status(name: str, error: BaseException, context: Any) -> tuple[grpc.StatusCode, str]:
    """The status of an ended call, for the client and the metrics; logs what nobody foresaw."""
    if isinstance(error, grpc.aio.AbortError):  # the handler has set a status itself
        return context.code() or grpc.StatusCode.UNKNOWN, ""
    if not isinstance(error, Exception):
        remaining = context.time_remaining()
        late = remaining is not None and remaining <= 0
        return (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED), ""
    code, text = status_of(error)
    if text is INTERNAL_TEXT:
        log.error("unexpected error in %s", name, exc_info=error)
    return code, text


async def _end(context: Any, code: grpc.StatusCode, text: str, error: BaseException) -> None:
    if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
        raise error
    await context.abort(code, text)
