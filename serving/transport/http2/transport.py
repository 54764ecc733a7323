"""The transport: a port, its connections, and who gets their calls."""

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import grpc

from fathom.serving.transport.context import answer
from fathom.serving.transport.contract import (
    FIRSTS,
    FIRSTS_S,
    REFUSAL,
    STALE_S,
    Handlers,
    Options,
    Take,
    can_wait,
)
from fathom.serving.transport.http2.call import Http2Call
from fathom.serving.transport.http2.connection import Connection
from fathom.serving.transport.http2.deadlines import Deadlines
from fathom.serving.transport.http2.limits import Limits
from fathom.serving.transport.http2.memory import Held
from fathom.serving.transport.http2.ports import bound
from fathom.serving.transport.tls import Certificates

#: How long the only message of a call may take to arrive; at most twice as long.
MESSAGE_S = 30.0
#: By which share connections of one age end sooner or later than others, so that they do not all come back at once.
SPREAD = 0.1
#: How long calls that ended with the server may take to hear of it.
LAST_S = 0.1

log = logging.getLogger("fathom.serving")


class Taken:
    """The calls of a method that is taken, until they are handed over."""

    def __init__(self, take: Take) -> None:
        self.take = take
        self.calls: list[Http2Call] = []
        #: For how many more there is room, None: any number, and since when; how many were refused.
        self.room: int | None = None
        self.room_s = 0.0
        self.refused = 0
        #: Who has had a call although there was no room, since FIRSTS_S.
        self.firsts: set[str] = set()
        self.firsts_s = 0.0

    def has_room(self, call: Http2Call) -> bool:
        """Whether a call may be handed over."""
        if self.room is None or can_wait(call.deadline_s, call.begun_s) or call.begun_s - self.room_s > STALE_S:
            return True
        if self.room > 0:
            self.room -= 1
            return True
        if call.peer() in self.firsts or len(self.firsts) >= FIRSTS:
            return False
        self.firsts.add(call.peer())
        return True

    def hand_over(self) -> None:
        """Let those be taken that still wait for an answer."""
        calls, refused = [call for call in self.calls if not call.ended], self.refused
        if not self.calls and not refused:
            return
        self.calls.clear()
        self.refused = 0
        self.room_s = time.monotonic()
        if self.firsts and self.room_s - self.firsts_s > FIRSTS_S:
            self.firsts.clear()
            self.firsts_s = self.room_s
        for call in calls:
            call.is_read = True
        self.room = self.take(calls, refused)


class Http2Transport:
    """See ``Transport``."""

    name = "http2"

    def __init__(self, options: Options) -> None:
        self._limits = Limits.of(options)
        self._held = Held(self._limits.held_bytes_in_all)
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._taken: dict[str, Taken] = {}
        self._sockets: list[socket.socket] = []
        self._certificates: Certificates | None = None
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handing_over = self._stopped = False
        self._looking: asyncio.TimerHandle | None = None
        self._looked_s = 0.0
        self.on_failure: Callable[[], object] | None = None
        self.on_unread: Callable[[str, grpc.StatusCode], object] | None = None

    # -- Transport

    def add_handlers(self, service: str, handlers: Handlers) -> None:
        """See ``Transport``."""
        self._handlers.update({f"/{service}/{method}": handler for method, handler in handlers.items()})

    def take_calls(self, path: str, take: Take) -> None:
        """See ``Transport``."""
        self._taken[path] = Taken(take)

    def listen(self, address: str, certificates: Certificates | None = None) -> int:
        """See ``Transport``."""
        self._certificates = certificates
        self._sockets += bound(address, shares_port=self._limits.shares_port)
        port: int = self._sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """See ``Transport``."""
        loop = self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(loop, self._expire)
        certificates = self._certificates
        tls = None if certificates is None else certificates.for_http(asks_clients=True, protocols=("h2",))
        within_s = None if tls is None else self._limits.handshake_s
        for each in self._sockets:
            server = await loop.create_server(
                self._connect, sock=each, backlog=socket.SOMAXCONN, ssl=tls, ssl_handshake_timeout=within_s
            )
            self._servers.append(server)
        self._look()

    def stop_listening(self) -> None:
        """See ``Transport``."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.leave()

    async def stop(self, grace_s: float | None) -> None:
        """See ``Transport``."""
        if self._stopped:
            return
        self.stop_listening()
        until_s = time.monotonic() + (grace_s or 0.0)
        while any(each.calls for each in self._connections) and time.monotonic() < until_s:
            await asyncio.sleep(LAST_S / 10)
        self._stopped = True
        for connection in list(self._connections):
            connection.fail_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)
        if self._looking is not None:
            self._looking.cancel()
            self._deadlines.close()
        for each in self._sockets:
            each.close()
        until_s = time.monotonic() + LAST_S
        while self._connections and time.monotonic() < until_s:
            await asyncio.sleep(LAST_S / 10)
        for connection in list(self._connections):
            connection.abort()

    # -- Calls

    def made(self, connection: Connection) -> bool:
        """See ``Calls``."""
        if len(self._connections) >= self._limits.connections or self._stopped:
            return False
        self._connections.add(connection)
        return True

    def lost(self, connection: Connection) -> None:
        """See ``Calls``."""
        self._connections.discard(connection)

    def begin(self, call: Http2Call) -> None:
        """See ``Calls``."""
        if call.path not in self._taken:
            handler = call.handler = self._handlers.get(call.path)
            if handler is None:
                call.fail(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
                return
            call.is_streaming = handler.request_streaming
        if call.deadline_s is not None:
            self._deadlines.add(call, call.deadline_s)
        if call.is_streaming:
            self._start(call)

    def has_message(self, call: Http2Call) -> None:
        """See ``Calls``."""
        if call.handler is not None:
            self._start(call)
            return
        taken = self._taken[call.path]
        if taken.has_room(call):
            taken.calls.append(call)
        else:
            taken.refused += 1
            call.fail(*REFUSAL)
        if not self._handing_over:
            self._handing_over = True
            self._loop.call_soon(self._hand_over)

    def end(self, call: Http2Call) -> None:
        """See ``Calls``."""
        self._deadlines.discard(call)

    def unread(self, call: Http2Call, code: grpc.StatusCode) -> None:
        """See ``Calls``."""
        if self.on_unread is not None:
            self.on_unread(call.path, code)

    # -- what is done now and then

    def _connect(self) -> Connection:
        age_s = self._limits.age_s * random.uniform(1 - SPREAD, 1 + SPREAD)
        return Connection(self, self._limits, age_s, self._held)

    def _hand_over(self) -> None:
        """What has come since the last time, from all connections."""
        self._handing_over = False
        try:
            for taken in self._taken.values():
                taken.hand_over()
        except Exception as error:
            log.critical("calls cannot be taken any more; the server ends", exc_info=error)
            if self.on_failure is not None:
                self.on_failure()

    def _start(self, call: Http2Call) -> None:
        call.is_read = True
        task = self._loop.create_task(answer(call))
        call.left = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _expire(self, call: Http2Call) -> None:
        call.expire()

    def _look(self) -> None:
        """Look after all connections, and now and then after calls whose message does not come."""
        now_s = time.monotonic()
        for connection in list(self._connections):
            connection.look(now_s)
        if now_s - self._looked_s > min(MESSAGE_S, 1.0):
            self._looked_s = now_s
            for connection in list(self._connections):
                for call in list(connection.calls.values()):
                    if not call.is_read and now_s - call.begun_s > MESSAGE_S:
                        connection.expire(call, f"the message has not arrived within {MESSAGE_S:g} s")
        self._looking = self._loop.call_later(self._limits.look_every_s, self._look)
