"""Prometheus metrics of one server.

docs/operating.md lists them. Each server has its own registry, so that several can live in one process.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fathom.runtime.query import Answer
from fathom.selector.choice import DepthReason

# From 0.25 ms to 5 s: engine times start below a millisecond, deadlines end at seconds.
SECONDS = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
#: Calls and answers that are counted together.
MOST_NOTED = 64


class Reading(NamedTuple):
    """The present value of a gauge under its labels; readings of one name come one after the other."""

    name: str
    text: str
    labels: Mapping[str, str]
    value: float


class _Readings(Collector):
    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for (name, text), readings in groupby(self._read(), key=lambda each: each[:2]):
            found = list(readings)
            family = GaugeMetricFamily(name, text, labels=tuple(found[0].labels))
            for each in found:
                family.add_metric(tuple(each.labels.values()), each.value)
            yield family


class _Settling(Collector):
    """Has no metric of its own: lets the others be up to date when they are read."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def collect(self) -> Iterable[Metric]:
        self._settle()
        return ()


class Metrics:
    """The server's metrics; all methods but ``ran`` are called from the event loop.

    Calls and answers are buffered and counted in batches, at a third of the cost. If no metrics port is open
    (``shown`` false) they are not counted at all.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self.registry = CollectorRegistry()
        self._shown = shown
        self._noted: deque[Callable[[], None]] = deque()
        self.registry.register(_Settling(self._settle))
        self._of_call = cache(self._children_of_call)
        self._of_answer = cache(self._children_of_answer)
        self._calls = self._counter("fathom_calls", "gRPC calls that have ended.", ("method", "status"))
        self._call_seconds = self._histogram("fathom_call_seconds", "Duration of gRPC calls.", ("method",))
        self._requests = self._counter(
            "fathom_requests",
            "Requests answered or refused, each one of a batch or stream counted; depth and reason when answered.",
            ("bundle", "status", "depth", "reason"),
        )
        self._request_seconds = self._histogram(
            "fathom_request_seconds", "From a request's arrival in the pipeline to its answer.", ("bundle", "depth")
        )
        self._queue_seconds = self._histogram("fathom_queue_seconds", "Time answered requests waited in a lane.", ())
        self._engine_seconds = self._histogram("fathom_engine_seconds", "Time of one engine run.", ("bundle", "depth"))
        self._history_seconds = self._histogram(
            "fathom_history_seconds", "Time of one use of the users' histories.", ("operation",)
        )
        self._reused = self._counter(
            "fathom_reused", "Answered requests by what of them was known already.", ("bundle", "reused")
        )
        self._unknown = self._counter("fathom_unknown_items", "Items of histories that are not in the catalogue.", ())
        self._batch_size = self._histogram(
            "fathom_batch_size", "Requests per engine run.", ("bundle", "depth"), BATCH_SIZES
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def show(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Publish values that are read at every scrape, from another thread."""
        self.registry.register(_Readings(read))

    def called(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """A gRPC call has ended."""
        if self._shown:
            self._note(partial(self._count_call, method, code, seconds))

    def answered(self, bundle: str, answer: Answer, unknown_items: int) -> None:
        """A request has its answer."""
        if not self._shown:
            return
        choice, timing = answer.choice, answer.timing
        labels = bundle, choice.depth, choice.reason, answer.reused
        self._note(partial(self._count_answer, labels, timing.total_us / 1e6, timing.queue_us / 1e6, unknown_items))

    def _note(self, count: Callable[[], None]) -> None:
        self._noted.append(count)
        if len(self._noted) >= MOST_NOTED:
            self._settle()

    def _settle(self) -> None:
        """Count what was noted; called by whoever reads, too, from another thread."""
        while self._noted:
            try:
                count = self._noted.popleft()
            except IndexError:
                return
            count()

    def _count_call(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        ended, took = self._of_call(method, code)
        ended.inc()
        took.observe(seconds)

    def _children_of_call(self, method: str, code: grpc.StatusCode) -> tuple[Counter, Histogram]:
        return self._calls.labels(method, code.name), self._call_seconds.labels(method)

    def _count_answer(
        self, labels: tuple[str, int, DepthReason, str], total_s: float, queue_s: float, unknown_items: int
    ) -> None:
        answered, took, reused = self._of_answer(*labels)
        answered.inc()
        took.observe(total_s)
        reused.inc()
        self._queue_seconds.observe(queue_s)
        if unknown_items:
            self._unknown.inc(unknown_items)

    def _children_of_answer(
        self, bundle: str, depth: int, reason: DepthReason, reused: str
    ) -> tuple[Counter, Histogram, Counter]:
        return (
            self._requests.labels(bundle, "OK", str(depth), reason.value),
            self._request_seconds.labels(bundle, str(depth)),
            self._reused.labels(bundle, reused),
        )

    def using_history(self, operation: str) -> AbstractContextManager[Any]:
        """Time what is done inside."""
        return self._history_seconds.labels(operation).time()

    def failed(self, code: grpc.StatusCode) -> None:
        """A request got an error instead."""
        if self._shown:
            self._requests.labels("", code.name, "", "").inc()

    def ran(self, bundle: str, depth: int, size: int, seconds: float) -> None:
        """An engine has run a batch; called from its thread."""
        if self._shown:
            self._engine_seconds.labels(bundle, str(depth)).observe(seconds)
            self._batch_size.labels(bundle, str(depth)).observe(size)
