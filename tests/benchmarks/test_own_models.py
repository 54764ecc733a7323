"""The study of other models on a small twin, and the page that shows it."""

import importlib
import json
import struct
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fathom.benchmarks.experiments import own_models
from fathom.benchmarks.experiments.own_models import SUBJECTS
from fathom.benchmarks.experiments.own_models.others import Residual
from fathom.benchmarks.experiments.own_models.sources import ctranslate2
from fathom.benchmarks.experiments.own_models.subjects import Ready, Subject, fit, parts
from fathom.benchmarks.experiments.own_models.tables import graded
from fathom.benchmarks.record import save_run
from fathom.errors import ConfigError, DataError
from fathom.importance import choice
from fathom.importance.choice import Graded
from fathom.importance.models.distillation import Distillation
from fathom.importance.tasks.single_label import Classification


def small() -> Ready:
    """Residual layers, trained here, say whether the first number is above the second."""
    torch.manual_seed(0)
    numbers = torch.randn(700, 4)
    named = {"input": numbers, "labels": (numbers[:, 0] > numbers[:, 1]).long()}
    heal, rank, test = parts(named, 50, 500, 100, 100)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(*(Residual(8) for _ in range(4))), nn.Linear(8, 2))
    return Ready(fit(model, Classification(), heal, epochs=4, rate=1e-2), heal, rank, test)


def test_a_model_is_studied_stored_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("fathom.benchmarks.experiments.own_models.study")
    monkeypatch.setattr(module, "RATIOS", (1.35, 9.0))
    monkeypatch.setattr(choice, "GRADED_MODELS", tmp_path / "graded_models.json")
    monkeypatch.setattr(own_models, "GRADED_MODELS", tmp_path / "graded_models.json")
    subject = Subject("classification", "tabular", 4, "accuracy", small, Distillation(1, 1e-3), draws=1)
    monkeypatch.setattr(own_models, "SUBJECTS", {"small": subject})
    for run in own_models.BENCHMARK.measure(Namespace(subjects=[], seed=0, results=tmp_path)):
        save_run(run.name, config=run.config, result=run.result, seed=run.seed, folder=tmp_path)
    result = json.loads((tmp_path / "own_models" / "small.json").read_bytes())["result"]
    assert result["found"]["blocks"] == result["found"]["counted"] == len(result["shapley_values"]) == 4
    assert result["subsets"] == 16
    assert result["whole"]["accuracy"] > 0.9
    first, impossible = result["ratios"]
    assert first["layers"] == 2
    assert set(first["arms"]) == {
        *("plan", "plan healed", "plan layerwise", "plan lora", "chosen healed"),
        *("last", "last tuned", "last healed", "random 0", "random 0 healed"),
    }
    assert first["onnx"]["difference"] < 1e-4
    assert all(0.4 < arm["kept"]["low"] <= arm["kept"]["value"] <= 1.1 for arm in first["arms"].values())
    assert "ratio of 9" in impossible["refused"]
    page = own_models.BENCHMARK.section(tmp_path)
    assert "| small | accuracy | 1.35 | 2 of 4 |" in page
    assert "| model | ratio | plan | plan, by its layers too | plan, by adapters | plan chosen after healing |" in page
    assert "Residual layers, trained here, say whether" in page
    # And what the choice of methods is learned from.
    own_models.learn_choice(tmp_path)
    (known,) = Graded.load(tmp_path / "graded_models.json")
    assert not known.stages
    # A method may be missing for another reason than stages.
    reason = "importance method 'cka' gave NaN or infinity for layers [0]; leave it out"
    assert not graded({"result": {**result, "left_out": {"cka": reason}}}).stages
    assert graded({"result": {**result, "left_out": {"cka": "the hidden state changes its shape on the way"}}}).stages
    assert known.tau(["shapley"]) > 0.5


def test_a_subject_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(ConfigError, match="no subject is called bert"):
        list(own_models.BENCHMARK.measure(Namespace(subjects=["bert"], seed=0, results=Path())))
    assert all(subject.make.__doc__ for subject in SUBJECTS.values())


def test_a_file_of_ctranslate2_is_read() -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    values = np.arange(6, dtype=np.float16)
    head = text("decoder/weight") + struct.pack("<BIIBI", 2, 2, 3, 4, values.nbytes)
    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1) + head + values.tobytes()
    found = ctranslate2(data)
    np.testing.assert_array_equal(found["decoder/weight"], values.reshape(2, 3))
    with pytest.raises(DataError, match="no Whisper"):
        ctranslate2(struct.pack("<I", 5) + data[4:])
