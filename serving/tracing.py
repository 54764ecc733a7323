"""Traces by OpenTelemetry: a span for each call, and in it one for each stage of a single request.

Spans are made when a call has ended, from times that are measured anyway; so a call that is not sampled costs a few
microseconds. A caller's W3C trace context is followed. Where spans go, and which, the usual variables say
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME).
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import grpc

from fathom.errors import optional
from fathom.runtime.query import Answer, Timing
from fathom.serving.transport.contract import Metadata

SERVICE = "fathom.v1.Recommender"
#: The share of calls without a context of their own that is traced, unless OTEL_TRACES_SAMPLER says something.
SHARE = 0.01
SAMPLER_VARIABLE = "OTEL_TRACES_SAMPLER"
#: The headers of W3C's trace context.
HEADERS = ("traceparent", "tracestate")
#: Statuses that are the server's fault, as OpenTelemetry's conventions for gRPC have it.
_FAULTS = (
    *(grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED),
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS),
)


class Tracing:
    """Sends spans in batches from a thread of its own; raises MissingExtraError without the extra `otel`."""

    def __init__(self) -> None:
        sdk: Any = optional("opentelemetry.sdk.trace", "otel")
        sampling: Any = optional("opentelemetry.sdk.trace.sampling", "otel")
        exporting: Any = optional("opentelemetry.sdk.trace.export", "otel")
        otlp: Any = optional("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "otel")
        context: Any = optional("opentelemetry.trace.propagation.tracecontext", "otel")
        self._api: Any = optional("opentelemetry.trace", "otel")
        sampler = None if SAMPLER_VARIABLE in os.environ else sampling.ParentBased(sampling.TraceIdRatioBased(SHARE))
        self._provider = sdk.TracerProvider(sampler=sampler, resource=server_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(exporting.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("fathom")
        self._propagator = context.TraceContextTextMapPropagator()

    def ended(
        self,
        method: str,
        metadata: Metadata,
        code: grpc.StatusCode,
        seconds: float,
        details: "SpanDetails | None" = None,
    ) -> None:
        """A call has just ended; ``seconds``: it took; ``details``: what is known of a single request's answer."""
        end_ns = time.time_ns()
        carrier = {name: value for name, value in metadata if name in HEADERS}
        span = self._tracer.start_span(
            f"{SERVICE}/{method}",
            self._propagator.extract(carrier) if carrier else None,
            self._api.SpanKind.SERVER,
            start_time=end_ns - int(seconds * 1e9),
            attributes={
                "rpc.system": "grpc",
                "rpc.service": SERVICE,
                "rpc.method": method,
                "rpc.grpc.status_code": code.value[0],
            },
        )
        if span.is_recording():
            if code in _FAULTS:
                span.set_status(self._api.StatusCode.ERROR, code.name)
            if details is not None:
                span.set_attributes(details.attributes)
                self._stages(span, details.timing, end_ns)
        span.end(end_ns)

    def _stages(self, span: Any, timing: Timing, end_ns: int) -> None:
        """Spans of the stages, one after the other; what is missing to the call's is reading and writing."""
        inside = self._api.set_span_in_context(span)
        at_ns = end_ns - timing.total_us * 1_000
        for name in ("select", "queue", "engine", "retrieval"):
            until_ns = at_ns + getattr(timing, f"{name}_us") * 1_000
            self._tracer.start_span(name, inside, start_time=at_ns).end(until_ns)
            at_ns = until_ns

    def close(self) -> None:
        """Send what waits, and end; may take seconds."""
        self._provider.shutdown()


def server_resource(more: Mapping[str, str] | None = None) -> Any:
    """This server, as OpenTelemetry describes it.

    What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes first.
    """
    resources: Any = optional("opentelemetry.sdk.resources", "otel")
    said = resources.OTELResourceDetector().detect().attributes
    own = {"service.name": "fathom", **(more or {})}
    return resources.Resource.create({name: value for name, value in own.items() if name not in said})


class SpanDetails:
    """What a span says of an answered request."""

    __slots__ = ("_answer", "_bundle")

    def __init__(self, bundle: str, answer: Answer) -> None:
        self._bundle, self._answer = bundle, answer

    @property
    def timing(self) -> Timing:
        """Microseconds of its stages."""
        return self._answer.timing

    @property
    def attributes(self) -> dict[str, str | int]:
        """Nothing that names a user or an item."""
        choice = self._answer.choice
        return {
            "fathom.bundle": self._bundle,
            "fathom.depth": choice.depth,
            "fathom.reason": choice.reason.value,
            "fathom.reused": self._answer.reused,
            "fathom.history": self._answer.history_used,
            "fathom.items": len(self._answer.indices),
        }
