"""The context of a request moves user vectors after the engine, so that what is cached holds for any context."""

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine

from fathom.edge_profiles.profile import load_profile
from fathom.errors import BundleError
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.bundle.item_files import context_files
from fathom.exporter.bundle.slice import slice_bundle
from fathom.runtime import pipeline as pipeline_module
from fathom.runtime.bundle import Bundle
from fathom.runtime.context import Context
from fathom.runtime.cost import CostModel, Line
from fathom.runtime.manifest import (
    CONTEXT_CHANGES_FILE,
    CONTEXT_FILES,
    CONTEXT_VALUES_FILE,
    MANIFEST_NAME,
    ContextInfo,
    MetricInterval,
    depth_digests,
)
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import Answer, IndexedQuery
from fathom.training import context as training
from fathom.training.dataset import Contexts
from fathom.training.metrics import Interval

DEPTHS, WIDTH = (4, 8, 12, 16), 8
VALUES = {"country": ("AT", "DE", "FR"), "device": ("phone", "tv"), "hour": ()}
INFO = ContextInfo(features={"country": 3, "device": 2, "hour": 0}, gain=MetricInterval(value=0.01, low=0.0, high=0.02))


@pytest.fixture(scope="module")
def changes() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 2, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle_path(synthetic_bundle: Path, changes: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("told") / "bundle"
    files = context_files(training.Context(VALUES, changes, Interval(0.01, 0.0, 0.02)))
    derive_bundle(Bundle.open(synthetic_bundle), out, files, context=INFO)
    return out


@pytest.fixture
async def pipeline(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pipeline]:
    def measure(run, *, depths, lengths, **_) -> CostModel:
        for depth in depths:
            run(depth, lengths[0], 1)
        return CostModel({(d, n): Line(0.0, 1e-3) for d in depths for n in lengths}, tail=0.0)

    monkeypatch.setattr(pipeline_module, "measure", measure)
    bundle = Bundle.open(bundle_path)
    async with Pipeline(bundle, FakeEngine(bundle.vectors, DEPTHS)) as pipeline:
        yield pipeline


async def ask(pipeline: Pipeline, depth: int, given: dict[str, str], **changes: Any) -> Answer:
    profile = load_profile("cloud").model_copy(update={"latency_budget_ms": 1e9})
    rows = pipeline.bundle.context.rows(given)
    return await pipeline.recommend(IndexedQuery([5, 9, 30], 47, profile, None, depth, context=rows, **changes))


def scores(bundle: Bundle, given: dict[str, str], items: tuple[int, ...] = (5, 9, 30)) -> np.ndarray:
    """Of all items, by the vector of the fake engine, moved as in training."""
    user = np.asarray(bundle.vectors)[list(items)].sum(axis=0, keepdims=True)
    user /= np.linalg.norm(user)
    codes = [1 + known.index(value) if (value := given.get(name)) in known else 0 for name, known in VALUES.items()]
    learned = training.Context(VALUES, bundle.context.changes, Interval(0, 0, 0))
    moved = learned.moved(user, Contexts(VALUES, np.array([codes], np.int32)))
    return (moved @ np.asarray(bundle.vectors).T)[0]


def test_a_server_moves_vectors_as_training_does(changes: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    codes = np.array([[0, 0, 0], [1, 0, 0], [3, 2, 0], [0, 1, 0]], np.int32)
    users = rng.normal(size=(4, WIDTH)).astype(np.float32)
    users /= np.linalg.norm(users, axis=1, keepdims=True)
    context = Context(VALUES, changes)
    rows = [
        context.rows(each) for each in ({}, {"country": "AT"}, {"device": "tv", "country": "FR"}, {"device": "phone"})
    ]
    expected = training.Context(VALUES, changes, Interval(0, 0, 0)).moved(users, Contexts(VALUES, codes))
    np.testing.assert_allclose(context.moved(users, rows), expected, atol=1e-6)
    assert context.moved(users, rows)[0].tobytes() == users[0].tobytes()


def test_features_are_written_in_ascending_order_each_with_its_own_changes(
    synthetic_bundle: Path, changes: np.ndarray, tmp_path: Path
) -> None:
    values = {"hour": (), "device": VALUES["device"], "country": VALUES["country"]}
    files = context_files(training.Context(values, changes, Interval(0.01, 0.0, 0.02)))
    derive_bundle(Bundle.open(synthetic_bundle), tmp_path / "bundle", files, context=INFO)
    found = Bundle.open(tmp_path / "bundle").context
    assert found is not None
    assert [*found.values] == [*VALUES]
    for place, given in enumerate(({"device": "phone"}, {"device": "tv"}, {"country": "AT"})):
        assert found.changes[list(found.rows(given))].tolist() == [changes[place].tolist()]


def test_values_that_are_not_known_count_as_missing_and_the_others_can_be_told_again(changes: np.ndarray) -> None:
    context = Context(VALUES, changes)
    given = {"country": "DE", "device": "fridge", "hour": "7", "weather": "AT"}
    assert context.given(context.rows(given)) == {"country": "DE"}
    assert context.rows({"country": "", "device": "DE"}) == ()


async def test_an_answer_follows_from_the_context_of_its_request(pipeline: Pipeline) -> None:
    for given in ({"country": "DE"}, {"country": "FR", "device": "tv"}, {"country": "XX"}, {}):
        answer = await ask(pipeline, 16, given)
        np.testing.assert_allclose(answer.scores, scores(pipeline.bundle, given)[answer.indices], atol=1e-5)


async def test_what_is_cached_holds_for_any_context(pipeline: Pipeline) -> None:
    reused = []
    for given in ({"country": "DE"}, {"country": "AT", "device": "phone"}, {}, {"country": "DE"}):
        answer = await ask(pipeline, 16, given)
        reused.append(answer.reused)
        np.testing.assert_allclose(answer.scores, scores(pipeline.bundle, given)[answer.indices], atol=1e-5)
    assert reused[1:] == 3 * [reused[1]]


async def test_depth_0_answers_the_same_in_every_context(pipeline: Pipeline) -> None:
    plain, told = await ask(pipeline, 0, {}), await ask(pipeline, 0, {"country": "DE"})
    assert plain.indices.tolist() == told.indices.tolist()


async def test_reasons_are_those_of_the_score_that_is_answered(pipeline: Pipeline) -> None:
    bundle, given = pipeline.bundle, {"country": "FR"}
    answer = await ask(pipeline, 4, given, include_reasons=True)
    fallen = scores(bundle, given) - scores(bundle, given, (5, 9))
    amounts = {
        item: reason.amount
        for item, reasons in zip(answer.indices.tolist(), answer.reasons, strict=True)
        for reason in reasons
        if reason.item == 30 and reason.source == "network"
    }
    assert amounts
    for item, amount in amounts.items():
        assert amount == pytest.approx(fallen[item], abs=1e-5)


def test_changes_are_what_every_depth_but_0_is_computed_by(synthetic_bundle: Path, bundle_path: Path) -> None:
    before, after = (depth_digests(Bundle.open(path).manifest) for path in (synthetic_bundle, bundle_path))
    assert [depth for depth in before if before[depth] != after[depth]] == [4, 8, 12, 16]


def test_a_bundle_whose_features_change_nothing_still_knows_them(synthetic_bundle: Path, tmp_path: Path) -> None:
    info = ContextInfo(features={"country": 0, "device": 0})
    plain = Bundle.open(synthetic_bundle)
    derive_bundle(plain, tmp_path / "bundle", {}, context=info)
    with Bundle.open(tmp_path / "bundle") as bundle:
        assert bundle.context is not None
        assert [*bundle.context.values] == ["country", "device"]
        assert bundle.context.rows({"country": "DE"}) == ()
        assert depth_digests(bundle.manifest) == depth_digests(plain.manifest)


def test_a_slice_keeps_it(bundle_path: Path, tmp_path: Path) -> None:
    profile = load_profile("cloud").model_copy(update={"depths": (4, 8)})
    assert slice_bundle(bundle_path, profile, tmp_path / "slice").context == INFO
    with Bundle.open(tmp_path / "slice") as made:
        assert made.context is not None


@pytest.fixture
def spoiled(bundle_path: Path, tmp_path: Path, reseal) -> Callable[[Callable[[Path], object]], Path]:
    def made(spoil: Callable[[Path], object]) -> Path:
        shutil.copytree(bundle_path, tmp_path / "bundle")
        spoil(tmp_path / "bundle")
        reseal(tmp_path / "bundle")
        return tmp_path / "bundle"

    return made


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.zeros((5, 2, WIDTH + 1), np.float32), "float32"),
        (np.full((5, 2, WIDTH), np.nan, np.float32), "no number"),
    ],
)
def test_changes_that_cannot_be_are_refused(spoiled, table: np.ndarray, words: str) -> None:
    path = spoiled(lambda folder: np.save(folder / CONTEXT_CHANGES_FILE, table))
    with pytest.raises(BundleError, match=words):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"country": ["AT", "DE"], "device": ["phone", "tv"], "hour": []}, "not the features of the manifest"),
        ({"country": ["AT", "DE", "FR"], "device": ["phone", "tv"]}, "not the features of the manifest"),
        ({"device": ["phone", "tv"], "country": ["AT", "DE", "FR"], "hour": []}, "features do not ascend"),
        ({"country": ["AT", "DE", "DE"], "device": ["phone", "tv"], "hour": []}, "a value occurs twice"),
        ({"country": ["AT", "DE", ""], "device": ["phone", "tv"], "hour": []}, "a value is empty or longer than 128"),
        ({"country": ["AT", "DE", "x" * 129], "device": ["phone", "tv"], "hour": []}, "a value is empty or longer"),
        ({"country": ["AT", "DE", 7], "device": ["phone", "tv"], "hour": []}, "lists of texts"),
        ({"country": "abc", "device": ["phone", "tv"], "hour": []}, "lists of texts"),
        ([], "not a JSON object"),
    ],
)
def test_values_that_cannot_be_are_refused(spoiled, values: object, words: str) -> None:
    path = spoiled(lambda folder: (folder / CONTEXT_VALUES_FILE).write_text(json.dumps(values)))
    with pytest.raises(BundleError, match=words):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (None, "what the context of a request changes, but does not say"),
        ({"features": {"country": 3}, "gain": None}, "what the context of a request changes, but does not say"),
        ({"features": {}, "gain": None}, "features"),
        ({"features": {str(n): 0 for n in range(9)}, "gain": None}, "features"),
        ({"features": {"country": 10_001}, "gain": None}, "country"),
        ({"features": {"country\nroot": 0}, "gain": None}, "features"),
    ],
)
def test_a_manifest_that_contradicts_the_files_is_refused(spoiled, context: object, words: str) -> None:
    def spoil(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest | {"context": context}))

    with pytest.raises(BundleError, match=words):
        Bundle.open(spoiled(spoil))


def test_values_that_nothing_is_known_of_are_refused(synthetic_bundle: Path, tmp_path: Path, reseal) -> None:
    shutil.copytree(synthetic_bundle, tmp_path / "bundle")
    file = tmp_path / "bundle" / MANIFEST_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"context": {"features": {"country": 1}, "gain": None}}))
    reseal(tmp_path / "bundle")
    with pytest.raises(BundleError, match="values of a context, but not what they add"):
        Bundle.open(tmp_path / "bundle")
    assert not any((tmp_path / "bundle" / name).exists() for name in CONTEXT_FILES)
