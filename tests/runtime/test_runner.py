"""An exit's answer is the network's score and the exit's part of what is counted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fathom.runtime.bundle import Bundle
from fathom.runtime.counting import Counting
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.manifest import CountingInfo
from fathom.runtime.padding import left_padded
from fathom.runtime.prefix_cache import CacheHit
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.rules import Arrangement, Rules
from fathom.runtime.runner import BatchItem, BatchResult, Runner, typical

DEPTHS = (4, 8, 12, 16)
WEIGHTS = {4: 0.5, 8: 0.0, 12: 0.25, 16: 2.0}


@pytest.fixture(scope="module")
def bundle(synthetic_bundle: Path) -> Bundle:
    """With random transitions between its 50 items."""
    opened = Bundle.open(synthetic_bundle)
    rng = np.random.default_rng(5)
    sizes = rng.integers(0, 9, 50)
    counting = Counting(
        np.concatenate(([0], sizes.cumsum())),
        rng.integers(0, 50, sizes.sum()).astype(np.int32),
        rng.random(sizes.sum(), dtype=np.float32) + np.float32(0.01),
        np.zeros(50, np.float32),
        window=5,
        decay=0.8,
    )
    counted = {
        "max_lag": 1,
        "backward": 0,
        "source_power": 0,
        "target_power": 0,
        "neighbours": 8,
        "half_life_days": None,
    }
    info = CountingInfo(window=5, decay=0.8, weights=WEIGHTS, quality={}, **counted)
    return replace(opened, counting=counting, manifest=opened.manifest.model_copy(update={"counting": info}))


@pytest.fixture(scope="module")
def works() -> list[BatchItem]:
    rng = np.random.default_rng(6)
    histories = [rng.integers(0, 50, length) for length in rng.integers(1, 20, 24)]
    return [BatchItem(each + 1, None, 12, ItemFilter(exclude=each, mask=rng.random(50) < 0.8)) for each in histories]


def mixed(bundle: Bundle, user: np.ndarray, work: BatchItem, depth: int) -> np.ndarray:
    """The score of every item by a count of its own."""
    tables, counts = bundle.counting, np.zeros(50)
    assert tables is not None
    for age, item in enumerate(work.ids[::-1][: tables.window] - 1):
        part = slice(tables.offsets[item], tables.offsets[item + 1])
        np.add.at(counts, tables.neighbours[part], tables.decay**age * tables.weights[part].astype(float))
    scores = np.asarray(bundle.vectors) @ user + WEIGHTS[depth] * counts / (counts.max() or 1)
    scores[work.keep.exclude] = -np.inf
    return np.where(work.keep.mask, scores, -np.inf)


def check(bundle: Bundle, users: np.ndarray, works: list[BatchItem], results: list, depth: int) -> None:
    for user, work, result in zip(users, works, results, strict=True):
        assert isinstance(result, BatchResult)
        exact = mixed(bundle, user, work, depth)
        best = np.argsort(-exact, kind="stable")[: min(work.k, np.count_nonzero(exact > -np.inf))]
        assert result.indices.tolist() == best.tolist()
        np.testing.assert_allclose(result.scores, exact[best], atol=1e-5)


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_exit_adds_its_part_of_the_counts_to_the_network_s_scores(
    bundle: Bundle, works: list[BatchItem], depth: int
) -> None:
    with open_engine(bundle) as engine:
        runner = Runner(bundle, LiveCatalogue(bundle), engine, FlatRetriever(bundle.vectors))
        users = engine.run(left_padded([work.ids for work in works], 20), None, depth)
        check(bundle, users, works, list(runner.run([depth] * len(works), works)), depth)
        check(bundle, users[:1], works[:1], list(runner.run([depth], works[:1])), depth)


def test_every_request_of_a_batch_has_its_own_depth(bundle: Bundle, works: list[BatchItem]) -> None:
    with open_engine(bundle) as engine:
        runner = Runner(bundle, LiveCatalogue(bundle), engine, FlatRetriever(bundle.vectors))
        depths = np.random.default_rng(7).choice(DEPTHS, len(works)).tolist()
        users = engine.run_each(left_padded([work.ids for work in works], 20), None, depths)
        for depth, user, work, result in zip(depths, users, works, runner.run(depths, works), strict=True):
            check(bundle, user[None], [work], [result], depth)


def test_a_cached_user_vector_is_the_network_s_alone_and_its_answer_counts_too(
    bundle: Bundle, works: list[BatchItem]
) -> None:
    with open_engine(bundle) as engine:
        runner = Runner(bundle, LiveCatalogue(bundle), engine, FlatRetriever(bundle.vectors))
        users = engine.run(left_padded([work.ids for work in works], 20), None, 16)
        known = [work._replace(hit=CacheHit("vector", user=user)) for work, user in zip(works, users, strict=True)]
        results = list(runner.run([16] * len(known), known))
    check(bundle, users, works, results, 16)
    for user, result in zip(users, results, strict=True):
        np.testing.assert_array_equal(result.user, user)


def test_what_takes_longer_beside_its_run_counts_and_says_nothing_of_what_runs_cost() -> None:
    plain = BatchItem(np.array([1]), None, 10, ItemFilter())
    diverse = Arrangement(Rules(diversity=0.5), ItemFilter())
    boosted = Arrangement(Rules(boosts=(np.arange(100_000), np.ones(100_000, np.float32))), ItemFilter())
    heavy = [
        plain._replace(k=1_000),
        plain._replace(k=200, arrangement=diverse),
        plain._replace(k=1_000, arrangement=diverse),
        plain._replace(arrangement=boosted),
        plain._replace(keep=ItemFilter(exclude=np.arange(100_000))),
    ]
    assert plain.beside_s == 0
    assert all(work.beside_s > 5e-4 for work in heavy)
    # However much more is asked for, diversity arranges no more places.
    assert heavy[2].beside_s < 2 * heavy[1].beside_s
    assert typical([plain] * 3)
    assert not any(typical([plain, work]) for work in heavy)
