"""gRPC's own core as a transport: one thread reads its completion queue and hands the event loop many events at once.

This is what ``grpc.server`` is made of, without its threads, and what ``grpc.aio`` is made of, without a task and its
futures for every call. grpcio does not publish it: so only few names of it are used, and with a version that was not
tested ``open_transport`` chooses grpc.aio.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined, unused-ignore]

from fathom.serving.transport.contract import FIRSTS, Handlers, Options, Take, can_wait, status_of_leaving
from fathom.serving.transport.core_call import (
    END,
    FAILED,
    MESSAGE,
    NEW,
    REFUSED,
    SENT,
    STOPPED,
    STREAM,
    Core,
    CoreCall,
    answer,
    refuse,
)

#: Calls of each kind that the core may hand over before it has to be asked for more.
REQUESTED = 128
#: How long the only message of a call may take to arrive; at most twice as long.
MESSAGE_S = 30.0

log = logging.getLogger("fathom.serving")


class CoreTransport:
    """See ``Transport``. Its thread only reads events and asks for messages; all else is done in the event loop."""

    name = "core"

    def __init__(self, options: Options) -> None:
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._takes: dict[str, Take] = {}
        #: (kind, whom it concerns, the event), from the thread to the event loop.
        self._events: deque[tuple[int, Any, Any]] = deque()
        #: By path: how many calls there is room for, and how many have been refused for want of it.
        self._room: dict[str, int | None] = {}
        self._refused: dict[str, int] = {}
        #: How many of these the event loop has heard of: each of the two numbers is written by one thread.
        self._told_of: dict[str, int] = {}
        #: Connections that have had a call since the event loop last took some, while there was no room.
        self._firsts: set[bytes] = set()
        self._woken = self._failed = False
        #: Unary calls whose message has not arrived.
        self._unread: set[CoreCall] = set()
        self._giving_up: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_failure: Callable[[], object] | None = None
        self.on_unread: Callable[[str, grpc.StatusCode], object] | None = None
        self._thread = threading.Thread(target=self._run, name="fathom-grpc", daemon=True)
        self._stopped: asyncio.Future[None] | None = None
        self._core = Core()

    def add_handlers(self, service: str, handlers: Handlers) -> None:
        """See ``Transport``."""
        self._handlers.update({f"/{service}/{method}": handler for method, handler in handlers.items()})

    def take_calls(self, path: str, take: Take) -> None:
        """See ``Transport``."""
        self._server.register_method(path)
        self._takes[path], self._room[path] = take, None
        self._refused[path] = self._told_of[path] = 0

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """See ``Transport``."""
        more = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined, unused-ignore]
        port: int = self._server.add_http2_port(address.encode(), *more)
        if not port:
            raise RuntimeError(f"gRPC cannot listen on {address}")
        return port

    async def start(self) -> None:
        """See ``Transport``."""
        self._loop = asyncio.get_running_loop()
        self._server.start()
        for path in (None, *self._takes):
            for _ in range(REQUESTED):
                self._request(path)
        self._thread.start()
        self._give_up(set())

    async def stop(self, grace_s: float | None) -> None:
        """See ``Transport``."""
        if not self._thread.is_alive():
            return
        if self._giving_up is not None:
            self._giving_up.cancel()
        if self._stopped is None:
            self._stopped = self._loop.create_future()
            self._server.shutdown(self._queue, (STOPPED, self._stopped))
        if grace_s:
            await asyncio.wait((self._stopped,), timeout=grace_s)
        if not self._stopped.done():
            self._server.cancel_all_calls()
        await asyncio.shield(self._stopped)
        # In the event loop, so that it starts nothing more on a queue that is shut down, which would end the process.
        self._core.takes = False
        self._queue.shutdown()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)
        await asyncio.to_thread(self._thread.join)

    def _request(self, path: str | None) -> None:
        """Ask the core for one call more: of a method that is taken, or of any other."""
        with suppress(ValueError):  # it is stopping
            if path is None:
                self._server.request_call(self._queue, self._queue, (NEW, None))
            else:
                self._server.request_registered_call(self._queue, self._queue, path, (NEW, path))

    def _run(self) -> None:
        """The thread. A fault of it ends the server, for which it goes on reading, but begins no more calls."""
        try:
            self._read()
        except Exception as error:
            log.critical("the thread that reads what gRPC tells has failed; the server ends", exc_info=error)
            self._failed = True
            self._pass_on(FAILED, None, None)
            self._read()

    def _read(self) -> None:
        """In the thread: read events until the core has no more."""
        poll = self._queue.poll
        while True:
            event = poll()
            if event.tag is None:
                if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                    return
                continue
            kind, whom = event.tag
            if kind == NEW:
                if not self._failed:
                    self._begin(event, whom)
            elif kind != SENT and not (kind == END and whom.ended):
                self._pass_on(kind, whom, event)

    def _begin(self, event: Any, path: str | None) -> None:
        """In the thread: ask for the message of a new call, before the event loop hears of it."""
        if event.call is None or not event.success:
            return  # The server is stopping, and gives back what was requested.
        self._request(path)
        handler = None
        if path is not None:
            if not self._has_room(path, event):
                refuse(event.call)
                return
        else:
            path = event.call_details.method.decode("latin-1")
            handler = self._handlers.get(path)
        call = CoreCall(event, path, handler, self._core)
        event.call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), (END, call))
        if handler is None and path not in self._takes:
            call.fail(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
        elif handler is not None and handler.request_streaming:
            self._pass_on(STREAM, call, None)
        else:
            self._unread.add(call)
            event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), (MESSAGE, call))

    def _has_room(self, path: str, event: Any) -> bool:
        """In the thread: whether a new call may be read."""
        room = self._room[path]
        if room is None or can_wait(event.call_details.deadline, time.time()):
            return True
        if room <= 0 and not self._is_first(event.call.peer()):
            self._refused[path] += 1
            # The event loop says what there is room for, and has to hear of it even if nothing else happens.
            if not self._events:
                self._pass_on(REFUSED, None, None)
            return False
        self._room[path] = room - 1
        return True

    def _is_first(self, peer: bytes) -> bool:
        """Whether a connection gets in a call although there is no room."""
        if peer in self._firsts or len(self._firsts) >= FIRSTS:
            return False
        self._firsts.add(peer)
        return True

    def _pass_on(self, kind: int, whom: Any, event: Any) -> None:
        """In the thread: let the event loop handle it, with all else that it has not come to yet."""
        self._events.append((kind, whom, event))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed, so nobody is left who could answer
                self._loop.call_soon_threadsafe(self._handle)

    def _handle(self) -> None:
        """In the event loop: all that has happened since the last time."""
        self._woken = False
        events = [self._events.popleft() for _ in range(len(self._events))]
        taken: dict[str, list[CoreCall]] = {path: [] for path in self._takes}
        for kind, whom, event in events:
            if kind == END:  # first: nothing is done for who has left meanwhile
                self._leave(whom, event)
        for kind, whom, event in events:
            if kind == MESSAGE:
                if self._has_message(whom, event):
                    if whom.handler is None:
                        taken[whom.path].append(whom)
                    else:
                        self._start(whom)
            elif kind == STREAM:
                if not whom.ended:
                    self._start(whom)
            elif kind == FAILED:
                if self.on_failure is not None:
                    self.on_failure()
            elif kind != END and kind != REFUSED and not whom.done():  # a step of a coroutine, or the end of the server
                whom.set_result(event)
        for path, calls in taken.items():
            refused = self._refused[path] - self._told_of[path]
            if calls or refused:
                self._told_of[path] += refused
                self._firsts = set()
                self._room[path] = self._takes[path](calls, refused)

    def _has_message(self, call: CoreCall, event: Any) -> bool:
        """Whether there is something to do for a call whose message has come, or will not come any more."""
        if call not in self._unread:
            return False  # It has been given up.
        self._unread.remove(call)
        payload = event.batch_operations[0].message()
        if payload is None and not event.success:
            self._note_unread(call, grpc.StatusCode.RESOURCE_EXHAUSTED)  # Too large, and the core has said so.
            call.ended = True
        elif call.ended:
            self._note_unread(call, status_of_leaving(call))
        elif payload is None:
            # Or its caller has left, and its end will say so.
            call.try_to_fail(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        else:
            call.payload = payload
            return True
        return False

    def _give_up(self, before: set[CoreCall]) -> None:
        """End calls that were waiting for their message before, and still are."""
        for call in before & self._unread:
            self._unread.remove(call)
            call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, f"the message has not arrived within {MESSAGE_S:g} s")
            self._note_unread(call, grpc.StatusCode.DEADLINE_EXCEEDED)
        self._giving_up = self._loop.call_later(MESSAGE_S, self._give_up, self._unread.copy())

    def _start(self, call: CoreCall) -> None:
        task = self._loop.create_task(answer(call))
        call.left = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note_unread(self, call: CoreCall, code: grpc.StatusCode) -> None:
        if self.on_unread is not None:
            self.on_unread(call.path, code)

    def _leave(self, call: CoreCall, end: Any) -> None:
        if call.ended:
            return
        call.ended = True
        if call.left is not None:
            call.left()
        elif call not in self._unread:  # Else what became of its message will say.
            cancelled = end.batch_operations[0].cancelled()
            self._note_unread(call, status_of_leaving(call) if cancelled else grpc.StatusCode.INVALID_ARGUMENT)
