"""What rules cost: microseconds that each adds at depth 0 and to a search, and what diversity costs in quality.

Time: random catalogues, histories of 50 items that are left out, the best ten; every kind of rule and all together,
in turn with the plain request in a random order, on one thread, from rules in item indices to the items of the answer.

Quality, where a bundle and its data are given: the test users of its split, each asked at depth 0 and at the deepest,
for every diversity. NDCG@10 says how well the item that followed is placed; the distance in a list is 1 less the mean
cosine of two of its items.
"""

import asyncio
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.systems.counting import random_counting
from fathom.edge_profiles.profile import load_profile
from fathom.errors import ArtefactError
from fathom.runtime.bundle import Bundle
from fathom.runtime.counting import Counting
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import Bonus, Indices, ItemFilter, Mask, Scores, values_of
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.rules import Arrangement, Found, Ranking, Rules, arrange, without_pins
from fathom.runtime.settings import PipelineSettings
from fathom.training.dataset import Dataset
from fathom.training.metrics import interval, ndcg, paired_difference
from fathom.training.splits import Cases, split

SEED = 0
CATALOGUES = (1_682, 100_000)
HISTORY = 50
BEST = 10
WIDTH = 64
CATEGORIES = 20
PINNED_AT = (1, 4, 8)
BOOST = 0.1
AT_MOST = 2
DIVERSITY = 0.3
WARM_UP = 20
KINDS = ("pins", "boosts", "caps", "diversity", "all")
DIVERSITIES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

Floats = NDArray[np.float64]


class Shop(NamedTuple):
    """A random catalogue; each item is of one category."""

    counting: Counting
    vectors: ItemVectors
    retriever: FlatRetriever
    category: NDArray[np.int64]

    @classmethod
    def of(cls, items: int, rng: np.random.Generator) -> "Shop":
        """``items`` items with unit vectors."""
        rows = rng.standard_normal((items, WIDTH), dtype=np.float32)
        vectors = ItemVectors(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        return cls(random_counting(rng, items), vectors, FlatRetriever(vectors), rng.integers(0, CATEGORIES, items))

    def categories(self, item: int) -> Sequence[str]:
        """Of an item, as rules ask for them."""
        return (str(self.category[item]),)

    def members(self, names: Sequence[str]) -> Mask:
        """The items of some categories."""
        return np.isin(self.category, list(map(int, names)))

    def rules(self, kind: str, rng: np.random.Generator) -> Rules:
        """Of one kind, or of all."""
        given: dict[str, Any] = {}
        if kind in ("pins", "all"):
            pinned = rng.choice(len(self.vectors), len(PINNED_AT), replace=False).tolist()
            given["pins"] = dict(zip(PINNED_AT, pinned, strict=True))
        if kind in ("boosts", "all"):
            items = (self.category == rng.integers(CATEGORIES)).nonzero()[0]
            given["boosts"] = items, np.full(len(items), BOOST, np.float32)
        if kind in ("caps", "all"):
            given["caps"] = {"": AT_MOST}
        if kind in ("diversity", "all"):
            given["diversity"] = DIVERSITY
        return Rules(**given)

    def counted(self, history: Indices, boosts: Bonus) -> Ranking:
        """Depth 0's."""
        return Ranking(
            lambda k, keep: self.counting.best(history, k, keep, bonus=boosts),
            partial(self.counting.scores, history, bonus=boosts),
            self.vectors.take,
            self.categories,
            self.members,
        )

    def searched(self, user: NDArray[np.float32], boosts: Bonus) -> Ranking:
        """That of a user's vector (width,)."""

        def best(k: int, keep: ItemFilter) -> Found:
            return self.retriever.search(user[None], [k], [keep], [boosts])[0]

        def scores(items: Indices) -> Scores:
            cosines: Scores = self.vectors.take(items) @ user
            return cosines + values_of(items, boosts)

        return Ranking(best, scores, self.vectors.take, self.categories, self.members)


def answer(ranking: Callable[[Bonus], Ranking], keep: ItemFilter, rules: Rules) -> Found:
    """What a request with rules gets."""
    return arrange(BEST, without_pins(keep, rules), Arrangement(rules, ItemFilter()), ranking(rules.boosts))


def costs(items: int, rounds: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A row for the plain request and one per kind of rule, at depth 0 and for a search."""
    shop = Shop.of(items, rng)
    for where in ("depth 0", "a search"):
        spent_us = np.empty((WARM_UP + rounds, 1 + len(KINDS)))
        for turn in range(len(spent_us)):
            history = rng.integers(0, items, HISTORY)
            keep = ItemFilter(exclude=history)
            user = shop.vectors.take(rng.integers(0, items, 1))[0]
            own = partial(shop.counted, history) if where == "depth 0" else partial(shop.searched, user)
            steps = [partial(own(Rules().boosts).best, BEST, keep)]
            steps += [partial(answer, own, keep, shop.rules(kind, rng)) for kind in KINDS]
            for number in rng.permutation(len(steps)).tolist():
                begin_s = perf_counter()
                steps[number]()
                spent_us[turn, number] = (perf_counter() - begin_s) * 1e6
        kept = spent_us[WARM_UP:]
        for rule, each in zip(("none", *KINDS), kept.T, strict=True):
            median, p99 = np.quantile(each, [0.5, 0.99]).round(1).tolist()
            more = None if rule == "none" else round(float(np.median(each - kept[:, 0])), 1)
            yield {"items": items, "where": where, "rule": rule, "median_us": median, "p99_us": p99, "added_us": more}


async def lists(pipeline: Pipeline, cases: Cases, depth: int, diversity: float) -> tuple[Floats, Floats]:
    """Of every case (n,): NDCG@10 of its target, and the distance in its list."""
    places, apart, profile = np.full(len(cases), np.inf), np.zeros(len(cases)), load_profile("cloud")
    for row in range(len(cases)):
        query = IndexedQuery(
            cases.histories[row],
            BEST,
            profile,
            cases.histories.times(row),
            depth,
            rules=Rules(diversity=diversity),
        )
        items = (await pipeline.recommend(query)).indices
        found = np.flatnonzero(items == cases.targets[row])
        if found.size:
            places[row] = found[0] + 1
        total = pipeline.bundle.vectors.take(items).sum(axis=0, dtype=np.float64)
        apart[row] = 1 - (total @ total - len(items)) / max(len(items) * (len(items) - 1), 1)
    return ndcg(places, BEST), apart


async def diversities(bundle: Bundle, cases: Cases) -> list[dict[str, Any]]:
    """A row per depth and diversity: both means, and how they differ from those without diversity."""
    rows = []
    with open_engine(bundle) as engine:
        async with Pipeline(bundle, engine, settings=PipelineSettings(reuse_mb=0)) as pipeline:
            for depth in sorted({pipeline.depths[0], pipeline.depths[-1]}):
                found = [await lists(pipeline, cases, depth, diversity) for diversity in DIVERSITIES]
                for diversity, columns in zip(DIVERSITIES, found, strict=True):
                    row: dict[str, Any] = {"depth": depth, "diversity": diversity}
                    for name, values, plain in zip(("ndcg", "distance"), columns, found[0], strict=True):
                        row[name] = interval(values).as_dict()
                        row[f"{name}_change"] = paired_difference(values, plain).as_dict() if diversity else None
                    rows.append(row)
    return rows


def measure(options: Namespace) -> Iterator[Run]:
    """Costs of every catalogue; then diversity on a bundle's test users, if there is a bundle."""
    rng = np.random.default_rng(SEED)
    rows = [row for items in options.items for row in costs(items, options.rounds, rng)]
    config = {"items": options.items, "history": HISTORY, "best": BEST, "width": WIDTH, "categories": CATEGORIES}
    yield Run(config | {"rounds": options.rounds}, {"costs": rows}, SEED)
    if options.bundle is None:
        return
    dataset, bundle = Dataset.load(options.data or options.bundle.parent / "dataset"), Bundle.open(options.bundle)
    source = bundle.manifest.source
    if dataset.sha256 != source.dataset or source.split is None:
        raise ArtefactError(f"{options.bundle}: it was made from other data; give those as --data")
    cases = split(dataset, source.split).test
    config = {"bundle": bundle.manifest.name, "bundle_version": bundle.manifest.version, "users": len(cases)}
    config |= {"split": source.split, "best": BEST}
    yield Run(config, {"diversity": asyncio.run(diversities(bundle, cases))}, name="rules_diversity")


def render(run: StoredRun) -> str:
    """A run of either kind."""
    config, result = run["config"], run["result"]
    if "diversity" in result:
        return paragraphs(
            "### What diversity costs",
            f"Bundle {config['bundle']}, {config['users']:,} test users ({config['split']}): NDCG@{config['best']} and"
            f" the distance in a list, 1 less the mean cosine of two of its {config['best']} items, with 95 % intervals"
            " over users; changes are paired, against diversity 0.",
            table_of(
                result["diversity"],
                "depth={depth} | diversity={diversity:.1f} | NDCG={ndcg:interval} | change={ndcg_change:+interval}"
                " | distance={distance:interval} | change={distance_change:+interval}",
            ),
        )
    return paragraphs(
        "## Rules",
        f"The best {config['best']} items for a history of {config['history']}, every kind of rule in turn with the"
        f" plain request: {len(PINNED_AT)} pins; a boost for one of {config['categories']} categories; at most"
        f" {AT_MOST} of each category; diversity {DIVERSITY}.",
        table_of(
            result["costs"],
            "items={items:,} | at={where} | rules={rule} | median µs={median_us:,.0f} | p99 µs={p99_us:,.0f}"
            " | added µs={added_us:,.0f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "2 min; a bundle and its data for what diversity costs",
    {"--bundle": None, "--data": None, "--items": CATALOGUES, "--rounds": 500},
    measure,
    of_runs(render, "rules", "rules_diversity"),
)
