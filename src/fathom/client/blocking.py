"""How a blocking client sends calls, and how it keeps up with servers that come and go."""

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc

from fathom.client import arguments
from fathom.client.affinity import Backend, Way
from fathom.client.channels import GONE, Channels, Options
from fathom.client.messages import Call, Many, T, error_of
from fathom.client.names import AGAIN_S, LOOK_UP_S
from fathom.connection import Connection
from fathom.errors import ConnectError

#: After so long gRPC's thread has ended that watched a connection, or there is none, as in a forked process.
LONGEST_LOOK_S = 2.0


class Sent(NamedTuple):
    """A message that waits for its answer: the places of its queries in the whole, and what gRPC gives for it."""

    places: list[int]
    call: Call[Many]
    way: Way
    future: Any


class BlockingCalls(Channels):
    """Safe to share between threads. Names are looked up in a thread of its own, from the first call to ``close``."""

    def _open(self, connection: Connection, targets: Sequence[str], channels: int, *, affinity: bool) -> None:
        self._starting, self._looking = threading.Lock(), False
        self._known, self._lost, self._closed = threading.Event(), threading.Event(), threading.Event()
        super()._open(connection, targets, channels, affinity=affinity)
        self._watch(self._backends.all)

    @staticmethod
    def _channel(connection: Connection, options: Options) -> grpc.Channel:
        return connection.channel(options)

    def _wait(self, timeout_s: float) -> None:
        """Return once there is somebody to call; raises ConnectError where that takes too long."""
        if not self._looks_up or self._known.is_set():
            return
        with self._starting:
            if not self._looking:
                threading.Thread(target=self._look_up, name="fathom-client-names", daemon=True).start()
                self._looking = True
        if not self._known.wait(arguments.seconds("timeout_s", timeout_s)):
            raise ConnectError(f"{self.target}: the name cannot be looked up: {self._names.why}")

    def _call(self, call: Call[T], timeout_s: float) -> T:
        self._wait(timeout_s)
        return self._finish(call, self._way(call, timeout_s))

    def _finish(self, call: Call[T], way: Way, future: Any = None) -> T:
        """The answer, of the first server that has one; ``future``: of a call that has been sent."""
        while True:
            try:
                answer = self._send(call, way) if future is None else future.result()
            except grpc.RpcError as error:
                pause_s = way.failed(error.code())
                if pause_s is None:
                    raise error_of(way.backend.target, error) from None
            else:
                way.succeeded()
                return call.read(answer)
            finally:
                self._close_unused(way.release())
            time.sleep(pause_s)
            way.next()
            future = None

    def _send_many(self, call: Call[Many], timeout_s: float) -> list[Sent]:
        """Send a message of many queries, in parts where several servers are to get them."""
        self._wait(timeout_s)
        return [self._send_part(places, part, timeout_s) for places, part in self._groups(call)]

    def _send_part(self, places: list[int], call: Call[Many], timeout_s: float) -> Sent:
        way = self._way(call, timeout_s)
        return Sent(places, call, way, self._send(call, way, future=True))

    def _finish_many(self, sent: Sequence[Sent]) -> Many:
        """The answers of all parts, in the order of the queries."""
        if len(sent) == 1:
            return self._finish(sent[0].call, sent[0].way, sent[0].future)
        found: dict[int, Any] = {}
        try:
            for places, call, way, future in sent:
                answers = self._finish(call, way, future)
                found.update(zip(places, answers, strict=True))
        finally:
            self._cancel(sent)
        return [found[place] for place in sorted(found)]

    def _cancel(self, sent: Sequence[Sent]) -> None:
        for each in sent:
            each.future.cancel()
            self._close_unused(each.way.release())

    def _look_up(self) -> None:
        while not self._closed.is_set():
            places = self._names.look_up()
            if places and not self._closed.is_set():
                added, unused = self._become(places)
                self._watch(added)
                self._close_unused(*unused)
                self._known.set()
            self._closed.wait(AGAIN_S)
            self._lost.wait(LOOK_UP_S if self._known.is_set() else 0)
            self._lost.clear()

    def _watch(self, backends: Sequence[Backend]) -> None:
        """Learn from gRPC which servers are gone or draining."""
        if not self._affinity:
            return
        for each in backends:

            def changed(state: grpc.ChannelConnectivity, backend: Backend = each) -> None:
                backend.usable = state not in GONE
                if not backend.usable:
                    self._lost.set()

            each.watcher = changed
            each.channel.subscribe(changed, try_to_connect=True)

    @staticmethod
    def _close_unused(*backends: Backend | None) -> None:
        """Close connections, none before the thread has ended in which gRPC watches it.

        That thread dies with a traceback where the channel is closed between two of its looks (grpc/grpc#18995), of
        which it takes five a second; gRPC's own ``close`` waits for its next one too, so that this hardly costs time.
        """
        unused = [each for each in backends if each is not None]
        for each in unused:
            if each.watcher is not None:
                each.channel.unsubscribe(each.watcher)
        latest = time.monotonic() + LONGEST_LOOK_S
        for each in unused:
            while _is_watched(each.channel) and time.monotonic() < latest:
                time.sleep(0.005)
            each.channel.close()

    def close(self) -> None:
        """Close the connections."""
        self._closed.set()
        self._lost.set()
        self._close_unused(*self._backends.all)


def _is_watched(channel: grpc.Channel) -> bool:
    """Whether gRPC's thread still looks at the state of a channel, which gRPC itself tells nobody."""
    return bool(getattr(getattr(channel, "_connectivity_state", None), "polling", False))
