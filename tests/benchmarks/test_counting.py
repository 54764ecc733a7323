"""The benchmark of depth 0 measures every catalogue and shows what it found."""

from argparse import Namespace

from fathom.benchmarks.systems.counting import BATCHES, HISTORIES, measure, render


def test_a_run_has_a_row_per_catalogue_and_history_and_can_be_shown() -> None:
    (run,) = measure(Namespace(items=[50, 70_000], rounds=3, searches=3))
    assert len(run.result["answers"]) == 2 * len(HISTORIES)
    assert len(run.result["beside_a_search"]) == 2 * len(BATCHES)
    assert all(0 < row["median_us"] <= row["p99_us"] for row in run.result["answers"])
    assert [table["items"] for table in run.result["tables"]] == [50, 70_000]
    assert "| 70,000 | 50 |" in render({"config": run.config, "result": run.result})
