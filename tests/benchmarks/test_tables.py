"""What the documents show is what the stored runs say."""

import json
from pathlib import Path

import pytest

from fathom.benchmarks.tables import BEGIN, documents, training_section, with_block
from fathom.errors import ArtefactError

ROOT = Path(__file__).parents[2]


def test_every_document_is_the_one_that_the_stored_runs_give() -> None:
    written = documents((ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "results")
    assert [path for path, content in written.items() if (ROOT / path).read_bytes() != content] == []
    pictures = {f"docs/figures/{path.name}" for path in (ROOT / "docs" / "figures").glob("*.svg")}
    assert pictures == {path for path in written if path.endswith(".svg")}


def test_without_runs_or_markers_there_is_an_error_and_no_page(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no quality run"):
        documents("", tmp_path)
    with pytest.raises(ArtefactError, match="markers"):
        with_block(f"no end {BEGIN}", "figures")


def test_speed_of_training_is_shown_when_it_was_measured(tmp_path: Path) -> None:
    assert training_section(tmp_path) == ""
    speeds = {"straightforward": 1000, "same batches": 1250, "fathom": 2500}
    row = {"preset": "tiny", "stage": "grow", "events_per_s": speeds, "ratio": 2.5, "ratio_same_batches": 2.0}
    result = {"peak_gflops": 90, "rows": [{**row, "achieved_gflops": 30.5, "share_of_peak": 0.339}]}
    (tmp_path / "training_throughput.json").write_text(json.dumps({"result": result}))
    page = training_section(tmp_path)
    assert "| tiny | grow | 1,000 | 1,250 | 2,500 | 2.5 | 2.0 | 30.5 | 0.339 |" in page
    assert "product on the same machine: 90 GFLOP/s" in page
