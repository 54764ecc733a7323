"""An exit that is not asked for is not computed, and all else stays as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.items import item_vectors
from fathom.exporter.engines.optional_exit import with_optional_exit
from fathom.runtime.engines.segment import READ_EXIT, Segment
from fathom.training.checkpoint import Checkpoint

FIRST, LAST = "engines/depth-04.onnx", "engines/depth-16.onnx"


def feeds(checkpoint: Checkpoint) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    items = rng.integers(1, checkpoint.model.config.items + 1, (3, 9))
    times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)
    return {"item_vectors": item_vectors(checkpoint.model).padded(items), "timestamps": times}


def session(data: bytes, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def test_who_does_not_know_the_input_gets_everything(checkpoint: Checkpoint, engines: EngineSet) -> None:
    asked = feeds(checkpoint)
    expected = session(engines.files[FIRST]).run(None, asked)
    for found, value in zip(session(with_optional_exit(engines.files[FIRST])).run(None, asked), expected, strict=True):
        assert found == pytest.approx(value, abs=1e-6)


def test_without_its_exit_an_engine_passes_the_same_state_on(checkpoint: Checkpoint, engines: EngineSet) -> None:
    opened = session(with_optional_exit(engines.files[FIRST]))
    asked = feeds(checkpoint)
    names = [each.name for each in opened.get_outputs()]
    with_exit = dict(zip(names, opened.run(names, asked), strict=True))
    without = dict(zip(names, opened.run(names, asked | {READ_EXIT: np.array(False)}), strict=True))
    assert np.array_equal(with_exit["hidden_out"], without["hidden_out"])
    assert len(with_exit["user_vector"]) == 3
    assert without["user_vector"].shape == (0, 16)


def test_a_segment_that_is_passed_through_runs_no_operator_of_its_exit(
    checkpoint: Checkpoint, engines: EngineSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_optional_exit(engines.files[FIRST])

    def operators(outputs: list[str]) -> set[str]:
        monkeypatch.setattr(
            "fathom.runtime.engines.segment.open_session",
            lambda data, *_, **__: session(data, tmp_path / outputs[0]),
        )
        segment = Segment(engine, "engine", 1)
        segment.run(outputs, feeds(checkpoint))
        events = json.loads(Path(segment._session.end_profiling()).read_bytes())
        return {event["name"] for event in events if event.get("cat") == "Node"}

    assert any(name.startswith(("last-", "exit.")) for name in operators(["user_vector"]))
    passed = operators(["hidden_out"])
    assert any(name.startswith("layer-") for name in passed)
    assert not any(name.startswith(("last-", "exit.")) for name in passed)


def test_an_engine_that_nothing_follows_stays_as_it_is(engines: EngineSet) -> None:
    assert with_optional_exit(engines.files[LAST]) == engines.files[LAST]


def test_the_branch_holds_the_weights_that_only_it_reads(engines: EngineSet) -> None:
    graph = onnx.load_from_string(with_optional_exit(engines.files[FIRST])).graph
    before = {each.name for each in onnx.load_from_string(engines.files[FIRST]).graph.initializer}
    (branches,) = (node.attribute for node in graph.node if node.op_type == "If")
    (then,) = (each.g for each in branches if each.name == "then_branch")
    outside = {each.name for each in graph.initializer} - {READ_EXIT}
    inside = {each.name for each in then.initializer}
    assert inside
    assert not outside & inside
    assert outside | inside == before
