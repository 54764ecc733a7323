"""Blocks, objectives and presets of an installed package train, rank, export and serve as ours do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from in_process import fathom

from fathom.client import Client
from fathom.errors import ConfigError
from fathom.local import running_server
from fathom.training.blocks import block_names, make_block
from fathom.training.model import ElasticModel
from fathom.training.objectives import Candidates, Objective, objective_class
from fathom.training.presets import apply_settings, preset, preset_names

PARTS = Path(__file__).parents[2] / "examples" / "training-parts"


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, installed where this process and those that it starts find it."""
    source = shutil.copytree(PARTS, tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", tmp_path / "installed", source], check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    return tmp_path


def test_a_block_an_objective_and_a_preset_of_another_package_make_a_bundle(parts: Path, tiny_csv: Path) -> None:
    assert block_names() == ("hstu", "gated", "average")
    assert preset_names()[-1] == "averages"
    assert preset("averages").model.block == "average"
    assert objective_class("smoothed").__name__ == "Smoothed"
    bundle = parts / "build" / "bundle"
    config = parts / "settings.yaml"
    small = "width: 16\n  heads: 1\n  max_history: 32\n  span: 16"
    quick = "grow_epochs: 1\n  epochs: 1\n  heal_epochs: 1\n  window: 16\n  batch_tokens: 1024"
    config.write_text(f"preset: averages\nmodel:\n  {small}\ntrain:\n  {quick}\n")
    fathom("build", tiny_csv, "--config", config, "--out", bundle)
    # The build has compared its engines with torch. A server in a process that does not know the package answers.
    with running_server(bundle) as server, Client(server.address) as client:
        assert len(client.recommend(["i1", "i2"], k=3).items) == 3


@pytest.mark.usefixtures("parts")
def test_a_block_of_another_package_goes_on_from_what_it_kept() -> None:
    config = apply_settings(preset("averages"), ("model.width=8", "model.heads=2", "model.layers=2", "model.depths=2"))
    torch.manual_seed(0)
    model = ElasticModel(config.model.for_items(20)).eval()
    items = torch.randint(1, 21, (3, 7))
    whole = model.embed(items)
    layer = model.block(0)
    with torch.no_grad():
        expected = layer(whole, model.context(items))
        kept = torch.zeros(3, 4, 0, 4)
        first, kept = layer.extend(whole[:, :5], kept, model.context(items[:, :5], new=5))
        second, _ = layer.extend(whole[:, 5:], kept, model.context(items, new=2))
        torch.testing.assert_close(torch.cat((first, second), 1), expected)
        torch.testing.assert_close(layer(whole, model.context(items), True), expected[:, -1:])
    assert layer.attention_weights(whole, model.context(items)).shape == (3, 2, 7, 7)


def test_what_is_not_there_or_something_else_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("tiny")
    with pytest.raises(ConfigError, match=r"model.block: unknown block 'lstm'; known: hstu, gated"):
        apply_settings(config, ("model.block=lstm",))
    with pytest.raises(ConfigError, match=r"train.objective: unknown objective 'hinge'; known: cross-entropy"):
        apply_settings(config, ("train.objective=hinge",))
    with pytest.raises(ConfigError, match="unknown preset 'tinny'; did you mean tiny"):
        preset("tinny")
    info = tmp_path / "wrong-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong\nVersion: 1.0\n")
    groups = {
        "blocks": "fathom.errors:ConfigError",
        "objectives": "fathom.errors:brief",
        "presets": "fathom.errors:brief",
    }
    lines = [f"[fathom.{group}]\nwrong = {target}\n" for group, target in groups.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"block 'wrong' \(fathom.errors:ConfigError\) is no subclass of fathom"):
        make_block("wrong", 8, 2, 0.0, time_bias=False)
    with pytest.raises(ConfigError, match=r"objective 'wrong' \(fathom.errors:brief\) is no subclass of fathom"):
        objective_class("wrong")
    with pytest.raises(ConfigError, match=r"preset 'wrong' \(fathom.errors:brief\) is no fathom"):
        preset("wrong")
    (tmp_path / "broken_part.py").write_text("1 / 0")
    (info / "entry_points.txt").write_text("[fathom.presets]\nbroken = broken_part:X\n")
    with pytest.raises(ConfigError, match=r"preset 'broken' \(broken_part:X\) cannot be loaded: division by zero"):
        preset("broken")


@pytest.mark.usefixtures("parts")
def test_smoothing_weighs_all_candidates_a_little() -> None:
    vectors, users = torch.randn(5, 4), torch.randn(1, 2, 4)
    candidates = Candidates(None, torch.ones(1, 5))
    ahead = torch.tensor([[[1], [3]]])
    plain, smoothed = (made(vectors, candidates, ahead) for made in (Objective, objective_class("smoothed")))
    exit_ = plain.read(users)
    chances = (users @ vectors.T).log_softmax(-1)
    expected = 0.9 * plain.cross_entropy(exit_) - 0.1 * chances.mean(-1).mean()
    torch.testing.assert_close(smoothed.cross_entropy(exit_), expected)
