"""Healing trains the same layers on in the plan's order; comparing picks the best on validation data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from traced_once import traced_shape

from fathom.errors import ArtefactError, PlanError
from fathom.exporter.bundle import export as bundle_writer
from fathom.exporter.engines.segments import export_segments
from fathom.exporter.planning.compare import choose, compare
from fathom.exporter.planning.heal import heal
from fathom.exporter.planning.plan import DepthPlan, Strategy
from fathom.importance.adapter import measure_checkpoint
from fathom.importance.layer_ranking import LayerRanking
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def small(make_checkpoint: MakeCheckpoint) -> Checkpoint:
    return make_checkpoint(**traced_shape(), layers=4, paths={2: (0, 1), 4: (0, 1, 2, 3)})


@pytest.fixture(scope="module")
def plan(make_ranking: Callable[[list[int]], LayerRanking]) -> DepthPlan:
    return DepthPlan.make(make_ranking([3, 0, 2, 1]), "permuted-prefix", (2, 4))


@pytest.fixture(scope="module")
def healed(
    small: Checkpoint, plan: DepthPlan, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return heal(small, plan, dataset, out=tmp_path_factory.mktemp("heal") / "healed")


def test_greedy_and_lattice_plans_are_healed_compared_and_exported_as_whole_engines(
    small: Checkpoint,
    dataset: Dataset,
    make_ranking: Callable[..., LayerRanking],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lattice = measure_checkpoint(small, dataset, tmp_path / "lattice", users=20)
    lattice.losses[:, 0b0101] -= 100  # layers 0 and 2: the best chain is no prefix
    ranking = make_ranking([0, 1, 2, 3], greedy=[2, 0, 3, 1], checkpoint=small.sha256)
    strategies: tuple[Strategy, ...] = ("greedy", "lattice")
    plans = {name: DepthPlan.make(ranking, name, (2, 4), lattice=lattice) for name in strategies}
    healed = {name: heal(small, plan, dataset, out=tmp_path / "healed" / name) for name, plan in plans.items()}
    found = compare({"prefix": small, **healed}, dataset)
    assert set(found.evidence) == {"prefix", "greedy", "lattice"}
    engines = export_segments(healed["greedy"].model)  # equal paths were healed to equal weights: tracing one is enough
    monkeypatch.setattr(bundle_writer, "export_segments", lambda _: engines)
    for name, plan in plans.items():
        out = tmp_path / f"{name}-bundle"
        bundle_writer.export(healed[name], dataset, out, name="tiny", plan=plan, evidence=found.evidence)
        with Bundle.open(out) as bundle:
            assert bundle.manifest.strategy == name
            assert {depth: (info.layers, info.segments) for depth, info in bundle.manifest.depths.items()} == {
                2: ((0, 2), ("engines/depth-02.onnx",)),
                4: ((0, 1, 2, 3), ("engines/depth-04.onnx",)),
            }
            assert open_engine(bundle).run(np.array([[3, 1, 2]]), None, 2).shape == (1, 16)


def test_a_healed_checkpoint_executes_the_plan(healed: Checkpoint, plan: DepthPlan) -> None:
    assert healed.config.model.paths == {2: (0, 3), 4: (0, 3, 1, 2)} == dict(plan.paths)
    assert healed.config.model.strategy == "permuted-prefix"


def test_healing_goes_on_from_the_given_weights(small: Checkpoint, healed: Checkpoint) -> None:
    before, after = small.model.embedding.weight, healed.model.embedding.weight
    assert not torch.equal(before, after)
    assert torch.cosine_similarity(before[1:], after[1:]).min() > 0.9


def test_healing_leaves_the_given_checkpoint_alone(small: Checkpoint, make_checkpoint: MakeCheckpoint) -> None:
    fresh = make_checkpoint(**traced_shape(), layers=4, paths={2: (0, 1), 4: (0, 1, 2, 3)})
    assert all(torch.equal(a, b) for a, b in zip(small.model.parameters(), fresh.model.parameters(), strict=True))


def test_a_plan_for_another_model_is_refused(small: Checkpoint, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="for 16 layers but the model has 4"):
        heal(small, DepthPlan.make(None, "prefix", layers=16), dataset, out=tmp_path / "healed")


def test_another_dataset_is_refused(small: Checkpoint, plan: DepthPlan, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="was trained on dataset dddd"):
        heal(small, plan, replace(dataset, sha256="e" * 64), out=tmp_path / "healed")


def test_every_plan_keeps_its_figures_and_its_difference_to_the_winner(
    small: Checkpoint, healed: Checkpoint, dataset: Dataset
) -> None:
    found = compare({"permuted-prefix": healed, "prefix": small}, dataset)
    means = {strategy: figures["ndcg@10/mean"].value for strategy, figures in found.evidence.items()}
    (loser,) = set(means) - {found.winner}
    assert set(found.evidence[found.winner]) == {"ndcg@10/2", "ndcg@10/4", "ndcg@10/mean"}
    for strategy, figures in found.evidence.items():
        assert means[strategy] == pytest.approx((figures["ndcg@10/2"].value + figures["ndcg@10/4"].value) / 2)
    difference = found.evidence[loser]["ndcg@10/mean-difference"]
    assert difference.value == pytest.approx(means[loser] - means[found.winner])
    assert difference.low <= difference.value <= difference.high


def test_a_plan_wins_over_a_simpler_one_only_where_it_is_measurably_better() -> None:
    users = np.random.default_rng(0).random(500)
    noise = np.random.default_rng(1).normal(0, 0.1, 500)
    assert choose({"prefix": users, "nested": users + 0.1 + noise}) == "nested"
    assert choose({"prefix": users, "nested": users + 0.001 + noise - noise.mean()}) == "prefix"
    assert choose({"nested": users, "permuted-prefix": users, "prefix": users - 0.1}) == "permuted-prefix"
    assert choose({"lattice": users, "greedy": users, "nested": users, "prefix": users - 0.1}) == "nested"
    assert choose({"lattice": users, "greedy": users, "prefix": users - 0.1}) == "greedy"


def test_equal_plans_go_to_the_simpler_one(small: Checkpoint, dataset: Dataset) -> None:
    same = replace(small, model=small.model.with_paths(small.model.config.paths, "nested").eval())
    found = compare({"nested": same, "prefix": small}, dataset)
    assert found.winner == "prefix"
    assert found.evidence["nested"]["ndcg@10/mean-difference"].high == 0


def test_what_cannot_be_compared_is_refused(small: Checkpoint, healed: Checkpoint, dataset: Dataset) -> None:
    with pytest.raises(PlanError, match="no plan"):
        compare({}, dataset)
    with pytest.raises(PlanError, match="given as nested executes prefix"):
        compare({"nested": small}, dataset)
    other = replace(small, model=small.model.with_paths({1: (0,)}, "prefix").eval())
    with pytest.raises(PlanError, match="same depths"):
        compare({"prefix": other, "permuted-prefix": healed}, dataset)
