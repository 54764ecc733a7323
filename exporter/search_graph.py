"""Builds ``runtime/search.onnx``, the search for the best items that every server runs with its own item vectors.

    python -m fathom.exporter.search_graph

It is a part of the package and not of a bundle, because nothing in it depends on a model.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fathom.files import write_bytes
from fathom.runtime.retriever import GRAPH


def search_graph() -> bytes:
    """The graph.

    ``users`` (rows, width) and ``columns`` (width, items) give scores. Those at ``hidden`` (pairs, 2: row, item) become
    minus infinity and, where ``masked`` is true, those for which ``shown`` (rows, items) is false. ``values`` and
    ``items`` (rows, k) are the best of each row; equal scores: the lowest index first.
    """
    names = ("values", "items")
    masked = _branch(
        "masked", [helper.make_node("Where", ["shown", "left", "never"], ["masked_scores"])], "masked_scores"
    )
    plain = _branch("plain", [], "left")
    nodes = [
        helper.make_node("MatMul", ["users", "columns"], ["all"]),
        helper.make_node("Shape", ["hidden"], ["pairs"], start=0, end=1),
        helper.make_node("Expand", ["never", "pairs"], ["updates"]),
        helper.make_node("ScatterND", ["all", "hidden", "updates"], ["left"]),
        helper.make_node("If", ["masked"], names, then_branch=masked, else_branch=plain),
    ]
    inputs = [
        helper.make_tensor_value_info("users", TensorProto.FLOAT, ["rows", "width"]),
        helper.make_tensor_value_info("columns", TensorProto.FLOAT, ["width", "n"]),
        helper.make_tensor_value_info("hidden", TensorProto.INT64, ["m", 2]),
        helper.make_tensor_value_info("shown", TensorProto.BOOL, ["shown_rows", "shown_n"]),
        helper.make_tensor_value_info("masked", TensorProto.BOOL, []),
        helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
    ]
    never = numpy_helper.from_array(np.array(-np.inf, np.float32), "never")
    graph = helper.make_graph(nodes, "search", inputs, _results(*names), [never])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def _branch(name: str, before: list[onnx.NodeProto], scores: str) -> onnx.GraphProto:
    values, items = f"{name}_values", f"{name}_items"
    best = helper.make_node("TopK", [scores, "k"], [values, items])
    return helper.make_graph([*before, best], name, [], _results(values, items))


def _results(values: str, items: str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(values, TensorProto.FLOAT, ["rows", "best"]),
        helper.make_tensor_value_info(items, TensorProto.INT64, ["rows", "best"]),
    ]


if __name__ == "__main__":
    write_bytes(GRAPH, search_graph())
