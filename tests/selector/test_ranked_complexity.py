"""Selectors of schema 1 are read and served as before: complexity is the share of training histories below it."""

import math
from typing import Any

import pytest

from fathom.errors import ArtefactError
from fathom.selector.complexity import read_complexity
from fathom.selector.features import Features
from fathom.selector.ranked_complexity import RankedComplexity

UNKNOWN = [math.nan] * (len(Features._fields) - 2)
#: Long histories are complex, and so are those of many different items.
STORED: dict[str, Any] = {
    "schema_version": 1,
    "weights": {"length": 1.0, "distinct_ratio": 1.0, "popularity": -1.0},
    "scales": {
        "length": {"values": [0.0, 100.0], "ranks": [0.0, 1.0]},
        "distinct_ratio": {"values": [0.5, 1.0], "ranks": [0.2, 0.8]},
        "popularity": None,
    },
    "combined": {"values": [0.0, 1.0], "ranks": [0.1, 0.9]},
    "histories": 10,
}


def test_a_score_is_the_rank_of_the_mean_of_ranks() -> None:
    model = read_complexity(STORED)
    assert isinstance(model, RankedComplexity)
    assert model.is_brief
    assert model.temperature is None
    # The ranks are 0.5 and 0.5, their mean is 0.5, and that has the rank 0.5.
    assert model.score(Features(50.0, 0.75, *UNKNOWN)) == pytest.approx(0.5)
    assert model.score(Features(100.0, 1.0, *UNKNOWN)) == pytest.approx(0.1 + 0.8 * 0.9)
    assert model.score(Features(math.nan, math.nan, *UNKNOWN)) == pytest.approx(0.5)


def test_a_share_of_requests_lies_below_that_complexity() -> None:
    assert read_complexity(STORED).at_share(0.3) == 0.3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": {"length": 1.0}}, "weights and scales are for different features"),
        ({"weights": {}, "scales": {}}, "weights must be for some of length, distinct_ratio"),
        ({"combined": {"values": [1.0, 1.0], "ranks": [0.0, 1.0]}}, "values do not ascend"),
        ({"combined": {"values": [0.0, 1.0], "ranks": [1.0, 0.0]}}, "ranks descend"),
        ({"combined": {"values": [0.0, 1.0], "ranks": [1.0]}}, "differ in length"),
        ({"combined": {"values": [0.0, math.inf], "ranks": [0.0, 1.0]}}, "not a selector: combined.values.1"),
        ({"surprise": 1}, "not a selector: surprise"),
    ],
)
def test_a_damaged_one_is_refused_in_one_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ArtefactError, match=r"^selector\.json: ") as caught:
        read_complexity({**STORED, **change}, where="selector.json")
    assert says in str(caught.value)
