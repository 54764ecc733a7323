"""Engines in fewer bits: smaller, close to torch, and refused where they recommend worse than is allowed."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from fathom.errors import ConfigError, ParityError
from fathom.exporter.bundle.export import export
from fathom.exporter.engines.engine_set import EngineSet, segment_specs
from fathom.exporter.engines.items import item_vectors
from fathom.exporter.engines.optional_exit import with_optional_exit
from fathom.exporter.engines.parity import measure_parity
from fathom.exporter.engines.precision import BITS, mixed_bits, reduce_engines, same_bits
from fathom.exporter.engines.reduced_quality import check_losses, relative_loss
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.incremental import CachedHistory
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_vectors import ItemPrecision
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.splits import split

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
