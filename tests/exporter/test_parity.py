"""An engine that disagrees with torch is found, and one that agrees passes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fathom.benchmarks.__main__ import main
from fathom.errors import DataError, ParityError
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.parity import DepthParity, check_parity, history_lengths, measure_parity
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset, Sequences
from fathom.training.splits import leave_one_out


@pytest.fixture(scope="module")
def histories(dataset: Dataset) -> Sequences:
    return leave_one_out(dataset).test.histories


def damaged(data: bytes, by: float) -> bytes:
    """The engine with one weight of its exit moved."""
    model = onnx.load_from_string(data)
    weight = next(w for w in model.graph.initializer if "exit" in w.name and len(w.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] += by
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return bytes(model.SerializeToString())


def test_true_engines_agree_at_every_length(checkpoint: Checkpoint, engines: EngineSet, histories: Sequences) -> None:
    seen: list[tuple[int, int]] = []
    parity = measure_parity(
        checkpoint.model, engines, histories, every_length=True, progress=lambda *step: seen.append(step)
    )
    check_parity(parity)
    assert sorted(parity) == [4, 8, 12, 16]
    for depth in parity.values():
        assert 0 < depth.max_abs_error < 1e-5
        assert depth.users == depth.agreed == len(histories)
        assert depth.histories == len(histories) + 4 * checkpoint.model.config.max_history
    assert seen[-1] == (len(histories) + 20, len(histories) + 20)


def test_data_without_time_is_enough(checkpoint: Checkpoint, engines: EngineSet, histories: Sequences) -> None:
    check_parity(measure_parity(checkpoint.model, engines, replace(histories, timestamps=None)))


def test_a_damaged_engine_is_found_at_its_depth(
    checkpoint: Checkpoint, engines: EngineSet, histories: Sequences
) -> None:
    name = "engines/depth-08.onnx"
    files = {**engines.files, name: damaged(engines.files[name], 0.01)}
    parity = measure_parity(checkpoint.model, replace(engines, files=files), histories)
    check_parity({depth: found for depth, found in parity.items() if depth != 8})
    with pytest.raises(ParityError, match="depth 8: the engine's user vector is off by"):
        check_parity(parity)


def test_other_items_are_found_even_where_vectors_are_close() -> None:
    with pytest.raises(ParityError, match=r"depth 4: only 99\.00% of users get the same top 10"):
        check_parity({4: DepthParity(max_abs_error=1e-5, histories=100, users=100, agreed=99, identical=99)})


def test_a_diverged_model_is_refused(checkpoint: Checkpoint, engines: EngineSet, histories: Sequences) -> None:
    model = checkpoint.model.with_paths(checkpoint.model.config.paths, "prefix").eval()
    with torch.no_grad():
        model.embedding.weight[1] = float("nan")
    with pytest.raises(ParityError, match="not a number"):
        measure_parity(model, engines, histories)


def test_without_histories_nothing_is_claimed(checkpoint: Checkpoint, engines: EngineSet) -> None:
    empty = Sequences(np.zeros(0, np.int32), np.zeros(1, np.int64))
    with pytest.raises(DataError, match="no history"):
        measure_parity(checkpoint.model, engines, empty)


def test_the_benchmark_stores_every_length_and_refuses_another_checkpoint(
    checkpoint: Checkpoint,
    dataset: Dataset,
    bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Checkpoint, "load", lambda path: replace(checkpoint, sha256=path.name))
    monkeypatch.setattr(Dataset, "load", lambda _: dataset)
    options = ["--data", "data", "--results", str(tmp_path), "--checkpoint"]
    main(["run", "parity", str(bundle_path), *options, "c" * 64])
    run = json.loads((tmp_path / "parity.json").read_text())
    assert [row["depth"] for row in run["result"]["rows"]] == [4, 8, 12, 16]
    assert all(row["identical_share"] == 1 for row in run["result"]["rows"])
    assert run["config"]["history_lengths"] == [1, 20]
    with pytest.raises(SystemExit, match="2"):
        main(["run", "parity", str(bundle_path), *options, "other"])
    assert "another checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("longest", [1, 2, 20, 200, 10_000])
def test_sampled_lengths_hold_both_ends(longest: int) -> None:
    sampled = history_lengths(longest, every=False)
    assert sampled[0] == 1
    assert sampled[-1] == longest
    assert len(sampled) <= 30
    assert history_lengths(20, every=True) == tuple(range(1, 21))
