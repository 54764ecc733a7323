"""How like the deepest depth's answers the others are, and what they are expected to be worth: worked by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fathom.benchmarks.experiments.cascade import with_answer
from fathom.exporter.bundle.teachers import teaching_cases
from fathom.exporter.certification.outcomes import Outcomes, agreement, measure_outcomes, rank_biased_overlap
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.padding import left_padded
from fathom.selector.complexity import ComplexityModel
from fathom.selector.features import Features
from fathom.selector.ranked_complexity import RankedComplexity, Scale
from fathom.training.dataset import Dataset
from fathom.training.splits import leave_one_out


def test_agreement_of_the_top_k_is_the_share_of_its_items_that_are_given_too() -> None:
    best = np.array([[[1, 2, 3, 9], [2, 1, 3, 4], [1, 2, 3, 4]]])
    assert agreement(best).tolist() == [[0.75, 1.0, 1.0]]
    assert agreement(best[:, :, :1]).tolist() == [[1.0, 0.0, 1.0]]
    # Where the deepest has two items only, they are all that can be shared.
    few = np.array([[[7, 1, 2, -1], [1, 2, -1, -1]]])
    assert agreement(few).tolist() == [[1.0, 1.0]]


def test_rank_biased_overlap_weighs_the_top_most() -> None:
    best = np.array([[[2, 1], [1, 3], [1, 2]]])
    p = 0.9
    # Swapped: nothing in common at 1, both at 2, and so on behind them.
    swapped = (1 - p) * (0 + 1 * p) + p**2 * 1
    # The first in common, then one of two, and half of what follows.
    half = (1 - p) * (1 + 0.5 * p) + p**2 * 0.5
    np.testing.assert_allclose(rank_biased_overlap(best), [[swapped, half, 1.0]])
    np.testing.assert_allclose(rank_biased_overlap(np.array([[[5, 6], [1, 2]]])), [[0.0, 1.0]])


def test_rank_biased_overlap_of_short_lists_is_that_of_the_items_there_are() -> None:
    short = np.array([[[2, 1, -1, -1], [1, 2, -1, -1]]])
    np.testing.assert_allclose(rank_biased_overlap(short), rank_biased_overlap(short[:, :, :2]))


@pytest.fixture(scope="module")
def measured(counting_bundle: Path, dataset: Dataset) -> tuple[Bundle, Outcomes]:
    bundle = Bundle.open(counting_bundle)
    with open_engine(bundle) as engine:
        return bundle, measure_outcomes(bundle, engine, leave_one_out(dataset).test)


def test_denoised_is_the_ndcg_that_the_deepest_depths_own_softmax_expects(
    measured: tuple[Bundle, Outcomes], dataset: Dataset
) -> None:
    bundle, found = measured
    cases = leave_one_out(dataset).test
    assert found.denoised is not None
    assert bundle.counting is not None
    assert isinstance(bundle.complexity, ComplexityModel)
    vectors, weight = np.asarray(bundle.vectors), 0.3
    with open_engine(bundle) as engine:
        for row in (0, 17, 41):
            history, times = cases.histories[row], cases.histories.times(row)
            assert times is not None
            ids = left_padded([history[-20:] + 1], min(20, len(history)))
            (user,) = engine.run(ids, left_padded([times[-20:]], ids.shape[1]), 16)
            scores = vectors @ user
            items, shares = bundle.counting.shares(history[-20:])
            scores[items] += weight * shares
            scores[history] = -np.inf
            chance = np.exp(scores / bundle.complexity.temperature)
            chance /= chance.sum()
            for column in range(len(found.depths)):
                best = found.best[row, column]
                best = best[best >= 0]
                worth = sum(chance[item] / np.log2(place + 2) for place, item in enumerate(best))
                assert found.denoised[row, column] == pytest.approx(worth, rel=1e-4)
    # No list is worth more than the deepest depth's own.
    assert (found.denoised <= found.denoised[:, -1:] + 1e-6).all()


def test_a_bundle_that_does_not_say_its_temperature_has_no_denoised_loss(
    measured: tuple[Bundle, Outcomes], dataset: Dataset
) -> None:
    scale = Scale((0.0, 100.0), (0.0, 1.0))
    older = replace(measured[0], complexity=RankedComplexity(1, {"length": 1.0}, {"length": scale}, scale, 10))
    with open_engine(older) as engine:
        found = measure_outcomes(older, engine, leave_one_out(dataset).test)
    assert found.denoised is None
    assert found.select(np.arange(2)).at_depths((4, 16)).denoised is None
    np.testing.assert_array_equal(found.best, measured[1].best)


def test_a_cascade_sees_how_sure_the_first_exit_is_which_depth_0_is_not(measured: tuple[Bundle, Outcomes]) -> None:
    found, features = measured[1], len(Features._fields)
    assert 0 in found.depths
    told = with_answer(found)
    np.testing.assert_array_equal(told[:, :features], found.features)
    scores = found.scores[:, found.depths.index(4)]
    np.testing.assert_allclose(told[:, features], scores[:, 0])
    np.testing.assert_allclose(told[:, features + 1], scores[:, 0] - scores[:, 1])
    np.testing.assert_allclose(told[:, features + 2], scores[:, 0] - scores[:, -1])
    assert (told[:, -1] >= 0).all()
    assert (told[:, -1] <= np.log(10)).all()
    np.testing.assert_array_equal(with_answer(found.at_depths((0, 4, 16))), told)


def test_teachers_requests_have_no_quality(measured: tuple[Bundle, Outcomes], dataset: Dataset) -> None:
    bundle, _ = measured
    cases, _ = teaching_cases(leave_one_out(dataset), 20, 50)
    with open_engine(bundle) as engine:
        found = measure_outcomes(bundle, engine, cases)
    assert np.isnan(found.quality).all()
    assert found.agreement.shape == found.quality.shape
