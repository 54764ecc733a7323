"""The time of a request moves user vectors after the engine, so that what is cached holds at any time."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine

from fathom.edge_profiles.profile import load_profile
from fathom.errors import BundleError
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.bundle.item_files import request_time_files
from fathom.exporter.bundle.slice import slice_bundle
from fathom.runtime import pipeline as pipeline_module
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import CostModel, Line
from fathom.runtime.manifest import CHANGES_FILE, MANIFEST_NAME, MetricInterval, RequestTimeInfo, depth_digests
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import Answer, IndexedQuery
from fathom.runtime.request_time import BUCKETS, UNKNOWN, RequestTime, gap_of
from fathom.training import request_time as training
from fathom.training.metrics import Interval

DEPTHS, WIDTH = (4, 8, 12, 16), 8
GAIN = MetricInterval(value=0.01, low=0.0, high=0.02)
HOUR = 3600
TIMES = (1_000_000_000, 1_000_000_060, 1_000_000_120)


@pytest.fixture(scope="module")
def changes() -> np.ndarray:
    table = np.random.default_rng(0).normal(size=(BUCKETS, 2, WIDTH)).astype(np.float32)
    table[25:] = 0
    return table


@pytest.fixture(scope="module")
def timed_bundle(synthetic_bundle: Path, changes: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("timed") / "bundle"
    files = request_time_files(training.RequestTime(changes, Interval(0.01, 0.0, 0.02)))
    derive_bundle(Bundle.open(synthetic_bundle), out, files, request_time=RequestTimeInfo(gain=GAIN))
    return out


@pytest.fixture
async def pipeline(timed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pipeline]:
    def measure(run, *, depths, lengths, **_) -> CostModel:
        for depth in depths:
            run(depth, lengths[0], 1)
        return CostModel({(d, n): Line(0.0, 1e-3) for d in depths for n in lengths}, tail=0.0)

    monkeypatch.setattr(pipeline_module, "measure", measure)
    bundle = Bundle.open(timed_bundle)
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)) as pipeline:
        yield pipeline


async def ask(pipeline: Pipeline, depth: int, asked_s: int | None, timestamps=TIMES, **changes) -> Answer:
    profile = load_profile("cloud").model_copy(update={"latency_budget_ms": 1e9})
    query = IndexedQuery([5, 9, 30], 47, profile, timestamps, depth, asked_s=asked_s, **changes)
    return await pipeline.recommend(query)


def scores(bundle: Bundle, gap_s: int) -> np.ndarray:
    """Of all items, by the vector of the fake engine, moved as in training."""
    user = np.asarray(bundle.vectors)[[5, 9, 30]].sum(axis=0, keepdims=True)
    user /= np.linalg.norm(user)
    shares = training.gap_shares(np.array([gap_s]))
    return (training.moved(user, shares, bundle.request_time.changes) @ np.asarray(bundle.vectors).T)[0]


def test_a_server_moves_vectors_as_training_does(changes: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    gaps = np.array([UNKNOWN, 0, 1, 2, 59, 86_400, 2**24 - 1, 2**26, 2**40, 2**62])
    users = rng.normal(size=(len(gaps), WIDTH)).astype(np.float32)
    users /= np.linalg.norm(users, axis=1, keepdims=True)
    moved = RequestTime(changes).moved(users, gaps)
    np.testing.assert_allclose(moved, training.moved(users, training.gap_shares(gaps), changes), atol=1e-6)
    same = (moved == users).all(axis=1)
    assert same.tolist() == [each in (UNKNOWN, 2**26, 2**40, 2**62) for each in gaps.tolist()]


@pytest.mark.parametrize(
    ("asked", "times", "gap"),
    [
        (130, [1, 100], 30),
        (90, [1, 100], 0),
        (None, [1], UNKNOWN),
        (0, [1], UNKNOWN),
        (9, [0], UNKNOWN),
        (9, [], UNKNOWN),
    ],
)
def test_the_gap_is_from_the_newest_event_to_the_request(asked: int | None, times: list[int], gap: int) -> None:
    assert gap_of(asked, np.array(times, np.int64)) == gap
    assert gap_of(asked, None) == UNKNOWN


async def test_an_answer_follows_from_the_time_of_its_request(pipeline: Pipeline) -> None:
    for gap in (0, 60, HOUR, 10**6):
        answer = await ask(pipeline, 16, TIMES[-1] + gap)
        np.testing.assert_allclose(answer.scores, scores(pipeline.bundle, gap)[answer.indices], atol=1e-5)
    for unknown in (await ask(pipeline, 16, None), await ask(pipeline, 16, TIMES[-1], timestamps=None)):
        np.testing.assert_allclose(unknown.scores, scores(pipeline.bundle, UNKNOWN)[unknown.indices], atol=1e-5)


async def test_what_is_cached_holds_at_any_time(timed_bundle: Path, pipeline: Pipeline) -> None:
    assert pipeline.bundle.path == timed_bundle
    reused = []
    for gap in (HOUR, 0, UNKNOWN, HOUR):
        answer = await ask(pipeline, 16, None if gap == UNKNOWN else TIMES[-1] + gap)
        reused.append(answer.reused)
        np.testing.assert_allclose(answer.scores, scores(pipeline.bundle, gap)[answer.indices], atol=1e-5)
    assert reused[1:] == 3 * [reused[1]]


async def test_reasons_are_those_of_the_score_that_is_answered(pipeline: Pipeline) -> None:
    bundle, gap = pipeline.bundle, HOUR
    answer = await ask(pipeline, 4, TIMES[-1] + gap, include_reasons=True)
    whole = scores(bundle, gap)
    moves = bundle.request_time
    without = np.asarray(bundle.vectors)[[5, 9]].sum(axis=0, keepdims=True)
    without /= np.linalg.norm(without)
    fallen = whole - (moves.moved(without, [gap]) @ np.asarray(bundle.vectors).T)[0]
    amounts = {
        item: reason.amount
        for item, reasons in zip(answer.indices.tolist(), answer.reasons, strict=True)
        for reason in reasons
        if reason.item == 30 and reason.source == "network"
    }
    assert amounts
    for item, amount in amounts.items():
        assert amount == pytest.approx(fallen[item], abs=1e-5)


async def test_without_its_only_item_a_history_is_of_no_cosine_at_any_time(pipeline: Pipeline) -> None:
    query = IndexedQuery([5], 3, load_profile("cloud"), TIMES[:1], 4, include_reasons=True, asked_s=TIMES[0] + HOUR)
    answer = await pipeline.recommend(query)
    assert len(answer.reasons) == 3
    for score, reasons in zip(answer.scores.tolist(), answer.reasons, strict=True):
        assert [(reason.item, reason.source, reason.amount) for reason in reasons] == [
            (5, "network", pytest.approx(score, abs=1e-5))
        ]


def test_changes_are_what_every_depth_but_0_is_computed_by(synthetic_bundle: Path, timed_bundle: Path) -> None:
    before, after = (depth_digests(Bundle.open(path).manifest) for path in (synthetic_bundle, timed_bundle))
    assert [depth for depth in before if before[depth] != after[depth]] == [4, 8, 12, 16]


def test_a_slice_keeps_it(timed_bundle: Path, tmp_path: Path) -> None:
    profile = load_profile("cloud").model_copy(update={"depths": (4, 8)})
    assert slice_bundle(timed_bundle, profile, tmp_path / "slice").request_time == RequestTimeInfo(gain=GAIN)
    with Bundle.open(tmp_path / "slice") as made:
        assert made.request_time is not None


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.zeros((BUCKETS, 2, WIDTH + 1), np.float32), "shape|dtype|float32"),
        (np.full((BUCKETS, 2, WIDTH), np.nan, np.float32), "no number"),
    ],
)
def test_changes_that_cannot_be_are_refused(
    timed_bundle: Path, tmp_path: Path, reseal, table: np.ndarray, words: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(timed_bundle, copy)
    np.save(copy / CHANGES_FILE, table)
    reseal(copy)
    with pytest.raises(BundleError, match=words):
        Bundle.open(copy)


def test_changes_that_the_manifest_does_not_speak_of_are_refused(timed_bundle: Path, tmp_path: Path, reseal) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(timed_bundle, copy)
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest | {"request_time": None}))
    reseal(copy)
    with pytest.raises(BundleError, match="what the time of a request changes, but does not say"):
        Bundle.open(copy)
