"""Turns an ElasticModel into engine files: the layers between two exits, as ONNX.

A chain of segments when each path begins with the next shallower one, else one whole engine per depth. An exit reads
the last position only, so its last layer is computed for that position alone; the next segment then starts with
that layer again, for all positions.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx
import torch
from onnx import TensorProto, helper
from onnxscript import optimizer

from fathom.exporter.pieces import OPSET, Assembly, Pieces, exit_weights, layer_weights
from fathom.exporter.plan import is_chain
from fathom.training.model import ElasticModel

#: The oldest ONNX file format that holds OPSET: the widest choice of engines that can read it.
IR_VERSION = 8


@dataclass(frozen=True)
class SegmentSpec:
    """One engine file: ``full_layers`` on all positions, then ``last_layer`` on the last position and the exit.

    ``first``: reads the request only; otherwise also the hidden state of the segment before. ``feeds_next``: also
    returns the hidden state before ``last_layer``, where the next segment goes on.
    """

    depth: int
    full_layers: tuple[int, ...]
    last_layer: int
    first: bool
    feeds_next: bool

    @property
    def file(self) -> str:
        """Path inside the bundle."""
        return f"engines/depth-{self.depth:02d}.onnx"


def segment_specs(paths: Mapping[int, Sequence[int]]) -> tuple[SegmentSpec, ...]:
    """The engine files that these paths need, shallowest first."""
    depths = sorted(paths)
    if not is_chain(paths):
        return tuple(SegmentSpec(d, tuple(paths[d][:-1]), paths[d][-1], True, False) for d in depths)
    first = depths[0]
    specs = [SegmentSpec(first, tuple(paths[first][:-1]), paths[first][-1], True, len(depths) > 1)]
    for shallow, deep in pairwise(depths):
        path = paths[deep]
        specs.append(SegmentSpec(deep, tuple(path[shallow - 1 : -1]), path[-1], False, deep != depths[-1]))
    return tuple(specs)


def depth_segments(paths: Mapping[int, Sequence[int]]) -> dict[int, tuple[SegmentSpec, ...]]:
    """For each depth, the segments that run one after the other."""
    specs = segment_specs(paths)
    if is_chain(paths):
        return {spec.depth: specs[: i + 1] for i, spec in enumerate(specs)}
    return {spec.depth: (spec,) for spec in specs}


def export_segments(model: ElasticModel) -> dict[str, bytes]:
    """Every engine file of a model, path -> ONNX; the same model gives the same bytes."""
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    pieces = Pieces(model)
    return {spec.file: assemble(pieces, spec) for spec in segment_specs(model.config.paths)}


def assemble(pieces: Pieces, spec: SegmentSpec) -> bytes:
    """One engine file, laid out from the pieces of its model."""
    model = pieces.model
    graph = Assembly()
    requests = {name: name for name in pieces.request_names}
    context = graph.add("context", pieces.context(), requests)
    hidden = graph.add("embed", pieces.embed(), requests)["hidden_next"] if spec.first else "hidden_in"
    for layer in spec.full_layers:
        piece, weights = pieces.layer(layer, last_only=False), layer_weights(model, layer)
        hidden = graph.add(f"layer-{layer:02d}", piece, {"hidden": hidden, **context}, weights)["hidden_next"]
    piece, weights = pieces.layer(spec.last_layer, last_only=True), layer_weights(model, spec.last_layer)
    newest = graph.add(f"last-{spec.last_layer:02d}", piece, {"hidden": hidden, **context}, weights)["hidden_next"]
    user = graph.add("exit", pieces.exit(spec.depth), {"newest": newest}, exit_weights(model, spec.depth))
    results = {"user_vector": user["user_vector"], **({"hidden_out": hidden} if spec.feeds_next else {})}
    return _finish(graph, spec, model, results)


def _finish(graph: Assembly, spec: SegmentSpec, model: ElasticModel, results: Mapping[str, str]) -> bytes:
    width = model.config.width
    ids: list[str | int] = ["batch", "history"]
    inputs = [helper.make_tensor_value_info("items", TensorProto.INT64, ids)]
    if model.uses_timestamps:
        inputs.append(helper.make_tensor_value_info("timestamps", TensorProto.INT64, ids))
    if not spec.first:
        inputs.append(helper.make_tensor_value_info("hidden_in", TensorProto.FLOAT, [*ids, width]))
    shapes: dict[str, list[str | int]] = {"user_vector": ["batch", width], "hidden_out": [*ids, width]}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in results]
    ends = [helper.make_node("Identity", [value], [name], name=name) for name, value in results.items()]
    whole = helper.make_graph([*graph.nodes, *ends], f"depth-{spec.depth:02d}", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(whole, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fathom")
    proto = optimizer.optimize(proto)
    for node in proto.graph.node:
        del node.metadata_props[:]  # the optimizer's notes to itself
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))
