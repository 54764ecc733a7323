"""grpc.aio as a transport: every call is a task of the event loop."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc

from fathom.serving.transport.contract import Handlers, Metadata, Options, Take


class AioTransport:
    """The public API of gRPC for asyncio."""

    name = "aio"

    def __init__(self, options: Options) -> None:
        self._server = grpc.aio.server(options=options)

    def add_handlers(self, service: str, handlers: Handlers) -> None:
        """See ``Transport``."""
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))

    def take_calls(self, path: str, take: Take) -> None:
        """See ``Transport``."""
        _, service, method = path.split("/")

        async def behaviour(payload: bytes, context: Any) -> bytes:
            call = _Call(payload, context)
            take([call], 0)
            return await call.ended()

        self.add_handlers(service, {method: grpc.unary_unary_rpc_method_handler(behaviour)})

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """See ``Transport``."""
        if credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, credentials)

    async def start(self) -> None:
        """See ``Transport``."""
        await self._server.start()

    async def stop(self, grace_s: float | None) -> None:
        """See ``Transport``."""
        await self._server.stop(grace_s)


class _Call:
    """``contract.Call`` on the context of a handler, which waits in ``ended``."""

    def __init__(self, payload: bytes, context: Any) -> None:
        self.payload = payload
        self.left: Callable[[], object] | None = None
        remaining_s = context.time_remaining()
        self.deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
        self._context = context
        self._end: asyncio.Future[bytes | tuple[grpc.StatusCode, str, Metadata]] = (
            asyncio.get_running_loop().create_future()
        )

    def invocation_metadata(self) -> Metadata:
        return self._context.invocation_metadata() or ()

    def peer(self) -> str:
        return str(self._context.peer())

    def respond(self, payload: bytes) -> None:
        if not self._end.done():
            self._end.set_result(payload)

    def fail(self, code: grpc.StatusCode, text: str, trailing: Metadata = ()) -> None:
        if not self._end.done():
            self._end.set_result((code, text, trailing))

    async def ended(self) -> bytes:
        """The answer; ends the call where there is a status instead."""
        try:
            end = await self._end
        except asyncio.CancelledError:
            if self.left is not None:
                self.left()
            raise
        if isinstance(end, bytes):
            return end
        code, text, trailing = end
        await self._context.abort(code, text, tuple(trailing))
        raise AssertionError("abort raises")
