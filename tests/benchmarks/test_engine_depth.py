"""The engine benchmark measures every depth and stores shares of the deepest."""

import json
from pathlib import Path

import numpy as np
import pytest

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.systems.engine_depth import summarise


def test_shares_are_of_the_deepest_depth_at_the_same_length() -> None:
    spent = {(d, n): np.array([d * n, d * n, 10 * d * n], float) for d in (4, 16) for n in (10, 50)}
    rows = {(row["history"], row["depth"]): row for row in summarise(spent)}
    assert list(rows) == [(10, 4), (10, 16), (50, 4), (50, 16)]
    assert rows[50, 4]["median_us"] == 200
    assert rows[50, 4]["share_of_deepest"] == 0.25
    assert rows[50, 16]["share_of_deepest"] == 1


def test_a_run_prints_a_table_and_stores_it(
    synthetic_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "engine_depth", str(synthetic_bundle), "--repetitions", "3", "--results", str(tmp_path)])
    run = json.loads((tmp_path / "engine_depth.json").read_text())
    # The longest history of this bundle is 20.
    assert [(row["history"], row["depth"]) for row in run["result"]["rows"]] == [
        (history, depth) for history in (10, 20) for depth in (4, 8, 12, 16)
    ]
    assert all(row["median_us"] > 0 for row in run["result"]["rows"])
    assert run["config"]["threads"] == 1
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("|")]) == 2 + 8
    main(["section", "engine_depth", "--results", str(tmp_path)])
    assert capsys.readouterr().out in out
