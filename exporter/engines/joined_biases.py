"""An engine that cuts the position biases of all its layers at once.

With one new position an operator costs about what it takes to start it, and each layer cuts the same place out of a
bias of its own.
"""

from collections import defaultdict

import onnx
from onnx import helper


def with_joined_biases(data: bytes) -> bytes:
    """The same engine, whose biases, each (heads, M, M), are put together when it is loaded, and cut together.

    Unchanged where no two layers cut theirs alike.
    """
    proto = onnx.load_from_string(data)
    graph = proto.graph
    looked_up = {node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[1] == "positions"}
    alike: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for node in graph.node:
        if node.op_type == "Slice" and node.input[0] in looked_up:
            alike[tuple(node.input[1:])][node.output[0]] = node.input[0]
    ends, cuts = max(alike.items(), key=lambda each: len(each[1]), default=((), {}))
    if len(cuts) < 2:
        return data
    biases = set(cuts.values())
    first = next(iter(cuts))
    joined = helper.make_node("Concat", list(cuts.values()), ["biases"], "biases", axis=0)
    cut = helper.make_node("Slice", ["biases", *ends], ["biases.cut"], "biases.cut")
    split = helper.make_node("Split", ["biases.cut"], list(cuts), "biases.split", axis=0, num_outputs=len(cuts))
    nodes = []
    for node in graph.node:
        made = node.output[0]
        if made == first:
            nodes += [cut, split]
        if made not in cuts and made not in biases:
            nodes.append(node)
        if made == "positions":
            nodes += [*(each for each in graph.node if each.output[0] in biases), joined]
    whole = helper.make_graph(nodes, graph.name, graph.input, graph.output, graph.initializer)
    proto.graph.CopyFrom(whole)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))
