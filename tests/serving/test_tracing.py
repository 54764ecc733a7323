"""Traces as a collector gets them: a real OTLP receiver on a free port."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from fathom.client import AsyncClient
from fathom.errors import NotFoundError
from fathom.serving.config import ServerSettings
from fathom.serving.describe import ServerInfo
from fathom.serving.server import Server

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

HISTORY = ["item-1", "item-2"]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    spans: list[Any] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        for resource in request.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.add(names["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    server, found = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    yield found
    await server.stop(None)


async def traced(path: Path, ask: Any, **settings: Any) -> None:
    async with Server(ServerSettings(port=0, trace="otlp", **settings), path) as server:
        await ask(await server.start())


async def test_a_call_in_a_callers_trace_has_its_spans_there(synthetic_bundle: Path, collector: Collector) -> None:
    async def ask(info: ServerInfo) -> None:
        metadata = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        async with AsyncClient(info.address, metadata=metadata) as client:
            await client.recommend(HISTORY, depth=8)
            with pytest.raises(NotFoundError):
                await client.bundle("missing")

    await traced(synthetic_bundle, ask)
    assert collector.services == {"fathom"}
    by_name = {span.name: span for span in collector.spans}
    call = by_name["fathom.v1.Recommender/Recommend"]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    said = {each.key: each.value for each in call.attributes}
    assert said["fathom.depth"].int_value == 8
    assert said["fathom.reason"].string_value == "fixed"
    assert said["rpc.grpc.status_code"].int_value == 0
    for name in ("select", "queue", "engine", "retrieval"):
        stage = by_name[name]
        assert stage.parent_span_id == call.span_id
        assert call.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= call.end_time_unix_nano
    missing = by_name["fathom.v1.Recommender/GetBundle"]
    assert {each.key: each.value.int_value for each in missing.attributes}["rpc.grpc.status_code"] == 5
    assert "item-" not in str(collector.spans)


@pytest.mark.parametrize(("sampler", "traced_calls"), [("always_on", 3), ("always_off", 0)])
async def test_the_usual_variables_say_what_is_traced(
    synthetic_bundle: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str, traced_calls: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")

    async def ask(info: ServerInfo) -> None:
        async with AsyncClient(info.address) as client:
            await asyncio.gather(*(client.recommend(HISTORY) for _ in range(3)))

    await traced(synthetic_bundle, ask)
    assert sum(span.name.endswith("/Recommend") for span in collector.spans) == traced_calls
    assert collector.services <= {"shop"}


async def test_the_client_sends_the_context_of_the_span_it_is_called_in(
    synthetic_bundle: Path, collector: Collector
) -> None:
    from opentelemetry import propagate, trace  # noqa: F401
    from opentelemetry.sdk.trace import TracerProvider

    async def ask(info: ServerInfo) -> None:
        async with AsyncClient(info.address) as client:
            with TracerProvider().get_tracer("test").start_as_current_span("page") as span:
                await client.recommend(HISTORY)
                wanted.append(format(span.get_span_context().trace_id, "032x"))

    wanted: list[str] = []
    await traced(synthetic_bundle, ask)
    assert {span.trace_id.hex() for span in collector.spans} == set(wanted)
