"""Serves the gateway on a port, in the server's own event loop."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fathom.errors import ConfigError
from fathom.serving.transport.tls import Certificates

#: Connections at once, how long an idle one is kept, and how long a new one may take to say what it wants.
MOST_CONNECTIONS, IDLE_S, HEAD_S = 10_000, 120, 10.0


class _Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Hangs up on who does not say what it wants: silent connections must not shut out others."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._giving_up = asyncio.get_running_loop().call_later(HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._giving_up.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _Embedded(uvicorn.Server):
    """Signals are the server's own business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


# What it has to say, we say ourselves.
logging.getLogger("uvicorn").setLevel(logging.CRITICAL)


class HttpPort:
    """An HTTP/1.1 port; with ``certificates`` an HTTPS port, whose certificate follows the files."""

    def __init__(self, app: Starlette, certificates: Certificates | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=_Impatient,
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=IDLE_S,
        )
        config.load()
        config.ssl = None if certificates is None else certificates.for_http(asks_clients=True)
        self._server = _Embedded(config)
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self, host: str, port: int, *, shares_port: bool = False) -> Self:
        """Listen; raises ConfigError where the port cannot be used."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, reuse_port=shares_port)
        except OSError as error:
            raise ConfigError(f"HTTP port {host}:{port} cannot be used: {error.strerror}; choose another") from None
        self.port = listening.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve([listening]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.001)
        return self

    def stop_listening(self) -> None:
        """Take no new connections, and end those that are idle."""
        self._server.should_exit = True

    async def close(self) -> None:
        """Stop at once."""
        self._server.should_exit = self._server.force_exit = True
        if self._serving is not None:
            await self._serving
