"""One call's caller, and the context that hands it to a method."""

import time
from collections.abc import Awaitable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from fathom.runtime.shares import ANYBODY, Client
from fathom.serving.access.principal import ANYBODY_MAY, Principal
from fathom.serving.tracing import SpanDetails
from fathom.serving.transport.contract import Metadata

#: Metadata that names a client, and how much of a name counts.
CLIENT_KEY = "fathom-client"
LONGEST_CLIENT = 256
#: Clients whose connection and name have been read.
KEPT_CLIENTS = 4_096


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

    def deadline_s(self) -> float | None:
        """The moment on the clock of ``time.monotonic`` at which the call's deadline passes; None without one."""
        left_s: float | None = self._context.time_remaining()
        return None if left_s is None else time.monotonic() + left_s

    def write(self, message: Any) -> Awaitable[None]:
        """Send one of many answers."""
        sent: Awaitable[None] = self._context.write(message)
        return sent

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Metadata = ()) -> NoReturn:
        """End the call with a status."""
        await self._context.abort(code, text, trailing)
        raise AssertionError("abort raises")


def client_of(context: Any) -> Client:
    """Whose call it is: its peer's address, its connection, and the name that CLIENT_KEY of its metadata claims."""
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_KEY:
            return _client(context.peer(), value[:LONGEST_CLIENT])
    return _client(context.peer(), "")


@lru_cache(KEPT_CLIENTS)
def _client(peer: str, name: str) -> Client:
    return Client(_address_of(peer), peer, name)


def _address_of(peer: str) -> str:
    """What the connections of one host have in common, of gRPC's ``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``, ``unix:``.

    Of IPv6 the network of 64 bits: a host has as many addresses in it as it likes.
    """
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return peer
    host = unquote(rest.rpartition(":")[0]).strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return peer
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64)
    return str(address)
