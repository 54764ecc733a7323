"""Grades: methods that know the truth, or its opposite, against a lattice of a toy."""

from pathlib import Path

import numpy as np
import pytest

from fathom.importance.lattice.grades import Truth, grade, regret
from fathom.importance.lattice.lattice import Lattice, masks_on_the_way, measure_lattice
from fathom.importance.lattice.values import layers_of, shapley_values, sizes
from fathom.importance.layer_ranking import Grade, LayerRanking
from fathom.importance.methods.ablation import Ablation
from fathom.importance.rank import rank_layers
from fathom.importance.toy import GatedToy, toy_batches

GATES = [1.0, 0.5, 0.0, 0.7, 0.3]


@pytest.fixture(scope="module")
def lattice(tmp_path_factory: pytest.TempPathFactory) -> Lattice:
    return measure_lattice(GatedToy(GATES), toy_batches(3, 8), tmp_path_factory.mktemp("l") / "lattice", about={})


def test_the_truth_and_its_opposite_are_graded_one_and_minus_one(lattice: Lattice) -> None:
    truth = Truth.of(lattice)
    own = grade(truth.values, truth, [2, 3], seed=0, resamples=50)
    assert (own.tau, own.low, own.high) == (1, 1, 1)
    opposite = grade(-truth.values, truth, [2, 3], seed=0, resamples=50)
    assert (opposite.tau, opposite.low, opposite.high) == (-1, -1, -1)


def test_the_interval_of_a_noisy_method_holds_its_tau(lattice: Lattice) -> None:
    truth = Truth.of(lattice)
    noise = np.random.default_rng(0).normal(size=truth.values.shape) * truth.values.std()
    noisy = grade(truth.values + noise, truth, [2], seed=0, resamples=200)
    assert noisy.low <= noisy.tau <= noisy.high
    assert noisy.low < noisy.high


def test_regret_is_what_the_top_layers_lack_against_the_best_subset(lattice: Lattice) -> None:
    truth = Truth.of(lattice, "ndcg@10")
    assert truth.utilities is not None
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    found = regret(scores, truth, [1, 3, 5])
    of_three = [mask for mask in range(32) if sizes(5)[mask] == 3]
    assert found[3] == pytest.approx(max(truth.utilities[of_three]) - truth.utilities[0b00111])
    assert found[5] == 0
    assert min(found.values()) >= 0


def test_a_sampled_lattice_grades_without_regret(tmp_path: Path) -> None:
    orders = [[0, 1, 2, 3, 4], [3, 1, 4, 0, 2]]
    sample = measure_lattice(
        GatedToy(GATES),
        toy_batches(3, 8),
        tmp_path / "l",
        masks=masks_on_the_way(orders),
        about={"orders": orders},
    )
    truth = Truth.of(sample)
    assert grade(truth.values, truth, [2, 3], seed=0, resamples=10) == Grade(1, 1, 1, {})


def test_a_ranking_holds_the_grades_of_its_methods_and_keeps_them(lattice: Lattice, tmp_path: Path) -> None:
    ranking = rank_layers(GatedToy(GATES), toy_batches(3, 8), {"ablation": Ablation()}, lattice=lattice)
    assert ranking.grades.keys() == {"loss", "ndcg@10"}
    assert ranking.grades["loss"].keys() == {"ablation", "consensus"}
    found = ranking.grades["loss"]["ablation"]
    assert found.regret.keys() == {1, 2, 3, 4}
    assert found.low <= found.tau <= found.high
    truth = shapley_values(lattice.mean("loss"))
    best = truth[list(layers_of(int(np.argmax(lattice.mean("loss")))))]
    assert best.sum() > 0
    ranking.save(tmp_path / "ranking.json")
    assert LayerRanking.load(tmp_path / "ranking.json") == ranking
