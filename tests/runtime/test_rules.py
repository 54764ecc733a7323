"""Whatever the catalogue and the request, rules hold: pins, blocks, caps, boosts and diversity, alone and together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from fathom.edge_profiles.profile import load_profile
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.rules import (
    LARGEST_POOL,
    MOST_DIVERSE,
    Arrangement,
    Found,
    Ranking,
    Rules,
    arrange,
    without_pins,
)

WIDTH = 4
NAMES = ("a", "b", "c")


class World:
    """A random catalogue and user; scores are few, so many are equal."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n = int(rng.integers(1, 40))
        rows = rng.integers(-1, 2, size=(self.n, WIDTH)).astype(np.float32)
        rows[~rows.any(axis=1)] = 1
        self.vectors = ItemVectors.store(rows / np.linalg.norm(rows, axis=1, keepdims=True), "fp32")
        self.user = np.eye(1, WIDTH, dtype=np.float32)
        self.categories = [tuple(np.array(NAMES)[rng.random(3) < 0.4]) for _ in range(self.n)]
        self.retriever = FlatRetriever(self.vectors)
        boosted = np.unique(rng.integers(self.n, size=rng.integers(0, 3)))
        self.rules = Rules(
            pins={int(rng.integers(1, 15)): int(item) for item in rng.permutation(self.n)[: rng.integers(0, 4)]},
            boosts=(boosted, rng.choice([-1, 1], len(boosted)).astype(np.float32)),
            caps={name: int(rng.integers(0, 4)) for name in ("", *NAMES) if rng.random() < 0.5},
            diversity=float(rng.choice([0.0, 0.0, 0.5, 1.0])),
        )
        self.blocked = np.unique(rng.integers(self.n, size=rng.integers(0, 6)))
        self.seen = np.unique(rng.integers(self.n, size=rng.integers(0, 6)))
        self.k = int(rng.integers(1, 12))

    def scores(self, rules: Rules) -> np.ndarray:
        scores = (np.asarray(self.vectors) @ self.user[0]).astype(np.float32)
        scores[rules.boosts[0]] += rules.boosts[1]
        return scores

    def answer(self, rules: Rules) -> Found:
        def best(k: int, keep: ItemFilter) -> Found:
            return self.retriever.search(self.user, [k], [keep], [rules.boosts])[0]

        keep = ItemFilter(exclude=np.concatenate((self.blocked, self.seen)))

        def scores(items: np.ndarray) -> np.ndarray:
            return self.scores(rules)[items]

        def members(names: Sequence[str]) -> np.ndarray:
            return np.array([not set(names).isdisjoint(of) for of in self.categories])

        ranking = Ranking(best, scores, self.vectors.take, self.categories.__getitem__, members)
        arrangement = Arrangement(rules, ItemFilter(exclude=self.blocked))
        return arrange(self.k, without_pins(keep, rules), arrangement, ranking)

    def model(self, rules: Rules) -> list[int]:
        """The same by plain loops over the whole ranking, for rules without diversity."""
        scores = self.scores(rules)
        pinned = {p: i for p, i in sorted(rules.pins.items()) if i not in self.blocked}
        hidden = {*self.blocked.tolist(), *self.seen.tolist(), *rules.pins.values()}
        used = Counter(name for item in pinned.values() for name in self.categories[item])
        others = []
        for item in sorted(set(range(self.n)) - hidden, key=lambda i: (-scores[i], i)):
            names = self.categories[item]
            most = [min(rules.caps.get(name, 99), rules.caps.get("", 99)) for name in names]
            full = any(used[name] >= limit for name, limit in zip(names, most, strict=True))
            if len(others) < self.k - len(pinned) and not full:
                others.append(item)
                used.update(names)
        total = min(self.k, len(others) + len(pinned))
        places: list[int | None] = [pinned.get(place + 1) for place in range(total)]
        free = [place for place, item in enumerate(places) if item is None]
        beyond = [item for position, item in pinned.items() if position > total][: len(free)]
        for place, item in zip(free[len(free) - len(beyond) :], beyond, strict=True):
            places[place] = item
        rest = iter(others)
        return [next(rest) if item is None else item for item in places]


@given(st.integers(0, 2**32))
def test_rules_without_diversity_give_what_plain_loops_over_the_whole_ranking_give(seed: int) -> None:
    world = World(seed)
    rules = Rules(world.rules.pins, world.rules.boosts, world.rules.caps)
    items, scores = world.answer(rules)
    assert items.tolist() == world.model(rules)
    np.testing.assert_allclose(scores, world.scores(rules)[items], atol=1e-6)


@given(st.integers(0, 2**32))
def test_pins_blocks_and_caps_hold_with_everything_at_once(seed: int) -> None:
    world = World(seed)
    rules = world.rules
    items = world.answer(rules)[0].tolist()
    allowed = {position: item for position, item in rules.pins.items() if item not in world.blocked}
    assert len(items) == len(set(items)) <= world.k
    assert not set(items) & set(world.blocked.tolist())
    assert not set(items) & (set(world.seen.tolist()) - set(rules.pins.values()))
    for position, item in allowed.items():
        assert position > len(items) or items[position - 1] == item
    counts = Counter(name for item in items for name in world.categories[item])
    pinned = Counter(name for item in items if item in allowed.values() for name in world.categories[item])
    for name in counts:
        most = min(rules.caps.get(name, 99), rules.caps.get("", 99))
        assert counts[name] <= max(most, pinned[name])
    assert world.answer(rules)[0].tolist() == items


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_the_second_item_is_no_more_like_the_first_where_diversity_is_larger(seed: int, one: float, two: float) -> None:
    world = World(seed)
    alike = []
    for diversity in sorted((one, two)):
        vectors = world.vectors.take(world.answer(Rules(diversity=diversity))[0][:2])
        if len(vectors) == 2:
            alike.append(float(vectors[0] @ vectors[1]))
    assert alike == sorted(alike, reverse=True)


@given(st.integers(0, 2**32), st.sampled_from([0.25, 0.5, 1.0]))
def test_every_item_is_the_one_that_maximal_marginal_relevance_chooses_next(seed: int, diversity: float) -> None:
    world = World(seed)
    items = world.answer(Rules(diversity=diversity))[0].tolist()
    scores = world.scores(Rules()).astype(np.float64)
    left = sorted(set(range(world.n)) - {*world.blocked.tolist(), *world.seen.tolist()})
    every, vectors = np.asarray(left, int), np.asarray(world.vectors)
    span = np.ptp(scores[every]) if len(every) else 0
    for place, item in enumerate(items):
        worth = {
            i: (1 - diversity) * ((scores[i] - scores[every].min()) / span if span else 1)
            - (diversity * max(float(vectors[i] @ vectors[j]) for j in items[:place]) if place else 0)
            for i in left
        }
        if place == 0:
            assert scores[item] == max(scores[left])
        else:
            assert worth[item] >= max(worth.values()) - 1e-6
        left.remove(item)


@pytest.mark.parametrize("caps", [{}, {"": 2_000}])
def test_diversity_looks_at_no_more_vectors_for_a_thousand_items_than_for_its_places(caps: dict[str, int]) -> None:
    n, rng = 5_000, np.random.default_rng(0)
    vectors = rng.normal(size=(n, WIDTH)).astype(np.float32)
    looked_up: list[int] = []

    def best(k: int, keep: ItemFilter) -> Found:
        left = np.setdiff1d(np.arange(n), keep.exclude)[:k]
        return left, (n - left).astype(np.float32)

    def vectors_of(items: np.ndarray) -> np.ndarray:
        looked_up.append(len(items))
        return vectors[items]

    ranking = Ranking(best, lambda items: n - items, vectors_of, lambda _: ("a",), lambda _: np.zeros(n, np.bool_))
    arrangement = Arrangement(Rules(caps=caps, diversity=0.9), ItemFilter())
    items = arrange(1_000, ItemFilter(), arrangement, ranking)[0]
    assert looked_up == [LARGEST_POOL]
    assert len(set(items.tolist())) == 1_000
    behind = items[MOST_DIVERSE:].tolist()
    assert behind == sorted(behind)
    assert items[:MOST_DIVERSE].tolist() != sorted(items[:MOST_DIVERSE].tolist())


def test_what_was_looked_at_and_full_categories_are_not_searched_again() -> None:
    n, searched = 10_000, []

    def best(k: int, keep: ItemFilter) -> Found:
        kept = np.ones(n, np.bool_) if keep.mask is None else keep.mask.copy()
        kept[keep.exclude] = False
        searched.append(int(kept.sum()))
        left = kept.nonzero()[0][:k]
        return left, (n - left).astype(np.float32)

    def category(item: int) -> Sequence[str]:
        return ("common",) if item < n - 5 else ("rare",)

    def members(names: Sequence[str]) -> np.ndarray:
        return np.array([category(item)[0] in names for item in range(n)])

    ranking = Ranking(best, lambda items: n - items, lambda items: items, category, members)
    items = arrange(5, ItemFilter(), Arrangement(Rules(caps={"": 3}), ItemFilter()), ranking)[0]
    assert items.tolist() == [0, 1, 2, n - 5, n - 4]
    assert searched == [n, 5]


@pytest.mark.parametrize("depth", [0, 8])
async def test_a_pipeline_answers_by_the_rules_at_every_depth(synthetic_bundle: Path, depth: int) -> None:
    bundle = Bundle.open(synthetic_bundle)
    category = bundle.catalogue.categories[3][0]
    rules = Rules({1: 7, 3: 1}, (np.array([40]), np.array([9.0], np.float32)), {category: 1}, 0.3)
    query = IndexedQuery([1, 2, 3], 6, load_profile("cloud"), depth=depth, exclude=[5], rules=rules)
    async with Pipeline(bundle, FakeEngine(bundle.vectors, (4, 8, 12, 16))) as pipeline:
        answer = await pipeline.recommend(query)
    items = answer.indices.tolist()
    assert (items[0], items[1], items[2]) == (7, 40, 1)
    assert len(items) == 6
    assert 5 not in items
    others = [item for item in items if item not in (7, 1)]
    taken = sum(category in bundle.catalogue.categories[item] for item in (7, 1))
    assert sum(category in bundle.catalogue.categories[item] for item in others) <= max(0, 1 - taken)


@pytest.mark.parametrize("depth", [0, 8])
async def test_items_keep_their_scores_and_reasons_wherever_rules_put_them(synthetic_bundle: Path, depth: int) -> None:
    bundle = Bundle.open(synthetic_bundle)
    rules = Rules({1: 7, 3: 1, 4: 30}, (np.array([7, 40]), np.array([0.25, 9.0], np.float32)), {"": 3}, 0.3)
    query = IndexedQuery(
        [1, 2, 3, 4], 50, load_profile("cloud"), depth=depth, include_seen=True, include_reasons=True, exclude=[30]
    )
    async with Pipeline(bundle, FakeEngine(bundle.vectors, (4, 8, 12, 16))) as pipeline:
        plain = await pipeline.recommend(query)
        arranged = await pipeline.recommend(replace(query, k=8, rules=rules))
    of = {item: place for place, item in enumerate(plain.indices.tolist())}
    items = arranged.indices.tolist()
    assert (items[0], items[2]) == (7, 1)
    assert 40 in items
    assert 30 not in items
    assert any(plain.reasons)
    assert arranged.reasons == tuple(plain.reasons[of[item]] for item in items)
    boosts = {7: 0.25, 40: 9.0}
    wanted = [plain.scores[of[item]] + boosts.get(item, 0) for item in items]
    np.testing.assert_allclose(arranged.scores, wanted, atol=1e-6)
