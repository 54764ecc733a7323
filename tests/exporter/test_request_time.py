"""What the time of a request changes goes from training into a bundle, its figures and its certificate."""

from pathlib import Path

import numpy as np
import pytest

from fathom.exporter.bundle import export as bundle_writer
from fathom.exporter.bundle.export import export
from fathom.exporter.bundle.report import fact_rows
from fathom.exporter.certification.outcomes import measure_outcomes
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.reduced_quality import evaluate_engines
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.training.checkpoint import Checkpoint
from fathom.training.counting import fit_counting
from fathom.training.dataset import Dataset
from fathom.training.evaluate import evaluate_model
from fathom.training.metrics import Interval
from fathom.training.request_time import BUCKETS, RequestTime
from fathom.training.splits import leave_one_out


def moves(checkpoint: Checkpoint) -> RequestTime:
    changes = np.random.default_rng(0).normal(size=(BUCKETS, 2, checkpoint.model.config.width)).astype(np.float32)
    return RequestTime(changes, Interval(0.01, 0.0, 0.02))


def test_what_was_learned_is_what_is_served_and_judged(
    checkpoint: Checkpoint, dataset: Dataset, engines: EngineSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, cut = moves(checkpoint), leave_one_out(dataset)
    monkeypatch.setattr(bundle_writer, "export_segments", lambda _: engines)
    monkeypatch.setattr(bundle_writer, "fit_request_time", lambda *_args, **_kwargs: timed)
    export(checkpoint, dataset, tmp_path / "bundle", name="timed")
    counting = fit_counting(checkpoint.model, cut, dataset.n_items)
    report = evaluate_model(
        checkpoint.model, dataset, cut, counting=counting, request_time=timed, baselines=(), resamples=20
    )
    by_engines = evaluate_engines(
        engines, dataset, cut, counting, timed, max_history=checkpoint.model.config.max_history, progress=lambda _: None
    )
    with Bundle.open(tmp_path / "bundle") as bundle:
        assert bundle.request_time is not None
        np.testing.assert_array_equal(bundle.request_time.changes, timed.changes)
        assert bundle.manifest.request_time is not None
        assert bundle.manifest.request_time.gain.value == 0.01
        assert [
            "request time",
            "changes answers, .0100 [.0000, .0200] of NDCG@10 added on validation items",
        ] in fact_rows(bundle.manifest)
        measured = measure_outcomes(bundle, open_engine(bundle), cut.test)
        for depth in bundle.depths:
            expected = report.per_user[f"depth {depth}"]["ndcg@10"]
            assert bundle.manifest.depths[depth].quality["ndcg@10"].value == pytest.approx(expected.mean(), abs=1e-6)
            np.testing.assert_allclose(by_engines.per_user[f"depth {depth}"]["ndcg@10"], expected, atol=1e-6)
            order = measured.quality[:, measured.depths.index(depth)]
            np.testing.assert_allclose(order, expected, atol=1e-6)
    plain = report.per_user["depth 4 untimed"]["ndcg@10"]
    assert not np.allclose(report.per_user["depth 4"]["ndcg@10"], plain)
