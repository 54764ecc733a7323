"""Load on a server that costs the client a few microseconds per call, so that one core can ask for too much.

    closed(address, messages, outstanding, connections, seconds) -> Report
    open(address, messages, per_second, connections, seconds, deadline_ms) -> Report

``messages``: encoded requests, which take turns; give as many as are never to be repeated. ``closed`` keeps
``outstanding`` calls open, evenly on ``connections``; ``open`` starts calls at random moments, however slow the answers
are. Both block, and run in the calling thread: give it a core of its own, with ``os.sched_setaffinity``. Further
arguments: ``deadline_ms``, sent with each call and kept here too; ``method``; ``metadata`` of every call, as
``fathom-client``; ``keep``, which keeps the answers; ``seed`` of the moments.

    with started(bundle) as server:
        report = open(server.address, requests, 20_000, 4, 10.0, deadline_ms=50)
        print(report.counts(), report.per_s(within_ms=50), report.quantile_ms("RESOURCE_EXHAUSTED", 0.99))
"""

import gc
import select
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, thread_time

import grpc
import numpy as np

from fathom.benchmarks.http2 import DEADLINE_EXCEEDED, REFUSED, UNAVAILABLE, Connection, Headers, message_frame
from fathom.benchmarks.server import METHOD
from fathom.errors import ConfigError

#: Seconds that calls without a deadline may take after the end; then they count as DEADLINE_EXCEEDED.
LAST_S = 30.0
#: Calls that start before answers are looked at again.
TURN = 64
#: gRPC's names of statuses, by number.
STATUSES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True)
class Report:
    """Every call in the order in which they were due; an array has an entry for each, times in seconds from the start.

    ``sent_s``: NaN where a call was not sent, as there was no room on its connection before its deadline. ``statuses``:
    gRPC's numbers. ``answers``: empty, unless they were to be kept. ``cpu_s``: what the calling thread has used.
    """

    seconds: float
    due_s: np.ndarray
    sent_s: np.ndarray
    ended_s: np.ndarray
    statuses: np.ndarray
    answers: Sequence[bytes]
    cpu_s: float

    @property
    def took_ms(self) -> np.ndarray:
        """From the moment that a call was due to its end."""
        took: np.ndarray = (self.ended_s - self.due_s) * 1e3
        return took

    def counts(self) -> dict[str, int]:
        """How many calls ended in which way."""
        return {STATUSES[code]: count for code, count in sorted(Counter(self.statuses.tolist()).items())}

    def per_s(self, within_ms: float = np.inf) -> float:
        """Answers per second that came before the end, and in time."""
        good = (self.statuses == 0) & (self.ended_s <= self.seconds) & (self.took_ms <= within_ms)
        return float(np.count_nonzero(good)) / self.seconds

    def quantile_ms(self, status: str, share: float) -> float | None:
        """Of the time that calls with this status took; None where there are none."""
        took = self.took_ms[self.statuses == grpc.StatusCode[status].value[0]]
        return float(np.quantile(took, share)) if len(took) else None

    def late_ms(self, share: float = 0.99) -> float:
        """Quantile of the time by which calls were sent late, by a client that is too slow or a lack of room."""
        late = (self.sent_s - self.due_s)[~np.isnan(self.sent_s)]
        return float(np.quantile(late, share)) * 1e3 if len(late) else 0.0


class Calls:
    """What has become of each call so far, by its number; times as in ``Report``."""

    def __init__(self, *, keep: bool = False) -> None:
        self.due_s: list[float] = []
        self.sent_s: list[float] = []
        self._ended_s: list[float] = []
        self._statuses: list[int] = []
        self._answers: list[bytes] = []
        self._keep = keep

    def add(self, due_s: float) -> int:
        """A new call, which is not sent yet; returns its number."""
        self.due_s.append(due_s)
        self.sent_s.append(np.nan)
        self._ended_s.append(np.nan)
        self._statuses.append(UNAVAILABLE)
        if self._keep:
            self._answers.append(b"")
        return len(self.due_s) - 1

    def end(self, number: int, status: int, now_s: float, answer: bytes = b"") -> None:
        """It has ended now."""
        self._ended_s[number] = now_s
        self._statuses[number] = status
        if answer:
            self._answers[number] = answer

    def report(self, seconds: float, cpu_s: float) -> Report:
        """All of them, once they have ended."""
        due, sent, ended = np.array(self.due_s), np.array(self.sent_s), np.array(self._ended_s)
        return Report(seconds, due, sent, ended, np.array(self._statuses, np.int16), self._answers, cpu_s)


def arrivals(per_second: float, seconds: float, seed: int) -> deque[float]:
    """Random moments of a Poisson process of so many in the mean."""
    gaps = np.random.default_rng(seed).exponential(1 / per_second, int(per_second * seconds * 1.1 + 100))
    return deque(moment for moment in np.cumsum(gaps).tolist() if moment < seconds)


def closed(
    address: str,
    messages: Iterable[bytes],
    outstanding: int,
    connections: int,
    seconds: float,
    deadline_ms: int | None = None,
    *,
    method: str = METHOD,
    metadata: Mapping[str, str] | None = None,
    keep: bool = False,
) -> Report:
    """``outstanding`` calls at any moment; raises ConnectError where the server does not answer."""
    if outstanding % connections:
        raise ConfigError(f"{outstanding} calls cannot be spread evenly on {connections} connections")
    load = _Load(address, messages, connections, deadline_ms, method, metadata or {}, keep)
    share = outstanding // connections
    with load.running():
        while (now := load.now()) < seconds:
            for connection in load.connections:
                while len(connection.calls) < share and connection.room:
                    load.start(connection, now, now)
            load.turn(seconds - now)
    return load.report(seconds)


def open(
    address: str,
    messages: Iterable[bytes],
    per_second: float,
    connections: int,
    seconds: float,
    deadline_ms: int | None = None,
    *,
    method: str = METHOD,
    metadata: Mapping[str, str] | None = None,
    keep: bool = False,
    seed: int = 0,
) -> Report:
    """Poisson arrivals of ``per_second`` in the mean; raises ConnectError where the server does not answer."""
    moments = arrivals(per_second, seconds, seed)
    load = _Load(address, messages, connections, deadline_ms, method, metadata or {}, keep)
    with load.running():
        while moments:
            now = load.now()
            for _ in range(TURN):
                if not moments or moments[0] > now or not load.start_somewhere(moments[0], now):
                    break
                moments.popleft()
            load.turn(moments[0] - now if moments else 0.0)
    return load.report(seconds)


class _Load:
    """Connections, and what became of each call."""

    def __init__(
        self,
        address: str,
        messages: Iterable[bytes],
        connections: int,
        deadline_ms: int | None,
        method: str,
        metadata: Mapping[str, str],
        keep: bool,
    ) -> None:
        self._address, self._keep, self._deadline_ms = address, keep, deadline_ms
        self._messages = [message_frame(message) for message in messages]
        if not self._messages:
            raise ConfigError("there are no messages to send")
        self._longest = max(len(message.body) for message in self._messages)
        self._headers = Headers(address, method, metadata, deadline_ms)
        self.connections = [self._connect() for _ in range(connections)]
        #: Those that take no more calls.
        self._leaving: list[Connection] = []
        self._turn, self._begin, self._cpu_s = 0, 0.0, 0.0
        self._calls = Calls(keep=keep)
        #: Numbers of calls to be sent again.
        self._refused: deque[int] = deque()
        #: Deadline, number, connection and stream of calls, as they were sent.
        self._deadlines: deque[tuple[float, int, Connection, int]] = deque()

    def _connect(self) -> Connection:
        return Connection(self._address, self._headers, self._longest, keep=self._keep)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The clock runs; at the end, waits for calls that are open."""
        gc.disable()
        self._begin, self._cpu_s = perf_counter(), thread_time()
        try:
            yield
            last = self.now() + LAST_S
            while self._open() and self.now() < last:
                self.turn(last - self.now())
            for number in [*self._refused, *(each for one in self._all() for each in one.calls.values())]:
                self._calls.end(number, DEADLINE_EXCEEDED, self.now())
        finally:
            self._cpu_s = thread_time() - self._cpu_s
            gc.enable()
            for connection in self._all():
                connection.close()

    def now(self) -> float:
        """Seconds from the start."""
        return perf_counter() - self._begin

    def start_somewhere(self, due_s: float, now: float) -> bool:
        """A new call on the next connection that has room; False where there is none, and time to wait for it."""
        connection = self._free()
        if connection is not None:
            self.start(connection, due_s, now)
        elif self._deadline_ms is None or now < due_s + self._deadline_ms / 1e3:
            return False
        else:
            self._calls.end(self._calls.add(due_s), DEADLINE_EXCEEDED, now)
        return True

    def start(self, connection: Connection, due_s: float, now: float) -> None:
        """A new call on a connection."""
        self._send(connection, self._calls.add(due_s), now)

    def _send(self, connection: Connection, number: int, now: float) -> None:
        headers, due_s = None, self._calls.due_s[number]
        if self._deadline_ms is not None:
            left_ms = self._deadline_ms - int((now - due_s) * 1e3)
            if left_ms <= 0:
                self._calls.end(number, DEADLINE_EXCEEDED, now)
                return
            headers = self._headers.within(left_ms) if left_ms < self._deadline_ms else None
        self._calls.sent_s[number] = now
        stream = connection.start(number, self._messages[number % len(self._messages)], headers)
        if self._deadline_ms is not None:
            self._deadlines.append((due_s + self._deadline_ms / 1e3, number, connection, stream))

    def _free(self) -> Connection | None:
        """The next connection that has room."""
        for _ in self.connections:
            self._turn = (self._turn + 1) % len(self.connections)
            if self.connections[self._turn].room:
                return self.connections[self._turn]
        return None

    def turn(self, wait_s: float) -> None:
        """Send and receive, for at most ``wait_s``."""
        everyone = self._all()
        for connection in everyone:
            if connection.unsent:
                connection.flush()
        if self._deadlines:
            wait_s = min(wait_s, self._deadlines[0][0] - self.now())
        waiting = [connection for connection in everyone if connection.unsent]
        readable, _, _ = select.select(everyone, waiting, [], max(0.0, wait_s))
        for connection in readable:
            ended = connection.receive()
            now = self.now()
            for number, status, answer in ended:
                if status == REFUSED:
                    self._refused.append(number)
                else:
                    self._calls.end(number, status, now, answer)
            if connection.closing:
                self._replace(connection)
        while self._refused and (free := self._free()) is not None:
            self._send(free, self._refused.popleft(), self.now())
        self._expire()

    def report(self, seconds: float) -> Report:
        """What became of the calls."""
        return self._calls.report(seconds, self._cpu_s)

    def _all(self) -> list[Connection]:
        return [*self.connections, *self._leaving] if self._leaving else self.connections

    def _open(self) -> int:
        return len(self._refused) + sum(len(connection.calls) for connection in self._all())

    def _expire(self) -> None:
        """End calls that are late, as a gRPC client does."""
        now = self.now()
        while self._deadlines:
            deadline_s, number, connection, stream = self._deadlines[0]
            if stream in connection.calls:
                if now < deadline_s:
                    return
                connection.cancel(stream)
                self._calls.end(number, DEADLINE_EXCEEDED, now)
            self._deadlines.popleft()

    def _replace(self, connection: Connection) -> None:
        """A connection that takes no more calls gives its place to a new one, and stays until its own have ended."""
        if connection in self.connections:
            self.connections[self.connections.index(connection)] = self._connect()
            self._leaving.append(connection)
        if connection.closed or not connection.calls:
            self._leaving.remove(connection)
            connection.close()
