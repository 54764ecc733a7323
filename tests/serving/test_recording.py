"""Live requests are recorded beside serving, and whatever goes wrong there, serving goes on."""

import json
import logging
import os
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.manifest import content_version
from fathom.runtime.query import Answer, IndexedQuery, Timing
from fathom.selector.choice import Choice, DepthReason
from fathom.serving import line_files
from fathom.serving import recording as recording_module
from fathom.serving.recording import Recorder, recordings

LocalServer = Callable[..., AbstractAsyncContextManager[Any]]
CLOUD = load_profile("cloud")
QUERY = IndexedQuery(np.array([1, 2, 3]), 10, CLOUD)
ANSWER = Answer(np.arange(12), np.zeros(12, np.float32), Choice(4, DepthReason.CERTIFIED, ""), 3, Timing(1, 2, 3, 4, 5))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in recordings(folder) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def deployment(synthetic_bundle: Path) -> Any:
    bundle = Bundle.open(synthetic_bundle)
    content = content_version(bundle.manifest)
    return SimpleNamespace(name="films", bundle=bundle, catalogue=LiveCatalogue(bundle), content=content)


async def test_what_was_routed_is_recorded_and_nothing_else(local: LocalServer, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "requests"
    items = ["item-1", "item-2", "item-3"]
    async with local(record=str(folder), metrics_port=0, history="memory") as it:

        async def ask(**request: Any) -> pb.RecommendResponse:
            return await it.stub.Recommend(pb.RecommendRequest(**request))

        answer = await ask(item_ids=["item-0", "unknown", *items], timestamps=[1, 2, 3, 4, 5], request_time=60)
        late = await it.stub.Recommend(pb.RecommendRequest(item_ids=items * 10), timeout=60)
        await ask(item_ids=items, depth=8)
        await ask(item_ids=items, filter=pb.Filter(exclude_item_ids=["item-9"]))
        await ask()
        batch = pb.RecommendBatchRequest(requests=[pb.RecommendRequest(item_ids=items[:1])])
        await it.stub.RecommendBatch(batch)
        version = (await it.stub.GetBundle(pb.GetBundleRequest())).version
    first, second, third = lines(folder)
    assert first.pop("time") > 1_700_000_000
    assert len(first.pop("content")) == 12
    assert first == {
        "schema_version": 1,
        "bundle": "synthetic",
        "version": version,
        "profile": "cloud-cpu",
        "depth": answer.depth,
        "reason": pb.DepthReason.Name(answer.reason).removeprefix("DEPTH_REASON_").lower(),
        "items": ["item-0", *items],
        "given": [item.id for item in answer.items],
        "timestamps": [1, 3, 4, 5],
        "request_time": 60,
    }
    # As many as the engine sees.
    assert second["items"] == (items * 10)[-20:]
    assert second["depth"] == late.depth
    assert not {"timestamps", "request_time"} & set(second)
    assert third["items"] == items[:1]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in recordings(folder)} == {0o600}


def test_old_recordings_make_room_for_new_ones(deployment: Any, tmp_path: Path) -> None:
    size = 40_000
    recorder, other = Recorder(tmp_path, size, writers=2), Recorder(tmp_path, size, writers=2)
    (tmp_path / "mine.txt").write_text("not a recording")
    for _ in range(40):
        for each in (recorder, recorder, recorder, other):
            for _ in range(10):
                each.offer(deployment, QUERY, ANSWER)
            each._write_waiting()
    assert (recorder.recorded, recorder.lost) == (1200, 0)
    written = recordings(tmp_path)
    assert len(written) > 2
    # Each file ends with the batch that fills it.
    assert sum(file.stat().st_size for file in written) <= size + 2 * 10 * 400
    assert all(line["given"] == [f"item-{item}" for item in range(10)] for line in lines(tmp_path))
    assert (tmp_path / "mine.txt").exists()


def test_a_writer_whose_file_was_removed_begins_another(deployment: Any, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 2**20)
    for _ in range(2):
        recorder.offer(deployment, QUERY, ANSWER)
        recorder._write_waiting()
        [file] = recordings(tmp_path)
        file.unlink()
    assert recorder.recorded == 2


def test_what_finds_no_room_to_wait_is_counted(
    deployment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_module, "MOST_WAITING", 3)
    recorder = Recorder(tmp_path, 2**20)
    for _ in range(5):
        recorder.offer(deployment, QUERY, ANSWER)
    assert recorder.lost == 2
    recorder.start()
    recorder.close()
    assert (recorder.recorded, len(lines(tmp_path))) == (3, 3)


def test_a_disk_that_is_full_is_logged_once_and_recording_goes_on_when_it_is_not(
    deployment: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, 2**20)

    def full(file: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(28, "No space left on device")
        return half(file, data[:-40])

    half = os.write
    with monkeypatch.context() as broken:
        broken.setattr(line_files.os, "write", full)
        for _ in range(3):
            recorder.offer(deployment, QUERY, ANSWER)
            recorder._write_waiting()
    recorder.offer(deployment, QUERY, ANSWER)
    recorder._write_waiting()
    assert (recorder.recorded, recorder.lost) == (1, 3)
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.ERROR, f"requests cannot be recorded in {tmp_path}: [Errno 28] No space left on device")
    ]
    # Half a line is the last of its file.
    *halves, whole = (file.read_bytes() for file in recordings(tmp_path))
    assert all(b"\n" not in half for half in halves)
    assert whole.endswith(b"\n")


async def test_a_server_that_cannot_record_answers_and_counts(local: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with local(record=str(tmp_path / "file" / "requests"), metrics_port=0) as it:
        recorder = it.server._recorder
        answer = await it.stub.Recommend(pb.RecommendRequest(item_ids=["item-1"]))
        assert answer.items
    assert (recorder.recorded, recorder.lost) == (0, 1)


def test_a_file_is_no_folder_to_record_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file is not a folder; choose another"):
        Recorder(tmp_path / "file", 2**20)
