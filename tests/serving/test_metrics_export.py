"""Metrics as a collector gets them by OTLP: a real receiver on a free port, beside what /metrics says."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fathom.client import AsyncClient
from fathom.errors import ConfigError
from fathom.serving.config import ServerSettings
from fathom.serving.server import Server

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otel is not installed")

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.metrics.v1 import metrics_pb2

HISTORY = ["item-1", "item-2"]
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self) -> None:
        self.exports: list[metrics_pb2.ResourceMetrics] = []
        self.arrived = asyncio.Condition()

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        async with self.arrived:
            self.exports += request.resource_metrics
            self.arrived.notify_all()
        return metrics_service_pb2.ExportMetricsServiceResponse()

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the last export, by name."""
        return {metric.name: metric for scope in self.exports[-1].scope_metrics for metric in scope.metrics}

    def resource(self, number: int = -1) -> dict[str, str]:
        return {each.key: each.value.string_value for each in self.exports[number].resource.attributes}


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    server, found = grpc.aio.server(), Collector()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield found
    await server.stop(None)


def as_prometheus(metrics: dict[str, Any]) -> Values:
    """What a collector's exporter for Prometheus would show of them."""
    found: Values = {}
    for name, metric in metrics.items():
        kind = metric.WhichOneof("data")
        for point in getattr(metric, kind).data_points:
            labels = {each.key: each.value.string_value for each in point.attributes}
            if kind == "histogram":
                bounds = [*map(float, point.explicit_bounds), float("inf")]
                for bound, count in zip(bounds, accumulate(point.bucket_counts), strict=True):
                    found[f"{name}_bucket", frozenset({**labels, "le": str(bound)}.items())] = count
                found[f"{name}_count", frozenset(labels.items())] = point.count
                found[f"{name}_sum", frozenset(labels.items())] = point.sum
            else:
                found[name + "_total" * (kind == "sum"), frozenset(labels.items())] = point.as_double
    return found


async def scraped(address: str | None) -> Values:
    def read() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
            text: str = page.read().decode()
            return text

    found: Values = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(read)):
        for sample in family.samples:
            labels = dict(sample.labels)
            if "le" in labels:
                labels["le"] = str(float(labels["le"]))
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


async def test_a_collector_gets_what_the_metrics_port_shows(synthetic_bundle: Path, collector: Collector) -> None:
    async with Server(ServerSettings(port=0, metrics_port=0, metrics="otlp", history="memory"), synthetic_bundle) as it:
        info = await it.start()
        async with AsyncClient(info.address) as client:
            await client.recommend(HISTORY, depth=4)
            await client.recommend([*HISTORY, "unknown"], depth=8)
            await client.recommend(user_id="nobody")
        shown = await scraped(info.metrics_address)
    assert as_prometheus(collector.metrics) == shown
    assert (
        shown[
            "fathom_requests_total",
            frozenset({"bundle": "synthetic", "status": "OK", "depth": "4", "reason": "fixed"}.items()),
        ]
        == 1
    )
    calls, queue = collector.metrics["fathom_calls"], collector.metrics["fathom_queue_seconds"]
    cumulative = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert (calls.sum.is_monotonic, calls.sum.aggregation_temporality) == (True, cumulative)
    assert (queue.unit, queue.histogram.aggregation_temporality) == ("s", cumulative)
    assert collector.metrics["fathom_reuse_bytes"].unit == "By"
    point = calls.sum.data_points[0]
    assert 0 < point.start_time_unix_nano < point.time_unix_nano
    assert collector.resource()["service.name"] == "fathom"


async def test_without_a_port_metrics_are_sent_again_and_again(
    synthetic_bundle: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop,deployment.environment=test")
    settings = ServerSettings(port=0, metrics="otlp")
    async with Server(settings, synthetic_bundle) as one, Server(settings, synthetic_bundle) as two:
        info = await one.start()
        await two.start()
        async with AsyncClient(info.address) as client, asyncio.timeout(20):
            await client.recommend(HISTORY)
            async with collector.arrived:
                await collector.arrived.wait_for(lambda: len(collector.exports) >= 6)
    resources = [collector.resource(number) for number in range(len(collector.exports))]
    assert len({each["service.instance.id"] for each in resources}) == 2
    assert {(each["service.name"], each["deployment.environment"]) for each in resources} == {("shop", "test")}


async def test_a_collector_that_is_not_there_keeps_nobody_waiting(
    synthetic_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("fathom.serving.metrics_export.LAST_S", 0.2)
    async with Server(ServerSettings(port=0, metrics="otlp"), synthetic_bundle) as server:
        info = await server.start()
        async with AsyncClient(info.address) as client:
            assert (await client.recommend(HISTORY)).items
        async with asyncio.timeout(10):
            await server.close()


@pytest.mark.parametrize("text", ["soon", "0", "-5", "99999999999"])
def test_an_interval_that_cannot_be_is_refused(
    synthetic_bundle: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", text)
    with pytest.raises(ConfigError, match=f"OTEL_METRIC_EXPORT_INTERVAL is {text}; give milliseconds"):
        Server(ServerSettings(port=0, metrics="otlp"), synthetic_bundle)
