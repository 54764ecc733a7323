"""A catalogue that has grown answers as one that was built so, and nothing that was taken out is in a later answer."""

import asyncio
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from live_items import SeededEncoder, remove, upsert

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.runtime import pipeline as pipeline_module
from fathom.runtime.bundle import Bundle
from fathom.runtime.catalogue import Catalogue
from fathom.runtime.cost import CostModel, Line
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_vectors import ItemPrecision, ItemVectors
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import Answer, IndexedQuery
from fathom.runtime.settings import PipelineSettings

CLOUD = load_profile("cloud")
ENCODER = SeededEncoder()
NEW = [
    ItemRecord(f"new-{i}", f"New {i}", (("space",), ("drama", "brand new"), ("brand new",))[i % 3]) for i in range(12)
]


@pytest.fixture(autouse=True)
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measuring: costs decide nothing here."""

    def measure(run, *, depths, lengths, **_) -> CostModel:
        for depth in depths:
            run(depth, lengths[0], 1)
        return CostModel({(d, n): Line(0.0, d * 1e-6) for d in depths for n in lengths}, tail=0.0)

    monkeypatch.setattr(pipeline_module, "measure", measure)


def live(bundle: Bundle, *, reuse_mb: float = 0) -> Pipeline:
    """A pipeline whose catalogue may change, as a server opens it; its depths depend on the requests."""
    width = bundle.vectors.width
    catalogue = LiveCatalogue(bundle, encoder=ENCODER if width == 8 else SeededEncoder(width))
    engine = open_engine(replace(bundle, vectors=catalogue.vectors), incremental=reuse_mb > 0)
    return Pipeline(bundle, engine, catalogue=catalogue, settings=PipelineSettings(reuse_mb=reuse_mb, policy="rule"))


def in_precision(bundle: Bundle, precision: ItemPrecision) -> Bundle:
    return replace(bundle, vectors=ItemVectors.store(np.asarray(bundle.vectors), precision))


def with_items(bundle: Bundle, records: list[ItemRecord]) -> Bundle:
    """A bundle as if it had been built with these items, which nobody has ever bought."""
    own, n = bundle.catalogue, len(records)
    catalogue = Catalogue(
        (*own.ids, *(each.id for each in records)),
        (*own.titles, *(each.title for each in records)),
        (*own.categories, *(each.categories for each in records)),
    )
    added = ENCODER.encode([each.title for each in records], [each.categories for each in records])
    rows = np.concatenate((bundle.vectors.rows, ItemVectors.store(added, bundle.vectors.precision).rows))
    counting = bundle.counting
    assert counting is not None
    counting = replace(
        counting,
        offsets=np.concatenate((counting.offsets, np.full(n, counting.offsets[-1]))),
        popularity=np.concatenate((counting.popularity, np.zeros(n, np.float32))),
    )
    return replace(bundle, vectors=ItemVectors(rows), catalogue=catalogue, counting=counting)


def some_queries(count: int) -> Iterator[IndexedQuery]:
    rng = np.random.default_rng(5)
    for number in range(count):
        yield IndexedQuery(
            items=rng.integers(0, 62, rng.integers(1, 30)),
            k=int(rng.integers(1, 70)),
            profile=CLOUD,
            depth=int(rng.choice([0, 4, 8, 16])),
            exclude=rng.integers(0, 62, rng.integers(0, 5)),
            allow=rng.integers(0, 62, 30) if number % 4 == 1 else None,
            categories=frozenset({("brand new", "space", "drama")[number % 3]} if number % 5 == 2 else ()),
            include_seen=bool(number % 3 == 0),
        )


def same(one: Answer, other: Answer) -> None:
    assert one.indices.tolist() == other.indices.tolist()
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    assert one.history_used == other.history_used


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
async def test_a_catalogue_that_has_grown_answers_as_one_that_was_built_so(make_bundle, precision, weight) -> None:
    bundle = in_precision(Bundle.open(make_bundle(counting_weight=weight)), precision)
    changes = [
        replace(NEW[3], boost=0.75),
        replace(NEW[5], unavailable=True),
        ItemRecord("item-7", boost=-0.5),
        ItemRecord("item-9", unavailable=True),
    ]
    async with live(bundle) as grown, live(with_items(bundle, NEW)) as built:
        for record in NEW:
            upsert(grown.catalogue, record)
        queries = list(some_queries(40))
        for pair in zip(*[await asyncio.gather(*map(each.recommend, queries)) for each in (grown, built)], strict=True):
            same(*pair)
        for each in (grown, built):
            upsert(each.catalogue, *changes)
            remove(each.catalogue, "item-3", "new-0")
        for pair in zip(*[await asyncio.gather(*map(each.recommend, queries)) for each in (grown, built)], strict=True):
            same(*pair)
            assert not {3, 9, 50, 55} & set(pair[0].indices.tolist())


@contextmanager
def watched(bundle: Bundle) -> Iterator[list[int]]:
    """The items that the selector is asked about."""
    asked: list[int] = []
    inspect = Bundle.inspect

    def see(self: Bundle, items, timestamps, *, brief=False):
        asked[:] = items.tolist()
        return inspect(self, items, timestamps, brief=brief)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bundle), "inspect", see)
        yield asked


async def test_the_selector_sees_the_nearest_trained_item_in_the_place_of_an_added_one(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    async with live(bundle) as pipeline:
        upsert(
            pipeline.catalogue, ItemRecord("like 31", similar=("item-31",)), ItemRecord("like 8", similar=("item-8",))
        )
        with watched(bundle) as asked:
            answer = await pipeline.recommend(IndexedQuery([4, 50, 51], 10, CLOUD))
        assert asked == [4, 31, 8]
        assert answer.choice.complexity is not None
        assert answer.history_used == 3


async def test_nothing_that_was_taken_out_is_in_a_later_answer(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    gone: set[int] = set()
    async with live(bundle) as pipeline:
        upsert(pipeline.catalogue, *NEW)

        def note(answered: asyncio.Future[tuple[Answer, set[int], int]], answer: Answer | Exception) -> None:
            """At the moment of the answer: whoever awaits it goes on later."""
            assert isinstance(answer, Answer)
            answered.set_result((answer, set(gone), pipeline.catalogue.version))

        async def ask(depth: int, seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(40):
                answered: asyncio.Future[tuple[Answer, set[int], int]] = asyncio.get_running_loop().create_future()
                pipeline.enter(IndexedQuery(rng.integers(0, 62, 9), 62, CLOUD, depth=depth), partial(note, answered))
                answer, gone_then, version = await answered
                assert not gone_then & set(answer.indices.tolist())
                assert answer.catalogue_version == version
                await asyncio.sleep(0)

        async def take_out_and_bring_back() -> None:
            rng = np.random.default_rng(0)
            for _ in range(150):
                names = [pipeline.catalogue.id(item) for item in rng.integers(0, 62, 3).tolist()]
                remove(pipeline.catalogue, *names)
                gone.update(map(pipeline.catalogue.find, names))
                await asyncio.sleep(float(rng.choice([0, 0.001])))
                back = names[0]
                gone.discard(pipeline.catalogue.find(back))
                upsert(pipeline.catalogue, ItemRecord(back, "" if back.startswith("item") else f"Back {back}"))

        asked = [ask(depth, seed) for seed, depth in enumerate((0, 4, 4, 16, 16))]
        await asyncio.gather(take_out_and_bring_back(), *asked)


async def test_what_expires_while_a_request_waits_is_not_in_its_answer(synthetic_bundle: Path) -> None:
    now_s = [0.0]
    bundle = Bundle.open(synthetic_bundle)
    catalogue = LiveCatalogue(bundle, clock=lambda: now_s[0])
    upsert(catalogue, ItemRecord("item-40", expires=10), ItemRecord("item-41", expires=20))
    async with Pipeline(bundle, open_engine(bundle), catalogue=catalogue) as pipeline:
        ask = IndexedQuery([1], 50, CLOUD, depth=4)
        assert len((await pipeline.recommend(ask)).indices) == 49
        now_s[0] = 10.0
        # Not only left out of the answer: another item takes its place.
        assert len((await pipeline.recommend(replace(ask, k=10))).indices) == 10
        waiting = asyncio.create_task(pipeline.recommend(ask))
        await asyncio.sleep(0)
        now_s[0] = 20.0
        assert not {40, 41} & set((await waiting).indices.tolist())


async def test_what_a_request_excludes_is_not_in_its_answer_although_it_moves_meanwhile(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    catalogue = LiveCatalogue(bundle, encoder=ENCODER)
    upsert(catalogue, *NEW[:3])
    entered, free = threading.Event(), threading.Event()
    free.set()

    def hold(*_: int) -> None:
        entered.set()
        free.wait(10)

    engine = FakeEngine(catalogue.vectors, (4, 8, 12, 16), on_run=hold)
    async with Pipeline(bundle, engine, catalogue=catalogue) as pipeline:
        entered.clear()
        free.clear()
        ask = IndexedQuery([1, 50], 60, CLOUD, depth=4, exclude=[51])
        waiting = asyncio.create_task(pipeline.recommend(ask))
        await asyncio.to_thread(entered.wait, 10)
        upsert(catalogue, *(replace(each, title="Moved") for each in NEW[:3]), NEW[3])
        free.set()
        answer = await waiting
        assert [catalogue.id(item) for item in range(50, 57)] == ["new-0", "new-1", "new-2"] * 2 + ["new-3"]
        assert sorted(answer.indices.tolist()) == [0, *range(2, 50), 56]


async def test_a_history_that_is_cached_is_read_anew_when_an_item_of_it_moves(
    tiny_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fathom.runtime.prefix_cache.STATE_ITEMS", -math.inf)  # states of short histories, too
    bundle = Bundle.open(tiny_build / "bundle")
    deepest = bundle.depths[-1]
    async with live(bundle, reuse_mb=8) as reusing, live(bundle) as plain:
        for title in ("A title", "Another title"):
            for each in (reusing, plain):
                upsert(each.catalogue, ItemRecord("new", title))
            place = reusing.catalogue.find("new")
            assert place is not None
            found = []
            for history in ([1, 2, place], [1, 2, place], [1, 2, place, 3]):
                ask = IndexedQuery(history, 10, CLOUD, timestamps=[0] * len(history), depth=deepest)
                answer = await reusing.recommend(ask)
                found.append(answer.reused)
                np.testing.assert_allclose(answer.scores, (await plain.recommend(ask)).scores, atol=1e-5)
            # From the history before the item, where that is cached; never from one with the item as it was.
            assert found == ["nothing", "vector", "prefix"]


def test_an_engine_that_holds_the_items_itself_is_no_engine_for_a_catalogue_that_grows(make_bundle) -> None:
    live(Bundle.open(make_bundle())).check_grows()
    with pytest.raises(ConfigError, match=r"onnxruntime-cpu\) knows only the items .* --device cpu, or export"):
        live(Bundle.open(make_bundle(looks_up=True))).check_grows()


async def test_a_catalogue_of_one_item_may_grow_and_lose_it(synthetic_bundle: Path) -> None:
    whole = Bundle.open(synthetic_bundle)
    own = whole.catalogue
    assert whole.counting is not None
    counting = replace(
        whole.counting,
        offsets=np.zeros(2, np.int64),
        neighbours=whole.counting.neighbours[:0],
        weights=whole.counting.weights[:0],
        popularity=np.ones(1, np.float32),
    )
    bundle = replace(
        whole,
        catalogue=Catalogue(own.ids[:1], own.titles[:1], own.categories[:1]),
        vectors=ItemVectors(whole.vectors.rows[:1]),
        counting=counting,
    )
    async with live(bundle) as pipeline:
        for depth in (0, 4):
            ask = IndexedQuery([0], 5, CLOUD, depth=depth)
            assert (await pipeline.recommend(ask)).indices.tolist() == []
            assert (await pipeline.recommend(replace(ask, include_seen=True))).indices.tolist() == [0]
        upsert(pipeline.catalogue, NEW[0])
        for depth in (0, 4):
            assert (await pipeline.recommend(IndexedQuery([0], 5, CLOUD, depth=depth))).indices.tolist() == [1]
        remove(pipeline.catalogue, "item-0", "new-0")
        for depth in (0, 4):
            assert (await pipeline.recommend(IndexedQuery([0, 1], 5, CLOUD, depth=depth))).indices.tolist() == []
