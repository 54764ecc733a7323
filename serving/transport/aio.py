"""grpc.aio as a transport: every call is a task of the event loop."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from fathom.serving.transport.contract import AuthContext, Handlers, Metadata, Options, Take
from fathom.serving.transport.sockets import stop_listening
from fathom.serving.transport.tls import Certificates

#: How soon it is tried again to listen on a port that is not free yet.
AGAIN_S = 0.05

log = logging.getLogger("fathom.serving")


class AioTransport:
    """The public API of gRPC for asyncio.

    A path that is not UTF-8 ends grpc.aio's server, port and all; then another one takes its place.
    """

    name = "aio"

    def __init__(self, options: Options) -> None:
        self._options = options
        self._handlers: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._server = grpc.aio.server(options=options)
        self._address = ""
        self._certificates: Certificates | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False
        self.on_failure: Callable[[], object] | None = None
        # grpc.aio does not tell of such calls.
        self.on_unread: Callable[[str, grpc.StatusCode], object] | None = None

    def add_handlers(self, service: str, handlers: Handlers) -> None:
        """See ``Transport``."""
        added = grpc.method_handlers_generic_handler(service, dict(handlers))
        self._handlers.append(added)
        self._server.add_generic_rpc_handlers((added,))

    def take_calls(self, path: str, take: Take) -> None:
        """See ``Transport``."""
        _, service, method = path.split("/")
        self.add_handlers(service, {method: grpc.unary_unary_rpc_method_handler(behaviour_of(take))})

    def listen(self, address: str, certificates: Certificates | None = None) -> int:
        """See ``Transport``."""
        if certificates is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, certificates.for_grpc())
        self._address, self._certificates = f"{address.rpartition(':')[0]}:{port}", certificates
        return port

    def stop_listening(self) -> None:
        """See ``Transport``."""
        stop_listening(int(self._address.rpartition(":")[2]))

    async def start(self) -> None:
        """See ``Transport``."""
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_s: float | None) -> None:
        """See ``Transport``."""
        self._stopping = True
        await self._server.stop(grace_s)
        if self._watching is not None:
            await self._watching

    async def _watch(self) -> None:
        """Start another server where one ends by itself as we know it; what else ends it ends ours, too."""
        try:
            while not self._stopping:
                await self._serve()
        except Exception as error:
            log.critical("grpc.aio has failed; the server ends", exc_info=error)
            if self.on_failure is not None:
                self.on_failure()

    async def _serve(self) -> None:
        try:
            await self._server.wait_for_termination()
        except UnicodeDecodeError as error:
            log.error("grpc.aio has ended with all its connections (%s); it is started again", error)
            self._server = grpc.aio.server(options=self._options)
            self._server.add_generic_rpc_handlers(self._handlers)
            await self._listen_again()

    async def _listen_again(self) -> None:
        while not self._stopping:
            with suppress(RuntimeError):  # the old one has not let go of the port yet
                self.listen(self._address, self._certificates)
                await self._server.start()
                return
            await asyncio.sleep(AGAIN_S)


def behaviour_of(take: Take) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """A handler, for one call at a time, of what takes many without tasks."""

    async def behaviour(payload: bytes, context: Any) -> bytes:
        call = _Call(payload, context)
        take([call], 0)
        return await call.ended()

    return behaviour


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

    def auth_context(self) -> AuthContext:
        found: AuthContext = self._context.auth_context()
        return found

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
