"""What the context of a request changes goes from training into a bundle, its figures and its certificate."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fathom.exporter.bundle import export as bundle_writer
from fathom.exporter.bundle.export import export
from fathom.exporter.bundle.report import fact_rows
from fathom.exporter.certification.outcomes import measure_outcomes
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.reduced_quality import evaluate_engines
from fathom.runtime import manifest as runtime
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.training.checkpoint import Checkpoint
from fathom.training.context import Context
from fathom.training.counting import fit_counting
from fathom.training.dataset import Contexts, Dataset
from fathom.training.evaluate import evaluate_model
from fathom.training.metrics import Interval
from fathom.training.splits import leave_one_out
from fathom.training.tables import context as tables
from fathom.training.tables import options


@pytest.fixture
def told(dataset: Dataset) -> Dataset:
    """The dataset with a country and a device for each event, drawn at random."""
    codes = np.random.default_rng(0).integers(0, 4, (len(dataset.sequences.items), 2)).astype(np.int32)
    contexts = Contexts({"country": ("AT", "DE", "FR"), "device": ("phone", "tv", "watch")}, codes)
    return replace(dataset, sequences=replace(dataset.sequences, contexts=contexts))


@pytest.fixture
def learned(checkpoint: Checkpoint) -> Context:
    """Of fewer values than the data have, and in another order."""
    changes = np.random.default_rng(0).normal(size=(4, 2, checkpoint.model.config.width)).astype(np.float32)
    return Context({"country": ("FR", "AT"), "device": ("phone", "watch")}, changes, Interval(0.01, 0.0, 0.02))


def test_what_was_learned_is_what_is_served_and_judged(
    checkpoint: Checkpoint,
    told: Dataset,
    learned: Context,
    engines: EngineSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = leave_one_out(told)
    monkeypatch.setattr(bundle_writer, "export_segments", lambda _: engines)
    monkeypatch.setattr(bundle_writer, "fit_context", lambda *_args, **_kwargs: learned)
    export(checkpoint, told, tmp_path / "bundle", name="told")
    counting = fit_counting(checkpoint.model, cut, told.n_items)
    report = evaluate_model(checkpoint.model, told, cut, counting=counting, context=learned, baselines=(), resamples=20)
    width = {"max_history": checkpoint.model.config.max_history, "progress": lambda _: None}
    by_engines = evaluate_engines(engines, told, cut, counting, None, learned, **width)
    with Bundle.open(tmp_path / "bundle") as bundle:
        assert bundle.context is not None
        np.testing.assert_array_equal(bundle.context.changes, learned.changes)
        info = bundle.manifest.context
        assert info is not None
        assert info.gain is not None
        assert (info.features, info.gain.value) == ({"country": 2, "device": 2}, 0.01)
        measured = measure_outcomes(bundle, open_engine(bundle), cut.test)
        for depth in bundle.depths:
            expected = report.per_user[f"depth {depth}"]["ndcg@10"]
            assert bundle.manifest.depths[depth].quality["ndcg@10"].value == pytest.approx(expected.mean(), abs=1e-6)
            np.testing.assert_allclose(by_engines.per_user[f"depth {depth}"]["ndcg@10"], expected, atol=1e-6)
            order = measured.quality[:, measured.depths.index(depth)]
            np.testing.assert_allclose(order, expected, atol=1e-6)
        facts = dict(fact_rows(bundle.manifest))
        assert facts["context"] == (
            "country (2 values), device (2 values): changes answers, .0100 [.0000, .0200] of NDCG@10 added on"
            " validation items"
        )
    plain = report.per_user["depth 4 without context"]["ndcg@10"]
    assert not np.allclose(report.per_user["depth 4"]["ndcg@10"], plain)


def test_features_that_tell_nothing_may_be_sent_all_the_same(
    checkpoint: Checkpoint, told: Dataset, engines: EngineSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_writer, "export_segments", lambda _: engines)
    monkeypatch.setattr(bundle_writer, "fit_context", lambda *_args, **_kwargs: None)
    manifest = export(checkpoint, told, tmp_path / "bundle", name="told")
    assert manifest.context is not None
    assert (manifest.context.features, manifest.context.gain) == ({"country": 0, "device": 0}, None)
    assert dict(fact_rows(manifest))["context"] == "country, device: changes nothing"
    with Bundle.open(tmp_path / "bundle") as bundle:
        assert bundle.context is not None
        assert [*bundle.context.values] == ["country", "device"]


def test_what_a_data_set_may_have_of_a_context_a_bundle_may_have_too() -> None:
    of_data = tables.MOST_FEATURES, tables.MOST_VALUES, options.LONGEST_FEATURE_BYTES, tables.LONGEST_VALUE_BYTES
    of_bundles = runtime.MOST_FEATURES, runtime.MOST_VALUES, runtime.LONGEST_FEATURE_BYTES, runtime.LONGEST_VALUE_BYTES
    assert of_data == of_bundles
