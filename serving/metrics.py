"""Prometheus metrics of one server.

docs/operating.md lists them. Each server has its own registry, so that several can live in one process.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import NamedTuple, TypeVar

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from fathom.runtime.query import Answer

Metric = TypeVar("Metric", bound=Collector)

# From 0.25 ms to 5 s: engine times start below a millisecond, deadlines end at seconds.
SECONDS = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


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


class _Counter(Collector):
    """Counts by labels, which are written out when they are read.

    These two classes cost a fifth of prometheus_client's own, which lock each number. Counts of the same labels are
    added to by one thread; they are read by any.
    """

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: dict[tuple[object, ...], int] = {} if labels else {(): 0}

    def add(self, *labels: object, count: int = 1) -> None:
        self._counts[labels] = self._counts.get(labels, 0) + count

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric([str(label) for label in labels], count)
        yield family

    describe = collect


class _Histogram(Collector):
    """The same for values: how many there are up to each of some bounds, and their sum."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], bounds: Sequence[float] = SECONDS) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = (*bounds, math.inf)
        # By labels: a count for every bound, then the sum.
        self._counts: dict[tuple[object, ...], list[float]] = {}
        if not labels:
            self._counts_of(())

    def observe(self, value: float, *labels: object) -> None:
        counts = self._counts.get(labels) or self._counts_of(labels)
        counts[bisect_left(self._bounds, value)] += 1
        counts[-1] += value

    def totals(self) -> dict[tuple[object, ...], tuple[int, float]]:
        """By labels: how many values there were, and their sum."""
        return {labels: (int(sum(counts[:-1])), counts[-1]) for labels, counts in list(self._counts.items())}

    def _counts_of(self, labels: tuple[object, ...]) -> list[float]:
        return self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, counts in list(self._counts.items()):
            *within, total = counts
            buckets = list(zip(map(floatToGoString, self._bounds), accumulate(within), strict=True))
            family.add_metric([str(label) for label in labels], buckets, total)
        yield family

    describe = collect


class Metrics:
    """The server's metrics; all methods but ``ran`` are called from the event loop.

    If nobody asks for them (``shown`` false), calls, answers and runs are not counted.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self.registry = CollectorRegistry()
        self._shown = shown
        self._calls = self._registered(_Counter("fathom_calls", "gRPC calls that have ended.", ("method", "status")))
        self._call_seconds = self._registered(_Histogram("fathom_call_seconds", "Duration of gRPC calls.", ("method",)))
        self._requests = self._registered(
            _Counter(
                "fathom_requests",
                "Requests answered or refused, each one of a batch or stream counted; depth and reason when answered.",
                ("bundle", "status", "depth", "reason"),
            )
        )
        self._request_seconds = self._registered(
            _Histogram(
                "fathom_request_seconds", "From a request's arrival in the pipeline to its answer.", ("bundle", "depth")
            )
        )
        self._queue_seconds = self._registered(
            _Histogram("fathom_queue_seconds", "Time answered requests waited in a lane.", ())
        )
        self._engine_seconds = self._registered(
            _Histogram("fathom_engine_seconds", "Time of one engine run.", ("bundle", "depth"))
        )
        self._history_seconds = self._registered(
            _Histogram("fathom_history_seconds", "Time of one use of the users' histories.", ("operation",))
        )
        self._reused = self._registered(
            _Counter("fathom_reused", "Answered requests by what of them was known already.", ("bundle", "reused"))
        )
        self._unknown = self._registered(
            _Counter("fathom_unknown_items", "Items of histories that are not in the catalogue.", ())
        )
        self._batch_size = self._registered(
            _Histogram("fathom_batch_size", "Requests per engine run.", ("bundle", "depth"), BATCH_SIZES)
        )

    def _registered(self, metric: Metric) -> Metric:
        self.registry.register(metric)
        return metric

    def show(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Publish values that are read at every scrape, from another thread."""
        self.registry.register(_Readings(read))

    def called(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """A gRPC call has ended."""
        if self._shown:
            self._calls.add(method, code.name)
            self._call_seconds.observe(seconds, method)

    def unread(self, path: str, code: grpc.StatusCode) -> None:
        """A gRPC call of a method, ``/service/method``, has ended before its message was read."""
        self.called(path.rpartition("/")[2], code, 0.0)

    def answered(self, bundle: str, answer: Answer, unknown_items: int) -> None:
        """A request has its answer."""
        if not self._shown:
            return
        choice, timing = answer.choice, answer.timing
        self._requests.add(bundle, "OK", choice.depth, choice.reason)
        self._request_seconds.observe(timing.total_us / 1e6, bundle, choice.depth)
        self._queue_seconds.observe(timing.queue_us / 1e6)
        self._reused.add(bundle, answer.reused)
        if unknown_items:
            self._unknown.add(count=unknown_items)

    def work(self) -> tuple[int, float, dict[str, float]]:
        """Requests answered since the start, the seconds that they waited, and those that each bundle's engine ran."""
        ((answered, waited_s),) = self._queue_seconds.totals().values()
        engines: dict[str, float] = {}
        for (bundle, _), (_, seconds) in self._engine_seconds.totals().items():
            engines[str(bundle)] = engines.get(str(bundle), 0.0) + seconds
        return answered, waited_s, engines

    @contextmanager
    def using_history(self, operation: str) -> Iterator[None]:
        """Time what is done inside."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._history_seconds.observe(time.perf_counter() - start_s, operation)

    def failed(self, code: grpc.StatusCode) -> None:
        """A request got an error instead."""
        if self._shown:
            self._requests.add("", code.name, "", "")

    def ran(self, bundle: str, depth: int, size: int, seconds: float) -> None:
        """An engine has run a batch; called from its thread."""
        if self._shown:
            self._engine_seconds.observe(seconds, bundle, depth)
            self._batch_size.observe(size, bundle, depth)
