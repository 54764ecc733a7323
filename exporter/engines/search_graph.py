"""Builds ``runtime/search*.onnx``, the search for the best items that every server runs with its own item vectors.

    python -m fathom.exporter.engines.search_graph

They are a part of the package and not of a bundle, because nothing in them depends on a model.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fathom.files import write_bytes
from fathom.runtime.item_vectors import ItemPrecision
from fathom.runtime.retriever import CHUNK, DENSE_GRAPH, GRAPH_IN_CHUNKS, GRAPHS

_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}


def search_graph(precision: ItemPrecision = "fp32", *, chunk: int | None = None, dense: bool = False) -> bytes:
    """The graph.

    ``users`` (rows, width) and ``vectors`` (items, width) give scores. To those at ``places`` (pairs, 2: row, item)
    ``added`` (pairs,) is added, minus infinity to hide an item; a place may occur twice only if all that is added there
    is minus infinity, because threads share the work. Where ``masked`` is true, scores for which ``shown`` (rows,
    items) is false become minus infinity. ``values`` and ``items`` (rows, k) are the best of each row; equal scores:
    the lowest index first.

    ``precision``: of the vectors. int8 rows are multiplied by ``scales`` (items,).

    ``dense``: for small catalogues. ``bonus`` (rows, items), or (1, 1), is added to the scores first.

    ``chunk``: for GPUs, where one row is sorted by few of the threads that there are. The items are cut into chunks of
    so many, the k chunks whose best score is highest hold the k best items, and only those are sorted.
    """
    names = ("values", "items")
    mask = helper.make_node("Where", ["shown", "left", "never"], ["masked_scores"])
    masked = _branch("masked", [mask], "masked_scores", chunk)
    plain = _branch("plain", [], "left", chunk)
    nodes = [
        *_scores(precision, dense=dense),
        helper.make_node("ScatterND", ["all", "places", "added"], ["left"], reduction="add"),
        helper.make_node("If", ["masked"], names, then_branch=masked, else_branch=plain),
    ]
    constants: dict[str, NDArray[Any]] = {"never": np.array(-np.inf, np.float32)}
    if chunk is not None:
        constants |= _numbers(chunk)
    made = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return engine_bytes(helper.make_graph(nodes, "search", _inputs(precision, dense=dense), _results(*names), made))


def engine_bytes(graph: onnx.GraphProto) -> bytes:
    """A graph as an ONNX file that is a part of the package."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def _inputs(precision: ItemPrecision, *, dense: bool) -> list[onnx.ValueInfoProto]:
    info = helper.make_tensor_value_info
    return [
        info("users", TensorProto.FLOAT, ["rows", "width"]),
        info("vectors", _TYPES[precision], ["n", "width"]),
        *([info("scales", TensorProto.FLOAT, ["n"])] if precision == "int8" else []),
        *([info("bonus", TensorProto.FLOAT, ["bonus_rows", "bonus_n"])] if dense else []),
        info("places", TensorProto.INT64, ["m", 2]),
        info("added", TensorProto.FLOAT, ["m"]),
        info("shown", TensorProto.BOOL, ["shown_rows", "shown_n"]),
        info("masked", TensorProto.BOOL, []),
        info("k", TensorProto.INT64, [1]),
    ]


def _scores(precision: ItemPrecision, *, dense: bool) -> list[onnx.NodeProto]:
    if precision == "fp32":
        return [helper.make_node("Gemm", ["users", "vectors", *(["bonus"] if dense else [])], ["all"], transB=1)]
    assert not dense, "only for vectors in fp32"
    nodes = [
        helper.make_node("Cast", ["vectors"], ["in_fp32"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["users", "in_fp32"], ["all" if precision == "fp16" else "too_long"], transB=1),
    ]
    return nodes if precision == "fp16" else [*nodes, helper.make_node("Mul", ["too_long", "scales"], ["all"])]


def _branch(name: str, before: list[onnx.NodeProto], scores: str, chunk: int | None) -> onnx.GraphProto:
    values, items = f"{name}_values", f"{name}_items"
    if chunk is None:
        best = [helper.make_node("TopK", [scores, "k"], [values, items])]
    else:
        best = _best_of_chunks(name, scores, values, items)
    return helper.make_graph([*before, *best], name, [], _results(values, items))


def _numbers(chunk: int) -> dict[str, NDArray[np.int64]]:
    return {
        "chunk": np.array([chunk], np.int64),
        "two": np.array([2], np.int64),
        "in_chunks": np.array([0, -1, chunk], np.int64),
        "in_a_row": np.array([0, -1], np.int64),
        "none_before": np.array([0, 0, 0], np.int64),
    }


def _best_of_chunks(name: str, scores: str, values: str, items: str) -> list[onnx.NodeProto]:
    """The nodes; their names begin with that of the branch."""

    def node(kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
        own = [each if each in shared else f"{name}.{each}" for each in inputs]
        made = [each if each in shared else f"{name}.{each}" for each in outputs]
        return helper.make_node(kind, own, made, **attributes)

    shared = {scores, values, items, "k", "never", *_numbers(1)}
    return [
        # Padding to whole chunks, behind the last item.
        node("Shape", [scores], "n", start=1, end=2),
        node("Neg", ["n"], "less"),
        node("Mod", ["less", "chunk"], "missing"),
        node("Concat", ["none_before", "missing"], "pads", axis=0),
        node("Pad", [scores, "pads", "never"], "padded"),
        node("Reshape", ["padded", "in_chunks"], "chunks"),
        # The best chunks, in their order: then equal scores stay in the order of their indices.
        node("ReduceMax", ["chunks", "two"], "highest", keepdims=0),
        node("Shape", ["highest"], "count", start=1, end=2),
        node("Min", ["count", "k"], "kept"),
        node("TopK", ["highest", "kept"], "best_scores", "unordered"),
        node("TopK", ["unordered", "kept"], "best", "order", largest=0),
        node("Unsqueeze", ["best", "two"], "rows"),
        node("GatherND", ["chunks", "rows"], "candidates", batch_dims=1),
        node("Reshape", ["candidates", "in_a_row"], "in_line"),
        node("TopK", ["in_line", "k"], values, "place"),
        node("Div", ["place", "chunk"], "nth"),
        node("Mod", ["place", "chunk"], "inside"),
        node("GatherElements", ["best", "nth"], "its_chunk", axis=1),
        node("Mul", ["its_chunk", "chunk"], "first"),
        node("Add", ["first", "inside"], items),
    ]


def _results(values: str, items: str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(values, TensorProto.FLOAT, ["rows", "best"]),
        helper.make_tensor_value_info(items, TensorProto.INT64, ["rows", "best"]),
    ]


if __name__ == "__main__":
    for each, path in GRAPHS.items():
        write_bytes(path, search_graph(each))
    write_bytes(DENSE_GRAPH, search_graph(dense=True))
    write_bytes(GRAPH_IN_CHUNKS, search_graph(chunk=CHUNK))
