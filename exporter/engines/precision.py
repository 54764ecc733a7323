"""Engines in fewer bits, by onnxruntime's own quantisers, and what that costs in quality.

fp16: all weights and sums. int8: the products with weights, whose inputs get one scale each, found on real histories
(static, QDQ), and whose weights get one per output channel. int4: weights alone, a scale per 32 of them (MatMulNBits).
mixed: layer by layer. int4+lora: see ``adapted``. Embeddings, attention among items and exits stay fp32 but in fp16.
"""

import logging
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from fathom.errors import ConfigError
from fathom.exporter.engines.engine_set import EngineSet, Values, segment_specs
from fathom.exporter.engines.quiet import quiet
from fathom.training.batches import history_batches
from fathom.training.dataset import Sequences
from fathom.training.model import ElasticModel
from fathom.training.nbits import BLOCK

Bits = Literal["fp32", "int8", "int4"]
Precision = Literal["fp32", "fp16", "int8", "int4", "int4+lora", "mixed"]

#: Of a weight, in each of them; int4 with its scales.
BITS: dict[Bits, float] = {"fp32": 32, "int8": 8, "int4": 4 + 32 / BLOCK}
CALIBRATION_HISTORIES = 128
_CALIBRATION_TOKENS = 3_200
_LAYER = re.compile(r"(?:layer|last)-(\d+)\.")


def same_bits(model: ElasticModel, bits: Bits) -> dict[int, Bits]:
    """Every layer alike."""
    return dict.fromkeys(_layers(model), bits)


def mixed_bits(model: ElasticModel, order: Sequence[int], budget_mb: float) -> dict[int, Bits]:
    """The most important layers in the most bits, so that the weights of all layers stay within a budget.

    ``order``: layers, most important first. All begin with int4; then, in this order, as many as there is room for get
    int8, and then fp32. A layer that two engines hold counts twice. Raises ConfigError when not even int4 fits.
    """
    copies = _layers(model)
    weights = {layer: sum(w.numel() for w in model.block(layer).parameters() if w.ndim == 2) for layer in copies}
    sizes = {layer: weights[layer] * copies[layer] / 8 / 2**20 for layer in copies}
    chosen: dict[int, Bits] = dict.fromkeys(copies, "int4")
    left = budget_mb - sum(size * BITS["int4"] for size in sizes.values())
    if left < 0:
        raise ConfigError(f"a budget of {budget_mb:g} MB is too small: int4 takes {budget_mb - left:.2f} MB")
    better: tuple[Bits, ...] = ("int8", "fp32")
    for bits in better:
        for layer in (layer for layer in order if layer in copies):
            more = sizes[layer] * (BITS[bits] - BITS[chosen[layer]])
            if more <= left:
                chosen[layer], left = bits, left - more
    return chosen


def reduce_engines(
    engines: EngineSet, bits: Mapping[int, Bits] | Literal["fp16"], histories: Sequences, max_history: int
) -> EngineSet:
    """The same engines with each layer in its bits, or all in fp16.

    ``engines``: those of ``export_segments``. ``histories``: where the scales of int8 come from, each cut to its newest
    ``max_history`` items.
    """
    if bits == "fp16":
        return engines.converted(_fp16)
    feeds = _calibration_feeds(engines, histories, max_history)
    reduced = {}
    for spec in engines.specs:
        proto = onnx.load_from_string(engines.files[spec.file])
        for name, reduce in (("int8", _int8), ("int4", _int4)):
            nodes = products(proto, {layer for layer, each in bits.items() if each == name})
            if nodes:
                with quiet(logging.WARNING):  # the quantisers log every node, and one sets up the program's log
                    proto = reduce(proto, nodes, feeds[spec.file])
        reduced[spec.file] = bytes(proto.SerializeToString(deterministic=True))
    return replace(engines, files=reduced)


def _layers(model: ElasticModel) -> dict[int, int]:
    """Layer -> how many engines hold it."""
    held: dict[int, int] = {}
    for spec in segment_specs(model.config.paths):
        for layer in (*spec.full_layers, spec.last_layer):
            held[layer] = held.get(layer, 0) + 1
    return held


def products(proto: onnx.ModelProto, layers: Collection[int] | None = None) -> list[str]:
    """The names of the products with weights, of these layers or of all."""
    weights = {each.name for each in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        layer = _LAYER.match(node.name)
        if layer is None or (layers is not None and int(layer[1]) not in layers):
            continue
        if node.op_type == "MatMul" and node.input[1] in weights:
            found.append(node.name)
    return found


def _calibration_feeds(engines: EngineSet, histories: Sequences, max_history: int) -> dict[str, list[Values]]:
    """Engine file -> what it reads for some histories of all lengths."""
    chosen = histories.select(np.flatnonzero(histories.lengths))
    rows = np.linspace(0, len(chosen) - 1, min(CALIBRATION_HISTORIES, len(chosen))).round().astype(np.int64)
    by_length = chosen.select(np.argsort(chosen.lengths, kind="stable")[rows])
    feeds: dict[str, list[Values]] = {name: [] for name in engines.files}
    for _, items, times in history_batches(by_length, max_history=max_history, tokens=_CALIBRATION_TOKENS):
        for spec, read, _ in engines.steps(items.numpy(), None if times is None else times.numpy()):
            feeds[spec.file].append(read)
    return feeds


class _CalibrationReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, feeds: Sequence[Values]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Values | None:
        return next(self._feeds, None)


def _int8(proto: onnx.ModelProto, nodes: list[str], feeds: Sequence[Values]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            proto,
            path,
            _CalibrationReader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=nodes,
            calibrate_method=CalibrationMethod.MinMax,
            # A product leaves as fp32: what follows is no product, and reads it as it is.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        return onnx.load(path)


def _int4(proto: onnx.ModelProto, nodes: list[str], _: Sequence[Values]) -> onnx.ModelProto:
    return int4(proto, nodes, accuracy_level=4)


def int4(proto: onnx.ModelProto, nodes: Sequence[str], accuracy_level: Literal[1, 4]) -> onnx.ModelProto:
    """These products with weights in four bits; ``accuracy_level``: they multiply in 1: fp32, 4: 8 bits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    others = [node.name for node in proto.graph.node if node.name not in nodes]
    quantiser = MatMulNBitsQuantizer(
        proto, bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=accuracy_level, nodes_to_exclude=others
    )
    quantiser.process()
    made: onnx.ModelProto = quantiser.model.model
    return made


def _fp16(data: bytes) -> bytes:
    blocked = [*DEFAULT_OP_BLOCK_LIST, "LayerNormalization", "ReduceL2"]
    proto = convert_float_to_float16(
        onnx.load_from_string(data), keep_io_types=True, disable_shape_infer=True, op_block_list=blocked
    )
    OnnxModel(proto).topological_sort()  # it leaves casts behind their readers
    return bytes(proto.SerializeToString(deterministic=True))
