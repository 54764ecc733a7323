"""Between gRPC and the server: what a transport takes in, and what it can be told.

A transport listens on one port. Calls of Recommend come from it many at a time and without a task of their own; those
of all other methods run as coroutines, with a context that does what grpc.aio's does.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from fathom.serving.transport.tls import Certificates

#: gRPC's channel arguments.
Options = Sequence[tuple[str, int]]
Metadata = Sequence[tuple[str, str | bytes]]
#: By name, as gRPC writes them: ``x509_common_name``, ``x509_subject_alternative_name``, ``x509_pem_cert``.
AuthContext = Mapping[str, Sequence[bytes]]
#: The handlers of one service by method, as generated code registers them; behaviours are coroutines.
Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]


class Call(Protocol):
    """A unary call whose message has arrived. Used from the event loop, and ended once."""

    #: The message, encoded.
    payload: bytes
    #: On the clock of ``time.monotonic``; None without one.
    deadline_s: float | None
    #: Called when the caller has left or its deadline has passed, unless the call has ended before.
    left: Callable[[], object] | None

    def invocation_metadata(self) -> Metadata:
        """What the caller sent before its message."""

    def peer(self) -> str:
        """The caller's address, as gRPC writes it: ``ipv4:192.0.2.1:5000``."""

    def auth_context(self) -> AuthContext:
        """What TLS has shown of the caller; without TLS nothing that matters."""

    def respond(self, payload: bytes) -> None:
        """End it with a message."""

    def fail(self, code: grpc.StatusCode, text: str, trailing: Metadata = ()) -> None:
        """End it with a status."""


def status_of_leaving(call: Call) -> grpc.StatusCode:
    """What a call ends with whose caller does not wait any longer."""
    late = call.deadline_s is not None and call.deadline_s <= time.monotonic()
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED


#: Takes calls without tasks, in the event loop, and hears how many were refused since the last time; never raises.
#: Returns how many that cannot wait there is room for until the next time, but for STALE_S at most; None: any number. A
#: transport that can refuses what is more than that, as REFUSAL says, before it reads their messages, but not the first
#: of a connection in FIRSTS_S, for up to FIRSTS connections: one that floods must not shut out the others.
Take = Callable[[Sequence[Call], int], int | None]
REFUSAL = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "more calls arrive than can be read; try again in 100 ms",
    (("grpc-retry-pushback-ms", "100"),),
)

#: Connections whose first call is read although there is no room, and in which time, in seconds.
FIRSTS, FIRSTS_S = 32, 0.02
#: For how long it holds, in seconds, that there is no room, or that too many calls come, where none come any more.
STALE_S = 1.0
#: Calls that have more time than this, in seconds, are not refused because many arrive at once.
PATIENCE_S = 1.0


def can_wait(deadline_s: float | None, now_s: float) -> bool:
    """Whether a call has time to wait until the server has caught up; seconds of one clock."""
    return deadline_s is None or deadline_s - now_s > PATIENCE_S


class Transport(Protocol):
    """One listening port, used from one event loop."""

    #: As the setting names it.
    name: str
    #: Called, in the event loop, when a fault of its own, which it has logged, keeps it from taking any calls.
    on_failure: Callable[[], object] | None
    #: Called, in the event loop, with path and status of each call that has ended before its message was read.
    on_unread: Callable[[str, grpc.StatusCode], object] | None

    def add_handlers(self, service: str, handlers: Handlers) -> None:
        """Answer the methods of a service; before ``start``."""

    def take_calls(self, path: str, take: Take) -> None:
        """Hand over the calls of a unary method, ``/service/method``, without tasks; before ``start``."""

    def listen(self, address: str, certificates: Certificates | None = None) -> int:
        """Bind ``host:port``, with TLS where there are certificates, and return the port; before ``start``.

        Raises RuntimeError where it cannot.
        """

    async def start(self) -> None:
        """Begin to take calls."""

    def stop_listening(self) -> None:
        """Take no new connections; calls on those that there are go on."""

    async def stop(self, grace_s: float | None) -> None:
        """Take no more calls, give those in progress so long, and then end them; None: at once. May be called twice."""
