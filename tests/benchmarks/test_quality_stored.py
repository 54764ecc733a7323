"""Runs keep each user's place, and figures over users and seeds come from those places alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.benchmarks.quality.stored import Pool, Run, pack, path_of, pools, runs, summary, unpack
from fathom.errors import ArtefactError
from fathom.training import metrics
from fathom.training.metrics import Floats

SYSTEM = "depth 4"


def run_of(arm: str, seed: int, places: Floats, **config: Any) -> Run:
    systems = {SYSTEM: {"places": pack(places)}}
    return Run("small", arm, seed, {"config": {"dataset": "sha", **config}, "result": {"systems": systems}})


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
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.seeds == 1


def test_seeds_that_differ_widen_the_interval() -> None:
    high, low, users = 1.0, 9.0, 100
    alike = [np.where(np.arange(users) % 2 == 0, high, low)] * 4
    apart = [np.full(users, high), np.full(users, low)] * 2
    found = [pool_of({"arm": each}).mean(("arm", SYSTEM)) for each in (alike, apart)]
    narrow, wide = (each for each in found if each is not None)
    assert narrow.value == pytest.approx(wide.value)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        users = rng.normal(size=150)  # some users are easier than others, and some seeds better than others
        runs_of_it = [np.where(users + rng.normal(scale=0.3) + rng.normal(size=150) > 0, 1.0, np.inf) for _ in range(5)]
        found = pool_of({"arm": runs_of_it}).mean(("arm", SYSTEM))
        covered += found is not None and found.low <= 0.5 <= found.high
    assert covered >= 34


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
    other_data = Run(
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
