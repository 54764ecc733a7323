"""Engines of a network that was healed beside four-bit weights (``train.heal_tune=qlora``): packed, adapters apart.

A product becomes MatMulNBits on the rounded weight plus two small products with the adapter. Scales and adapters are
stored in 16 bits and computed with in 32, which onnxruntime works out when it opens an engine, so an engine gives what
torch gives, for whole histories and for new items alike.
"""

import logging
from typing import Literal

import onnx
from onnx import TensorProto, helper, numpy_helper

from fathom.errors import ConfigError
from fathom.exporter.engines.precision import int4, products
from fathom.exporter.engines.quiet import quiet
from fathom.exporter.planning.heal import check_dataset
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset

ADAPTED: Literal["int4+lora"] = "int4+lora"


def check_adapted(checkpoint: Checkpoint, reference: Checkpoint | None, dataset: Dataset) -> None:
    """Raise ConfigError for a checkpoint that was not healed beside four-bit weights, or without its reference.

    Raises ArtefactError for a reference of another dataset.
    """
    if not checkpoint.model.config.adapter_rank:
        raise ConfigError(f"{ADAPTED} needs a checkpoint that was healed with --set train.heal_tune=qlora")
    if reference is None:
        raise ConfigError(f"{ADAPTED} needs --reference: the checkpoint before it was healed beside four-bit weights")
    if reference.sha256 == checkpoint.sha256:
        raise ConfigError("the reference is the checkpoint itself; give the one that it was healed from")
    check_dataset(reference, dataset, "the reference")
    if reference.model.depths != checkpoint.model.depths:
        raise ConfigError(
            f"the reference has depths {reference.model.depths} and the checkpoint {checkpoint.model.depths};"
            " give the checkpoint that was healed"
        )


def packed(data: bytes) -> bytes:
    """An engine of ``export_segments`` or ``export_extension``, with its weights as they were healed."""
    proto = onnx.load_from_string(data)
    down = [node for node in proto.graph.node if node.op_type == "MatMul" and node.input[1].endswith(".lora_a")]
    between = {node.output[0] for node in down}
    adapters = [*down, *(node for node in proto.graph.node if between.intersection(node.input))]
    beside = {node.name for node in adapters}
    halves = {node.input[1] for node in adapters}
    weights = [name for name in products(proto) if name not in beside]
    if not weights:
        return data
    with quiet(logging.WARNING):  # as in ``reduce_engines``
        proto = int4(proto, weights, accuracy_level=1)
    halves |= {node.input[2] for node in proto.graph.node if node.op_type == "MatMulNBits"}
    _in_halves(proto.graph, halves)
    _shorten(proto.graph)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _in_halves(graph: onnx.GraphProto, names: set[str]) -> None:
    """Store these constants in 16 bits, each cast to 32 where it is read."""
    casts = []
    for each in graph.initializer:
        if each.name in names:
            value, half = numpy_helper.to_array(each), f"{each.name}.fp16"
            casts.append(helper.make_node("Cast", [half], [each.name], f"{each.name}.cast", to=TensorProto.FLOAT))
            each.CopyFrom(numpy_helper.from_array(value.astype("float16"), half))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _shorten(graph: onnx.GraphProto) -> None:
    """Give values short names and nodes none: names would be a third of an engine this small."""
    kept = {each.name for each in (*graph.input, *graph.output)} | {""}
    values = [each.name for each in graph.initializer] + [name for node in graph.node for name in node.output]
    short = {name: f"v{place:x}" for place, name in enumerate(dict.fromkeys(values)) if name not in kept}
    for node in graph.node:
        node.ClearField("name")
        for names in (node.input, node.output):
            names[:] = [short.get(name, name) for name in names]
    for each in graph.initializer:
        each.name = short.get(each.name, each.name)
    del graph.value_info[:]
