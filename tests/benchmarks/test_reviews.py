"""Reviews that are made up, and what the benchmark tells of them."""

from argparse import Namespace
from pathlib import Path

import polars as pl
import pytest

from fathom.benchmarks.systems import reviews
from fathom.benchmarks.systems.reviews_data import FORMS, Form, write_reviews
from fathom.errors import ConfigError

ROWS = 50_000


@pytest.mark.parametrize("form", FORMS)
def test_the_same_seed_writes_the_same_reviews_and_another_one_does_not(form: Form, tmp_path: Path) -> None:
    written = [write_reviews(tmp_path / f"{n}.{form}", 2_000, form, seed) for n, seed in enumerate((0, 0, 1))]
    first, again, other = (each.path.read_bytes() for each in written)
    assert first == again
    assert first != other
    assert written[0].rows == 2_000


def test_made_up_reviews_are_spread_over_users_and_items_like_real_ones(tmp_path: Path) -> None:
    written = write_reviews(tmp_path / "Reviews.parquet", ROWS, "parquet", 0)
    table = pl.read_parquet(written.path)
    assert table.height == ROWS
    per_user = table["user_id"].drop_nulls().value_counts()["count"]
    assert len(per_user) == pytest.approx(written.users, abs=100)
    assert per_user.mean() == pytest.approx(2.4, abs=0.2)
    assert per_user.median() == 1
    per_item = table["parent_asin"].drop_nulls().value_counts(sort=True)["count"]
    assert per_item[: len(per_item) // 100].sum() > 0.03 * ROWS
    same_day = table.group_by("user_id", "timestamp").len()["len"]
    assert (same_day > 1).sum() > 0.05 * ROWS


def test_fewer_rows_than_can_hold_every_fault_and_unknown_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1,000"):
        write_reviews(tmp_path / "Reviews.csv", 10, "csv", 0)
    with pytest.raises(ConfigError, match="jsonl, csv, parquet"):
        write_reviews(tmp_path / "Reviews.xlsx", ROWS, "xlsx", 0)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_every_row_is_kept_or_counted_and_little_memory_is_used(tmp_path: Path) -> None:
    options = Namespace(rows=ROWS, form="jsonl", steps=1, seed=0, folder=tmp_path / "build")
    (run,) = reviews.measure(options)
    rows = run.result["rows"]
    assert rows["unaccounted"] == 0
    assert rows["faults_as_written"]
    assert rows["left_out"]["repeats"] >= ROWS // 100
    assert rows["kept"]["events"] > 1_000
    assert run.result["prepare"]["peak_mb"] < 1_000
    assert [stage["stage"] for stage in run.result["training"]["stages"]] == ["grow", "train"]
    assert list((tmp_path / "build").iterdir()) == []
    page = reviews.render({"config": run.config, "result": run.result})
    assert f"| {rows['kept']['events']:,} | kept" in page
    assert "estimated hours an epoch" in page
