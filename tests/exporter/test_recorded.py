"""Recorded requests become cases that are asked at every depth: those of the bundle, growing histories told apart."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine

from fathom.errors import ArtefactError, ConfigError, DataError
from fathom.exporter.certification.outcomes import in_order, measure_outcomes
from fathom.exporter.certification.recorded import grouped, read_recording, recorded_outcomes
from fathom.runtime.bundle import Bundle
from fathom.runtime.context import Context
from fathom.runtime.manifest import content_version
from fathom.runtime.request_time import BUCKETS, RequestTime
from fathom.training.dataset import Sequences
from fathom.training.splits import Cases


@pytest.fixture(scope="module")
def bundle(synthetic_bundle: Path) -> Bundle:
    return Bundle.open(synthetic_bundle)


@pytest.fixture
def engine(bundle: Bundle) -> FakeEngine:
    return FakeEngine(bundle.vectors, bundle.depths)


def line(bundle: Bundle, asked: list[int], **changes: Any) -> str:
    """As a server writes it."""
    request = {
        "schema_version": 1,
        "time": 1.7e9,
        "bundle": "synthetic",
        "version": bundle.manifest.version,
        "content": content_version(bundle.manifest),
        "profile": "cloud-cpu",
        "depth": 4,
        "reason": "certified",
        "items": [f"item-{item}" for item in asked],
        "given": [],
    }
    return json.dumps(request | changes) + "\n"


def record(folder: Path, *written: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"requests-{len(list(folder.iterdir()))}.jsonl").write_text("".join(written))
    return folder


def test_every_request_is_asked_at_every_depth(bundle: Bundle, engine: FakeEngine, tmp_path: Path) -> None:
    asked = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3], [1, 5]]
    folder = record(tmp_path / "log", *(line(bundle, items) for items in asked[:2]))
    record(folder, *(line(bundle, items) for items in asked[2:]))
    found = recorded_outcomes(bundle, engine, folder)
    longest_first = [asked[2], asked[0], asked[1], asked[3]]
    assert found.lengths.tolist() == [5, 3, 2, 2]
    histories = Sequences(np.concatenate(longest_first).astype(np.int32), np.array([0, 5, 8, 10, 12]), None)
    nobody = np.zeros(4, np.int32)
    expected = measure_outcomes(bundle, engine, Cases(histories, nobody, nobody))
    assert found.depths == expected.depths
    np.testing.assert_array_equal(found.best, expected.best)
    np.testing.assert_array_equal(found.agreement, expected.agreement)
    np.testing.assert_array_equal(found.features, expected.features)
    assert np.isnan(found.quality).all()


def test_requests_are_asked_at_their_times_where_these_change_anything(
    bundle: Bundle, engine: FakeEngine, tmp_path: Path
) -> None:
    changes = np.random.default_rng(0).normal(size=(BUCKETS, 2, bundle.vectors.width)).astype(np.float32)
    timed = replace(bundle, request_time=RequestTime(changes))
    at = {"timestamps": [100, 200]}
    written = [line(bundle, [1, 2], **at, request_time=second) for second in (201, 100_000, 201)]
    folder = record(tmp_path / "log", *written, line(bundle, [1, 2], **at))
    found, plain = (recorded_outcomes(each, engine, folder) for each in (timed, bundle))
    assert found.best[0].tolist() == found.best[2].tolist() != found.best[1].tolist()
    assert found.best[3].tolist() == plain.best[0].tolist()
    assert all(each.tolist() == plain.best[0].tolist() for each in plain.best)
    with pytest.raises(ArtefactError, match="request_time"):
        read_recording(bundle, record(tmp_path / "bad", line(bundle, [1, 2], **at, request_time=-1)))


def test_requests_are_asked_in_their_contexts_where_these_change_anything(
    bundle: Bundle, engine: FakeEngine, tmp_path: Path
) -> None:
    changes = np.random.default_rng(0).normal(size=(3, 2, bundle.vectors.width)).astype(np.float32)
    told = replace(bundle, context=Context({"country": ("AT", "DE"), "device": ("tv",)}, changes))
    contexts = [{"country": "DE"}, {"country": "AT", "device": "tv"}, {"country": "DE", "device": "fridge"}, {}]
    folder = record(tmp_path / "log", *(line(bundle, [1, 2], context=context) for context in contexts))
    found, plain = (recorded_outcomes(each, engine, folder) for each in (told, bundle))
    assert found.best[0].tolist() == found.best[2].tolist() != found.best[1].tolist()
    assert found.best[3].tolist() == plain.best[0].tolist()
    assert all(each.tolist() == plain.best[0].tolist() for each in plain.best)
    with pytest.raises(ArtefactError, match="context"):
        read_recording(bundle, record(tmp_path / "bad", line(bundle, [1, 2], context={"country": 1})))


def test_a_growing_history_counts_as_one_at_its_longest_or_as_every_request(
    bundle: Bundle, engine: FakeEngine, tmp_path: Path
) -> None:
    growing = [[7], [7, 8], [7, 8, 9], [7, 8, 9, 9]]
    folder = record(tmp_path / "log", *(line(bundle, items) for items in [*growing, [7, 8], [8, 9]]))
    ordered, repeats = in_order(recorded_outcomes(bundle, engine, folder))
    assert len(ordered) == 6
    assert sorted(ordered.lengths[~repeats].tolist()) == [2, 4]
    assert len(set(ordered.users.tolist())) == 2


def test_histories_belong_together_where_one_continues_the_other() -> None:
    def groups(*histories: list[int], longest: int = 6) -> list[list[int]]:
        found = grouped([np.array(each, np.int32) for each in histories], longest)
        return [np.flatnonzero(found == group).tolist() for group in dict.fromkeys(found.tolist())]

    assert groups([1], [1, 2], [1, 2, 3]) == [[0, 1, 2]]
    # After the second they go different ways: the beginning is one's, and whose is not known.
    assert groups([1], [1, 2], [1, 3]) == [[0, 1], [2]]
    assert groups([1, 2], [2, 1], [256, 1], [1, 256]) == [[0], [1], [2], [3]]
    # The engine no longer sees the oldest items.
    assert groups([1, 2, 3], [1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7], [5, 6, 7, 8, 9, 9]) == [[0, 1, 2, 3]]
    assert groups([1, 2, 3, 4, 5, 6], [5, 6, 7, 8, 9, 9]) == [[0], [1]]
    assert groups([1, 2, 1, 2, 1, 2], [2, 1, 2, 1, 2, 1]) == [[0, 1]]
    assert groups([1], [2], longest=1) == [[0], [1]]


def test_requests_of_other_bundles_are_left_out_and_counted(bundle: Bundle, engine: FakeEngine, tmp_path: Path) -> None:
    said: list[str] = []
    written = [line(bundle, [1, 2], content="0" * 12), line(bundle, [1, 2]), line(bundle, [], items=["item-1", "new"])]
    folder = record(tmp_path / "log", *written)
    assert len(recorded_outcomes(bundle, engine, folder, progress=said.append)) == 1
    assert said[0] == "1 recorded requests, 2 of other bundles or items left out"
    other = record(tmp_path / "other", written[0])
    with pytest.raises(DataError, match="none of 1 recorded requests is of this bundle"):
        recorded_outcomes(bundle, engine, other)
    with pytest.raises(ConfigError, match=r"holds no recorded requests; record some with `fathom serve --record`"):
        recorded_outcomes(bundle, engine, tmp_path / "nowhere")


def test_certifying_a_bundle_does_not_make_its_recordings_another_ones(
    bundle: Bundle, certified_bundle: Path, tmp_path: Path
) -> None:
    certified = Bundle.open(certified_bundle)
    assert certified.manifest.version != bundle.manifest.version
    folder = record(tmp_path / "log", line(bundle, [1, 2]))
    assert len(read_recording(certified, folder).requests) == 1


def test_half_a_line_at_the_end_is_no_error_and_any_other_is_named(bundle: Bundle, tmp_path: Path) -> None:
    good = line(bundle, [1, 2])
    folder = record(tmp_path / "half", good, good[:50])
    record(folder, good, "{")
    assert len(read_recording(bundle, folder).requests) == 2
    for number, (bad, why) in enumerate(
        (
            ("{\n", "Expecting"),
            ("[]\n", "content"),
            (line(bundle, [1], schema_version=2), "schema_version"),
            (line(bundle, []), "items"),
            (line(bundle, [1], items=[5]), "items.0"),
            (line(bundle, [1], timestamps=[1, 2]), "as many timestamps as items"),
            (line(bundle, [1], timestamps=[float("nan")]), "NaN"),
            (line(bundle, [1], timestamps=[2**70]), "timestamps"),
        )
    ):
        folder = record(tmp_path / f"bad-{number}", good, bad, good)
        with pytest.raises(ArtefactError, match=rf"requests-0.jsonl:2: .*{why}.*remove the line$"):
            read_recording(bundle, folder)


def test_times_reach_an_engine_that_uses_them(make_bundle: Any, tmp_path: Path) -> None:
    timed = Bundle.open(make_bundle(timestamps=True))
    folder = record(tmp_path / "log", line(timed, [1, 2], timestamps=[100, 4000]), line(timed, [1, 2]))
    known, unknown = read_recording(timed, folder).requests
    assert known.timestamps.tolist() == [100, 4000]
    assert unknown.timestamps.tolist() == [0, 0]
    found = recorded_outcomes(timed, FakeEngine(timed.vectors, timed.depths), folder)
    assert len(set(map(tuple, found.features.tolist()))) == 2
