"""Turns an ElasticModel into engine files: the layers between two exits, as ONNX.

A chain of segments when each path begins with the next shallower one, else one whole engine per depth. An exit reads
the last position only, so its last layer is computed for that position alone; the next segment then starts with
that layer again, for all positions.
"""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer

from fathom.exporter.engines.engine_set import EngineSet, SegmentSpec, segment_specs
from fathom.exporter.engines.joined_biases import with_joined_biases
from fathom.exporter.engines.optional_exit import with_optional_exit
from fathom.exporter.engines.pieces import OPSET, Assembly, Pieces, context_weights, exit_weights, layer_weights
from fathom.exporter.planning.plan import is_chain
from fathom.runtime.engines.incremental import MOST_STEPPED
from fathom.training.blocks import POSITION_BUCKETS
from fathom.training.model import ElasticModel

Shape = list[str | int]

CONTEXT_FILE = "engines/extend-context.onnx"
_WHOLE_NUMBERS = {"items", "timestamps", "new_items", "positions"}
#: Elements; what is a part of a weight, or turned, is worked out when an engine is written.
_LARGEST_WEIGHT = 1 << 24
#: The longest history for which each layer's position bias is kept whole: a float per head and pair of items.
LONGEST_TABLE = 512

#: The oldest ONNX file format that holds OPSET: the widest choice of engines that can read it.
IR_VERSION = 8


def export_segments(model: ElasticModel) -> EngineSet:
    """Every engine file of a model; the same model gives the same bytes."""
    pieces = Pieces(_in_fp32(model))
    return EngineSet.of(model, {spec.file: assemble(pieces, spec) for spec in segment_specs(model.config.paths)})


def _in_fp32(model: ElasticModel) -> ElasticModel:
    return copy.deepcopy(model).to("cpu", torch.float32).eval()


def assemble(pieces: Pieces, spec: SegmentSpec) -> bytes:
    """One engine file, laid out from the pieces of its model."""
    model = pieces.model
    graph = Assembly()
    requests = {name: name for name in pieces.request_names}
    context = graph.add("context", pieces.context(), requests, context_weights(model))
    reads = "item_vectors" if spec.first else "hidden_in"
    context["positions"] = _positions(graph, model, (reads, 1), model.config.max_history)
    hidden = graph.add("embed", pieces.embed(), {reads: reads}, {})["hidden_next"] if spec.first else reads
    for layer in spec.full_layers:
        piece, weights = pieces.layer(layer, last_only=False), layer_weights(model, layer)
        after = graph.add(f"layer-{layer:02d}", piece, {"hidden": hidden, **context}, weights)["hidden_next"]
        graph.same_shape(after, hidden)
        hidden = after
    piece, weights = pieces.layer(spec.last_layer, last_only=True), layer_weights(model, spec.last_layer)
    newest = graph.add(f"last-{spec.last_layer:02d}", piece, {"hidden": hidden, **context}, weights)["hidden_next"]
    user = graph.add("exit", pieces.exit(spec.depth), {"newest": newest}, exit_weights(model, spec.depth))
    results = {"user_vector": user["user_vector"], **({"hidden_out": hidden} if spec.feeds_next else {})}
    return _plain(graph, spec, model, results)


def extension_file(depth: int) -> str:
    """Path inside the bundle of the incremental form of the segment that ends at this depth."""
    return f"engines/extend-{depth:02d}.onnx"


def step_file(depth: int) -> str:
    """Path inside the bundle of all layers of this depth in their incremental form."""
    return f"engines/step-{depth:02d}.onnx"


def export_extension(model: ElasticModel, pack: Callable[[bytes], bytes] = bytes) -> dict[str, bytes]:
    """Incremental inference for a chain: each segment on new positions alone, and the context that all of them read.

    And each depth as one step: with one new position, starting a run costs as much as a layer. Files by path,
    CONTEXT_FILE first; none for a model whose depths are no chain. docs/bundle-format.md has their inputs and outputs.
    ``pack``: stores the weights of an engine in another way.
    """
    if not is_chain(model.config.paths):
        return {}
    # Where the positions of the longest history are too many to be kept, those of new items are few.
    pieces = Pieces(_in_fp32(model), of_new=model.config.max_history > LONGEST_TABLE)
    specs = segment_specs(model.config.paths)
    files = {CONTEXT_FILE: _extension_context(pieces)}
    files |= {extension_file(spec.depth): with_optional_exit(pack(_extension(pieces, spec))) for spec in specs}
    return files | {step_file(spec.depth): pack(_step(pieces, spec)) for spec in specs}


def _extension_context(pieces: Pieces) -> bytes:
    graph = Assembly()
    names = (*pieces.request_names, "new_items")
    weights = context_weights(pieces.model)
    made = graph.add("context", pieces.extension_context(), {name: name for name in names}, weights)
    return _finish(graph, "extend-context", _shapes(pieces.model), names, made)


def _extension(pieces: Pieces, spec: SegmentSpec) -> bytes:
    model = pieces.model
    graph = Assembly()
    context = {name: name for name in pieces.context_names}
    reads_always = context | {"positions": _new_positions(graph, pieces, model.config.max_history)}
    layers = (*spec.full_layers, spec.last_layer)
    pasts = graph.split("past", len(layers), axis=1)
    hidden, kept = "hidden_in", []
    for layer, past in zip(spec.full_layers, pasts, strict=False):
        piece, weights = pieces.extension_layer(layer, last_only=False), layer_weights(model, layer)
        reads = {"hidden": hidden, "past": past, **reads_always}
        made = graph.add(f"layer-{layer:02d}", piece, reads, weights)
        graph.same_shape(made["hidden_next"], hidden)
        hidden = made["hidden_next"]
        kept.append(made["made"])
    piece, weights = pieces.extension_layer(spec.last_layer, last_only=True), layer_weights(model, spec.last_layer)
    reads = {"hidden": hidden, "past": pasts[-1], **reads_always}
    last = graph.add(f"last-{spec.last_layer:02d}", piece, reads, weights)
    user = graph.add("exit", pieces.exit(spec.depth), {"newest": last["hidden_next"]}, exit_weights(model, spec.depth))
    # No layer will ever look further back.
    newest = model.config.span - 1
    results = {"user_vector": user["user_vector"], "last_made": graph.newest(last["made"], newest, axis=2)}
    if kept:
        results["made"] = graph.newest(graph.concat("made", kept, axis=1), newest, axis=2)
    if spec.feeds_next:
        results["hidden_out"] = hidden
    shapes = _shapes(model, len(layers))
    if pieces.of_new:
        shapes["positions"] = ["new", "known"]
    return _finish(graph, f"extend-{spec.depth:02d}", shapes, ("hidden_in", "past", *context), results, context)


def _step(pieces: Pieces, spec: SegmentSpec) -> bytes:
    """All layers of a depth, the last one too for all new positions: they are few, and to choose one costs more."""
    model = pieces.model
    graph = Assembly()
    context = {name: name for name in pieces.context_names}
    known = min(model.config.max_history, model.config.span - 1 + MOST_STEPPED)
    reads_always = context | {"positions": _new_positions(graph, pieces, known)}
    layers = model.config.paths[spec.depth]
    hidden, kept, states = "hidden_in", [], []
    for layer, past in zip(layers, graph.split("past", len(layers), axis=1), strict=True):
        reads = {"hidden": hidden, "past": past, **reads_always}
        states.append(hidden)
        piece, weights = pieces.extension_layer(layer, last_only=False), layer_weights(model, layer)
        made = graph.add(f"layer-{layer:02d}", piece, reads, weights)
        graph.same_shape(made["hidden_next"], hidden)
        hidden = made["hidden_next"]
        kept.append(made["made"])
    newest = {"newest": graph.newest(hidden, 1, axis=1)}
    user = graph.add("exit", pieces.exit(spec.depth), newest, exit_weights(model, spec.depth))
    results = {"user_vector": user["user_vector"]}
    results["made"] = graph.newest(graph.concat("made", kept, axis=1), model.config.span - 1, axis=2)
    if spec.feeds_next:
        results["hidden_out"] = states[-1]
    shapes = _shapes(model, len(layers))
    shapes["made"] = ["batch", shapes["past"][1], "newest", shapes["past"][3]]
    shapes["positions"] = ["new", "known"] if pieces.of_new else [known, known]
    data = _finish(graph, f"step-{spec.depth:02d}", shapes, ("hidden_in", "past", *context), results, context)
    return data if pieces.of_new else with_joined_biases(data)


def _positions(graph: Assembly, model: ElasticModel, sized_like: tuple[str, int], longest: int) -> str:
    """The positions that all layers read, of ``longest`` at most; ``sized_like``: an input, and its axis of so many."""
    buckets = _buckets(model, longest)
    return graph.positions(buckets, sized_like=sized_like if longest > LONGEST_TABLE else None)


def _new_positions(graph: Assembly, pieces: Pieces, longest: int) -> str:
    """The positions that all layers of an incremental engine read, of ``longest`` at most."""
    buckets = _buckets(pieces.model, longest)
    if pieces.of_new:
        return graph.positions(buckets, sized_like=("mask", 3), newest_like=("hidden_in", 1))
    return graph.positions(buckets, sized_like=None)


def _buckets(model: ElasticModel, longest: int) -> NDArray[np.int64]:
    """The bucket of every distance, int64 (2 longest - 1,), beginning with 1 - longest."""
    span = model.config.span
    distances = torch.arange(1 - longest, longest)
    hidden = (distances < 0) | (distances >= span)
    buckets = model.position_of_distance[distances.clamp(0, span - 1)].masked_fill(hidden, POSITION_BUCKETS)
    return np.asarray(buckets)


def _plain(graph: Assembly, spec: SegmentSpec, model: ElasticModel, results: Mapping[str, str]) -> bytes:
    vectors = "item_vectors" if spec.first else "hidden_in"
    inputs = ["items", *(["timestamps"] if model.uses_timestamps else []), vectors]
    ids: Shape = ["batch", "history"]
    shapes = _shapes(model) | {"items": ids, "timestamps": ids}
    shapes |= {name: [*ids, model.config.width] for name in (vectors, "hidden_out")}
    return _finish(graph, f"depth-{spec.depth:02d}", shapes, inputs, results, {"items"})


def _shapes(model: ElasticModel, layers: int = 1) -> dict[str, Shape]:
    """Of everything that goes into and comes out of an incremental engine; ``known`` is ``seen`` + ``new``."""
    width, heads = model.config.width, model.config.heads
    each, size = 2 * heads, width // heads
    return {
        "items": ["batch", "known"],
        "timestamps": ["batch", "known"],
        "positions": [model.config.max_history, model.config.max_history],
        "new_items": ["batch", "new"],
        "hidden_in": ["batch", "new", width],
        "past": ["batch", layers * each, "seen", size],
        "mask": ["batch", 1, 1, "known"],
        "time": ["batch", heads, "new", "known"],
        "user_vector": ["batch", width],
        "hidden_out": ["batch", "new", width],
        "made": ["batch", (layers - 1) * each, "newest", size],
        "last_made": ["batch", each, "newest", size],
    }


def _finish(
    graph: Assembly,
    name: str,
    shapes: Mapping[str, Shape],
    reads: Sequence[str],
    results: Mapping[str, str],
    optional: Collection[str] = (),
) -> bytes:
    """The file; ``optional``: inputs that it has only where something reads them."""

    def info(value: str) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if value in _WHOLE_NUMBERS else TensorProto.FLOAT
        return helper.make_tensor_value_info(value, kind, shapes[value])

    ends = [helper.make_node("Identity", [value], [result], name=result) for result, value in results.items()]
    inputs, outputs = [info(value) for value in reads], [info(result) for result in results]
    # The optimizer takes the positions for an input, so that each layer's bias, large and made of little, stays out.
    positions = [info("positions")] if graph.position_nodes else []
    whole = helper.make_graph([*graph.nodes, *ends], name, inputs + positions, outputs, graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(whole, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fathom")
    proto = optimizer.optimize(proto, input_size_limit=_LARGEST_WEIGHT, output_size_limit=_LARGEST_WEIGHT)
    _merge_slices(proto.graph)
    _keep_first_axes(proto.graph)
    if positions:
        del proto.graph.input[len(inputs) :]
        nodes = [*graph.position_nodes, *proto.graph.node]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        proto.graph.initializer.extend(graph.position_constants)
    read = {value for node in proto.graph.node for value in node.input}
    for unread in [each for each in proto.graph.input if each.name not in read and each.name in optional]:
        proto.graph.input.remove(unread)
    for constant in [each for each in proto.graph.initializer if each.name not in read]:
        proto.graph.initializer.remove(constant)
    for node in proto.graph.node:
        del node.metadata_props[:]  # the optimizer's notes to itself
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _merge_slices(graph: onnx.GraphProto) -> None:
    """Two cuts of one value, along two axes, become one: each copies."""
    made = {node.output[0]: node for node in graph.node if node.op_type == "Slice"}
    uses = Counter(value for node in graph.node for value in node.input)
    joined: dict[tuple[str, ...], str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        first = made.get(node.input[0]) if node.op_type == "Slice" else None
        if first is not None and uses[first.output[0]] == 1:
            nodes.remove(first)
            for place in range(1, 5):  # starts, ends, axes, steps
                pair = (first.input[place], node.input[place])
                if pair not in joined:
                    joined[pair] = f"cut.{len(joined)}"
                    nodes.append(helper.make_node("Concat", pair, [joined[pair]], joined[pair], axis=0))
                node.input[place] = joined[pair]
            node.input[0] = first.input[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _keep_first_axes(graph: onnx.GraphProto) -> None:
    """Shapes that are put together for every request become constants.

    All that a layer reshapes keeps its first two axes, batch and positions, and the sizes of the others are known.
    """
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    made = {node.output[0]: node for node in graph.node if node.op_type == "Concat"}
    for node in graph.node:
        parts = list(made[node.input[1]].input) if node.op_type == "Reshape" and node.input[1] in made else []
        if len(parts) > 2 and parts[0] not in constants and all(part in constants for part in parts[2:]):
            shape = np.concatenate([constants.get(part, np.zeros(1, np.int64)) for part in parts])
            name = f"shape.{'.'.join(map(str, shape))}"
            if name not in constants:
                constants[name] = shape
                graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
            del node.attribute[:]  # allowzero: here 0 stands for the axis as it is
    while unused := _unused(graph):
        for node in unused:
            graph.node.remove(node)


def _unused(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    read = {value for node in graph.node for value in node.input} | {each.name for each in graph.output}
    return [node for node in graph.node if not read.intersection(node.output)]
