"""What Ray Serve's gRPC proxy is told: the contract, to leave messages as they are, and to hand deadlines on."""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc

from fathom.protos.fathom.v1 import recommender_pb2_grpc

#: Metadata in which the proxy hands a call's deadline to the replica: seconds of the epoch.
DEADLINE = "fathom-deadline"
#: So begins what Ray says of a call whose replica has died or cannot be reached (INTERNAL), or has let go of it
#: (CANCELLED, which it says too when the caller has left, who does not read it then).
_LOST = ("The actor ", "Client for request ")

_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def add_recommender(servicer: Any, server: Any) -> None:
    """Add ``fathom.v1.Recommender`` to Ray Serve's gRPC proxy; its ``grpc_servicer_functions`` name this function.

    ``servicer`` is never called: the proxy sends every call to a replica. Messages stay encoded on their way. Ray's own
    context leaves deadlines out, so they are added to the metadata here.
    """
    make = server.service_handler_factory
    server.service_handler_factory = lambda **how: _with_deadline(make(**how))
    try:
        recommender_pb2_grpc.add_RecommenderServicer_to_server(  # type: ignore[no-untyped-call]
            servicer, _Encoded(server)
        )
    finally:
        server.service_handler_factory = make


class _Encoded:
    """Takes the handlers of the generated code, and adds them to a server without the decoding of messages."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Iterable[object]) -> None:
        """Called by generated code with what ``add_registered_method_handlers`` gets too, so there is nothing to do."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Called by generated code."""

        # Ray puts its own behaviour into each handler's place.
        def encoded() -> dict[str, Any]:
            return {
                name: _MAKERS[each.request_streaming, each.response_streaming](_nothing)
                for name, each in handlers.items()
            }

        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, encoded()),))
        self._server.add_registered_method_handlers(service, encoded())


def _nothing(request: Any, context: Any) -> Any:
    raise NotImplementedError


def _with_deadline(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """The same behaviour, of the same kind: gRPC asks which it is."""
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Any) -> Any:
            async for each in behaviour(request, _Context(context)):
                yield each

        return stream

    async def unary(request: Any, context: Any) -> Any:
        return await behaviour(request, _Context(context))

    return unary


class _Context:
    """gRPC's context, with the deadline in its metadata, and UNAVAILABLE for a replica that was lost."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        given = [(key, value) for key, value in self._context.invocation_metadata() or () if key != DEADLINE]
        left_s = self._context.time_remaining()
        return given if left_s is None else [*given, (DEADLINE, repr(time.time() + left_s))]

    def set_details(self, text: str) -> None:
        if text.startswith(_LOST):
            self._context.set_code(grpc.StatusCode.UNAVAILABLE)
            text = "the replica was lost; try again"
        self._context.set_details(text)
