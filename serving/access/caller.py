"""One call's caller, and the context that hands it to a method."""

from collections.abc import Awaitable
from typing import Any, NoReturn

import grpc

from fathom.runtime.shares import ANYBODY, Client
from fathom.serving.access.principal import ANYBODY_MAY, Principal
from fathom.serving.tracing import SpanDetails
from fathom.serving.transport.contract import Metadata


class Caller:
    """``client``: whose turn it is; ``principal``: what it may do; ``about``: what the audit log says of the call.

    ``span``: what a trace says of the answer.
    """

    __slots__ = ("about", "client", "principal", "span")

    def __init__(self, client: Client = ANYBODY, principal: Principal = ANYBODY_MAY) -> None:
        self.client = client
        self.principal = principal
        self.about: dict[str, object] = {}
        self.span: SpanDetails | None = None


class CallContext:
    """What a method may ask of its call: gRPC's context, and the caller."""

    def __init__(self, context: Any, caller: Caller) -> None:
        self._context = context
        self.caller = caller

    def code(self) -> grpc.StatusCode | None:
        """The status that the call was ended with."""
        code: grpc.StatusCode | None = self._context.code()
        return code

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None without one."""
        left_s: float | None = self._context.time_remaining()
        return left_s

    def write(self, message: Any) -> Awaitable[None]:
        """Send one of many answers."""
        sent: Awaitable[None] = self._context.write(message)
        return sent

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Metadata = ()) -> NoReturn:
        """End the call with a status."""
        await self._context.abort(code, text, trailing)
        raise AssertionError("abort raises")
