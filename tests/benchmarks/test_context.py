"""The study of the context of a request: run for real on small data, stored, and shown."""

import json
from pathlib import Path

import polars as pl
import pytest

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.experiments import context
from fathom.benchmarks.experiments.quality import study
from fathom.training import moves_fit


def test_a_run_says_whether_it_is_kept_and_what_it_adds(
    tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study.DATASETS, "small", study.StudyDataset("csv", "tiny"))
    table = pl.read_csv(tiny_csv)
    table = table.with_columns((pl.int_range(table.height) % 3).alias("country"))
    table.write_csv(tmp_path / "small.csv")
    settings = ["--set", "train.epochs=1", "train.grow_epochs=1", "model.layers=4", "model.depths=4"]
    page = {}
    for kept in (False, True):
        monkeypatch.setattr(moves_fit, "_best", lambda _, kept=kept: 2 * kept)
        main(["run", "context", "small", "--features", "country", "--path", str(tmp_path / "small.csv"), *settings])
        path = tmp_path / "results/context/small/ladder-seed-0.json"
        result = json.loads(path.read_bytes())["result"]
        assert result["kept"] is kept
        assert result["values"] == {"country": 3 * kept}
        page[kept] = context.BENCHMARK.section(tmp_path / "results")
    for part in ("validation", "test"):
        assert [row["system"] for row in result["parts"][part]] == ["depth 4", "all"]
        for row in result["parts"][part]:
            assert row["added"]["value"] == pytest.approx(row["told"]["value"] - row["plain"]["value"])
    assert "| country | 0 | no |" in page[False]
    assert "| country | 0 | yes |" in page[True]
    assert context.BENCHMARK.section(tmp_path / "nothing") == ""
