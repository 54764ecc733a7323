"""Complexity is a share of training histories: between 0 and 1, monotone in every feature, stored and read back."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import ArtefactError
from fathom.selector.complexity import WEIGHTS, ComplexityModel, Scale
from fathom.selector.features import Features

NAMES = Features._fields
UNWEIGHED = [math.nan] * (len(NAMES) - len(WEIGHTS))
fast = settings(deadline=None, max_examples=200)
bounded = st.floats(-1e9, 1e9, allow_subnormal=False)
anything = st.floats(allow_nan=True, allow_infinity=True)
rows = st.lists(st.tuples(*[bounded | st.just(math.nan)] * len(NAMES)), min_size=1, max_size=30)


def training_rows(n: int = 2_000) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.column_stack(
        [
            rng.integers(1, 200, n),
            rng.beta(8, 1, n),
            rng.normal(4, 1, n),
            rng.random(n),
            rng.normal(0.3, 0.1, n),
            *np.full((len(UNWEIGHED), n), math.nan),
        ]
    )


def request_of(*weighed: float) -> Features:
    """A request of which only the features with a say are known."""
    return Features(*weighed, *UNWEIGHED)


@pytest.fixture(scope="module")
def model() -> ComplexityModel:
    return ComplexityModel.fit(training_rows())


@fast
@given(rows, st.tuples(*[anything] * len(NAMES)))
def test_the_score_is_between_0_and_1_for_any_training_data_and_any_request(
    training: list[tuple[float, ...]], request_row: tuple[float, ...]
) -> None:
    assert 0.0 <= ComplexityModel.fit(training).score(Features(*request_row)) <= 1.0


@fast
@given(rows, st.tuples(*[anything] * len(NAMES)), st.integers(0, 4), bounded, bounded)
def test_the_score_rises_with_complex_features_and_falls_with_simple_ones(
    training: list[tuple[float, ...]], row: tuple[float, ...], column: int, one: float, other: float
) -> None:
    model = ComplexityModel.fit(training)
    low, high = (model.score(Features(*row)._replace(**{NAMES[column]: value})) for value in sorted((one, other)))
    direction = math.copysign(1, WEIGHTS[NAMES[column]])
    assert direction * (high - low) >= -1e-9


def test_the_orientation_is_the_documented_one() -> None:
    assert {name: math.copysign(1, weight) for name, weight in WEIGHTS.items()} == {
        "length": 1,
        "distinct_ratio": 1,
        "popularity": -1,
        "recency": -1,
        "density": -1,
    }


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.8])
def test_a_threshold_is_the_share_of_training_traffic_below_it(model: ComplexityModel, threshold: float) -> None:
    scores = np.array([model.score(Features(*row)) for row in training_rows().tolist()])
    assert np.mean(scores < threshold) == pytest.approx(threshold, abs=0.01)


def test_an_unknown_feature_counts_like_the_middle_of_the_training_data(model: ComplexityModel) -> None:
    middle = request_of(*np.median(training_rows()[:, : len(WEIGHTS)], axis=0).tolist())
    unknown = Features(*[math.nan] * len(NAMES))
    assert model.score(unknown) == pytest.approx(model.score(middle), abs=0.01)
    assert model.score(unknown) == pytest.approx(0.5, abs=0.05)


def test_a_feature_that_training_never_knew_has_no_say() -> None:
    training = training_rows()
    training[:, NAMES.index("recency")] = math.nan
    model = ComplexityModel.fit(training)
    assert model.scales["recency"] is None
    request = request_of(50, 1, 4, 0.1, 0.3)
    assert model.score(request) == model.score(request._replace(recency=0.9))


def test_a_constant_feature_changes_nothing() -> None:
    training = training_rows()
    training[:, NAMES.index("distinct_ratio")] = 1.0
    model = ComplexityModel.fit(training)
    request = request_of(50, 1, 4, 0.1, 0.3)
    assert model.score(request) == model.score(request._replace(distinct_ratio=0.2))


def test_weights_of_zero_leave_a_feature_out() -> None:
    only_length = {name: float(name == "length") for name in NAMES}
    model = ComplexityModel.fit(training_rows(), weights=only_length)
    assert model.score(request_of(1, 0, 0, 0, 0)) < 0.02
    assert model.score(request_of(199, 0, 0, 0, 0)) > 0.98
    assert (
        ComplexityModel.fit(training_rows(), weights=dict.fromkeys(NAMES, 0.0)).score(request_of(1, 1, 1, 1, 1)) == 0.5
    )


def test_values_that_many_histories_share_have_the_middle_of_their_ranks() -> None:
    scale = Scale.fit(np.array([1.0] * 50 + [2.0] * 50))
    assert scale.rank(1.0) == pytest.approx(0.25, abs=0.02)
    assert scale.rank(2.0) == pytest.approx(0.75, abs=0.02)
    assert scale.rank(0.0) == scale.rank(1.0)
    assert scale.rank(math.nan) == 0.5


@fast
@given(rows)
def test_a_model_survives_json_exactly(training: list[tuple[float, ...]]) -> None:
    model = ComplexityModel.fit(training)
    again = ComplexityModel.from_json(json.loads(json.dumps(model.to_json(), allow_nan=False)))
    assert again == model
    assert all(again.score(Features(*row)) == model.score(Features(*row)) for row in training)


def test_a_models_file_is_small(model: ComplexityModel) -> None:
    assert len(json.dumps(model.to_json())) < 30_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "newer than 1; upgrade Fathom"),
        ({"schema_version": None}, "not a selector"),
        ({"surprise": 1}, "not a selector: surprise"),
        ({"histories": 0}, "not a selector: histories"),
        ({"weights": {"length": 1.0}}, "weights and scales are for different features"),
        ({"weights": {}, "scales": {}}, "weights must be for some of length, distinct_ratio"),
        ({"weights": {**WEIGHTS, "length": math.nan}}, "not a selector: weights.length"),
        ({"combined": {"values": [0.0, math.nan], "ranks": [0.0, 1.0]}}, "not a selector: combined.values.1"),
        ({"combined": {"values": [0.0, math.inf], "ranks": [0.0, 1.0]}}, "not a selector: combined.values.1"),
        ({"combined": {"values": [0.0, 1.0], "ranks": [0.0, 1.5]}}, "not a selector: combined.ranks.1"),
        ({"combined": {"values": [1.0, 1.0], "ranks": [0.0, 1.0]}}, "values do not ascend"),
        ({"combined": {"values": [0.0, 1.0], "ranks": [1.0, 0.0]}}, "ranks descend"),
        ({"combined": {"values": [0.0, 1.0], "ranks": [1.0]}}, "differ in length"),
        ({"combined": {"values": [], "ranks": []}}, "not a selector: combined.values"),
        ({"combined": None}, "not a selector: combined"),
    ],
)
def test_a_damaged_selector_is_refused_in_one_line(model: ComplexityModel, change: dict[str, Any], says: str) -> None:
    value = {**model.to_json(), **change}
    with pytest.raises(ArtefactError, match=r"^selector\.json: ") as caught:
        ComplexityModel.from_json(value, where="selector.json")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_selector_without_a_schema_version_is_refused(model: ComplexityModel) -> None:
    value = model.to_json()
    del value["schema_version"]
    with pytest.raises(ArtefactError, match="schema_version"):
        ComplexityModel.from_json(value)


@pytest.mark.parametrize("training", [np.empty((0, 5)), np.zeros((3, 4)), np.full((3, 5), np.inf), np.zeros(5)])
def test_training_data_that_says_nothing_is_refused(training: np.ndarray) -> None:
    with pytest.raises(ValueError, match="features must be finite or NaN"):
        ComplexityModel.fit(training)
