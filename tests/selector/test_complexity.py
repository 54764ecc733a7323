"""Complexity is the expected disagreement of the shallowest depth: calibrated, 0 to 1, stored and read back."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ArtefactError
from fathom.selector.complexity import Calibration, ComplexityModel, read_complexity, reliability
from fathom.selector.features import Features
from fathom.selector.isotonic import isotonic

COUNT = len(Features._fields)
fast = settings(deadline=None, max_examples=100)
anything = st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf, -math.inf])


def requests(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, disagreement in tenths that rises with the first feature, and users with four requests each."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (count, COUNT))
    rows[rng.random(rows.shape) < 0.05] = math.nan
    chance = 1 / (1 + np.exp(-np.nan_to_num(rows[:, 0])))
    return rows, rng.binomial(10, chance) / 10, np.arange(count) // 4


def fitted(count: int = 2_000) -> ComplexityModel:
    rows, disagreement, users = requests(count)
    return ComplexityModel.fit(rows, disagreement, users, np.arange(count) % 4 == 3, 0.05)


@pytest.fixture(scope="module")
def model() -> ComplexityModel:
    return fitted()


def scores(model: ComplexityModel, rows: np.ndarray) -> np.ndarray:
    return np.array([model.score(Features(*row)) for row in rows.tolist()])


@fast
@given(st.lists(anything, min_size=COUNT, max_size=COUNT))
def test_the_score_is_between_0_and_1_for_any_request(row: list[float]) -> None:
    assert 0.0 <= _MODEL.score(Features(*row)) <= 1.0


_MODEL = fitted(400)


def test_complexity_is_what_is_observed_of_users_that_nothing_was_learned_from(model: ComplexityModel) -> None:
    rows, disagreement, _ = requests(4_000, seed=1)
    for point in reliability(scores(model, rows), disagreement):
        assert point.requests == 400
        assert point.predicted == pytest.approx(point.observed, abs=0.04)


def test_the_stored_reliability_is_that_of_unseen_users(model: ComplexityModel) -> None:
    assert sum(point.requests for point in model.reliability) == model.requests == 2_000
    predicted, observed = (np.array(column) for column in list(zip(*model.reliability, strict=True))[:2])
    assert (np.diff(predicted) >= 0).all()
    assert np.abs(predicted - observed).max() < 0.08
    assert observed[-1] - observed[0] > 0.3


def test_where_nothing_can_be_told_complexity_is_the_mean(model: ComplexityModel) -> None:
    rows, disagreement, users = requests(1_000)
    shuffled = np.random.default_rng(2).permutation(disagreement)
    told = scores(ComplexityModel.fit(rows, shuffled, users, users >= 0, 0.05), rows)
    assert told.mean() == pytest.approx(shuffled.mean(), abs=0.02)
    assert told.std() < 0.05 < scores(model, rows).std()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_a_share_of_the_requests_lies_below_the_complexity_at_that_share(model: ComplexityModel, share: float) -> None:
    rows, _, _ = requests(4_000, seed=3)
    assert np.mean(scores(model, rows) < model.at_share(share)) == pytest.approx(share, abs=0.05)


def test_no_request_lies_below_share_0_and_all_that_are_not_certain_to_fail_below_share_1(
    model: ComplexityModel,
) -> None:
    assert (model.at_share(0.0), model.at_share(1.0)) == (0.0, 1.0)
    shares = [model.at_share(share) for share in np.linspace(0, 1, 200)]
    assert shares == sorted(shares)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_few_requests_are_enough_for_a_model_that_says_little(count: int) -> None:
    rows, disagreement, users = requests(count)
    model = ComplexityModel.fit(rows, disagreement, users, users < 0, 0.05)
    assert 0 <= model.score(Features(*rows[0])) <= 1


def test_calibration_never_falls_and_does_not_leave_what_was_observed() -> None:
    rng = np.random.default_rng(4)
    predicted = rng.normal(0, 1, 600)
    observed = np.clip(0.4 + 0.2 * predicted + rng.normal(0, 0.2, 600), 0, 1)
    calibration = Calibration.fit(predicted, observed)
    told = calibration.of(np.linspace(-9, 9, 400))
    assert (np.diff(told) >= 0).all()
    assert 0.0 <= told[0] < 0.15 < 0.7 < told[-1] <= 1.0


def test_one_prediction_is_calibrated_as_many_are() -> None:
    for calibration in (Calibration((0.1, 0.2, 0.6), (0.0, 0.3, 0.9)), Calibration((0.5,), (0.2,))):
        asked = np.array([-np.inf, 0.0, 0.1, 0.15, 0.2, 0.5, 0.6, 0.7, np.inf])
        each = [calibration.of_one(float(value)) for value in asked]
        np.testing.assert_allclose(each, calibration.of(asked), atol=1e-15)


def test_isotonic_regression_pools_what_falls() -> None:
    values = np.array([1.0, 3.0, 2.0, 4.0, 0.0])
    assert isotonic(values, np.ones(5)).tolist() == [1.0, 2.25, 2.25, 2.25, 2.25]
    assert isotonic(np.array([2.0, 1.0]), np.array([3.0, 1.0])).tolist() == [1.75, 1.75]


def test_a_model_survives_json_exactly(model: ComplexityModel) -> None:
    again = read_complexity(json.loads(json.dumps(model.to_json(), allow_nan=False)))
    assert again == model
    assert len(json.dumps(model.to_json())) < 30_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 3}, "newer than 2; upgrade Fathom"),
        ({"schema_version": None}, "not a selector"),
        ({"surprise": 1}, "not a selector: surprise"),
        ({"requests": 0}, "not a selector: requests"),
        ({"temperature": 0.0}, "not a selector: temperature"),
        ({"quantiles": [0.0, 1.0]}, "quantiles must be 65 ascending shares"),
        ({"quantiles": [0.5] * 64 + [0.4]}, "quantiles must be 65 ascending shares"),
        ({"calibration": {"predicted": [0.0, 0.0], "observed": [0.0, 1.0]}}, "do not ascend"),
        ({"calibration": {"predicted": [0.0, 1.0], "observed": [1.0, 0.0]}}, "do not ascend"),
        ({"calibration": {"predicted": [0.0, 1.0], "observed": [0.0]}}, "differ in length"),
        ({"calibration": {"predicted": [0.0], "observed": [1.5]}}, "not a selector: calibration.observed.0"),
        (
            {"model": {"centre": [0.0], "scale": [1.0], "intercept": [0.0], "weights": [[1.0, 1.0]]}},
            "model does not predict one number from the features",
        ),
    ],
)
def test_a_damaged_selector_is_refused_in_one_line(model: ComplexityModel, change: dict[str, Any], says: str) -> None:
    value = {**model.to_json(), **change}
    with pytest.raises(ArtefactError, match=r"^selector\.json: ") as caught:
        read_complexity(value, where="selector.json")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_selector_without_a_schema_version_is_refused(model: ComplexityModel) -> None:
    value = model.to_json()
    del value["schema_version"]
    with pytest.raises(ArtefactError, match="schema_version"):
        read_complexity(value)
