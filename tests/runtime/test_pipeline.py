"""A query becomes the right answer, at the right depth, with a bundle from disk."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine

from fathom.edge_profiles.profile import DeviceProfile, load_profile
from fathom.errors import (
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadError,
    UnavailableError,
)
from fathom.runtime import batcher as batcher_module
from fathom.runtime import pipeline as pipeline_module
from fathom.runtime import recent as recent_module
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import CostModel, Line
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.settings import PipelineSettings
from fathom.runtime.shares import ANYBODY
from fathom.selector.choice import DepthReason

DEPTHS = (4, 8, 12, 16)
#: Whose latency budget no estimate exceeds that a test makes up.
PATIENT = {"latency_budget_ms": 1e9}
CLOUD: DeviceProfile = load_profile("cloud").model_copy(update=PATIENT)
#: A profile that does not allow depth 0.
NETWORK = CLOUD.model_copy(update={"depths": DEPTHS})


@pytest.fixture(scope="module")
def bundle(synthetic_bundle: Path) -> Bundle:
    return Bundle.open(synthetic_bundle)


@pytest.fixture(autouse=True)
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 ms per layer and request, instead of measuring: this machine's speed must not decide a test."""

    def measure(run, *, depths, lengths, **_) -> CostModel:
        for depth in depths:
            run(depth, lengths[0], 1)
        return CostModel({(d, n): Line(0.0, d * 1e-3) for d in depths for n in lengths}, tail=0.0)

    monkeypatch.setattr(pipeline_module, "measure", measure)


@pytest.fixture
async def pipeline(bundle: Bundle) -> AsyncIterator[Pipeline]:
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)) as pipeline:
        yield pipeline


def query(items=(1, 2, 3), **changes) -> IndexedQuery:
    return IndexedQuery(**({"items": items, "k": 10, "profile": CLOUD} | changes))


def expected(bundle: Bundle, items, depth: int, hidden) -> list[int]:
    """The best ten by plain sorting, with the fake engine's own definition of a user."""
    newest = list(items)[-20:][-depth:]
    user = np.asarray(bundle.vectors)[newest].sum(axis=0)
    scores = np.asarray(bundle.vectors) @ (user / np.linalg.norm(user))
    return sorted(set(range(50)) - set(hidden), key=lambda i: (-scores[i], i))[:10]


async def test_the_answer_is_the_best_unseen_items_with_their_cosines(bundle: Bundle, pipeline: Pipeline) -> None:
    answer = await pipeline.recommend(query([5, 9, 30], depth=8))
    assert answer.indices.tolist() == expected(bundle, [5, 9, 30], 8, {5, 9, 30})
    assert np.all(np.diff(answer.scores) <= 0)
    assert np.all(np.abs(answer.scores) <= 1 + 1e-6)
    assert answer.history_used == 3
    assert answer.choice.reason is DepthReason.FIXED
    timing = answer.timing
    assert timing.total_us >= timing.select_us + timing.queue_us + timing.engine_us + timing.retrieval_us - 3


async def test_filters_do_what_they_say(bundle: Bundle, pipeline: Pipeline) -> None:
    async def indices(**changes) -> list[int]:
        return (await pipeline.recommend(query([5, 9, 30], depth=8, **changes))).indices.tolist()

    assert await indices(include_seen=True) == expected(bundle, [5, 9, 30], 8, ())
    plain = expected(bundle, [5, 9, 30], 8, {5, 9, 30})
    assert await indices(exclude=plain[:3]) == expected(bundle, [5, 9, 30], 8, {5, 9, 30, *plain[:3]})
    assert sorted(await indices(allow=[40, 41, 5])) == [40, 41]
    assert await indices(allow=[]) == []
    drama = await indices(categories=frozenset({"drama"}), k=50)
    assert set(drama) == {i for i, names in enumerate(bundle.catalogue.categories) if "drama" in names} - {5, 9, 30}
    assert len(await indices(k=1_000)) == 47


async def test_only_the_newest_items_are_used_but_all_count_as_seen(bundle: Bundle, pipeline: Pipeline) -> None:
    items = [i % 25 for i in range(10_000)]
    answer = await pipeline.recommend(query(items, depth=16, k=50))
    assert answer.history_used == 20
    assert answer.indices.tolist()[:10] == expected(bundle, items, 16, range(25))
    assert len(answer.indices) == 25


async def test_the_selector_decides_within_the_profile(bundle: Bundle, pipeline: Pipeline) -> None:
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS), settings=PipelineSettings(policy="rule")) as rule:
        depths = {(await rule.recommend(query(range(n)))).choice.depth for n in (1, 20)}
        assert depths == {CLOUD.shallow, CLOUD.deep}
    for profile in (CLOUD, load_profile("mobile").model_copy(update=PATIENT)):
        assert (await pipeline.recommend(query(range(1), profile=profile))).choice.depth == profile.depths[-1]
    with pytest.raises(NotFoundError, match="depth 5"):
        await pipeline.recommend(query(depth=5))


async def test_a_tight_deadline_takes_a_shallower_depth_and_too_tight_a_one_none(pipeline: Pipeline) -> None:
    answer = await pipeline.recommend(query(range(20), deadline_s=time.monotonic() + 3600))
    assert answer.choice.reason is DepthReason.DEEPEST
    with pytest.raises(DeadlineError):
        await pipeline.recommend(query(range(20), profile=NETWORK, deadline_s=time.monotonic() + 0.001))
    with pytest.raises(DeadlineError, match="passed"):
        await pipeline.recommend(query(deadline_s=time.monotonic() - 1))


async def test_the_deepest_depth_that_fits_is_taken(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = CostModel({(d, n): Line(0.0, d * 10.0) for d in DEPTHS for n in (16, 20)}, tail=0.0)
    monkeypatch.setattr(pipeline_module, "measure", lambda *_, **__: slow)
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)) as pipeline:
        answer = await pipeline.recommend(query(range(20), deadline_s=time.monotonic() + 100))
        assert answer.choice.depth == 8
        assert answer.choice.reason is DepthReason.DEADLINE
        with pytest.raises(DeadlineError):
            await pipeline.recommend(query(range(20), depth=16, deadline_s=time.monotonic() + 100))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"items": [], "depth": 4}, "history has 0 items"),
        ({"k": 0}, "k is 0"),
        ({"k": -1}, "k is -1"),
        ({"items": [50]}, "items holds an index outside 0..49"),
        ({"items": [-1]}, "items"),
        ({"exclude": [2**40]}, "exclude"),
        ({"allow": [-(2**62)]}, "allow"),
        ({"timestamps": [1, 2]}, "2 timestamps for 3 items"),
    ],
)
async def test_a_query_that_contradicts_itself_is_refused(pipeline: Pipeline, changes: dict, word: str) -> None:
    with pytest.raises(InvalidRequestError, match=word):
        await pipeline.recommend(query(**changes))
    assert (await pipeline.recommend(query())).indices.size == 10


async def test_an_unknown_category_is_not_found(pipeline: Pipeline) -> None:
    with pytest.raises(NotFoundError, match="opera"):
        await pipeline.recommend(query(categories=frozenset({"opera"})))


@pytest.mark.parametrize("timestamps", [False, True])
async def test_a_crowd_gets_the_answers_that_each_would_get_alone(make_bundle, timestamps: bool) -> None:
    bundle = Bundle.open(make_bundle(timestamps=timestamps))
    rng = np.random.default_rng(0)
    queries = []
    for _ in range(200):
        items = rng.integers(0, 50, rng.integers(1, 40))
        times = np.sort(rng.integers(0, 2**31, len(items))) if rng.random() < 0.5 else None
        queries.append(query(items, depth=int(rng.choice(DEPTHS)), k=5, timestamps=times, include_seen=True))
    async with Pipeline(bundle, open_engine(bundle)) as pipeline:
        crowds = [queries[low : low + 50] for low in range(0, len(queries), 50)]
        answers = [a for crowd in crowds for a in await asyncio.gather(*map(pipeline.recommend, crowd))]
    with open_engine(bundle) as engine:
        for q, answer in zip(queries, answers, strict=True):
            ids = np.asarray(q.items)[None, -20:] + 1
            times = None if q.timestamps is None else np.asarray(q.timestamps)[None, -20:]
            scores = np.asarray(bundle.vectors) @ engine.run(ids, times, q.depth)[0]
            assert answer.choice.depth == q.depth
            np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:5], atol=1e-5)
            np.testing.assert_allclose(answer.scores, scores[answer.indices], atol=1e-5)


async def test_the_queue_is_bounded_and_draining_lets_nobody_in_but_all_out(bundle: Bundle) -> None:
    entered, free = threading.Semaphore(0), threading.Event()
    free.set()

    def hold(_batch: int, _depth: int) -> None:
        entered.release()
        assert free.wait(30)

    pipeline = Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS, on_run=hold), settings=PipelineSettings(max_queue=2))
    with pytest.raises(UnavailableError, match="starting"):
        await pipeline.recommend(query())
    await pipeline.start()
    while entered.acquire(blocking=False):
        pass
    free.clear()
    tasks = [asyncio.create_task(pipeline.recommend(query()))]
    await asyncio.to_thread(entered.acquire)
    tasks += [asyncio.create_task(pipeline.recommend(query())) for _ in range(2)]
    async with asyncio.timeout(10):
        while pipeline.waiting < 2:
            await asyncio.sleep(0)
    for asked in (query(profile=NETWORK), query(depth=4)):
        with pytest.raises(OverloadError):
            await pipeline.recommend(asked)
    instead = await pipeline.recommend(query())
    assert (instead.choice.depth, instead.choice.reason) == (0, DepthReason.DEADLINE)
    assert "the queue is full" in instead.choice.why
    drained = asyncio.create_task(pipeline.drain())
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="draining"):
        await pipeline.recommend(query())
    free.set()
    await drained
    assert all(answer.indices.size == 10 for answer in await asyncio.gather(*tasks))
    pipeline.close()
    pipeline.close()
    with pytest.raises(UnavailableError):
        await pipeline.recommend(query())


async def test_soon_after_a_refusal_what_cannot_be_answered_is_refused_unseen(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_module, "PRESSED_S", 60.0)
    monkeypatch.setattr(batcher_module, "PROBE_AFTER_S", 60.0)

    def admit(left_s: float, items: int = 3, profile: DeviceProfile = NETWORK) -> None:
        pipeline.admit(items, profile, None, time.monotonic() + left_s, "somebody")

    admit(0.001)
    with pytest.raises(DeadlineError):
        await pipeline.recommend(query(profile=NETWORK, deadline_s=time.monotonic() + 0.001))
    admit(30)
    admit(0.003, profile=CLOUD)
    with pytest.raises(DeadlineError, match="depth 4 needs"):
        admit(0.001)
    with pytest.raises(DeadlineError, match="passed"):
        admit(-1)
    assert (await pipeline.recommend(query(deadline_s=time.monotonic() + 30))).indices.size == 10


async def test_a_stranger_gets_what_is_popular_while_others_are_refused_unseen(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_run, *, depths, lengths, **_) -> CostModel:
        return CostModel({(d, n): Line(0.0, d) for d in depths for n in lengths}, tail=0.0)

    monkeypatch.setattr(pipeline_module, "measure", measure)
    monkeypatch.setattr(recent_module, "PRESSED_S", 60.0)
    monkeypatch.setattr(batcher_module, "PROBE_AFTER_S", 60.0)
    monkeypatch.setattr(recent_module, "FOR_S", 60.0)
    engine = FakeEngine(bundle.vectors, DEPTHS)
    engine.incremental = True
    async with Pipeline(bundle, engine, settings=PipelineSettings(reuse_mb=1)) as pipeline:
        with pytest.raises(DeadlineError):
            await pipeline.recommend(query(profile=NETWORK, deadline_s=time.monotonic() + 3))
        with pytest.raises(DeadlineError):
            pipeline.admit(3, NETWORK, None, time.monotonic() + 3, ANYBODY)
        stranger = query([], profile=NETWORK, deadline_s=time.monotonic() + 2)
        assert (await pipeline.recommend(stranger)).choice.reason is DepthReason.POPULAR


async def test_nan_from_the_engine_is_that_requests_error_alone(bundle: Bundle) -> None:
    vectors = np.asarray(bundle.vectors)
    vectors[40] = np.nan
    async with Pipeline(bundle, FakeEngine(ItemVectors(vectors), DEPTHS)) as pipeline:
        calls = [pipeline.recommend(query([item], depth=4)) for item in (8, 40, 9)]
        good, bad, also_good = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(bad, UnavailableError)
        assert "NaN or infinity at depth 4" in str(bad)
        assert good.indices.size == also_good.indices.size == 10


async def test_a_gpu_meets_every_shape_before_requests_do(bundle: Bundle) -> None:
    class OnGpu(FakeEngine):
        device = "cuda"

    runs: Counter[tuple[int, int]] = Counter()
    engine = OnGpu(bundle.vectors, DEPTHS, on_run=lambda batch, depth: runs.update([(depth, batch)]))
    async with Pipeline(bundle, engine, settings=PipelineSettings(max_batch=6, max_batch_tokens=10_000)):
        assert all(runs[depth, batch] >= 2 * 2 for depth in DEPTHS for batch in (1, 2, 4, 6))


async def test_costs_are_really_measured_at_the_start(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    runs: set[int] = set()
    engine = FakeEngine(bundle.vectors, DEPTHS, on_run=lambda _, depth: runs.add(depth))
    async with Pipeline(bundle, engine, settings=PipelineSettings(calibration_ms=0)) as pipeline:
        assert runs == set(DEPTHS)
        answer = await pipeline.recommend(query(deadline_s=time.monotonic() + 30))
    assert answer.indices.size == 10


def test_settings_come_from_the_profile_and_refuse_the_impossible() -> None:
    settings = PipelineSettings.for_profile(CLOUD, max_queue=7)
    assert (settings.max_batch, settings.threads, settings.max_queue) == (CLOUD.max_batch, CLOUD.threads, 7)
    for changes in ({"max_batch": 0}, {"patience_ms": float("nan")}, {"calibration_ms": -1}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            PipelineSettings(**changes)


def test_a_pipeline_that_never_started_can_be_closed(bundle: Bundle) -> None:
    Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)).close()


# Depth 0


def counted(bundle: Bundle, items, keep: ItemFilter, k: int = 10) -> list[int]:
    assert bundle.counting is not None
    return bundle.counting.best(np.array(items, np.int64), k, keep)[0].tolist()


async def test_depth_0_answers_without_the_engine_what_usually_follows(bundle: Bundle, pipeline: Pipeline) -> None:
    engine_ran: list[int] = []
    pipeline.observe(lambda *run: engine_ran.append(run[0]))
    answer = await pipeline.recommend(query([5, 9, 30], depth=0))
    assert answer.indices.tolist() == counted(bundle, [5, 9, 30], ItemFilter(exclude=np.array([5, 9, 30])))
    assert answer.indices.tolist()[:3] == [31, 10, 32]
    assert (answer.choice.depth, answer.choice.reason, answer.history_used) == (0, DepthReason.FIXED, 3)
    timing = answer.timing
    assert (timing.engine_us, timing.queue_us, answer.reused) == (0, 0, "nothing")
    assert timing.total_us >= timing.select_us + timing.retrieval_us - 2
    assert engine_ran == []
    assert pipeline.cached == (0, 0)


async def test_filters_hold_at_depth_0(bundle: Bundle, pipeline: Pipeline) -> None:
    async def indices(**changes) -> list[int]:
        return (await pipeline.recommend(query([5, 9, 30], depth=0, **changes))).indices.tolist()

    assert (await indices(include_seen=True))[:3] == [31, 10, 32]
    assert (await indices(exclude=[31, 32]))[0] == 10
    assert sorted(await indices(allow=[40, 41, 5])) == [40, 41]
    assert await indices(allow=[]) == []
    assert await indices(exclude=range(50)) == []
    drama = await indices(categories=frozenset({"drama"}), k=50)
    assert set(drama) == {i for i, names in enumerate(bundle.catalogue.categories) if "drama" in names} - {5, 9, 30}
    assert len(await indices(k=1_000)) == 47


async def test_a_deadline_that_no_engine_can_meet_is_met_by_depth_0(pipeline: Pipeline) -> None:
    answer = await pipeline.recommend(query(range(20), deadline_s=time.monotonic() + 0.003))
    assert (answer.choice.depth, answer.choice.reason) == (0, DepthReason.DEADLINE)
    assert "too little for depth 4" in answer.choice.why
    with pytest.raises(DeadlineError, match="passed"):
        await pipeline.recommend(query(depth=0, deadline_s=time.monotonic() - 1))


async def test_a_bundle_without_a_counting_exit_has_no_depth_0(uncounted_bundle: Path) -> None:
    bundle = Bundle.open(uncounted_bundle)
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)) as pipeline:
        assert pipeline.depths == DEPTHS
        with pytest.raises(NotFoundError, match="depth 0 is not served"):
            await pipeline.recommend(query(depth=0))
        with pytest.raises(InvalidRequestError, match="history has 0 items"):
            await pipeline.recommend(query([]))
        with pytest.raises(DeadlineError, match="depth 4 needs"):
            await pipeline.recommend(query(deadline_s=time.monotonic() + 0.001))


async def test_without_a_deadline_the_work_that_waits_is_what_counts(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = CostModel({(d, n): Line(0.0, d / 16) for d in DEPTHS for n in (16, 20)}, tail=0.0)
    monkeypatch.setattr(pipeline_module, "measure", lambda *_, **__: cost)
    entered, free = threading.Semaphore(0), threading.Event()

    def hold(_batch: int, _depth: int) -> None:
        entered.release()
        assert free.wait(30)

    engine = FakeEngine(bundle.vectors, DEPTHS, on_run=hold)
    async with Pipeline(bundle, engine, settings=PipelineSettings(reuse_mb=0, policy="deepest")) as pipeline:
        waits = [asyncio.create_task(pipeline.recommend(query(range(20), depth=4)))]
        await asyncio.to_thread(entered.acquire)
        # A request at depth 16 is a second of work.
        for depth in (16, None, 16):
            waits.append(asyncio.create_task(pipeline.recommend(query(range(20), depth=depth))))
            async with asyncio.timeout(10):
                while pipeline.waiting < len(waits) - 1:
                    await asyncio.sleep(0)
        with pytest.raises(OverloadError, match=r"of work are waiting, more than 2000\.0 ms; try again in") as refused:
            await pipeline.recommend(query(range(20), depth=4))
        assert refused.value.retry_after_s is not None
        counted = await pipeline.recommend(query(range(20)))
        assert (counted.choice.depth, counted.choice.reason) == (0, DepthReason.DEADLINE)
        free.set()
        answers = await asyncio.gather(*waits)
    assert [each.choice.depth for each in answers] == [4, 16, 4, 16]


async def test_what_the_queue_has_no_time_left_for_is_answered_by_depth_0(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = CostModel({(d, n): Line(0.0, d * 1e-3) for d in DEPTHS for n in (16, 20)}, tail=0.0)
    monkeypatch.setattr(pipeline_module, "measure", lambda *_, **__: cost)
    entered, free = threading.Semaphore(0), threading.Event()

    def hold(_batch: int, _depth: int) -> None:
        entered.release()
        assert free.wait(30)

    engine = FakeEngine(bundle.vectors, DEPTHS, on_run=hold)
    async with Pipeline(bundle, engine, settings=PipelineSettings(reuse_mb=0)) as pipeline:
        first = asyncio.create_task(pipeline.recommend(query(depth=4)))
        await asyncio.to_thread(entered.acquire)
        asked = [query(range(20), deadline_s=time.monotonic() + 30, depth=depth) for depth in (None, 16)]
        waits, fixed = (asyncio.create_task(pipeline.recommend(each)) for each in asked)
        async with asyncio.timeout(10):
            while pipeline.waiting < 2:
                await asyncio.sleep(0)
        # Meanwhile the machine has become so slow that no run would end in time.
        for _ in range(400):
            cost.observe(20, {16: 1}, 1000.0, time.monotonic())
        free.set()
        answer = await waits
        assert (answer.choice.depth, answer.choice.reason) == (0, DepthReason.DEADLINE)
        assert "the queue took too long" in answer.choice.why
        assert answer.timing.queue_us > 0
        with pytest.raises(DeadlineError, match="not enough for depth 16"):
            await fixed
        assert (await first).choice.depth == 4


async def test_depth_0_hides_no_failure_of_the_engine(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_batch: int, _depth: int) -> None:
        if broken:
            raise RuntimeError("no engine")

    broken = False
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS, on_run=fail)) as pipeline:
        broken = True
        for _ in range(3):
            with pytest.raises(UnavailableError, match="the engine failed"):
                await pipeline.recommend(query(deadline_s=time.monotonic() + 30))
        assert pipeline.failing
        assert (await pipeline.recommend(query(deadline_s=time.monotonic() + 0.003))).choice.depth == 0
        assert (await pipeline.recommend(query(depth=0))).indices.size == 10
        assert (await pipeline.recommend(query([]))).choice.reason is DepthReason.POPULAR
    assert "the engine failed" in caplog.text


@pytest.mark.parametrize("profile", [CLOUD, NETWORK])
async def test_an_empty_history_gets_the_popular_items_that_the_filter_leaves(
    pipeline: Pipeline, profile: DeviceProfile
) -> None:
    answer = await pipeline.recommend(query([], profile=profile, exclude=[0, 2], timestamps=()))
    assert answer.indices.tolist() == [1, *range(3, 12)]
    assert (answer.choice.depth, answer.choice.reason, answer.history_used) == (0, DepthReason.POPULAR, 0)
    assert (await pipeline.recommend(query([], profile=profile, allow=[7, 3]))).indices.tolist() == [3, 7]
    assert (await pipeline.recommend(query([], k=1_000, deadline_s=time.monotonic() + 0.002))).indices.size == 50


async def test_an_engine_that_seems_too_slow_is_tried_beside_answers_of_depth_0(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ten times slower than it is, by its estimates, which nothing but a run can correct.
    slow = CostModel({(d, n): Line(0.0, 1e-4) for d in DEPTHS for n in (16, 20)}, tail=0.0, slowdown=1e4)
    monkeypatch.setattr(pipeline_module, "measure", lambda *_, **__: slow)
    monkeypatch.setattr(batcher_module, "PROBE_AFTER_S", 0.0)
    ran: list[int] = []
    engine = FakeEngine(bundle.vectors, DEPTHS, on_run=lambda _, depth: ran.append(depth))
    async with Pipeline(bundle, engine, settings=PipelineSettings(reuse_mb=1)) as pipeline:
        depths = [(await pipeline.recommend(query(deadline_s=time.monotonic() + 0.05))).choice.depth]
        async with asyncio.timeout(10):
            while depths[-1] == 0:
                await asyncio.sleep(0.001)
                depths.append((await pipeline.recommend(query(deadline_s=time.monotonic() + 0.05))).choice.depth)
    assert depths[0] == 0
    assert ran[0] == 4


async def test_requests_of_several_depths_are_one_batch_where_the_engine_shares_their_layers(bundle: Bundle) -> None:
    ran: list[tuple[int, int]] = []
    async with Pipeline(bundle, open_engine(bundle)) as pipeline:
        alone = [await pipeline.recommend(query([1, 2, 3], depth=depth)) for depth in (16, 4)]
        pipeline.observe(lambda depth, requests, _: ran.append((depth, requests)))
        together = await asyncio.gather(*(pipeline.recommend(query([1, 2, 3], depth=depth)) for depth in (16, 4)))
    assert ran == [(16, 2)]
    for one, other in zip(alone, together, strict=True):
        assert one.choice.depth == other.choice.depth
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
