"""A small twin of the benchmark of published shapes: real engines of a tiny shape, whole and with a cached prefix."""

from argparse import Namespace
from pathlib import Path

import pytest

from fathom.benchmarks import record
from fathom.benchmarks.systems import literature_shapes
from fathom.benchmarks.systems.literature_shapes import Shape, Stack, check_memory, figures
from fathom.errors import ConfigError

TINY = Shape("Tiny", 3, 2, 16, 8, (24, 48), 12, 5, (1, 2))


def test_every_way_answers_alike_and_a_page_can_be_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(literature_shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(literature_shapes, "ITEMS", 100)
    (run,) = literature_shapes.measure(Namespace(shapes=["tiny"], seconds=0.0))
    rows = run.result["rows"]
    # At the published width one at a time, at the scaled one in a batch too.
    assert [(row["width"], row["history"], row["batch"]) for row in rows[::3]] == [
        *((16, length, 1) for length in TINY.histories),
        *((8, length, batch) for length in TINY.histories for batch in TINY.batches),
    ]
    assert {row["way"] for row in rows} == {"whole history", "12 new", "1 new"}
    assert all(row["calls"] == 3 and row["p50_ms"] > 0 for row in rows)
    assert all(0 < row["share_of_peak"] < 1.2 for row in rows)
    assert all((row["cached_mb"] is None) == (row["way"] == "whole history") for row in rows)
    record.save_run("literature_shapes", config=run.config, result=run.result, folder=tmp_path)
    page = literature_shapes.BENCHMARK.section(tmp_path)
    assert "Tiny, 3 layers:" in page
    assert "| 8 | 48 | 2 | 12 new | 3 |" in page
    assert "cannot be compared with theirs" in page
    assert page.count("https://") >= 7


def test_floating_point_operations_are_those_of_the_layers() -> None:
    one, two = (Stack(TINY._replace(layers=layers), TINY.scaled) for layers in (1, 2))
    square = TINY.scaled**2
    # Keys and values of 10 items, a query and a gate of the last; its scores, what it takes, and the way out.
    assert one.whole_flops(10) == 2 * (10 * 2 * square + 2 * square + 2 * 10 * 8 + square)
    # One new item: four projections, scores and values of 10 items, and the way out.
    assert one.extended_flops(10, 1) == 2 * (4 * square + 2 * 10 * 8 + square)
    assert two.whole_flops(10) - one.whole_flops(10) == 2 * 10 * (5 * square + 2 * 10 * 8)
    # Of twelve new items each goes through the first layer, and only the last one asks in the second.
    assert two.extended_flops(24, 12) == 2 * (12 * (5 * square + 2 * 24 * 8) + 12 * 4 * square + square + 2 * 24 * 8)


def test_the_p99_of_few_calls_is_the_longest_and_rates_follow_from_the_median() -> None:
    found = figures([0.1, 0.2, 0.4], batch=2, length=50, flop=10**11)
    assert found["p50_ms"] == 200
    assert found["p99_ms"] == 400
    assert found["sequences_per_s"] == 10
    assert found["tokens_per_s"] == 500
    assert found["tflops"] == 0.5


def test_a_shape_that_does_not_fit_into_memory_and_one_that_is_not_known_end_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"Huge: a history of 9,999,999 needs about .* leave it out with --shapes"):
        check_memory(TINY._replace(title="Huge", histories=(9_999_999,)))
    with pytest.raises(ConfigError, match="no shape is called x; there are nvidia-hstu, dlrm-v3"):
        list(literature_shapes.measure(Namespace(shapes=["x"], seconds=0.0)))
