"""What the documents show is what the stored runs say."""

from pathlib import Path

import pytest

from fathom.benchmarks.tables import BEGIN, readme_block, results_page, with_block
from fathom.errors import ArtefactError

ROOT = Path(__file__).parents[2]


def test_the_results_page_is_the_one_that_the_stored_runs_give() -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == results_page(ROOT / "results")


def test_the_figures_of_the_readme_are_those_of_the_stored_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_block(readme, readme_block(ROOT / "results")) == readme


def test_without_runs_or_markers_there_is_an_error_and_no_page(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no run"):
        results_page(tmp_path)
    with pytest.raises(ArtefactError, match="markers"):
        with_block(f"no end {BEGIN}", "figures")
