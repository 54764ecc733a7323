"""What an item is said to be due to is what gives its score: by the counts, and by what the network would answer."""

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fake_engine import FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.edge_profiles.profile import load_profile
from fathom.runtime import counting as counting_module
from fathom.runtime import pipeline as pipeline_module
from fathom.runtime.batcher import Again
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import CostModel, Line
from fathom.runtime.counting import Counting
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.runtime.live_counts import LiveCounts
from fathom.runtime.manifest import CountingInfo
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.reasons import (
    LEAST_PART,
    MOST_LEFT_OUT,
    MOST_REASONS,
    LeaveOneOut,
    Reason,
    newest_distinct,
    reasons_of,
)
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.runner import BatchItem, BatchResult, Runner, typical
from fathom.runtime.shares import Client
from fathom.selector.choice import DepthReason

DEPTHS = (4, 8, 12, 16)
#: Without a latency budget that matters: tests make up what depths cost.
CLOUD = load_profile("cloud").model_copy(update={"latency_budget_ms": 1e9})
WEIGHT = 0.5
COUNTED = {"max_lag": 1, "backward": 0, "source_power": 0, "target_power": 0, "neighbours": 9, "half_life_days": None}


@pytest.fixture(scope="module", params=[False, True], ids=["items alone", "timestamps"])
def bundle(request: pytest.FixtureRequest, make_bundle) -> Bundle:
    """With a counting exit that has its part in the scores of every depth."""
    return Bundle.open(make_bundle(counting_weight=WEIGHT, timestamps=request.param))


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Engine]:
    with open_engine(bundle) as opened:
        yield opened


@pytest.fixture(autouse=True)
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 ms per layer and request."""

    def measure(_, *, depths, lengths, **__) -> CostModel:
        return CostModel({(d, n): Line(0.0, d * 1e-3) for d in depths for n in lengths}, tail=0.0)

    monkeypatch.setattr(pipeline_module, "measure", measure)


def query(items, **changes) -> IndexedQuery:
    return IndexedQuery(**({"items": items, "k": 10, "profile": CLOUD, "include_reasons": True} | changes))


def cosine(bundle: Bundle, engine: Engine, items: list[int], times: list[int], depth: int) -> np.ndarray:
    """Of every item, by a run of its own."""
    if not items:
        return np.zeros(len(bundle.catalogue))
    newest = slice(-bundle.manifest.model.max_history, None)
    user = engine.run(np.array([items[newest]]) + 1, np.array([times[newest]]), depth)[0]
    return np.asarray(bundle.vectors) @ user


@st.composite
def tables(draw: st.DrawFn, items: int = 12) -> Counting:
    """Random transitions, some of them counted live; 3 items were added since training."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = rng.integers(0, 6, items)
    live = LiveCounts(np.ones(items, np.int64), CountingInfo(window=1, decay=1, weights={}, quality={}, **COUNTED))
    if draw(st.booleans()):
        live.put((*rng.integers(0, items + 3, 2).tolist(), rng.random()) for _ in range(30))
    return Counting(
        np.concatenate(([0], sizes.cumsum())),
        rng.integers(0, items, sizes.sum()).astype(np.int32),
        rng.random(sizes.sum(), dtype=np.float32) + np.float32(0.01),
        np.zeros(items, np.float32),
        draw(st.integers(1, 6)),
        draw(st.sampled_from([0.5, 1.0])),
        live,
    )


@given(tables(), st.lists(st.integers(0, 14), max_size=9), st.permutations(range(15)), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_parts_add_up_to_the_share_and_are_those_of_each_item_alone(
    counting: Counting, history: list[int], wanted: list[int], sorts: bool
) -> None:
    wanted = wanted[:10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting_module, "LARGEST_DENSE", 0 if sorts else 10_000)
        parts = counting.parts(np.array(history, np.int64), np.array(wanted))
        shares = dict(zip(*(each.tolist() for each in counting.shares(np.array(history, np.int64))), strict=True))
    np.testing.assert_allclose(parts.sum(axis=0), [shares.get(item, 0.0) for item in wanted], atol=1e-6)
    newest = history[::-1][: counting.window]
    sources = list(dict.fromkeys(newest))
    assert parts.shape == (len(sources), len(wanted))
    counts = np.zeros((len(sources), 15))
    for age, item in enumerate(newest):
        found, gains, _ = counting._gains(np.array([item]))
        np.add.at(counts[sources.index(item)], found, counting.decay**age * gains)
    largest = counts.sum(axis=0).max(initial=0)
    np.testing.assert_allclose(parts, counts[:, wanted] / (largest or 1), atol=1e-9)
    for reasons in reasons_of(np.array(history, np.int64), parts, 1.0):
        assert sum(each.amount for each in reasons) <= 1 + 1e-9
        assert all(0 < each.amount <= 1 and each.source == "counting" for each in reasons)
        assert [each.amount for each in reasons] == sorted((each.amount for each in reasons), reverse=True)


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 6), st.sampled_from([0.0, 0.5, 1.0]))
@settings(deadline=None)
def test_reasons_are_the_largest_parts_of_the_score_and_ties_go_to_the_newest(
    seed: int, counted: int, left_out: int, weight: float
) -> None:
    rng = np.random.default_rng(seed)
    history = rng.permutation(20)[: max(counted, left_out)]
    # Few values, so that many are equal.
    by_counting, by_network = rng.integers(0, 4, (counted, 5)) / 4, rng.integers(-2, 3, (left_out, 5)) / 4
    for column, reasons in enumerate(reasons_of(history, by_counting, weight, by_network)):
        parts = []
        for row, item in enumerate(history[::-1].tolist()):
            count = by_counting[row, column] if row < counted else 0.0
            fall = by_network[row, column] if row < left_out else 0.0
            reason = Reason(item, "network", fall)
            if weight * count > max(fall, 0):
                reason = Reason(item, "counting", count / by_counting[:, column].sum())
            if max(weight * count, fall) > 0:
                parts.append((max(weight * count, fall), reason))
        parts.sort(key=lambda each: -each[0])
        assert reasons == tuple(reason for _, reason in parts[:MOST_REASONS])


def test_rounding_and_nan_are_no_reasons() -> None:
    fallen = np.array([[LEAST_PART / 2], [np.nan], [2 * LEAST_PART]])
    assert reasons_of(np.array([3, 2, 1]), np.zeros((0, 1)), 0.0, fallen) == ((Reason(3, "network", 2 * LEAST_PART),),)


@pytest.mark.parametrize("depth", [4, 16])
@pytest.mark.parametrize("length", [2, 9, 35])
async def test_the_network_s_part_is_what_a_run_without_the_item_lacks(
    bundle: Bundle, engine: Engine, depth: int, length: int
) -> None:
    rng = np.random.default_rng(length)
    # Repeats among them; a history that is longer than the engine reads moves up where it lacks an item.
    items, times = rng.integers(0, 40, length).tolist(), list(range(10**9, 10**9 + 10**7 * length, 10**7))
    async with Pipeline(bundle, engine) as pipeline:
        pipeline.engine.close = lambda: None  # type: ignore[method-assign]
        answer = await pipeline.recommend(query(items, timestamps=times, depth=depth))
        plain = await pipeline.recommend(query(items, timestamps=times, depth=depth, include_reasons=False))
    assert (plain.indices.tolist(), plain.reasons) == (answer.indices.tolist(), ())
    counting, used = bundle.counting, items[-20:]
    assert counting is not None
    parts = WEIGHT * counting.parts(np.array(used), answer.indices)
    sources = newest_distinct(np.array(used)).tolist()
    whole = cosine(bundle, engine, items, times, depth)[answer.indices]
    table = np.zeros((len(sources), len(answer.indices)))
    for row, left_out in enumerate(sources[:MOST_LEFT_OUT]):
        kept = [place for place, item in enumerate(items) if item != left_out]
        without = cosine(bundle, engine, [items[place] for place in kept], [times[place] for place in kept], depth)
        table[row] = whole - without[answer.indices]
    assert len(answer.reasons) == len(answer.indices)
    for column, reasons in enumerate(answer.reasons):
        assert 1 <= len(reasons) <= MOST_REASONS
        best = np.maximum(table[:, column], np.pad(parts[:, column], (0, len(sources) - len(parts))))
        given = []
        for each in reasons:
            row = sources.index(each.item)
            if each.source == "network":
                assert each.amount == pytest.approx(table[row, column], abs=1e-5)
                given.append(each.amount)
            else:
                assert each.amount == pytest.approx(parts[row, column] / parts[:, column].sum())
                given.append(parts[row, column])
        np.testing.assert_allclose(given, np.sort(best)[::-1][: len(given)], atol=1e-5)


async def test_the_only_item_of_a_history_has_the_whole_cosine(uncounted_bundle) -> None:
    bundle = Bundle.open(uncounted_bundle)
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)) as pipeline:
        answer = await pipeline.recommend(query([7, 7, 7], depth=8, k=5))
    for (reason,), score in zip(answer.reasons, answer.scores.tolist(), strict=True):
        assert (reason.item, reason.source) == (7, "network")
        assert reason.amount == pytest.approx(score, abs=1e-6)


async def test_depth_0_names_what_it_counted_and_no_reason_for_what_is_popular(bundle: Bundle) -> None:
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)) as pipeline:
        answer = await pipeline.recommend(query([10, 12], depth=0, k=6))
        stranger = await pipeline.recommend(query([]))
    # Each item is followed by the next three, with 1, 1/2 and 1/4, and the older one counts half.
    assert answer.indices.tolist()[:4] == [13, 11, 14, 15]
    assert answer.reasons[0] == (Reason(12, "counting", 1 / 1.125), Reason(10, "counting", 0.125 / 1.125))
    assert [each.item for each in answer.reasons[1]] == [10]
    assert answer.reasons[4:] == ((), ())
    assert (stranger.choice.reason, stranger.reasons) == (DepthReason.POPULAR, ((),) * 10)


async def test_without_being_asked_the_engine_runs_once(bundle: Bundle) -> None:
    ran: list[int] = []
    fake = FakeEngine(bundle.vectors, DEPTHS, on_run=lambda batch, _: ran.append(batch))
    async with Pipeline(bundle, fake) as pipeline:
        ran.clear()
        await pipeline.recommend(query([1, 2, 3], depth=8, include_reasons=False))
        assert ran == [1]
        await pipeline.recommend(query([1, 2, 3], depth=4))
        assert ran == [1, 1, 4]
        # Runs of 8 ms, as many at a time as nobody waits too long for.
        await pipeline.recommend(query(list(range(40)), depth=8))
        assert ran[3:] == [1] + [3] * ((1 + MOST_LEFT_OUT) // 3)


async def test_others_have_their_turn_between_the_runs_for_reasons(bundle: Bundle) -> None:
    ran: list[tuple[int, int]] = []
    reached, go = threading.Event(), threading.Event()
    go.set()

    def on_run(batch: int, depth: int) -> None:
        ran.append((batch, depth))
        reached.set()
        assert go.wait(10)

    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS, on_run=on_run)) as pipeline:
        ran.clear()
        reached.clear()
        go.clear()
        asked = query(list(range(20)), depth=16, client=Client("a", "bomber"))
        bombs = [asyncio.create_task(pipeline.recommend(asked)) for _ in range(3)]
        await asyncio.to_thread(reached.wait, 10)
        plain = query([1, 2], depth=4, include_reasons=False, client=Client("b", "victim"))
        victim = asyncio.create_task(pipeline.recommend(plain))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(victim, *bombs)
    assert ran.index((1, 4)) == 1
    # Of 16 ms each, so one run is as much as nobody waits too long for.
    assert ran.count((1, 16)) == 3 * (2 + MOST_LEFT_OUT)


async def test_who_leaves_between_the_runs_for_reasons_gets_no_more_of_them(bundle: Bundle) -> None:
    ran: list[int] = []
    reached, go = threading.Event(), threading.Event()

    def on_run(batch: int, _: int) -> None:
        ran.append(batch)
        if len(ran) == 5:
            reached.set()
            assert go.wait(10)

    fake = FakeEngine(bundle.vectors, DEPTHS)
    async with Pipeline(bundle, fake) as pipeline:
        fake._on_run = on_run
        task = asyncio.create_task(pipeline.recommend(query(list(range(20)), depth=16)))
        await asyncio.to_thread(reached.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go.set()
        await pipeline.drain()
        assert pipeline.waiting == 0
    assert len(ran) == 5


async def test_a_deadline_takes_the_runs_of_reasons_into_account(bundle: Bundle) -> None:
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)) as pipeline:
        items = list(range(20))

        async def depth(**changes) -> int:
            return (await pipeline.recommend(query(items, **changes))).choice.depth

        # 22 requests of 16 ms, or of 4 ms.
        assert await depth(deadline_s=time.monotonic() + 3600) == 16
        assert await depth(deadline_s=time.monotonic() + 0.2, include_reasons=False) == 16
        assert await depth(deadline_s=time.monotonic() + 0.2) == 8
        answer = await pipeline.recommend(query(items, deadline_s=time.monotonic() + 0.05))
        assert answer.choice.depth == 0
        assert {each.source for reasons in answer.reasons for each in reasons} == {"counting"}


def test_one_work_with_reasons_leaves_its_neighbours_alone(bundle: Bundle) -> None:
    history = np.array([1, 2, 3])
    plain = BatchItem(history + 1, None, 5, ItemFilter(exclude=history))
    asked = plain._replace(leave_one_out=LeaveOneOut.of(history, history, None))
    engine, retriever = FakeEngine(bundle.vectors, DEPTHS), FlatRetriever(bundle.vectors)
    runner = Runner(bundle, LiveCatalogue(bundle), engine, retriever)
    first, on, last = runner.serve([8] * 3, [plain, asked, plain])
    assert isinstance(on, Again)
    parts = 0
    while isinstance(on, Again):
        work, runs = on.part(3)
        parts += runs
        between, on = runner.serve([8] * 2, [plain, work])
        assert isinstance(between, BatchResult)
        assert not between.reasons
    assert parts == 4
    results = [each for each in (first, on, last) if isinstance(each, BatchResult)]
    assert [bool(each.reasons) for each in results] == [False, True, False]
    assert not typical([plain, asked])


async def test_an_added_item_may_be_a_reason_and_what_is_removed_meanwhile_takes_its_reasons_with_it(
    bundle: Bundle,
) -> None:
    loop = asyncio.get_running_loop()
    runs, removed = iter(range(10**6)), threading.Event()

    def on_run(batch: int, _: int) -> None:
        # The second run is that of the reasons: the search is done.
        if batch > 1 and next(runs) == 0:
            loop.call_soon_threadsafe(remove)
            assert removed.wait(10)

    catalogue = LiveCatalogue(bundle)
    fake = FakeEngine(catalogue.vectors, DEPTHS, on_run=on_run)
    async with Pipeline(bundle, fake, catalogue=catalogue) as pipeline:
        catalogue.apply(catalogue.prepare([ItemRecord(f"new-{n}", similar=(f"item-{n}",)) for n in (1, 7)]), version=1)
        # What is like item 1 is read, what is like item 7 is returned.
        items = [1, 2, 50]
        runs = iter(range(1, 10))
        plain = await pipeline.recommend(query(items, depth=8, k=50))

        def remove() -> None:
            name = catalogue.id(int(plain.indices[1]))
            catalogue.apply(catalogue.prepare([]), [name], version=2)
            removed.set()

        runs = iter(range(10))
        answer = await pipeline.recommend(query(items, depth=8, k=50))
    assert 50 in {each.item for reasons in plain.reasons for each in reasons}
    assert 51 in plain.indices
    assert answer.indices.tolist() == np.delete(plain.indices, 1).tolist()
    assert answer.reasons == (plain.reasons[0], *plain.reasons[2:])
