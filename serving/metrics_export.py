"""Metrics by OTLP: those of the metrics port, sent to a collector by OpenTelemetry's exporter.

Where they go, and how often, the usual variables say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_METRIC_EXPORT_INTERVAL,
OTEL_SERVICE_NAME). What is sent is cumulative since the start of the server.
"""

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from itertools import groupby, pairwise
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

import fathom
from fathom.errors import ConfigError, brief, optional
from fathom.serving.tracing import server_resource

INTERVAL_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"
INTERVAL_MS = 60_000
#: For the last export, when the server ends.
LAST_S = 5.0
#: OpenTelemetry's units, by how a name ends.
UNITS = {"_seconds": "s", "_bytes": "By"}

log = logging.getLogger("fathom.serving")


class MetricsExport:
    """Sends a registry's metrics from a thread of its own; raises MissingExtraError without the extra `otel`.

    Each server is an instance of its own (``service.instance.id``), also where several workers share a port.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._points: Any = optional("opentelemetry.sdk.metrics.export", "otel")
        otlp: Any = optional("opentelemetry.exporter.otlp.proto.grpc.metric_exporter", "otel")
        scopes: Any = optional("opentelemetry.sdk.util.instrumentation", "otel")
        self._interval_s = _interval_s()
        self._registry = registry
        self._resource = server_resource({"service.instance.id": str(uuid.uuid4())})
        self._scope = scopes.InstrumentationScope("fathom", fathom.__version__)
        self._exporter = otlp.OTLPMetricExporter()
        self._begun_ns = time.time_ns()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fathom-metrics-export", daemon=True)

    def start(self) -> None:
        """Send for the first time after an interval."""
        self._thread.start()

    def close(self) -> None:
        """Send once more, and end; may take seconds."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(LAST_S)
        self._exporter.shutdown()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._send()
        self._send()

    def _send(self) -> None:
        try:
            # The exporter itself logs what does not arrive.
            self._exporter.export(self._data())
        except Exception:
            log.exception("metrics cannot be read")

    def _data(self) -> Any:
        now_ns, points = time.time_ns(), self._points
        metrics = [
            points.Metric(family.name, family.documentation, _unit(family.name), self._converted(family, now_ns))
            for family in self._registry.collect()
            if family.samples
        ]
        scope = points.ScopeMetrics(self._scope, metrics, "")
        return points.MetricsData([points.ResourceMetrics(self._resource, [scope], "")])

    def _converted(self, family: Metric, now_ns: int) -> Any:
        points, cumulative = self._points, self._points.AggregationTemporality.CUMULATIVE
        if family.type == "histogram":
            found = [
                points.HistogramDataPoint(labels, self._begun_ns, now_ns, **_buckets(samples), min=None, max=None)
                for labels, samples in _by_labels(family.samples)
            ]
            return points.Histogram(found, cumulative)
        numbers = [
            points.NumberDataPoint(dict(each.labels), self._begun_ns, now_ns, float(each.value))
            for each in family.samples
        ]
        return points.Sum(numbers, cumulative, True) if family.type == "counter" else points.Gauge(numbers)


def _interval_s() -> float:
    text = os.environ.get(INTERVAL_VARIABLE) or str(INTERVAL_MS)
    if not text.isdecimal() or not 1 <= int(text) <= 86_400_000:
        raise ConfigError(f"{INTERVAL_VARIABLE} is {brief(text)}; give milliseconds, from 1 to 86400000")
    return int(text) / 1e3


def _unit(name: str) -> str:
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")


def _by_labels(samples: Iterable[Sample]) -> Iterable[tuple[Mapping[str, str], list[Sample]]]:
    """The samples of each histogram of a family, and its labels; they come one histogram after the other."""

    def labels(sample: Sample) -> dict[str, str]:
        return {name: value for name, value in sample.labels.items() if name != "le"}

    return [(key, list(found)) for key, found in groupby(samples, labels)]


def _buckets(samples: Iterable[Sample]) -> dict[str, Any]:
    """Prometheus counts what is up to each bound, OpenTelemetry what is between two of them."""
    samples = list(samples)
    within = [(float(each.labels["le"]), int(each.value)) for each in samples if each.name.endswith("_bucket")]
    counts = [count for _, count in within]
    return {
        "count": counts[-1],
        "sum": next(each.value for each in samples if each.name.endswith("_sum")),
        "bucket_counts": [after - before for before, after in pairwise([0, *counts])],
        "explicit_bounds": [bound for bound, _ in within if not math.isinf(bound)],
    }
