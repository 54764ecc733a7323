"""Position biases that are cut together are those that each layer would cut."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.exporter.engines.joined_biases import with_joined_biases

LONGEST, HEADS = 6, 2


def engine(ends: list[str]) -> bytes:
    """As many layers as there are ``ends``, the inputs that say where each one's bias is cut along both axes."""
    rng = np.random.default_rng(0)
    of_distance = rng.integers(0, 4, (LONGEST, LONGEST))
    constants = [numpy_helper.from_array(of_distance, "table"), numpy_helper.from_array(np.array([1, 2]), "axes")]
    constants.append(numpy_helper.from_array(np.zeros(2, np.int64), "starts"))
    nodes = [helper.make_node("Identity", ["table"], ["positions"])]
    for layer, end in enumerate(ends):
        bias = rng.standard_normal((HEADS, 4)).astype(np.float32)
        constants.append(numpy_helper.from_array(bias, f"bias-{layer}"))
        nodes += [
            helper.make_node("Gather", [f"bias-{layer}", "positions"], [f"looked-up-{layer}"], axis=1),
            helper.make_node("Slice", [f"looked-up-{layer}", "starts", end, "axes"], [f"cut-{layer}"]),
            helper.make_node("Neg", [f"cut-{layer}"], [f"out-{layer}"]),
        ]
    inputs = [helper.make_tensor_value_info(end, TensorProto.INT64, [2]) for end in sorted(set(ends))]
    outputs = [
        helper.make_tensor_value_info(f"out-{layer}", TensorProto.FLOAT, [HEADS, None, None])
        for layer in range(len(ends))
    ]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    )


def answers(data: bytes, ends: list[str]) -> list[np.ndarray]:
    feeds = {end: np.array([2 + place, 3], np.int64) for place, end in enumerate(sorted(set(ends)))}
    return list(onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds))


@pytest.mark.parametrize(("ends", "cuts"), [(["a", "a", "a"], 1), (["a", "b", "a"], 2)], ids=str)
def test_biases_that_are_cut_alike_are_cut_once_and_are_the_same(ends: list[str], cuts: int) -> None:
    data = engine(ends)
    joined = with_joined_biases(data)
    assert sum(node.op_type == "Slice" for node in onnx.load_from_string(joined).graph.node) == cuts
    for expected, found in zip(answers(data, ends), answers(joined, ends), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_engine_that_cuts_none_alike_is_left_as_it_is() -> None:
    data = engine(["a", "b"])
    assert with_joined_biases(data) == data
