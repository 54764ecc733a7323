"""The benchmark of reasons measures every depth that a bundle has and shows what it found."""

from argparse import Namespace
from pathlib import Path

from fathom.benchmarks.systems.reasons import HISTORIES, measure, render


def test_a_run_has_a_row_per_depth_and_history_and_can_be_shown(synthetic_bundle: Path) -> None:
    (run,) = measure(Namespace(bundle=synthetic_bundle, depths=[0, 4, 5], rounds=3))
    assert [(row["depth"], row["history"]) for row in run.result["rows"]] == [
        (depth, length) for depth in (0, 4) for length in HISTORIES
    ]
    assert all(0 < row["us"] <= row["p99_us"] and row["per_item"] <= 3 for row in run.result["rows"])
    assert "| 4 | 50 |" in render({"config": run.config, "result": run.result})
