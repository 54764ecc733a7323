"""Calls and answers are counted late, but never wrong where somebody reads them."""

import grpc
import numpy as np

from fathom.runtime.query import Answer, Timing
from fathom.selector.choice import Choice, DepthReason
from fathom.serving.metrics import MOST_NOTED, Metrics

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


def test_what_is_noted_is_counted_before_anybody_reads_it() -> None:
    metrics = Metrics()
    for number in (1, MOST_NOTED, 3 * MOST_NOTED + 5):
        before = count(metrics, "fathom_unknown_items_total") or 0
        for _ in range(number):
            metrics.answered("films", ANSWER, 2)
            metrics.called("Recommend", grpc.StatusCode.OK, 0.004)
        assert count(metrics, "fathom_unknown_items_total") == before + 2 * number
    total = 4 * MOST_NOTED + 6
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
