"""The study of the counting exit: run for real on small data, stored, and shown."""

import json
from pathlib import Path

import pytest

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.experiments.counting_quality import BENCHMARK
from fathom.benchmarks.experiments.quality import study
from fathom.training.baselines import BASELINES

DEPTHS = (4, 8, 12, 16)


def test_a_run_holds_every_depth_as_it_is_served_and_alone_and_is_shown(
    tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study.DATASETS, "small", study.StudyDataset("csv", "tiny"))
    settings = ["--set", "train.epochs=1", "train.grow_epochs=1"]
    main(["run", "counting_quality", "small", "--path", str(tiny_csv), *settings])
    path = tmp_path / "results/counting_quality/small/ladder-seed-0.json"
    result = json.loads(path.read_bytes())["result"]
    depths = {f"depth {depth}{end}" for depth in DEPTHS for end in ("", " alone")}
    assert set(result["systems"]) == {"depth 0", *depths, *BASELINES}
    for depth, weight in result["counting"]["weights"].items():
        same = result["systems"][f"depth {depth}"] == result["systems"][f"depth {depth} alone"]
        assert same or weight > 0
    page = BENCHMARK.section(tmp_path / "results")
    assert page.startswith("## The counting exit")
    assert all(f"| depth {depth} |" in page for depth in (0, *DEPTHS))
    assert "| less depth 4 |" in page
