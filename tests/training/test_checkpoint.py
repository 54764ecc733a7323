import json
from pathlib import Path

import pytest
import torch

from fathom.errors import ArtefactError
from fathom.training.checkpoint import Checkpoint, CheckpointConfig
from fathom.training.model import ElasticModel, ModelConfig, prefix_paths
from fathom.training.presets import preset


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    shape = ModelConfig(items=3, layers=4, paths=prefix_paths((2, 4)), width=8, max_history=8)
    return Checkpoint(
        model=ElasticModel(shape),
        config=CheckpointConfig(model=shape, train=preset("tiny"), dataset="d" * 64, split="leave-one-out"),
        item_ids=("a", "b", "ü"),
        titles=("First", "", "Third"),
        categories=(("x", "y"), (), ("y",)),
        metrics={"training": [{"epoch": 1}]},
    )


def test_what_is_saved_comes_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path / "ckpt")
    loaded = Checkpoint.load(tmp_path / "ckpt")
    assert (loaded.item_ids, loaded.titles, loaded.categories) == (
        checkpoint.item_ids,
        checkpoint.titles,
        checkpoint.categories,
    )
    assert loaded.metrics == checkpoint.metrics
    assert loaded.config.model == checkpoint.config.model
    assert loaded.config.train == checkpoint.config.train
    assert len(loaded.sha256) == 64
    assert loaded.sha256 == saved.sha256
    assert not loaded.model.training
    items = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded.model.user_vectors(items), checkpoint.model.eval().user_vectors(items))


def test_equal_checkpoints_have_equal_hashes_and_other_weights_another(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first, second = checkpoint.save(tmp_path / "a"), checkpoint.save(tmp_path / "b")
    assert first.sha256 == second.sha256
    with torch.no_grad():
        checkpoint.model.embedding.weight[1, 0] += 1
    assert checkpoint.save(tmp_path / "b").sha256 != first.sha256


def damage(path: Path, name: str, how: str) -> None:
    file = path / name
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
    elif how == "edited":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    else:
        value = json.loads(file.read_text())
        file.write_text(json.dumps({**value, "schema_version": 99}))


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("model.safetensors", "missing", "missing from the checkpoint"),
        ("model.safetensors", "truncated", "differs from its sha256"),
        ("model.safetensors", "edited", "differs from its sha256"),
        ("items.parquet", "missing", "missing from the checkpoint"),
        ("items.parquet", "edited", "differs from its sha256"),
        ("config.json", "missing", "no checkpoint here"),
        ("config.json", "truncated", "not a checkpoint"),
        ("config.json", "newer", "newer than 1"),
        ("metrics.json", "missing", "no checkpoint's metrics here"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, name: str, how: str, message: str
) -> None:
    path = tmp_path / "ckpt"
    checkpoint.save(path)
    damage(path, name, how)
    with pytest.raises(ArtefactError, match=message):
        Checkpoint.load(path)


def test_weights_of_another_shape_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    checkpoint.save(path)
    config = json.loads((path / "config.json").read_text())
    config["model"]["width"] = 16
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtefactError, match="not the weights of this model"):
        Checkpoint.load(path)


def test_an_unknown_key_in_the_config_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    checkpoint.save(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"extra": 1}))
    with pytest.raises(ArtefactError, match=r"config\.json: extra"):
        Checkpoint.load(path)
