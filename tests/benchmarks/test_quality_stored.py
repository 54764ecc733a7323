"""Runs keep each user's place, and figures over users and seeds come from those places alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.benchmarks.experiments.quality.stored import (
    Pool,
    QualityRun,
    margin,
    pack,
    path_of,
    pools,
    runs,
    summary,
    unpack,
)
from fathom.errors import ArtefactError
from fathom.training import metrics
from fathom.training.metrics import Floats

SYSTEM = "depth 4"


def run_of(arm: str, seed: int, places: Floats, **config: Any) -> QualityRun:
    systems = {SYSTEM: {"places": pack(places)}}
    return QualityRun("small", arm, seed, {"config": {"dataset": "sha", **config}, "result": {"systems": systems}})


def pool_of(arms: dict[str, list[Floats]]) -> Pool:
    return Pool("small", [run_of(arm, seed, places) for arm, each in arms.items() for seed, places in enumerate(each)])


def drawn(rng: np.random.Generator, users: int) -> Floats:
    places = rng.integers(1, 16, size=users).astype(np.float64)
    return np.where(places > 10, np.inf, places)


@given(st.lists(st.integers(1, 30), max_size=50))
def test_places_within_the_cutoff_come_back_and_others_are_misses(found: list[int]) -> None:
    places = np.array(found, dtype=np.float64)
    assert np.array_equal(unpack(pack(places)), np.where(places <= 10, places, np.inf))


def test_a_summary_holds_the_figures_of_the_places_that_it_keeps() -> None:
    places = np.array([1.0, 3.0, 11.0, np.inf])
    found = summary(places)
    assert found["places"] == "1300"
    assert found["hr@10"]["value"] == 0.5
    assert found["ndcg@10"]["value"] == pytest.approx((1 + 0.5) / 4)


def test_with_one_seed_the_interval_is_that_over_users() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = drawn(rng, 200), drawn(rng, 200)
    pool = pool_of({"ours": [ours], "theirs": [theirs]})
    found = pool.difference(("ours", SYSTEM), ("theirs", SYSTEM))
    expected = metrics.paired_difference(metrics.ndcg(ours, 10), metrics.ndcg(theirs, 10))
    assert found is not None
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05 * (found.high - found.low))
    assert found.seeds == 1


def test_seeds_that_differ_widen_the_interval() -> None:
    high, low, users = 1.0, 9.0, 100
    alike = [np.where(np.arange(users) % 2 == 0, high, low)] * 4
    apart = [np.full(users, high), np.full(users, low)] * 2
    found = [pool_of({"arm": each}).mean(("arm", SYSTEM)) for each in (alike, apart)]
    narrow, wide = (each for each in found if each is not None)
    assert narrow.value == pytest.approx(wide.value)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize(("user", "seed"), [(0.0, 0.0), (0.3, 0.02), (0.3, 0.05), (1.0, 0.05)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(user: float, seed: float) -> None:
    rng = np.random.default_rng(0)
    trials, seeds, users, covered = 1000, 5, 400, 0
    for _ in range(trials):
        cells = user * rng.normal(size=users) + seed * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, users))
        covered += abs(cells.mean()) <= margin(cells)
    assert covered / trials >= 0.93


def test_a_share_is_the_ratio_of_the_means_and_its_interval_follows_the_denominator() -> None:
    rng = np.random.default_rng(0)
    base = drawn(rng, 400)
    pool = pool_of({"ours": [base], "theirs": [base], "worst": [np.where(base <= 5, base, np.inf)]})
    same = pool.share(("ours", SYSTEM), ("theirs", SYSTEM))
    less = pool.share(("worst", SYSTEM), ("ours", SYSTEM))
    assert same is not None
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))
    assert less is not None
    values = metrics.ndcg(np.stack([np.where(base <= 5, base, np.inf), base]), 10)
    means = metrics.bootstrap_means(values.T)
    expected = metrics.percentile(float(values[0].mean() / values[1].mean()), means[:, 0] / means[:, 1])
    assert less.value == pytest.approx(expected.value)
    assert (less.low, less.high) == pytest.approx((expected.low, expected.high), abs=0.05 * (less.high - less.low))


def test_pairs_are_compared_over_the_seeds_that_both_have_and_missing_ones_give_nothing() -> None:
    first, best = np.full(20, 3.0), np.full(20, 1.0)
    pool = pool_of({"ours": [first, best], "theirs": [first]})
    found = pool.difference(("ours", SYSTEM), ("theirs", SYSTEM))
    assert found is not None
    assert (found.value, found.seeds) == (0.0, 1)
    share = pool.share(("ours", SYSTEM), ("theirs", SYSTEM))
    assert share is not None
    assert share.value == 1.0
    assert pool.mean(("nobody", SYSTEM)) is None
    assert pool.difference(("ours", SYSTEM), ("ours", "depth 16")) is None


def test_runs_that_cannot_be_compared_are_refused() -> None:
    places = np.ones(5)
    other_data = QualityRun(
        "small", "b", 0, {"config": {"dataset": "other"}, "result": run_of("b", 0, places).value["result"]}
    )
    with pytest.raises(ArtefactError, match="other data"):
        Pool("small", [run_of("a", 0, places), other_data])
    with pytest.raises(ArtefactError, match="other data"):
        Pool("small", [run_of("a", 0, places), run_of("b", 0, np.ones(6))])
    with pytest.raises(ArtefactError, match="different settings"):
        Pool("small", [run_of("a", 0, places, width=64), run_of("a", 1, places, width=128)])
    Pool("small", [run_of("a", 0, places, train={"seed": 0}), run_of("a", 1, places, train={"seed": 1})])


def test_stored_runs_are_read_by_data_set_and_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no quality run"):
        pools(tmp_path)
    path = path_of("small", "cut-prefix", 3, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seed": 3, **run_of("cut-prefix", 3, np.ones(5)).value}))
    assert [(run.dataset, run.arm, run.seed) for run in runs(tmp_path)] == [("small", "cut-prefix", 3)]
    assert [pool.dataset for pool in pools(tmp_path)] == ["small"]
    path.write_text("{}")
    with pytest.raises(ArtefactError, match=r"cut-prefix-seed-3\.json: not a stored run"):
        list(runs(tmp_path))
