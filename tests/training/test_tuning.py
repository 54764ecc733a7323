import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fathom.errors import MissingExtraError
from fathom.training.adapters import AdaptedLinear
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset, Sequences
from fathom.training.model import ElasticModel
from fathom.training.nbits import BLOCK, linear_layers, round_weights, rounded
from fathom.training.objectives import partition
from fathom.training.presets import TrainConfig, apply_settings, preset
from fathom.training.train import TrainProgress, fit
from fathom.training.tuning import Tune, restore, restrict

N_ITEMS = 40
LAYERS = 5
PARTS: tuple[Tune, ...] = ("exits", "last-three", "lora", "qlora")


def needs(tune: Tune) -> None:
    """Skip where the libraries of ``tune`` are missing."""
    for library in {"lora": ["peft"], "qlora": ["peft"]}.get(tune, []):
        pytest.importorskip(library)


def config(*settings: str) -> TrainConfig:
    small = [f"model.layers={LAYERS}", "model.depths=3,4", "train.batch_tokens=128", "train.device=cpu"]
    return apply_settings(preset("tiny"), [*small, *settings])


def walk(users: int = 40) -> Dataset:
    """Users that walk around a circle of items, one or two steps at a time."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 20, users)
    steps = [np.cumsum(rng.integers(1, 3, length)) + rng.integers(N_ITEMS) for length in lengths]
    items = (np.concatenate(steps) % N_ITEMS).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = tuple(f"i{item}" for item in range(N_ITEMS))
    times = 10**9 + 60 * np.arange(len(items))
    people = tuple(map(str, range(users)))
    return Dataset(Sequences(items, offsets, times), ids, ids, ((),) * N_ITEMS, people, {}, "d" * 64)


@cache
def start(block: str = "hstu") -> ElasticModel:
    """A model without a zero matrix, beside which an adapter would get no gradient; layer 2 is run by no depth."""
    shape = config(f"model.block={block}", "model.time_bias=true").model.for_items(N_ITEMS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ElasticModel(shape)
        for exit_ in model.exits.values():
            nn.init.normal_(exit_.get_submodule("up").weight, std=0.1)
    return model.with_paths({3: (0, 1, 4), 4: (0, 1, 4, 3)}, "permuted-prefix")


def heal(tune: Tune, out: Path, *settings: str, block: str = "hstu", progress: object = lambda _: None) -> Checkpoint:
    needs(tune)
    chosen = config(f"train.heal_tune={tune}", *settings)
    return fit(chosen, walk(), out=out, model=start(block), progress=progress)


def changed(before: ElasticModel, after: ElasticModel) -> set[str]:
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name, value in old.items() if not torch.equal(value, new[name])}


def names(model: ElasticModel, *beginnings: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(beginnings)}


def norms(model: ElasticModel) -> set[str]:
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and name.startswith("layers.") and not name.startswith("layers.2.")
    }


@pytest.mark.parametrize("block", ["hstu", "gated"])
def test_only_the_exits_and_the_norms_are_trained(tmp_path: Path, block: str) -> None:
    healed = heal("exits", tmp_path / "c", block=block).model
    assert changed(start(block), healed) == names(healed, "exits.") | norms(healed)


@pytest.mark.parametrize("block", ["hstu", "gated"])
def test_only_the_exits_and_the_last_three_layers_of_each_depth_are_trained(tmp_path: Path, block: str) -> None:
    healed = heal("last-three", tmp_path / "c", block=block).model
    # Depth 3 executes 0, 1, 4 and depth 4 executes 1, 4, 3 last.
    assert changed(start(block), healed) == names(healed, "exits.", "layers.0.", "layers.1.", "layers.3.", "layers.4.")
    deep = start(block).with_paths({4: (0, 1, 4, 3)}, "permuted-prefix")
    only = fit(config("train.heal_tune=last-three"), walk(), out=tmp_path / "deep", model=deep).model
    assert changed(deep, only) == names(only, "exits.", "layers.1.", "layers.3.", "layers.4.")


@pytest.mark.parametrize("block", ["hstu", "gated"])
def test_lora_changes_linear_layers_by_rank_eight_and_leaves_an_ordinary_checkpoint(tmp_path: Path, block: str) -> None:
    heal("lora", tmp_path / "c", block=block)
    healed = Checkpoint.load(tmp_path / "c").model
    linears = {
        f"layers.{layer}.{name}.weight"
        for layer in (0, 1, 3, 4)
        for name, module in healed.block(layer).named_modules()
        if isinstance(module, nn.Linear)
    }
    assert changed(start(block), healed) == names(healed, "exits.") | norms(healed) | linears
    for name in linears:
        step = healed.get_parameter(name) - start(block).get_parameter(name)
        sizes = torch.linalg.svdvals(step.double())
        assert sizes[7] > 100 * sizes[8] > 0


def test_everything_is_the_default(tmp_path: Path) -> None:
    healed = fit(config(), walk(), out=tmp_path / "c", model=start()).model
    assert changed(start(), healed) == names(healed, "") - names(healed, "layers.2.")


def gradients(model: ElasticModel) -> dict[str, torch.Tensor]:
    items = torch.tensor([[1, 2, 3, 4], [0, 7, 8, 9]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        users = model.train()(items)
    totals = [partition(vectors, model.item_vectors(), torch.ones(2, N_ITEMS))[0].sum() for vectors in users.values()]
    torch.stack(totals).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("block", ["hstu", "gated"])
@pytest.mark.parametrize("tune", PARTS)
def test_only_what_is_trained_gets_a_gradient_and_the_same_one(tune: Tune, block: str) -> None:
    needs(tune)
    whole, part = (ElasticModel.of(start(block).config, start(block).state_dict()) for _ in range(2))
    if tune == "qlora":
        round_weights(whole, 4)
    restrict(part, tune)
    expected, given = gradients(whole), gradients(part)
    run = {name for name, parameter in part.named_parameters() if parameter.requires_grad and ".2." not in name}
    assert given.keys() == run
    for name in given.keys() & expected.keys():
        torch.testing.assert_close(given[name], expected[name])


@pytest.mark.parametrize("tune", PARTS)
def test_a_restored_model_is_the_one_before_and_whole(tune: Tune) -> None:
    needs(tune)
    model = ElasticModel.of(start().config, start().state_dict())
    restrict(model, tune)
    restored = restore(model, tune)
    assert all(parameter.requires_grad for parameter in restored.parameters())
    if tune != "qlora":
        assert changed(start(), restored) == set()
        return
    weights = {f"{name}.weight" for name in linear_layers(start())}
    expected = ElasticModel.of(start().config, start().state_dict())
    round_weights(expected, 4)
    assert changed(expected, restored.merged()) == set()
    assert changed(start(), restored.merged()) == weights


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_are_rounded_to_few_values_per_block_and_again_to_themselves(bits: int) -> None:
    weight = torch.randn(8, 2 * BLOCK + 5, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    found = rounded(weight, bits)
    assert torch.equal(rounded(found, bits), found)
    assert not found[3].any()
    for block in found.split(BLOCK, dim=1):
        assert all(len(row.unique()) <= 2**bits for row in block)
    error = float((found - weight).norm() / weight.norm())
    assert 0 < error < {2: 0.5, 3: 0.25, 4: 0.12, 8: 0.01}[bits]


def test_qlora_leaves_rounded_weights_and_adapters_of_16_bits_beside_them(tmp_path: Path) -> None:
    heal("qlora", tmp_path / "c")
    model = Checkpoint.load(tmp_path / "c").model
    assert model.config.adapter_rank == 16
    trained = set()
    for name, linear in linear_layers(model).items():
        assert isinstance(linear, AdaptedLinear)
        before = start().get_submodule(name).weight.detach()
        assert torch.equal(linear.weight, rounded(before, 4))
        assert torch.equal(linear.lora_b, linear.lora_b.half().float())
        if linear.lora_b.any():
            trained.add(name.split(".")[1])
    assert trained == {"0", "1", "3", "4"}
    items = torch.tensor([[1, 2, 3, 4]])
    merged = model.merged()
    assert merged.config.adapter_rank == 0
    for depth, vectors in model(items).items():
        torch.testing.assert_close(merged(items)[depth], vectors)
        torch.testing.assert_close(model.user_vectors(items, depth=depth), vectors[:, -1])


def test_stacked_exits_whose_weights_were_rounded_are_healed_too(tmp_path: Path) -> None:
    needs("qlora")
    chosen = config("train.heal_tune=qlora", "train.exits=stacked")
    stacked = start().with_paths({3: (0, 1, 2), 4: (0, 1, 2, 3)}, "prefix")
    healed = fit(chosen, walk(), out=tmp_path / "c", model=stacked).model
    adapters = {layer: healed.get_submodule(layer).lora_b for layer in linear_layers(healed)}
    assert {layer.split(".")[1] for layer, lora_b in adapters.items() if lora_b.any()} == {"0", "1", "2", "3"}


def test_merged_adapters_compute_what_they_computed_beside_their_layers() -> None:
    pytest.importorskip("peft")
    model = ElasticModel.of(start().config, start().state_dict()).eval()
    restrict(model, "lora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    items = torch.tensor([[1, 2, 3, 4]])
    before = {depth: vectors.detach() for depth, vectors in model(items).items()}
    merged = restore(model, "lora").eval()
    for depth, vectors in before.items():
        torch.testing.assert_close(merged(items)[depth], vectors)
        torch.testing.assert_close(merged.user_vectors(items, depth=depth), vectors[:, -1])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("tune", PARTS)
@pytest.mark.parametrize("where", [(1, 2), (3, 1)])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, tune: Tune, where: tuple[int, int]) -> None:
    def stop(report: TrainProgress) -> None:
        if (report.epoch, report.step) == where:
            raise Interrupted

    whole = heal(tune, tmp_path / "whole", "train.heal_epochs=3")
    with pytest.raises(Interrupted):
        heal(tune, tmp_path / "parts", "train.heal_epochs=3", progress=stop)
    seen: list[TrainProgress] = []
    resumed = heal(tune, tmp_path / "parts", "train.heal_epochs=3", progress=seen.append)
    assert seen[0].epoch == where[0]
    assert changed(whole.model, resumed.model) == set()
    assert resumed.metrics["training"] == whole.metrics["training"]


@pytest.mark.parametrize("tune", ["lora", "qlora"])
def test_adapters_without_peft_name_the_extra(tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"fathom-recommender\[peft\]"):
        fit(config(f"train.heal_tune={tune}"), walk(), out=tmp_path / "c", model=start())
    assert list(tmp_path.iterdir()) == []


def test_a_new_model_is_trained_whole(tmp_path: Path) -> None:
    part, whole = (
        fit(config(f"train.heal_tune={tune}"), walk(), out=tmp_path / tune).model for tune in ("exits", "everything")
    )
    assert changed(part, whole) == set()
