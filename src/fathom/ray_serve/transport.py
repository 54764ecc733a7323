"""Ray Serve as a transport: the proxy has the port, and a replica's methods are called with what has come there."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, NoReturn

import grpc

from fathom.ray_serve.proxy import DEADLINE
from fathom.serving.listener import SERVICE
from fathom.serving.transport.aio import behaviour_of
from fathom.serving.transport.contract import AuthContext, Handlers, Metadata, Options, Take
from fathom.serving.transport.tls import Certificates


class Encoded(bytes):
    """An encoded message, in the place of a decoded one that Ray would encode."""

    def SerializeToString(self) -> bytes:
        """Called by Ray."""
        return bytes(self)


class RayTransport:
    """Calls come from ``unary`` and ``stream``, with Ray's context; nothing listens here."""

    name = "ray"

    def __init__(self, _: Options = ()) -> None:
        self._handlers: dict[str, Any] = {}
        self.on_failure: Callable[[], object] | None = None
        # The proxy does not tell of such calls.
        self.on_unread: Callable[[str, grpc.StatusCode], object] | None = None

    def add_handlers(self, service: str, handlers: Handlers) -> None:
        """See ``Transport``; health and reflection are the proxy's own."""
        if service == SERVICE:
            self._handlers.update(handlers)

    def take_calls(self, path: str, take: Take) -> None:
        """See ``Transport``."""
        _, service, method = path.split("/")
        self.add_handlers(service, {method: grpc.unary_unary_rpc_method_handler(behaviour_of(take))})

    def listen(self, address: str, certificates: Certificates | None = None) -> int:  # noqa: ARG002
        """See ``Transport``; there is no port."""
        return 0

    async def start(self) -> None:
        """See ``Transport``."""

    def stop_listening(self) -> None:
        """See ``Transport``; nothing listens."""

    async def stop(self, grace_s: float | None) -> None:
        """See ``Transport``."""

    async def unary(self, method: str, request: Any, ray_context: Any) -> Encoded:
        """The encoded answer of a method with one; an error's status is set on the context.

        ``request``: an encoded message, or an iterator of them.
        """
        handler = self._handlers[method]
        call, context = handler.unary_unary or handler.stream_unary, _Context(ray_context)
        try:
            return Encoded(_encode(handler, await call(_decoded(handler, request), context)))
        except _AbortedError:
            # With Ray's own way to end a call, by an exception, the trailing metadata would be lost.
            return Encoded()

    async def stream(self, method: str, requests: Any, ray_context: Any) -> AsyncIterator[Encoded]:
        """The encoded answers of a method with many; raises after it has set an error's status on the context."""
        handler = self._handlers[method]
        answers: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        context = _Context(ray_context, answers.put)
        working = asyncio.create_task(handler.stream_stream(_decoded(handler, requests), context))
        try:
            while not working.done() or not answers.empty():
                answer = asyncio.create_task(answers.get())
                await asyncio.wait((answer, working), return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    yield Encoded(_encode(handler, answer.result()))
                else:
                    answer.cancel()
            await working
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError, _AbortedError):
                await working


class _AbortedError(Exception):
    """The call has been ended with a status."""


class _Context:
    """What handlers ask of gRPC's context, from Ray's."""

    def __init__(self, ray_context: Any, write: Callable[[Any], Awaitable[None]] | None = None) -> None:
        self._ray = ray_context
        self._write = write
        self._metadata = [(key, value) for key, value in ray_context.invocation_metadata() if key != DEADLINE]
        deadlines = [value for key, value in ray_context.invocation_metadata() if key == DEADLINE]
        self._deadline_s = float(deadlines[0]) if deadlines else None

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def peer(self) -> str:
        return str(self._ray.peer())

    def auth_context(self) -> AuthContext:
        found: AuthContext = self._ray.auth_context()
        return found

    def code(self) -> grpc.StatusCode | None:
        code: grpc.StatusCode | None = self._ray.code()
        return code

    def time_remaining(self) -> float | None:
        return None if self._deadline_s is None else self._deadline_s - time.time()

    async def write(self, message: Any) -> None:
        assert self._write is not None
        await self._write(message)

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Metadata = ()) -> NoReturn:
        self._ray.set_code(code)
        self._ray.set_details(text)
        self._ray.set_trailing_metadata(list(trailing))
        raise _AbortedError(text)


def _decoded(handler: Any, request: Any) -> Any:
    decode = handler.request_deserializer or bytes
    return _each_decoded(decode, request) if handler.request_streaming else decode(request)


async def _each_decoded(decode: Callable[[bytes], Any], requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for each in requests:
        yield decode(each)


def _encode(handler: Any, answer: Any) -> bytes:
    encoded: bytes = (handler.response_serializer or bytes)(answer)
    return encoded
