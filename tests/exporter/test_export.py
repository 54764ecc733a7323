"""An exported bundle opens, says where it came from, and appears whole or not at all."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fathom.errors import ArtefactError, ConfigError, ParityError, PlanError
from fathom.exporter.bundle import export as bundle_writer
from fathom.exporter.bundle.export import export
from fathom.exporter.bundle.item_files import transition_entropy
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.planning.plan import DepthPlan
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.engines.open import open_engine
from fathom.runtime.manifest import MetricInterval
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.splits import leave_one_out


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch, engines: EngineSet) -> None:
    """Tests here need many exports of one model, and tracing it once is enough."""
    monkeypatch.setattr(bundle_writer, "export_segments", lambda _: engines)


def test_the_bundle_opens_and_every_check_passes(bundle_path: Path) -> None:
    assert all(check.ok for check in verify(bundle_path))
    with Bundle.open(bundle_path) as bundle:
        assert bundle.depths == (4, 8, 12, 16)
        assert bundle.manifest.strategy == "prefix"
        assert bundle.manifest.model.uses_timestamps
        assert bundle.manifest.depths[8].segments == ("engines/depth-04.onnx", "engines/depth-08.onnx")
        assert bundle.manifest.depths[8].layers == tuple(range(8))


def test_the_runtime_gives_the_models_user_vectors(bundle_path: Path, checkpoint: Checkpoint, dataset: Dataset) -> None:
    history = leave_one_out(dataset).test.histories
    length = int(min(history.lengths[0], 20))
    items = history[0][-length:].astype(np.int64)[None] + 1
    times = history.times(0)
    assert times is not None
    import torch

    with Bundle.open(bundle_path) as bundle, torch.no_grad():
        engine = open_engine(bundle)
        for depth in bundle.depths:
            found = engine.run(items, times[None, -length:], depth)
            expected = checkpoint.model.user_vectors(
                torch.from_numpy(items), torch.from_numpy(times[None, -length:]), depth=depth
            )
            assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_items_come_with_what_the_dataset_knows(bundle_path: Path, checkpoint: Checkpoint, dataset: Dataset) -> None:
    with Bundle.open(bundle_path) as bundle:
        assert bundle.catalogue.ids == dataset.item_ids
        assert bundle.catalogue.titles == dataset.titles
        assert bundle.catalogue.categories == dataset.categories
        assert bundle.popularity.sum() == len(leave_one_out(dataset).train.items)
        assert np.asarray(bundle.vectors) == pytest.approx(checkpoint.model.item_vectors().detach().numpy())


def test_the_manifest_holds_measured_parity_and_quality(bundle_path: Path) -> None:
    with Bundle.open(bundle_path) as bundle:
        for info in bundle.manifest.depths.values():
            assert 0 < info.parity.max_abs_error < 1e-5
            assert info.parity.top10_agreement == 1
            assert info.parity.histories > 50
            assert {"hr@10", "ndcg@10", "mrr"} <= set(info.quality)
            assert info.quality["hr@10"].low <= info.quality["hr@10"].value <= info.quality["hr@10"].high


def test_the_same_checkpoint_gives_the_same_version_at_any_time(
    bundle_path: Path,
    checkpoint: Checkpoint,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    again = export(checkpoint, dataset, tmp_path / "again", name="tiny")
    with Bundle.open(bundle_path) as bundle:
        assert again.files == bundle.manifest.files
        assert again.version == bundle.manifest.version
        assert again.created == "1970-01-02T00:00:00Z"
        assert again == bundle.manifest.model_copy(update={"created": again.created})


def test_an_impossible_date_is_refused(
    checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH='yesterday'"):
        export(checkpoint, dataset, tmp_path / "bundle", name="tiny")
    assert not list(tmp_path.iterdir())


def test_the_evidence_that_was_given_is_kept(checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path) -> None:
    evidence = {"prefix": {"ndcg@10/4": MetricInterval(value=0.1, low=0.05, high=0.2)}}
    assert export(checkpoint, dataset, tmp_path / "b", name="b", evidence=evidence).strategy_evidence == evidence


def test_an_engine_that_disagrees_leaves_the_old_bundle_as_it_was(
    checkpoint: Checkpoint,
    dataset: Dataset,
    engines: EngineSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "bundle"
    before = export(checkpoint, dataset, out, name="tiny")
    swapped = replace(engines, files={**engines.files, "engines/depth-08.onnx": engines.files["engines/depth-12.onnx"]})
    monkeypatch.setattr(bundle_writer, "export_segments", lambda _: swapped)
    with pytest.raises(ParityError, match="depth 8"):
        export(checkpoint, dataset, out, name="tiny")
    with Bundle.open(out) as bundle:
        assert bundle.manifest == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_another_dataset_is_refused(checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not on eeee"):
        export(checkpoint, replace(dataset, sha256="e" * 64), tmp_path / "bundle", name="tiny")


def test_a_plan_that_the_checkpoint_was_not_healed_for_is_refused(
    checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path
) -> None:
    plan = DepthPlan.make(None, "prefix", (4, 8), layers=16)
    with pytest.raises(PlanError, match="run `fathom heal`"):
        export(checkpoint, dataset, tmp_path / "bundle", name="tiny", plan=plan)
    assert not list(tmp_path.iterdir())


def test_transition_entropy_is_that_of_what_followed_in_training(dataset: Dataset) -> None:
    train = leave_one_out(dataset).train
    followers: dict[int, list[int]] = {}
    for user in range(len(train)):
        history = train[user].tolist()
        for item, after in pairwise(history):
            followers.setdefault(item, []).append(after)
    found = transition_entropy(train, dataset.n_items + 1)
    assert np.isnan(found[-1])
    for item in range(dataset.n_items):
        if item not in followers:
            assert np.isnan(found[item])
            continue
        shares = [followers[item].count(after) / len(followers[item]) for after in set(followers[item])]
        assert found[item] == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-6)
