"""The same as ``blocking`` for asyncio: tasks in the place of threads."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc

from fathom.client import arguments
from fathom.client.affinity import Backend, Way
from fathom.client.blocking import Sent
from fathom.client.channels import GONE, Channels, Options
from fathom.client.messages import Call, Many, T, error_of
from fathom.client.names import AGAIN_S, LOOK_UP_S
from fathom.connection import Connection
from fathom.errors import ConnectError


class AsyncCalls(Channels):
    """Belongs to one event loop. Names are looked up, and servers watched, from the first call to ``close``."""

    def _open(self, connection: Connection, targets: Sequence[str], channels: int, *, affinity: bool) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = not affinity
        self._known, self._lost = asyncio.Event(), asyncio.Event()
        super()._open(connection, targets, channels, affinity=affinity)

    @staticmethod
    def _channel(connection: Connection, options: Options) -> grpc.aio.Channel:
        return connection.aio_channel(options)

    async def _wait(self, timeout_s: float) -> None:
        if not self._started:
            self._started = True
            self._watch(self._backends.all)
            if self._looks_up:
                self._spawn(self._look_up())
        if not self._looks_up or self._known.is_set():
            return
        try:
            async with asyncio.timeout(arguments.seconds("timeout_s", timeout_s)):
                await self._known.wait()
        except TimeoutError:
            raise ConnectError(f"{self.target}: the name cannot be looked up: {self._names.why}") from None

    async def _call(self, call: Call[T], timeout_s: float) -> T:
        await self._wait(timeout_s)
        return await self._finish(call, self._way(call, timeout_s))

    async def _finish(self, call: Call[T], way: Way, sent: Any = None) -> T:
        while True:
            try:
                answer = await (self._send(call, way) if sent is None else sent)
            except grpc.RpcError as error:
                pause_s = way.failed(error.code())
                if pause_s is None:
                    raise error_of(way.backend.target, error) from None
            else:
                way.succeeded()
                return call.read(answer)
            finally:
                self._close_unused(way.release())
            await asyncio.sleep(pause_s)
            way.next()
            sent = None

    async def _send_many(self, call: Call[Many], timeout_s: float) -> list[Sent]:
        await self._wait(timeout_s)
        return [self._send_part(places, part, timeout_s) for places, part in self._groups(call)]

    def _send_part(self, places: list[int], call: Call[Many], timeout_s: float) -> Sent:
        way = self._way(call, timeout_s)
        return Sent(places, call, way, self._send(call, way))

    async def _finish_many(self, sent: Sequence[Sent]) -> Many:
        if len(sent) == 1:
            return await self._finish(sent[0].call, sent[0].way, sent[0].future)
        found: dict[int, Any] = {}
        try:
            for places, call, way, future in sent:
                answers = await self._finish(call, way, future)
                found.update(zip(places, answers, strict=True))
        finally:
            self._cancel(sent)
        return [found[place] for place in sorted(found)]

    def _cancel(self, sent: Sequence[Sent]) -> None:
        for each in sent:
            each.future.cancel()
            self._close_unused(each.way.release())

    async def _look_up(self) -> None:
        while True:
            if places := await asyncio.to_thread(self._names.look_up):
                added, unused = self._become(places)
                self._watch(added)
                self._close_unused(*unused)
                self._known.set()
            await asyncio.sleep(AGAIN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_UP_S if self._known.is_set() else 0):
                    await self._lost.wait()
            self._lost.clear()

    def _watch(self, backends: Sequence[Backend]) -> None:
        for each in backends:
            self._spawn(self._follow(each))

    async def _follow(self, backend: Backend) -> None:
        """Learn from gRPC whether a server is gone or draining."""
        while not backend.removed:
            state = backend.channel.get_state(try_to_connect=True)
            backend.usable = state not in GONE
            if not backend.usable:
                self._lost.set()
            await backend.channel.wait_for_state_change(state)

    def _close_unused(self, *backends: Backend | None) -> None:
        for each in backends:
            if each is not None:
                self._spawn(each.channel.close(None))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Close the connections."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for each in self._backends.all:
            await each.channel.close(None)
