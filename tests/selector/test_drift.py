"""Drift of features is noticed, in either direction, and hardly ever where there is none."""

import math

import numpy as np
import pytest

from fathom.selector.complexity import ComplexityModel
from fathom.selector.drift import FeatureDrift, training_scales
from fathom.selector.features import Features

NAMES = Features._fields


def rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Features of histories as in training, (count, features)."""
    return rng.normal(size=(count, len(Features._fields)))


def learned(features: np.ndarray) -> ComplexityModel:
    """Of requests that disagree as it comes."""
    count = len(features)
    disagreement = np.random.default_rng(9).random(count)
    return ComplexityModel.fit(features, disagreement, np.arange(count), np.ones(count, dtype=np.bool_), 0.05)


@pytest.fixture(scope="module")
def model() -> ComplexityModel:
    return learned(rows(np.random.default_rng(0), 2000))


def follow(drift: FeatureDrift, model: ComplexityModel, requests: np.ndarray) -> list[str]:
    """What the drift says of these requests."""
    features = [Features(*row) for row in requests.tolist()]
    return [said for each in features if (said := drift.add(each, model.score(each))) is not None]


def test_requests_as_in_training_raise_no_alarm(model: ComplexityModel) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        drift = FeatureDrift(training_scales(model), alpha=0.01)
        assert follow(drift, model, rows(rng, 1000)) == []
    assert [each.feature for each in drift.readings] == [*NAMES, "complexity"]
    assert drift.samples == 1000
    assert all(abs(each.mean_rank - 0.5) < 0.1 and not each.alarm for each in drift.readings)


@pytest.mark.parametrize("shift", [-0.8, 0.8])
def test_a_feature_that_moves_is_named_once_in_either_direction(model: ComplexityModel, shift: float) -> None:
    rng, drift = np.random.default_rng(2), FeatureDrift(training_scales(model), alpha=0.01)
    assert follow(drift, model, rows(rng, 500)) == []
    moved = rows(rng, 2000)
    moved[:, Features._fields.index("density")] += shift
    said = follow(drift, model, moved)
    assert len(said) == 1
    assert "mean ranks, 0.5 in training: density 0." in said[0]
    assert [each.feature for each in drift.readings if each.alarm] == ["density"]


def test_what_is_not_known_of_a_request_says_nothing(model: ComplexityModel) -> None:
    drift = FeatureDrift(training_scales(model), alpha=0.01)
    unknown = Features(*[math.nan] * len(Features._fields))
    assert all(drift.add(unknown, model.at_share(0.5)) is None for _ in range(1000))
    assert [each.mean_rank for each in drift.readings[:-1]] == [0.0] * len(NAMES)


def test_a_bundle_that_knows_no_feature_is_watched_by_its_complexity_alone() -> None:
    nothing = learned(np.full((10, len(Features._fields)), math.nan))
    drift = FeatureDrift(training_scales(nothing), alpha=0.01)
    said = [text for _ in range(200) if (text := drift.add(Features(*[1.0] * 11), 0.99)) is not None]
    assert len(said) == 1
    assert "complexity 0.9" in said[0]
