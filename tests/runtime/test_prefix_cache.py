"""Remembered histories: what is computed from them is what would be computed afresh, and cache is bounded."""

import asyncio
import inspect
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traced_once import traced_shape

from fathom.edge_profiles.profile import load_profile
from fathom.exporter.engines import segments
from fathom.exporter.engines.items import item_vectors
from fathom.exporter.engines.segments import CONTEXT_FILE, export_extension, extension_file, step_file
from fathom.runtime import pipeline as pipeline_module
from fathom.runtime import prefix_cache
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import CostModel, Line
from fathom.runtime.engines.incremental import (
    MOST_STEPPED,
    CachedHistory,
    CachedState,
    IncrementalFiles,
    IncrementalRunner,
)
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.engines.segment import Segment
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.prefix_cache import MISS, MOST_NEW, Owners, PrefixCache
from fathom.runtime.query import IndexedQuery
from fathom.runtime.settings import PipelineSettings
from fathom.training.model import ElasticModel, ModelConfig, prefix_paths

#: Without a latency budget that matters: tests make up what depths cost.
CLOUD = load_profile("cloud").model_copy(update={"latency_budget_ms": 1e9})
SPAN, DEPTHS = 5, (1, 2, 4)
ITEMS = 30


@pytest.fixture(scope="module")
def bundle(tiny_build: Path) -> Bundle:
    return Bundle.open(tiny_build / "bundle")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[OnnxEngine]:
    with open_engine(bundle, incremental=True) as opened:
        yield opened


@pytest.fixture(scope="module", params=[("hstu", True), ("hstu", False), ("gated", False)], ids=str)
def model(request: pytest.FixtureRequest) -> ElasticModel:
    torch.manual_seed(0)
    block, time_bias = request.param
    shape = {"layers": 4, "paths": prefix_paths(DEPTHS), "width": 16, "heads": 2, "max_history": 12, "span": SPAN}
    model = ElasticModel(ModelConfig(items=ITEMS, block=block, time_bias=time_bias, **shape)).eval()
    for name, parameter in model.named_parameters():
        # Off its initial values, which make some parts do nothing.
        if "embedding" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def files(model: ElasticModel) -> dict[str, bytes]:
    made = export_extension(model)
    assert next(iter(made)) == CONTEXT_FILE
    return made


@pytest.fixture(scope="module", params=[True, False], ids=["with steps", "before schema 10"])
def runner(model: ElasticModel, files: dict[str, bytes], request: pytest.FixtureRequest) -> IncrementalRunner:
    segments = {depth: extension_file(depth) for depth in DEPTHS}
    steps = {depth: step_file(depth) for depth in DEPTHS} if request.param else {}

    def load(name: str, *, recurring: bool = False) -> Segment:
        return Segment(files[name], name, 1, recurring=recurring)

    return IncrementalRunner(
        IncrementalFiles(SPAN, 2, 16, CONTEXT_FILE, segments, steps), item_vectors(model), load, DEPTHS
    )


def afresh(model: ElasticModel, ids: np.ndarray, seconds: np.ndarray, depth: int) -> np.ndarray:
    with torch.no_grad():
        return model.user_vectors(torch.from_numpy(ids)[None], torch.from_numpy(seconds)[None], depth=depth)[0].numpy()


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_way_of_growing_gives_what_computing_afresh_gives(
    model: ElasticModel, runner: IncrementalRunner, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 3), "rows")
    rng = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    ids = rng.integers(1, ITEMS + 1, (rows, 12))
    seconds = np.cumsum(rng.integers(0, 10_000, (rows, 12)), axis=1)
    lengths = [data.draw(st.integers(1, 6)) for _ in range(rows)]
    kept: list[CachedState | None] = [None] * rows
    for _ in range(4):
        depths = [data.draw(st.sampled_from(DEPTHS), "depth") for _ in range(rows)]
        histories = []
        for row, depth in enumerate(depths):
            start = kept[row]
            if data.draw(st.booleans(), "evicted") or (start is not None and not _possible(start, lengths[row], depth)):
                start = None
            length = lengths[row]
            histories.append(CachedHistory(ids[row, :length], seconds[row, :length], start))
        users, found = runner.run(histories, depths)
        for row, (history, depth) in enumerate(zip(histories, depths, strict=True)):
            np.testing.assert_allclose(
                users[row], afresh(model, history.ids, seconds[row, : len(history.ids)], depth), atol=1e-5
            )
            assert (found[row].depth, found[row].length) == (depth, len(history.ids))
            assert found[row].past.shape[1] == min(SPAN - 1, len(history.ids))
        kept = list(found)
        lengths = [min(12, length + data.draw(st.integers(0, 3), "new")) for length in lengths]


@pytest.mark.parametrize("model", [("hstu", True), ("gated", False)], indirect=True, ids=str)
def test_where_windows_are_long_only_the_positions_of_new_items_are_looked_up(
    model: ElasticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "LONGEST_TABLE", 8)
    files = export_extension(model)

    def load(name: str, *, recurring: bool = False) -> Segment:
        return Segment(files[name], name, 1, recurring=recurring)

    by_depth = {depth: extension_file(depth) for depth in DEPTHS}
    steps = {depth: step_file(depth) for depth in DEPTHS}
    for name in (*by_depth.values(), *steps.values()):
        assert "mask" in {each.name for each in onnx.load_from_string(files[name]).graph.input}
    runner = IncrementalRunner(
        IncrementalFiles(SPAN, 2, 16, CONTEXT_FILE, by_depth, steps), item_vectors(model), load, DEPTHS
    )
    ids, seconds = np.arange(1, 13) % ITEMS + 1, np.arange(12) * 1_000
    for depth in DEPTHS:
        kept = None
        for length in (3, 4, 9, 10, 12):
            history = CachedHistory(ids[:length], seconds[:length], kept)
            users, (kept,) = runner.run([history], [depth])
            np.testing.assert_allclose(users[0], afresh(model, ids[:length], seconds[:length], depth), atol=1e-5)


def _possible(kept: CachedState, length: int, depth: int) -> bool:
    """As ``IncrementalRunner.resume`` asks for it."""
    if length == kept.length:
        return kept.depth < depth and kept.hidden is not None
    return kept.depth >= depth


def test_a_history_beyond_its_longest_goes_on_where_nothing_that_was_lost_is_seen(
    model: ElasticModel, runner: IncrementalRunner
) -> None:
    longest, rng = model.config.max_history, np.random.default_rng(0)
    ids, seconds = rng.integers(1, ITEMS + 1, 40), np.cumsum(rng.integers(0, 10_000, 40))
    for depth in DEPTHS:
        cache, reused, end = PrefixCache(10**6, longest, SPAN), [], longest
        while end <= len(ids):
            window = slice(end - longest, end)
            hit = cache.lookup(ids[window], seconds[window]).at(depth)
            users, (state,) = runner.run([CachedHistory(ids[window], seconds[window], hit.state)], [depth])
            np.testing.assert_allclose(users[0], afresh(model, ids[window], seconds[window], depth), atol=1e-5)
            cache.put(ids[window], seconds[window], depth, users[0], state)
            reused.append((hit.reused, hit.new))
            end += 1 + len(reused) % MOST_NEW
        # 12 items, of which 4 may be new: 8 are there before them, and each layer looks back 4.
        slides = [("prefix", 1 + step % MOST_NEW) for step in range(1, len(reused))]
        assert reused[1:] == (slides if depth <= 2 else [("nothing", 0)] * len(slides))


def test_a_step_knows_the_positions_of_as_many_new_items_as_it_is_given() -> None:
    torch.manual_seed(0)
    shape = ModelConfig(items=ITEMS, layers=2, paths=prefix_paths((2,)), **traced_shape())
    model = ElasticModel(shape).eval()
    files = export_extension(model)

    def load(name: str, *, recurring: bool = False) -> Segment:
        return Segment(files[name], name, 1, recurring=recurring)

    segments, steps = {2: extension_file(2)}, {2: step_file(2)}
    form = IncrementalFiles(shape.span, shape.heads, shape.width, CONTEXT_FILE, segments, steps)
    runner = IncrementalRunner(form, item_vectors(model), load, (2,))
    ids = np.random.default_rng(0).integers(1, ITEMS + 1, 30)
    _, (state,) = runner.run([CachedHistory(ids[:10], None, None)], [2])
    for new in (1, MOST_STEPPED, MOST_STEPPED + 1, 20):
        users, _ = runner.run([CachedHistory(ids[: 10 + new], None, state)], [2])
        expected = afresh(model, ids[: 10 + new], np.zeros(10 + new, np.int64), 2)
        np.testing.assert_allclose(users[0], expected, atol=1e-5)


def test_a_state_is_not_gone_on_from_by_another_history_at_its_longest() -> None:
    cache, ids = PrefixCache(10**6, 20, 5), np.arange(1, 41)
    cache.put(ids[:20], None, 4, vector(1), kept(4, 20), scope=b"one")
    grown = ids[2:22]
    assert cache.lookup(grown, None, scope=b"one").at(4).new == 2
    assert cache.lookup(grown, None, scope=b"two").at(4).reused == "nothing"
    assert cache.lookup(grown, grown, scope=b"one").at(4).reused == "nothing"
    assert cache.lookup(np.where(grown == 10, 99, grown), None, scope=b"one").at(4).reused == "nothing"
    assert cache.lookup(ids[5:25], None, scope=b"one").at(4).reused == "nothing"
    empty = cache.empty()
    assert empty.lookup(grown, None, scope=b"one").at(4).reused == "nothing"
    anna = Owners().of("anna")
    cache.put(ids[:20], None, 4, vector(1), kept(4, 20), anna, b"one")
    cache.forget(anna)
    assert cache.lookup(grown, None, scope=b"one").at(4).reused == "nothing"
    assert (len(cache), cache.nbytes) == (0, 0)


def test_depths_that_are_no_chain_have_no_second_form() -> None:
    paths = {1: (1,), 2: (0, 2)}
    model = ElasticModel(ModelConfig(items=5, layers=3, width=8, heads=1, paths=paths, strategy="nested"))
    assert export_extension(model) == {}


def vector(value: float) -> np.ndarray:
    return np.full(4, value, np.float32)


def kept(depth: int, length: int, *, hidden: bool = True, size: int = 10) -> CachedState:
    return CachedState(depth, length, np.zeros((depth, 2, size), np.float32), np.zeros((length, 4)) if hidden else None)


def test_the_cheapest_start_is_chosen() -> None:
    cache, ids = PrefixCache(10**6), np.arange(1, 11)
    assert cache.lookup(ids, None).at(4).reused == "nothing"
    cache.put(ids[:8], None, 8, vector(1), kept(8, 8))
    grown = cache.lookup(ids, None)
    assert [(grown.at(depth).reused, grown.at(depth).new) for depth in (4, 8, 12)] == [
        ("prefix", 2),
        ("prefix", 2),
        ("nothing", 0),
    ]
    same = cache.lookup(ids[:8], None)
    assert same.at(8).reused == "vector"
    assert same.at(12).reused == "layers"
    assert same.at(4).reused == "nothing"  # its exit lies in the middle of what is kept
    cache.put(ids[:7], None, 16, vector(2), kept(16, 7, hidden=False))
    assert (cache.lookup(ids[:8], None).at(16).reused, cache.lookup(ids[:8], None).at(16).new) == ("layers", 0)
    assert (cache.lookup(ids[:8], None).at(4).reused, cache.lookup(ids[:8], None).at(4).new) == ("prefix", 1)
    assert [start.at(8).length(50) for start in (grown, same, cache.lookup(ids[1:], None))] == [0, 0, 50]


def test_a_state_is_used_once_one_was_made() -> None:
    cache, ids = PrefixCache(10**6), np.arange(1, 11)
    assert cache.lookup(ids[:7], None).at(4) is MISS
    cache.put(ids[:7], None, 4, vector(1))
    assert cache.lookup(ids[:7], None).at(4).reused == "vector"
    assert cache.lookup(ids[:8], None).at(4) is MISS
    cache.put(ids[:8], None, 4, vector(2), kept(4, 8))
    assert cache.lookup(ids[:8], None).at(8).reused == "layers"
    cache.put(ids[:8], None, 8, vector(3))
    assert cache.lookup(ids[:9], None).at(4).reused == "prefix"


@pytest.mark.parametrize(
    ("returning", "length", "made"), [(0, 200, 0), (0.5, 90, 0), (0.5, 200, 1), (0.95, 80, 0), (0.95, 130, 1)]
)
def test_states_are_made_where_long_histories_come_back(returning: float, length: int, made: int) -> None:
    rng, cache, asked = np.random.default_rng(0), PrefixCache(10**8), []
    ids = rng.integers(1, 99, length)
    for _ in range(1_500):
        ids = np.append(ids, 7) if rng.random() < returning else rng.integers(1, 99, length)
        keep = cache.lookup(ids, None).at(4).keep
        cache.put(ids, None, 4, vector(1))
        if len(ids) < length + 10:
            asked.append(keep)
    assert abs(np.mean(asked[len(asked) // 3 :]) - made) < 0.05


def test_a_kept_vector_does_not_hold_its_batch() -> None:
    cache, batch = PrefixCache(10**6), np.ones((32, 4), np.float32)
    cache.put(np.arange(3), None, 4, batch[1])
    assert cache.lookup(np.arange(3), None).at(4).user.base is None


def test_other_histories_are_no_start() -> None:
    cache, ids = PrefixCache(10**6), np.arange(1, 21)
    cache.put(ids, ids * 100, 8, vector(1), kept(8, 20))
    assert cache.lookup(ids, ids * 100).at(8).reused == "vector"
    for other in (ids[1:], ids[::-1].copy(), np.append(ids[:-1], 99), np.append(ids, range(MOST_NEW + 1))):
        assert cache.lookup(other, np.arange(len(other)) * 100).at(8).reused == "nothing"
    assert cache.lookup(ids, ids * 101).at(8).reused == "nothing"
    assert cache.lookup(ids, None).at(8).reused == "nothing"


def test_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(20_000)
    histories = [np.arange(n, n + 5) for n in range(1, 100)]
    for ids in histories:
        cache.put(ids, None, 8, vector(1), kept(8, 5))
        cache.lookup(histories[0], None)
        assert cache.nbytes <= 20_000
    assert cache.lookup(histories[0], None).at(8).reused == "vector"
    assert cache.lookup(histories[-1], None).at(8).reused == "vector"
    assert cache.lookup(histories[50], None).at(8).reused == "nothing"
    assert 2 < len(cache) < 99
    cache.put(np.arange(3), None, 8, vector(1), kept(8, 5, size=10_000))
    assert len(cache) == cache.nbytes == 0


def test_a_forgotten_owner_takes_only_what_is_theirs() -> None:
    owners, cache = Owners(), PrefixCache(10**6)
    anna, berta = owners.of("anna"), owners.of("berta")
    assert owners.of("anna") is anna
    histories = [np.array(each, np.int64) for each in ([1, 2], [1, 2, 3], [7, 8], [9])]
    for ids, owner in zip(histories, (anna, anna, berta, None), strict=True):
        cache.put(ids, None, 4, vector(1.0), kept(4, len(ids)), owner)
    # Answered from what nobody owned: theirs as well from now on.
    assert cache.lookup(histories[3], None, anna).at(4).reused == "vector"
    assert owners.forget("anna") is anna
    cache.forget(anna)
    assert [cache.lookup(ids, None).at(4).reused for ids in histories] == ["nothing", "nothing", "vector", "nothing"]
    # What was being answered is not remembered afterwards, and what comes later is.
    cache.put(histories[0], None, 4, vector(1.0), kept(4, 2), anna)
    assert len(cache) == 1
    cache.put(histories[0], None, 4, vector(1.0), kept(4, 2), owners.of("anna"))
    assert len(cache) == 2
    cache.forget(berta)
    cache.forget(owners.of("anna"))
    assert (len(cache), cache.nbytes) == (0, 0)


def test_an_owner_of_nothing_is_not_known() -> None:
    owners, cache = Owners(), PrefixCache(10_000)
    for number in range(100):
        ids = np.array([number], np.int64)
        cache.put(ids, None, 4, vector(1.0), kept(4, 1), owners.of(f"user-{number}"))
    assert 1 <= len(owners._owners) == len(cache) < 100
    assert owners.forget("user-0") is None


@pytest.fixture(autouse=True)
def states_of_short_histories(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Made at once, in the tests that answer requests."""
    if inspect.iscoroutinefunction(request.function):
        monkeypatch.setattr(prefix_cache, "STATE_ITEMS", -math.inf)


@pytest.fixture
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 ms per layer, whatever the length, and a tenth of it for what is remembered."""

    def measure(run, *, depths, lengths, **_) -> CostModel:
        for depth in depths:
            for length in lengths:
                run(depth, length, 2)
        return CostModel({(d, n): Line(0.0, d * (0.02 if n else 0.002)) for d in depths for n in lengths}, tail=0.0)

    monkeypatch.setattr(pipeline_module, "measure", measure)


async def test_answers_do_not_depend_on_what_is_remembered(bundle: Bundle, known_costs: None) -> None:  # noqa: ARG001
    rng = random.Random(1)
    longest = bundle.manifest.model.max_history
    # Less than what ten histories take, so that some are evicted.
    async with (
        Pipeline(bundle, open_engine(bundle, incremental=True), settings=PipelineSettings(reuse_mb=0.3)) as reusing,
        Pipeline(bundle, open_engine(bundle)) as plain,
    ):
        users = [[rng.randrange(len(bundle.vectors)) for _ in range(rng.randrange(1, longest))] for _ in range(12)]
        reused: Counter[str] = Counter()
        for _ in range(60):
            queries = []
            for _ in range(rng.randrange(1, 5)):
                user = rng.choice(users)
                # In the end beyond the longest history, where the oldest item falls out and all is computed afresh.
                user += [rng.randrange(len(bundle.vectors)) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
                depth = rng.choice(bundle.depths)
                times = list(range(0, 100 * len(user), 100))
                queries.append(IndexedQuery(list(user), 10, CLOUD, timestamps=times, depth=depth))
            found = await asyncio.gather(*map(reusing.recommend, queries))
            expected = await asyncio.gather(*map(plain.recommend, queries))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
                reused[one.reused] += 1
        histories, nbytes = reusing.cached
        assert 0 < nbytes <= 0.3 * 2**20
        assert histories < 60
        assert min(reused[each] for each in ("nothing", "prefix", "vector", "layers")) >= 2, reused
        answering = asyncio.create_task(reusing.recommend(replace(queries[0], items=[3, 1, 2], timestamps=None)))
        await asyncio.sleep(0)
        reusing.forget()
        assert (await answering).scores.size
        # What was being answered then is not kept either.
        assert reusing.cached == (0, 0)
        owners = Owners()
        await reusing.recommend(replace(queries[0], owner=owners.of("anna")))
        answering = asyncio.create_task(
            reusing.recommend(replace(queries[0], owner=owners.of("berta"), items=[1, 2], timestamps=None))
        )
        await asyncio.sleep(0)
        reusing.forget(owners.forget("berta"))
        assert (await answering).scores.size
        assert reusing.cached[0] == 1
        reusing.forget(owners.forget("anna"))
        assert reusing.cached == (0, 0)
        assert plain.cached == (0, 0)


async def test_what_is_remembered_counts_as_cheap(bundle: Bundle, known_costs: None) -> None:  # noqa: ARG001
    deepest = bundle.depths[-1]
    settings = PipelineSettings(reuse_mb=8, policy="deepest")
    async with Pipeline(bundle, open_engine(bundle, incremental=True), settings=settings) as pipeline:
        hurry_s = 0.012 * deepest

        async def ask(*items: int, hurried: bool) -> tuple[int, str]:
            deadline_s = time.monotonic() + hurry_s if hurried else None
            answer = await pipeline.recommend(IndexedQuery(items, 10, CLOUD, deadline_s=deadline_s))
            return answer.choice.depth, answer.reused

        assert await ask(1, 2, 3, 4, 5, hurried=False) == (deepest, "nothing")
        depth, reused = await ask(9, 2, 3, 4, 5, hurried=True)
        assert depth < deepest
        assert reused == "nothing"
        assert await ask(1, 2, 3, 4, 5, 6, hurried=True) == (deepest, "prefix")


def test_an_engine_says_whether_it_resumes(bundle: Bundle, engine: OnnxEngine, synthetic_bundle: Path) -> None:
    assert engine.incremental
    with open_engine(bundle) as plain, open_engine(Bundle.open(synthetic_bundle), incremental=True) as without:
        assert not plain.incremental
        assert not without.incremental
