"""The counting baselines are what their formulas say, and reproduce the published floors."""

import math

import numpy as np
import pytest

from fathom.errors import DataError
from fathom.training import baselines
from fathom.training.baselines import BASELINES, ease, popularity, transitions
from fathom.training.data import prepare
from fathom.training.dataset import Dataset, Sequences
from fathom.training.evaluate import EvaluationReport, evaluate, named
from fathom.training.splits import leave_one_out


def sequences(*parts: list[int]) -> Sequences:
    items = np.array([item for part in parts for item in part], dtype=np.int32)
    return Sequences(items, np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64))


TRAIN = sequences([0, 1, 2, 0], [1, 2], [], [3, 1])


def test_popularity_counts_training_events() -> None:
    scores = popularity(TRAIN, 5)(sequences([0], [3]))
    assert scores.tolist() == [[2, 3, 2, 1, 0]] * 2
    assert scores.dtype == np.float32


def test_transitions_follow_their_formula() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 8, rng.integers(1, 30)).tolist() for _ in range(20)]
    gain, popular = np.zeros((8, 8)), np.zeros(8)
    for part in parts:
        for later, item in enumerate(part):
            popular[item] += 1
            for lag in range(1, min(10, later) + 1):
                gain[part[later - lag], item] += 1 / lag
    asked = [parts[0], parts[1][:1], [5, 5, 2]]
    found = transitions(sequences(*parts), 8)(sequences(*asked))
    for row, history in zip(found, asked, strict=True):
        recent = history[::-1][:10]
        expected = sum(gain[item] * 0.7**age for age, item in enumerate(recent)) / np.sqrt(popular)
        assert row == pytest.approx(expected, rel=1e-5)


def test_an_unseen_item_has_no_transition_score() -> None:
    assert transitions(TRAIN, 5)(sequences([0]))[0, 4] == 0.0


def test_ease_is_ridge_regression_of_each_item_on_the_others() -> None:
    rng = np.random.default_rng(1)
    parts = [np.flatnonzero(rng.random(6) < 0.5).tolist() for _ in range(40)]
    met = np.array([[item in part for item in range(6)] for part in parts], dtype=float)
    weights = np.zeros((6, 6))
    for item in range(6):
        others = [other for other in range(6) if other != item]
        x, y = met[:, others], met[:, item]
        weights[others, item] = np.linalg.solve(x.T @ x + 2.0 * np.eye(5), x.T @ y)
    found = ease(sequences(*parts), 6, regularisation=2.0, decay=0.5)(sequences([4, 1, 3]))
    assert found[0] == pytest.approx(weights[3] + 0.5 * weights[1] + 0.25 * weights[4], abs=1e-5)


def test_ease_refuses_a_catalogue_that_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "EASE_MAX_ITEMS", 3)
    with pytest.raises(DataError, match="at most 3 items, not 5"):
        ease(TRAIN, 5)


@pytest.fixture(scope="session")
def ml_100k(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare("ml-100k", tmp_path_factory.mktemp("ml-100k") / "dataset")


def test_movielens_100k_is_whole_and_has_its_titles_genres_and_times(ml_100k: Dataset) -> None:
    assert ml_100k.meta["counts"] == {"users": 943, "items": 1682, "events": 100_000}
    assert ml_100k.meta["interactions"]["malformed"] == {"rows": 0}
    assert ml_100k.meta["has_time"]
    toy_story = ml_100k.item_ids.index("1")
    assert ml_100k.titles[toy_story] == "Toy Story (1995)"
    assert ml_100k.categories[toy_story] == ("Animation", "Children's", "Comedy")
    first = ml_100k.sequences.times(0)
    assert first is not None
    assert (np.diff(first) >= 0).all()


@pytest.fixture(scope="session")
def floors(ml_100k: Dataset) -> EvaluationReport:
    cut = leave_one_out(ml_100k)
    systems = [named(name, fit(cut.until_test, ml_100k.n_items)) for name, fit in BASELINES.items()]
    return evaluate(cut.test, systems, n_items=ml_100k.n_items, resamples=200)


@pytest.mark.parametrize(
    ("name", "hr_10", "ndcg_10"),
    [("popularity", 0.0859, 0.0439), ("EASE", 0.1813, 0.0973), ("transitions", 0.1983, 0.1030)],
)
def test_floors_of_movielens_100k_are_reproduced(
    floors: EvaluationReport, name: str, hr_10: float, ndcg_10: float
) -> None:
    found = floors.systems[name].metrics
    assert math.isclose(found["hr@10"].value, hr_10, abs_tol=0.002)
    assert math.isclose(found["ndcg@10"].value, ndcg_10, abs_tol=0.002)
