"""What is counted of calls and answers is what Prometheus reads."""

import grpc
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram, generate_latest

from fathom.runtime.query import Answer, Timing
from fathom.selector.choice import Choice, DepthReason
from fathom.serving.metrics import SECONDS, Metrics

ANSWER = Answer(
    np.array([1]), np.array([0.5], np.float32), Choice(8, DepthReason.FIXED, ""), 3, Timing(1, 2, 3, 4, 2_000)
)


def count(metrics: Metrics, name: str, **labels: str) -> float | None:
    # As a scrape does: everything is collected, then looked at.
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }
    return found.get((name, *sorted(labels.items())))


def test_calls_and_answers_are_counted() -> None:
    metrics = Metrics()
    for number in (1, 64, 197):
        before = count(metrics, "fathom_unknown_items_total") or 0
        for _ in range(number):
            metrics.answered("films", ANSWER, 2)
            metrics.called("Recommend", grpc.StatusCode.OK, 0.004)
        assert count(metrics, "fathom_unknown_items_total") == before + 2 * number
    total = 262
    asked = {"bundle": "films", "depth": "8", "status": "OK", "reason": "fixed"}
    assert count(metrics, "fathom_requests_total", **asked) == total
    assert count(metrics, "fathom_calls_total", method="Recommend", status="OK") == total
    assert count(metrics, "fathom_request_seconds_bucket", bundle="films", depth="8", le="0.002") == total
    assert count(metrics, "fathom_reused_total", bundle="films", reused="nothing") == total


def test_where_nobody_can_read_nothing_is_counted() -> None:
    metrics = Metrics(shown=False)
    metrics.answered("films", ANSWER, 2)
    metrics.called("Recommend", grpc.StatusCode.OK, 0.004)
    metrics.ran("films", 8, 3, 0.001)
    metrics.failed(grpc.StatusCode.NOT_FOUND)
    assert count(metrics, "fathom_unknown_items_total") == 0


@given(values=st.lists(st.floats(0, 10) | st.sampled_from(SECONDS), max_size=50))
def test_a_histogram_is_what_prometheus_client_makes_of_the_same_values(values: list[float]) -> None:
    metrics = Metrics()
    own = Histogram("fathom_call_seconds", "", ("method",), registry=None, buckets=SECONDS)
    for value in values:
        metrics.called("Recommend", grpc.StatusCode.OK, value)
        own.labels("Recommend").observe(value)
    expected = {
        sample.name + sample.labels.get("le", ""): sample.value for family in own.collect() for sample in family.samples
    }
    found = {
        sample.name + sample.labels.get("le", ""): sample.value
        for family in metrics.registry.collect()
        if family.name == "fathom_call_seconds"
        for sample in family.samples
    }
    assert found == {name: value for name, value in expected.items() if not name.endswith("_created")}


def test_one_metric_can_be_asked_for_and_is_in_the_text_format() -> None:
    metrics = Metrics()
    metrics.ran("films", 8, 3, 0.002)
    text = generate_latest(metrics.registry.restricted_registry(["fathom_batch_size_sum"])).decode()
    assert 'fathom_batch_size_sum{bundle="films",depth="8"} 3.0' in text
    assert (
        'fathom_engine_seconds_bucket{bundle="films",depth="8",le="0.002"} 1.0'
        in generate_latest(metrics.registry).decode()
    )
