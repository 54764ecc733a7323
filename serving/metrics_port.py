"""The HTTP port of one server for Prometheus and for probes, in the event loop of its calls.

It knows as much of HTTP as these two need: one GET or HEAD without a body per connection. Whoever sends half a request,
or does not read the answer, costs a socket for a few seconds and nothing else.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, Self

import grpc
from prometheus_client import CollectorRegistry, make_wsgi_app

from fathom.errors import ConfigError, UnauthenticatedError
from fathom.serving.access.control import OPEN, AccessControl
from fathom.serving.access.principal import Role
from fathom.serving.audit import AuditLog
from fathom.serving.transport.tls import Certificates

#: Connections at once; with one more, the oldest is cut off.
MOST_CONNECTIONS = 32
#: How long a connection may last.
WITHIN_S = 10.0
#: The longest head of a request, in bytes.
LONGEST_HEAD = 8 << 10
#: How long, after an answer, the rest of an unwanted request is read, so that the answer arrives.
REST_S = 0.5

_PLAIN = {"Content-Type": "text/plain; charset=utf-8"}

log = logging.getLogger("fathom.serving")


#: Of who may not read the metrics.
_REFUSALS = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}


class _Asked(NamedTuple):
    """Who has asked, for the audit log."""

    writer: asyncio.StreamWriter

    def peer(self) -> str:
        """The caller's address, as gRPC writes it."""
        host, port, *_ = self.writer.get_extra_info("peername") or ("unknown", 0)
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


class _Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str] = _PLAIN


class MetricsPort:
    """``/metrics`` in Prometheus' formats and ``/healthz``.

    ``state``: a word for what the server is doing; ``/healthz`` is 200 while that is "serving", and else 503.
    ``access``: who may read ``/metrics``. ``certificates``: for HTTPS; without, it is HTTP.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        state: Callable[[], str],
        access: AccessControl = OPEN,
        audit: AuditLog | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._metrics: Any = make_wsgi_app(registry)
        self._state = state
        self._access = access
        self._audit = audit
        self._certificates = certificates
        # Registries are read by one thread at a time, so that many scrapes at once do not take all threads.
        self._reading = asyncio.Lock()
        # Oldest first.
        self._open: dict[asyncio.StreamWriter, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> Self:
        """Listen; raises ConfigError where the port cannot be used."""
        six = ":" in host
        try:
            listening = socket.create_server(
                (host, port),
                family=socket.AF_INET6 if six else socket.AF_INET,
                dualstack_ipv6=six and socket.has_dualstack_ipv6(),
            )
        except OSError as error:
            raise ConfigError(f"metrics port {host}:{port} cannot be used: {error.strerror}; choose another") from None
        self.port = listening.getsockname()[1]
        certificates = self._certificates
        context = None if certificates is None else certificates.for_http()
        self._server = await asyncio.start_server(self._welcome, sock=listening, limit=LONGEST_HEAD, ssl=context)
        return self

    async def close(self) -> None:
        """Stop listening, and cut off who is connected."""
        if self._server:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        if len(self._open) > MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                await self._converse(reader, writer)
        except (asyncio.IncompleteReadError, OSError) as error:  # as ConnectionError and TimeoutError are
            log.debug("metrics port: %r", error)
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            answer, silent = _Answer(431, b"the head of the request is too long\n"), False
        else:
            answer, silent = await self._answer(head.decode("latin-1")), head.startswith(b"HEAD ")
            if answer.status in _REFUSALS and self._audit is not None:
                self._audit.note("/metrics", None, _Asked(writer), _REFUSALS[answer.status])
        if writer.is_closing():
            return
        # Then drain() waits for the last byte.
        writer.transport.set_write_buffer_limits(0)
        writer.write(_encoded(answer, silent=silent))
        await writer.drain()
        if writer.is_closing():
            return
        writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_S):
                while await reader.read(LONGEST_HEAD):
                    pass

    async def _answer(self, head: str) -> _Answer:
        first, *rest = head.split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _Answer(400, b"this is not a request of HTTP/1\n")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _Answer(405, b"use GET or HEAD\n", {**_PLAIN, "Allow": "GET, HEAD"})
        path, _, query = target.partition("?")
        if path == "/healthz":
            state = self._state()
            return _Answer(200 if state == "serving" else 503, f"{state}\n".encode())
        if path != "/metrics":
            return _Answer(404, b"there are /metrics and /healthz\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if (refusal := self._refusal(fields)) is not None:
            return refusal
        async with self._reading:
            return await asyncio.to_thread(self._read, query, fields)

    def _refusal(self, fields: Mapping[str, str]) -> _Answer | None:
        """Metrics show what was cached, so they are for admins, where it is known who asks."""
        if self._access.is_open:
            return None
        try:
            principal = self._access.of_header(fields.get("authorization"))
        except UnauthenticatedError as error:
            return _Answer(401, f"{error}\n".encode(), {**_PLAIN, "WWW-Authenticate": "Bearer"})
        if principal.may(Role.ADMIN) and not principal.tenant.name:
            return None
        return _Answer(403, b"metrics are for admins of the server, not of a tenant\n")

    def _read(self, query: str, fields: Mapping[str, str]) -> _Answer:
        """In a thread, because it takes milliseconds."""
        environment = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": query,
            "HTTP_ACCEPT": fields.get("accept", ""),
            "HTTP_ACCEPT_ENCODING": fields.get("accept-encoding", ""),
        }
        headers: dict[str, str] = {}
        try:
            found = b"".join(self._metrics(environment, lambda _, given: headers.update(given)))
        except Exception:
            log.exception("metrics cannot be read")
            return _Answer(500, b"metrics cannot be read; the server's log says why\n")
        return _Answer(200, found, headers)


def _encoded(answer: _Answer, *, silent: bool) -> bytes:
    """As HTTP has it; ``silent``: without the body."""
    headers = {**answer.headers, "Content-Length": str(len(answer.body)), "Connection": "close"}
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + (b"" if silent else answer.body)
