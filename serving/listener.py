"""A gRPC port: its transport, who answers there, and how it ends without a lost answer."""

import asyncio
import socket
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.serving.guard import Guard
from fathom.serving.recommend import METHOD, Recommend
from fathom.serving.service import ENCODED, RecommenderService
from fathom.serving.transport.contract import Transport
from fathom.serving.transport.sockets import hang_up, unsent
from fathom.serving.transport.tls import Certificates

SERVICE = pb.DESCRIPTOR.services_by_name["Recommender"].full_name
# How soon gRPC writes an answer that it has been given, and how long its client may take to receive it.
WRITTEN_S, RECEIVED_S = 0.1, 5.0


class Listener:
    """Listens on ``host:port``; ``shares_port``: with other processes. Belongs to one event loop."""

    def __init__(self, transport: Transport, host: str, port: int, *, shares_port: bool = False) -> None:
        self.transport = transport
        self._host, self._port, self._shares_port = host, port, shares_port

    def answer(
        self, recommend: Recommend, service: RecommenderService, health_service: Any, *, but: Collection[str] = ()
    ) -> None:
        """Let a service answer here, ``but`` for some of its methods; and health, and reflection."""
        transport, observe = self.transport, recommend.metrics.called
        if METHOD not in but:
            transport.take_calls(f"/{SERVICE}/{METHOD}", recommend.take)
        guard = Guard(
            transport,
            observe,
            taken=(METHOD, *but),
            encoded=ENCODED,
            access=recommend.access,
            audit=recommend.audit,
            tracing=recommend.tracing,
        )
        recommender_pb2_grpc.add_RecommenderServicer_to_server(service, guard)  # type: ignore[no-untyped-call]
        # Probes have no key, and what reflection tells is public.
        everybody = Guard(transport, observe)
        health_pb2_grpc.add_HealthServicer_to_server(health_service, everybody)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflector = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]  # missing in the stubs
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflector, everybody)

    async def start(self, certificates: Certificates | None) -> str:
        """Take calls, over TLS where there are certificates; returns the address, raises ConfigError."""
        host, port = self._host, self._port
        wanted = address(host, port)
        try:
            # gRPC would only say that it failed, and log it; the socket says why.
            if not self._shares_port:
                socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
            port = self.transport.listen(wanted, certificates)
        except (OSError, RuntimeError) as error:
            reason = f": {error.strerror}" if isinstance(error, OSError) else ""
            raise ConfigError(f"cannot listen on {wanted}{reason}; choose another --host or --port") from None
        await self.transport.start()
        self._port = port
        return address(host, port)

    def stop_listening(self) -> None:
        """Take no new connections."""
        self.transport.stop_listening()

    async def hang_up(self) -> None:
        """End all connections once clients have the answers that gRPC has been given, unless they read too slowly.

        Before gRPC's own shutdown, which ends calls that it has not handed over yet with CANCELLED.
        """
        await asyncio.sleep(WRITTEN_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(RECEIVED_S):
                waiting = unsent(self._port)
                while waiting:
                    await asyncio.sleep(WRITTEN_S / 10)
                    waiting &= unsent(self._port)
        hang_up(self._port)

    async def stop(self) -> None:
        """End at once."""
        hang_up(self._port)
        await self.transport.stop(WRITTEN_S)


def address(host: str, port: int) -> str:
    """As gRPC and URLs write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
