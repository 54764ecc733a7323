"""The benchmark of searches fills a catalogue up with its own statistics, measures every kind, and can be resumed."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from fathom.benchmarks.systems import item_index
from fathom.benchmarks.systems.denser_catalogue import denser
from fathom.exporter.bundle.index import IndexLimits
from fathom.runtime import index_retriever
from fathom.runtime.bundle import verify


def test_drawn_items_are_spread_as_the_given_ones_and_not_as_random_directions() -> None:
    rng = np.random.default_rng(0)
    given = rng.standard_normal((300, 16), dtype=np.float32) * np.array([4] * 3 + [0.5] * 13, np.float32)
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    made = denser(given, 3_000, rng)
    assert (made[:300] == given).all()
    assert np.linalg.norm(made, axis=1) == pytest.approx(1)
    shares = [np.linalg.eigvalsh(np.cov(rows.T))[-3:].sum() / np.cov(rows.T).trace() for rows in (given, made)]
    # Of random directions it would be 3 / 16.
    assert shares[0] == pytest.approx(shares[1], abs=0.1)


def test_a_run_has_a_row_per_search_and_can_be_shown_and_resumed(
    tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_retriever, "FEW_ITEMS", 20)
    monkeypatch.setattr(item_index, "LIMITS", IndexLimits(min_recall=0.5, max_loss=1.0))
    options = Namespace(
        bundle=tiny_build / "bundle",
        data=tiny_build / "dataset",
        work=tmp_path / "work",
        items=3_000,
        kinds=["pq", "hnsw"],
        threads=1,
        judged=20,
        rounds=2,
        turns=1,
        requests=40,
    )
    (run,) = item_index.measure(options)
    assert [row["search"] for row in run.result["rows"]] == ["flat", "pq", "hnsw"]
    assert all(0.5 <= row["recall"]["value"] <= 1 for row in run.result["rows"][1:])
    assert {row["search"] for row in run.result["requests"]} == {"flat", "pq", "hnsw"}
    shown = item_index.render({"config": run.config, "result": run.result})
    assert "## Kinds of search among 3,000 items" in shown
    assert "| pq |" in shown
    folders = [options.work / name for name in ("items-3000", "items-3000-pq", "items-3000-hnsw")]
    assert all(check.ok for folder in folders for check in verify(folder))
    written = {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in folders}
    assert item_index.made(options).keys() == {"pq", "hnsw"}
    assert written == {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in folders}
