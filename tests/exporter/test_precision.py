"""Engines in fewer bits: smaller, close to torch, and refused where they recommend worse than is allowed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fathom.errors import ArtefactError, ConfigError, ParityError
from fathom.exporter.bundle.export import export
from fathom.exporter.engines.engine_set import EngineSet, segment_specs
from fathom.exporter.engines.items import item_vectors
from fathom.exporter.engines.optional_exit import with_optional_exit, without_optional_exit
from fathom.exporter.engines.parity import measure_parity
from fathom.exporter.engines.precision import BITS, mixed_bits, reduce_engines, same_bits
from fathom.exporter.engines.reduced_quality import check_losses, relative_loss
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.incremental import CachedHistory
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_vectors import ItemPrecision
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.nbits import round_weights
from fathom.training.splits import split

MakeCheckpoint = Callable[..., Checkpoint]

WRITTEN_AS = {"fp16": "Cast", "int8": "QuantizeLinear", "int4": "MatMulNBits"}


def operators(data: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(data).graph.node}


# Where a processor has no VNNI, sums of products of 8 bits saturate.
@pytest.mark.parametrize(("precision", "largest"), [("fp16", 0.01), ("int8", 0.6), ("int4", 0.7)])
def test_fewer_bits_are_smaller_and_close_to_the_model(
    checkpoint: Checkpoint, engines: EngineSet, dataset: Dataset, precision: str, largest: float
) -> None:
    cut = split(dataset, checkpoint.config.split)
    bits = precision if precision == "fp16" else same_bits(checkpoint.model, precision)
    reduced = reduce_engines(engines, bits, cut.train, checkpoint.model.config.max_history)
    assert set(reduced.files) == set(engines.files)
    products = {op for data in reduced.files.values() for op in operators(data)}
    assert WRITTEN_AS[precision] in products
    shipped = reduced.converted(with_optional_exit)
    for depth in measure_parity(checkpoint.model, shipped, cut.test.histories).values():
        assert 0 < depth.max_abs_error < largest


def test_an_answer_in_int8_does_not_depend_on_who_else_is_in_the_batch(
    checkpoint: Checkpoint, engines: EngineSet, dataset: Dataset
) -> None:
    cut = split(dataset, checkpoint.config.split)
    model = checkpoint.model
    reduced = reduce_engines(engines, same_bits(model, "int8"), cut.train, model.config.max_history)
    rng = np.random.default_rng(0)
    items = rng.integers(1, len(dataset.item_ids) + 1, (5, 12))
    times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, (5, 12)), axis=1)
    together, alone = reduced.run(items, times), reduced.run(items[2:3], times[2:3])
    for depth in checkpoint.model.depths:
        assert alone[depth][0] == pytest.approx(together[depth][2], abs=1e-4)


def test_layers_that_matter_keep_more_bits(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    layers = same_bits(model, "fp32")
    order = [*reversed(layers)]
    smallest = budget_of(model, same_bits(model, "int4"))
    largest = budget_of(model, layers)
    assert mixed_bits(model, order, largest) == layers
    assert mixed_bits(model, order, smallest) == same_bits(model, "int4")
    between = [BITS[mixed_bits(model, order, (smallest + largest) / 3)[layer]] for layer in order]
    assert len(set(between)) > 1
    assert budget_of(model, mixed_bits(model, order, (smallest + largest) / 3)) <= (smallest + largest) / 3
    with pytest.raises(ConfigError, match="a budget of 0 MB is too small: int4 takes"):
        mixed_bits(model, order, 0)


def budget_of(model, bits) -> float:
    """What these bits take, in MB: found by asking for ever more."""
    specs = segment_specs(model.config.paths)
    held = [layer for spec in specs for layer in (*spec.full_layers, spec.last_layer)]
    weights = {layer: sum(w.numel() for w in model.block(layer).parameters() if w.ndim == 2) for layer in bits}
    return sum(weights[layer] * BITS[bits[layer]] for layer in held) / 8 / 2**20


def test_the_loss_is_relative_paired_and_limited() -> None:
    full = np.array([1.0, 0.5, 0.0, 0.5] * 100)
    assert relative_loss(full, full).model_dump() == {"value": 0, "low": 0, "high": 0}
    half = relative_loss(full, full / 2)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    check_losses({4: half}, 0.5, "int4")
    with pytest.raises(
        ParityError, match=r"depth 4 loses 50.0% of its NDCG@10 \[50.0%, 50.0%\] in int4, more than 1.0%"
    ):
        check_losses({4: half}, 0.01, "int4")


@pytest.fixture(scope="module")
def healed(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Checkpoint:
    """A checkpoint as healing beside four-bit weights leaves it; a matrix that is no multiple of a block."""
    shape = {"width": 48, "adapter_rank": 16, "layers": 3, "paths": {2: (0, 1), 3: (0, 1, 2)}}
    made = make_checkpoint(block=getattr(request, "param", "hstu"), time_bias=True, **shape)
    round_weights(made.model, 4)
    with torch.no_grad():
        for name, value in made.model.named_parameters():
            if ".lora_" in name:
                value.copy_(value.half())
    return replace(made, sha256="a" * 64)


@pytest.mark.parametrize("healed", ["hstu", "gated"], indirect=True)
def test_packed_weights_and_adapters_compute_what_was_healed_and_go_on_from_remembered_histories(
    healed: Checkpoint, dataset: Dataset, tmp_path: Path
) -> None:
    reference = replace(healed, model=healed.model.merged(), sha256="b" * 64)
    out = tmp_path / "packed"
    export(healed, dataset, out, name="packed", precision="int4+lora", reference=reference)
    with Bundle.open(out) as bundle, open_engine(bundle, incremental=True) as engine:
        manifest = bundle.manifest
        assert manifest.precision == "int4+lora"
        assert all(info.parity.max_abs_error < 1e-5 and info.loss is not None for info in manifest.depths.values())
        for name in [
            *manifest.extension.segments.values(),
            *(file for d in manifest.depths.values() for file in d.segments),
        ]:
            assert "MatMulNBits" in everywhere(bundle.read(name))
        items, times = np.array([[1, 2, 3]]), np.array([[5, 60, 700]])
        with torch.no_grad():
            expected = healed.model(torch.from_numpy(items), torch.from_numpy(times))[3][:, -1]
        assert engine.run(items, times, 3) == pytest.approx(expected.numpy(), abs=1e-5)
        _, kept = engine.run_incremental([CachedHistory(items[0, :2], times[0, :2], None)], [3])
        resumed, _ = engine.run_incremental([CachedHistory(items[0], times[0], kept[0])], [3])
        assert resumed == pytest.approx(expected.numpy(), abs=1e-5)
    export(healed, dataset, tmp_path / "merged", name="merged")
    with Bundle.open(tmp_path / "merged") as merged:
        sizes = [
            sum(each.bytes for name, each in m.files.items() if name.startswith("engines"))
            for m in (manifest, merged.manifest)
        ]
        assert sizes[0] < 0.7 * sizes[1]
        assert merged.manifest.precision == "fp32"
        assert "MatMulNBits" not in everywhere(merged.read("engines/depth-03.onnx"))


def everywhere(data: bytes) -> set[str]:
    """Operators of an engine, those that run on demand included."""
    return operators(without_optional_exit(data))


def test_packed_weights_lose_against_the_network_before_healing_and_need_what_was_healed(
    healed: Checkpoint, dataset: Dataset, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    other = make_checkpoint(time_bias=True, layers=3, width=48, paths={2: (0, 1), 3: (0, 1, 2)}, seed=9)
    write = partial(export, dataset=dataset, out=tmp_path / "no", name="no", precision="int4+lora")
    with pytest.raises(ParityError, match=r"in int4\+lora, more than -1000"):
        write(healed, reference=other, max_loss=-10.0)
    with pytest.raises(ConfigError, match=r"needs a checkpoint that was healed with --set train\.heal_tune=qlora"):
        write(other, reference=other)
    with pytest.raises(ConfigError, match="needs --reference: the checkpoint before it was healed"):
        write(healed)
    with pytest.raises(ConfigError, match="the reference is the checkpoint itself"):
        write(healed, reference=healed)
    strange = replace(other, config=other.config.model_copy(update={"dataset": "f" * 64}))
    with pytest.raises(ArtefactError, match=r"^the reference was trained on dataset ffffffffffff, not on"):
        write(healed, reference=strange)
    with pytest.raises(ConfigError, match=r"the reference has depths \(4, 8\) and the checkpoint \(2, 3\)"):
        write(healed, reference=make_checkpoint(layers=8, paths={4: range(4), 8: range(8)}))
    with pytest.raises(ConfigError, match=r"a reference is for int4\+lora: fp32 is measured against the checkpoint"):
        export(healed, dataset, tmp_path / "no", name="no", reference=other)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_item_vectors_in_fewer_bits_are_measured_and_remembered_histories_go_on(
    checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path, precision: ItemPrecision
) -> None:
    export(checkpoint, dataset, tmp_path / "small", name="small", item_precision=precision, max_loss=1.0)
    with Bundle.open(tmp_path / "small") as bundle, open_engine(bundle, incremental=True) as engine:
        manifest = bundle.manifest
        assert (manifest.precision, manifest.item_precision) == ("fp32", precision)
        assert bundle.vectors.precision == precision
        assert np.asarray(bundle.vectors) == pytest.approx(np.asarray(item_vectors(checkpoint.model)), abs=0.01)
        assert all(info.loss is not None and info.parity.max_abs_error < 0.1 for info in manifest.depths.values())
        items, times = np.array([[1, 2, 3]]), np.array([[5, 60, 700]])
        resumed, _ = engine.run_incremental([CachedHistory(items[0], times[0], None)], [8])
        assert resumed == pytest.approx(engine.run(items, times, 8), abs=1e-5)
    with pytest.raises(ParityError, match=f"fp32, items {precision}, more than -100"):
        export(checkpoint, dataset, tmp_path / "no", name="no", item_precision=precision, max_loss=-1.0)
    assert not (tmp_path / "no").exists()


def test_a_bundle_says_its_precision_and_what_it_lost(checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path) -> None:
    bits = mixed_bits(checkpoint.model, range(checkpoint.model.config.layers), 0.02)
    export(checkpoint, dataset, tmp_path / "small", name="small", precision="mixed", layer_bits=bits, max_loss=1.0)
    with Bundle.open(tmp_path / "small") as bundle:
        assert bundle.manifest.precision == "mixed"
        assert bundle.manifest.layer_precision == bits
        assert bundle.manifest.extension is None
        assert all(info.loss is not None for info in bundle.manifest.depths.values())
        with open_engine(bundle) as engine:
            users = engine.run(np.array([[1, 2, 3]]), np.array([[1, 2, 3]]), bundle.depths[0])
        assert np.linalg.norm(users) == pytest.approx(1, abs=1e-3)
