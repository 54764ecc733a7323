"""The counting exit in a bundle: written by every export, measured as it is served, kept by slices."""

from pathlib import Path

import numpy as np
import pytest

from fathom.edge_profiles.profile import load_profile
from fathom.exporter.bundle.export import event_weights
from fathom.exporter.bundle.report import depth_rows, quality_rows
from fathom.exporter.bundle.slice import slice_bundle
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.manifest import COUNTING_FILES, depth_digest
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.runner import BatchItem, Runner
from fathom.training.counting import CountingSettings, count
from fathom.training.data import prepare
from fathom.training.dataset import Dataset
from fathom.training.splits import leave_one_out
from fathom.training.tables.options import PrepareOptions


def ndcg(found: np.ndarray, target: int) -> float:
    place = np.flatnonzero(found[:10] == target)
    return float(1 / np.log2(place[0] + 2)) if place.size else 0.0


def test_the_manifest_says_what_depth_0_gives_for_the_test_items(bundle_path: Path, dataset: Dataset) -> None:
    test = leave_one_out(dataset).test
    with Bundle.open(bundle_path) as bundle:
        assert bundle.counting is not None
        assert bundle.manifest.counting is not None
        answers = []
        for row in range(len(test)):
            history = test.histories[row].astype(np.int64)
            found, _ = bundle.counting.best(history, 10, ItemFilter(exclude=history))
            answers.append(ndcg(found, int(test.targets[row])))
        assert bundle.manifest.counting.quality["ndcg@10"].value == pytest.approx(np.mean(answers), abs=1e-9)


def test_the_manifest_says_what_every_deeper_depth_gives_with_its_part_of_counting(
    counting_bundle: Path, dataset: Dataset
) -> None:
    test = leave_one_out(dataset).test
    with Bundle.open(counting_bundle) as bundle, open_engine(bundle) as engine:
        runner = Runner(bundle, LiveCatalogue(bundle), engine, FlatRetriever(bundle.vectors))
        longest = bundle.manifest.model.max_history
        for depth in bundle.depths:
            answers = []
            for row in range(len(test)):
                history, times = test.histories[row].astype(np.int64), test.histories.times(row)
                assert times is not None
                item = BatchItem(history[-longest:] + 1, times[-longest:], 10, ItemFilter(exclude=history))
                (result,) = runner.run([depth], [item])
                assert not isinstance(result, Exception)
                answers.append(ndcg(result.indices, int(test.targets[row])))
            expected = bundle.manifest.depths[depth].quality["ndcg@10"].value
            assert np.mean(answers) == pytest.approx(expected, abs=1e-9)


def test_the_tables_are_what_is_counted_before_the_test_items(bundle_path: Path, dataset: Dataset) -> None:
    with Bundle.open(bundle_path) as bundle:
        info, counting = bundle.manifest.counting, bundle.counting
        assert info is not None
        assert counting is not None
        fields = CountingSettings.__dataclass_fields__
        settings = CountingSettings(**{name: getattr(info, name) for name in fields})
        tables = count(leave_one_out(dataset).until_test, dataset.n_items, settings)
        for name in ("offsets", "neighbours", "weights", "popularity"):
            assert (getattr(counting, name) == getattr(tables, name)).all()


def test_the_weights_of_event_types_come_from_the_dataset(tmp_path: Path) -> None:
    table = tmp_path / "shop.csv"
    kinds = ("purchase", "view", "hover", "v" * 65)
    rows = [f"u{user},i{item},{item},{kinds[item % 4]}" for user in range(4) for item in range(8)]
    table.write_text("\n".join(("user,item,timestamp,event_type", *rows)))
    weights = {"purchase": 1.0, "view": 0.25, "hover": 0.0, "v" * 65: 0.5}
    for given, expected in ((weights, {"purchase": 1.0, "view": 0.25, "hover": 0.0}), (None, {})):
        out = tmp_path / str(given is None)
        prepare(str(table), out, options=PrepareOptions(weight=given or {}))
        assert event_weights(Dataset.load(out)) == expected


def test_a_slice_keeps_the_counting_exit_and_the_weights_of_its_depths(bundle_path: Path, tmp_path: Path) -> None:
    phone = load_profile("phone-low")
    made = slice_bundle(bundle_path, phone, tmp_path / "slice")
    assert made.counting is not None
    assert set(made.counting.weights) == {4, 8}
    with Bundle.open(tmp_path / "slice") as sliced, Bundle.open(bundle_path) as whole:
        assert all(sliced.read(name) == whole.read(name) for name in COUNTING_FILES)
        assert [depth_digest(made, depth) for depth in (0, 4, 8)] == [
            depth_digest(whole.manifest, depth) for depth in (0, 4, 8)
        ]


def test_inspecting_a_bundle_shows_depth_0_and_what_counting_weighs(counting_bundle: Path) -> None:
    with Bundle.open(counting_bundle) as bundle:
        rows, quality = depth_rows(bundle.manifest), quality_rows(bundle.manifest)
    assert [row[0] for row in rows] == ["depth", "0", "4", "8", "12", "16"] == [row[0] for row in quality]
    assert [row[-1] for row in rows] == ["counting", "alone", "+ 0.3", "+ 0.3", "+ 0.3", "+ 0.3"]
    assert len({len(row) for row in rows}) == 1
