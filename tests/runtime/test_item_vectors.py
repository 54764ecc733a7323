"""Item vectors in fewer bits: where they point, what is found among them, and a bundle of each kind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fathom.errors import BundleError
from fathom.files import sha256_file, write_json
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemPrecision, ItemVectors
from fathom.runtime.manifest import VECTORS_FILE, version_of
from fathom.runtime.retriever import FlatRetriever

PRECISIONS: tuple[ItemPrecision, ...] = ("fp32", "fp16", "int8")


@pytest.fixture
def vectors() -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((500, 16), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("precision", "error", "size"), [("fp32", 0, 4), ("fp16", 5e-4, 2), ("int8", 5e-3, 1)])
def test_vectors_point_where_they_did(vectors: np.ndarray, precision: ItemPrecision, error: float, size: int) -> None:
    stored = ItemVectors.store(vectors, precision)
    assert (len(stored), stored.width, stored.precision) == (500, 16, precision)
    assert stored.rows.nbytes == vectors.size * size
    found = np.asarray(stored)
    assert found.dtype == np.float32
    assert np.abs(found - vectors).max() <= error
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(stored.take(np.array([[3, 499], [0, 3]])), found[[[3, 499], [0, 3]]])
    np.testing.assert_array_equal(stored.padded(np.array([[0, 0, 4]]))[0], [0 * found[0], 0 * found[0], found[3]])
    with pytest.raises(IndexError):
        stored.take(np.array([500]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_search_finds_the_best_of_what_is_stored(vectors: np.ndarray, precision: ItemPrecision) -> None:
    stored = ItemVectors.store(vectors, precision)
    users = vectors[:3] + 0.1
    scores = users @ np.asarray(stored).T
    mask = np.arange(500) % 2 == 0
    scores[:, 7] = scores[1, ~mask] = -np.inf
    seen = np.array([7])
    keeps = [ItemFilter(exclude=seen), ItemFilter(exclude=seen, mask=mask), ItemFilter(exclude=seen)]
    for block in (64, 1_000):
        found = FlatRetriever(stored, block_items=block).search(users, [10, 300, 3], keeps)
        assert [len(items) for items, _ in found] == [10, 250, 3]
        for row, (items, best) in enumerate(found):
            assert best == pytest.approx(np.sort(scores[row])[::-1][: len(items)], abs=1e-6)
            assert scores[row, items] == pytest.approx(best, abs=1e-6)


def restored(source: Path, out: Path, rows: np.ndarray, precision: str) -> Path:
    """The bundle with other item vectors."""
    shutil.copytree(source, out)
    np.save(out / VECTORS_FILE, rows)
    value = json.loads((out / "manifest.json").read_bytes())
    file = out / VECTORS_FILE
    value["files"][VECTORS_FILE] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    value["item_precision"] = precision
    value["version"] = version_of(value)
    write_json(out / "manifest.json", value)
    return out


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_a_bundle_with_fewer_bits_answers_nearly_the_same(
    synthetic_bundle: Path, tmp_path: Path, precision: ItemPrecision
) -> None:
    with Bundle.open(synthetic_bundle) as whole, open_engine(whole) as expected:
        stored = ItemVectors.store(np.asarray(whole.vectors), precision)
        with (
            Bundle.open(restored(synthetic_bundle, tmp_path / "b", stored.rows, precision)) as bundle,
            open_engine(bundle) as engine,
        ):
            assert bundle.vectors.rows.dtype == stored.rows.dtype
            items = np.array([[0, 4, 9], [1, 2, 3]])
            assert engine.run(items, None, 8) == pytest.approx(expected.run(items, None, 8), abs=0.02)


def test_vectors_that_are_not_what_the_manifest_says_are_refused(synthetic_bundle: Path, tmp_path: Path) -> None:
    rows = np.load(synthetic_bundle / VECTORS_FILE)
    with pytest.raises(BundleError, match=r"'<f4'.*\(50, 8\).* where int8 \(50, 8\) is needed"):
        Bundle.open(restored(synthetic_bundle, tmp_path / "a", rows, "int8"))
    zeros = np.zeros(rows.shape, np.int8)
    with pytest.raises(BundleError, match="not unit vectors"):
        Bundle.open(restored(synthetic_bundle, tmp_path / "b", zeros, "int8"))
    with pytest.raises(BundleError, match="not unit vectors"):
        Bundle.open(restored(synthetic_bundle, tmp_path / "c", (rows * 2).astype(np.float16), "fp16"))
