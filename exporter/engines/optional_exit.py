"""An engine whose exit is computed only where it is asked for.

onnxruntime 1.31 computes all outputs, whichever are asked for. A segment that is only passed through on the way to a
deeper exit would run its last layer and its exit for nothing, so they become the branch of an ``If``.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fathom.runtime.engines.segment import READ_EXIT

#: What an engine gives to the segment after it; all else is its exit's.
_PASSED_ON = {"hidden_out", "made"}


def with_optional_exit(data: bytes) -> bytes:
    """The same engine with the input READ_EXIT; unchanged where no segment follows.

    Without its exit the engine gives the exit's outputs with no row.
    """
    proto = onnx.load_from_string(data)
    graph = proto.graph
    outputs = {each.name: each for each in graph.output}
    if "hidden_out" not in outputs:
        return data
    passed_on = _PASSED_ON.intersection(outputs)
    before = _ancestors(graph, passed_on)
    trunk = [node for place, node in enumerate(graph.node) if place in before]
    branch = [node for place, node in enumerate(graph.node) if place not in before]
    exits = [each for each in graph.output if each.name not in passed_on]
    read = {name for node in trunk for name in node.input} | passed_on
    shared = [each for each in graph.initializer if each.name in read]
    own = [each for each in graph.initializer if each.name not in read]
    names = {each.name: _inner(each.name) for each in exits}
    _rename(branch, names)
    skip = helper.make_node(
        "If",
        [READ_EXIT],
        list(names),
        name="exit",
        then_branch=helper.make_graph(branch, "exit", [], [_unshaped(each) for each in exits], own),
        else_branch=helper.make_graph([_nothing(each) for each in exits], "no exit", [], list(map(_unshaped, exits))),
    )
    given = [*graph.input, helper.make_tensor_value_info(READ_EXIT, TensorProto.BOOL, [])]
    always = numpy_helper.from_array(np.array(True), READ_EXIT)
    whole = helper.make_graph([*trunk, skip], graph.name, given, graph.output, [*shared, always])
    return _with_graph(proto, whole)


def without_optional_exit(data: bytes) -> bytes:
    """The engine that ``with_optional_exit`` was given, or another of the same computation; the inverse."""
    proto = onnx.load_from_string(data)
    graph = proto.graph
    skip = next((node for node in graph.node if node.op_type == "If" and node.input[0] == READ_EXIT), None)
    if skip is None:
        return data
    branch = next(each.g for each in skip.attribute if each.name == "then_branch")
    names = {inner.name: outer for inner, outer in zip(branch.output, skip.output, strict=True)}
    _rename(branch.node, names)
    nodes = [node for node in graph.node if node != skip]
    constants = [each for each in graph.initializer if each.name != READ_EXIT]
    inputs = [each for each in graph.input if each.name != READ_EXIT]
    whole = helper.make_graph(
        [*nodes, *branch.node], graph.name, inputs, graph.output, [*constants, *branch.initializer]
    )
    return _with_graph(proto, whole)


def _rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    for node in nodes:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]


def _with_graph(proto: onnx.ModelProto, graph: onnx.GraphProto) -> bytes:
    proto.graph.CopyFrom(graph)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _ancestors(graph: onnx.GraphProto, values: Iterable[str]) -> set[int]:
    """The places of the nodes that these values come from."""
    made = {value: place for place, node in enumerate(graph.node) for value in node.output}
    found: set[int] = set()
    ahead = [made[value] for value in values if value in made]
    while ahead:
        place = ahead.pop()
        if place not in found:
            found.add(place)
            ahead += [made[value] for value in graph.node[place].input if value in made]
    return found


def _inner(name: str) -> str:
    return f"{name}.inner"


def _unshaped(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    kind = value.type.tensor_type
    return helper.make_tensor_value_info(_inner(value.name), kind.elem_type, [None] * len(kind.shape.dim))


def _nothing(value: onnx.ValueInfoProto) -> onnx.NodeProto:
    shape = [each.dim_value for each in value.type.tensor_type.shape.dim]  # 0 where it is dynamic
    empty = numpy_helper.from_array(np.zeros(shape, np.float32), f"{value.name}.nothing")
    return helper.make_node("Constant", [], [_inner(value.name)], value=empty)
