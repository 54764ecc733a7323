"""The study of the time of a request: run for real on small data, stored, and shown."""

import json
from pathlib import Path

import pytest

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.experiments import request_time
from fathom.benchmarks.experiments.quality import study
from fathom.training import moves_fit


def test_a_run_says_whether_it_is_kept_and_what_it_adds(
    tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study.DATASETS, "small", study.StudyDataset("csv", "tiny"))
    settings = ["--set", "train.epochs=1", "train.grow_epochs=1", "model.layers=4", "model.depths=4"]
    page = {}
    for kept in (False, True):
        monkeypatch.setattr(moves_fit, "_best", lambda _, kept=kept: 2 * kept)
        main(["run", "request_time", "small", "--path", str(tiny_csv), *settings])
        path = tmp_path / "results/request_time/small/ladder-seed-0.json"
        result = json.loads(path.read_bytes())["result"]
        assert result["kept"] is kept
        page[kept] = request_time.BENCHMARK.section(tmp_path / "results")
    for part in ("validation", "test"):
        assert [row["system"] for row in result["parts"][part]] == ["depth 4", "all"]
        for row in result["parts"][part]:
            assert row["added"]["value"] == pytest.approx(row["timed"]["value"] - row["untimed"]["value"])
    assert "| no |" in page[False]
    assert "| yes |" in page[True]
    assert "| all |" in page[True]
    assert request_time.BENCHMARK.section(tmp_path / "nothing") == ""
