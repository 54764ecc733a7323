"""A small twin of the benchmark of scaling: real servers, real bundles, and the page and picture that come of it."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from traced_once import traced_shape

from fathom.benchmarks.experiments.drawing import svg
from fathom.benchmarks.systems import item_index, scaling, scaling_tables
from fathom.benchmarks.untrained import untrained
from fathom.exporter.bundle.index import IndexLimits
from fathom.runtime import index_retriever
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset


def small_network(*, items: int, max_history: int, span: int) -> tuple[Checkpoint, Dataset]:
    """Of the shape that is traced already, which is as long as what the test asks for."""
    shape = traced_shape()
    assert max_history == span == shape["max_history"]
    return untrained(items=items, **shape)


def test_every_axis_is_measured_and_what_was_made_is_not_made_again(
    tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_retriever, "FEW_ITEMS", 20)
    monkeypatch.setattr(item_index, "LIMITS", IndexLimits(min_recall=0.5, max_loss=1.0))
    monkeypatch.setattr(scaling, "NETWORK_ITEMS", 60)
    monkeypatch.setattr(scaling, "untrained", small_network)
    monkeypatch.setattr(scaling, "JUDGED", 20)
    monkeypatch.setattr(scaling, "TRIAD_NUMBERS", 1 << 12)
    options = Namespace(
        bundle=tiny_build / "bundle",
        data=tiny_build / "dataset",
        work=tmp_path / "work",
        histories=[2, 32],
        items=[3_000],
        in_flight=[1, 4],
        workers=[1, 2],
        seconds=0.1,
        turns=1,
    )
    (run,) = scaling.measure(options)
    rows = run.result["rows"]
    for axis, cells in (("history", 2), ("items", 3), ("in_flight", 2), ("workers", 2)):
        assert len([row for row in rows if row["axis"] == axis]) == cells * len(scaling.DEPTHS)
    for row in rows:
        assert row["engine_us"] > 0
        assert row["cpu_us"] > 0
        assert row["requests_per_s"] > 0
        assert row["not_as_asked"] == 0
        assert row["memory_mb"] > 20
    assert run.result["triad_gb_s"][0] > 0
    assert {row["history"] for row in rows if row["axis"] == "history"} == {2, 32}
    machine = {"memory_gb": 8.0}
    page = scaling_tables.render({"config": run.config, "result": run.result, "machine": machine})
    assert "| 3,000 | pq |" in page
    assert "Workers, depth 4: 2 answer" in page
    folders = [options.work / name for name in ("history-32", "items-3000", "items-3000-pq")]
    written = {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in folders}
    assert scaling.network(options) == folders[0]
    assert [each.path for each in scaling.catalogues(options)] == [options.bundle, *folders[1:]]
    assert written == {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in folders}


def _cell(axis: str, turn: int, depth: int, **values: float | str) -> dict[str, float | str]:
    figures = {"history": 50, "items": 1_682, "in_flight": 1, "cpu_us": 500.0, "requests_per_s": 1_000.0, "p50_ms": 1.0}
    figures |= {"p99_ms": 2.0, "cores_busy": 0.5, "client_busy": 0.1, "not_as_asked": 0.0, "memory_mb": 150.0}
    stages = {"engine_us": 300 * depth, "retrieval_us": 90}
    return {"axis": axis, "turn": turn, "depth": depth, **figures, **stages, **values}


def stored(folder: Path) -> None:
    """A run whose laws are known: an engine of (100 + 2n + .01n²) µs times the depth, and so on."""
    rows = []
    for turn in range(3):
        for depth in (4, 16):
            noise = 1 + 0.01 * (turn - 1)
            for n in scaling.HISTORIES:
                engine_us = depth * (100 + 2 * n + 0.01 * n * n) * noise
                rows.append(_cell("history", turn, depth, history=n, engine_us=engine_us, cpu_us=engine_us + 200))
            for m in (1_682, 10_000, 100_000, 1_000_000):
                flat = {"retrieval_us": (80 + 0.0128 * m) * noise, "memory_mb": 150 + 600e-6 * m}
                rows.append(_cell("items", turn, depth, items=m, search="flat", **flat))
                if m >= 10_000:
                    pq = {"retrieval_us": (100 + 0.8 * m**0.5) * noise, "memory_mb": 150 + 700e-6 * m}
                    rows.append(_cell("items", turn, depth, items=m, search="pq", **pq))
            for k in scaling.IN_FLIGHT:
                busy, p99 = (0.99 if k >= 8 else 0.6), k * depth / 16
                replaced = 0.2 if k == 512 and depth == 16 else 0.0
                load = {"in_flight": k, "p50_ms": 0.5 + p99 / 2, "p99_ms": p99, "cores_busy": busy}
                rows.append(_cell("in_flight", turn, depth, **load, not_as_asked=replaced))
            for workers, per_s in ((1, 1_000.0), (2, 1_900.0)):
                rows.append(
                    _cell("workers", turn, depth, workers=workers, requests_per_s=per_s, cpu_us=500.0 * workers)
                )
    config = {"width": 64, "turns": 3, "k": 10, "history": 50, "network_items": 2_000}
    run = {"schema_version": 1, "config": config, "machine": {"memory_gb": 24.0}, "commit": "0" * 40}
    run["result"] = {"triad_gb_s": [20.0, 21.0, 19.0], "rows": rows}
    (folder / "scaling.json").write_text(json.dumps(run))


def test_laws_and_the_ends_of_resources_are_those_of_the_stored_run(tmp_path: Path) -> None:
    assert scaling_tables.load_scaling(tmp_path) is None
    stored(tmp_path)
    page = scaling.BENCHMARK.section(tmp_path)
    assert "| engine, µs, depth 4 | 400 [390, 410] + 8 [7.8, 8.2] n + 0.04 [0.039, 0.041] n² | 0.0% | 1.000 |" in page
    assert "| memory, MB, flat | 150 + 0.0006 m | 0.0% | 1.000 |" in page
    # A million vectors of 64 floats in 12.9 ms.
    assert "| 19.9 | 99% |" in page
    assert "- Core, depth 4: it is full from 8 in flight on" in page
    assert "- Waiting, depth 16: p99 passes 25 ms at 25 in flight. From 512 on, more than 1% are not answered" in page
    assert "- Waiting, depth 4: p99 passes 25 ms at 100 in flight." in page
    # 16 (100 + 2n + .01n²) = 25,000.
    assert "- History, depth 16: the engine alone takes 25 ms at 295 items." in page
    assert "- Memory bandwidth: a flat search reads from 10,000 items on at more than 50%" in page
    assert "(by the law; measured up to 1,000,000)" in page
    assert "- Memory, flat: 600 bytes an item; what profile cloud allows is full at" in page
    assert "- Workers, depth 4: 2 answer 1.90 times what 1 does; a request costs 2.00 times as much" in page


def test_the_picture_has_a_panel_for_each_axis_and_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    stored(tmp_path)
    run = scaling_tables.load_scaling(tmp_path)
    assert run is not None
    drawn = [svg(scaling_tables.scaling_figure(run)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    for label in (b"items of the history", b"items of the catalogue", b"calls in flight", b"depth 16", b"pq", b"25 ms"):
        assert label in drawn[0]
