"""Builds ``runtime/engines/lookup.onnx``: item vectors of input ids, for engines on a GPU.

    python -m fathom.exporter.engines.lookup_graph

A part of the package and not of a bundle, because nothing in it depends on a model.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from fathom.exporter.engines.search_graph import engine_bytes
from fathom.files import write_bytes
from fathom.runtime.engines.cuda import LOOKUP


def lookup_graph() -> bytes:
    """The graph.

    ``items``, int64 (batch, history), item index + 1 or 0 for padding, and ``table`` (items + 1, width), whose last row
    is zero, give ``item_vectors`` (batch, history, width).
    """
    nodes = [
        helper.make_node("Sub", ["items", "one"], ["index"]),  # -1 is the last row
        helper.make_node("Gather", ["table", "index"], ["item_vectors"]),
    ]
    inputs = [
        helper.make_tensor_value_info("items", TensorProto.INT64, ["batch", "history"]),
        helper.make_tensor_value_info("table", TensorProto.FLOAT, ["rows", "width"]),
    ]
    outputs = [helper.make_tensor_value_info("item_vectors", TensorProto.FLOAT, ["batch", "history", "width"])]
    one = numpy_helper.from_array(np.array(1, np.int64), "one")
    return engine_bytes(helper.make_graph(nodes, "lookup", inputs, outputs, [one]))


if __name__ == "__main__":
    write_bytes(LOOKUP, lookup_graph())
