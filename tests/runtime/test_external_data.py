"""An engine that takes values from another file is refused, wherever in it the tensor stands; no other engine is."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fathom.errors import BundleError
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.external_data import refuse_external_data

FLOAT = TensorProto.FLOAT


def outside(location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones(8, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def info(name: str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [8] if kind == FLOAT else [])


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def adding(tensor: onnx.TensorProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [info("x")], [info("y")], [tensor])


def as_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model(adding(tensor))


def in_a_branch(tensor: onnx.TensorProto) -> onnx.ModelProto:
    branch = adding(tensor)
    del branch.input[:]
    node = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    return model(helper.make_graph([node], "g", [info("x"), info("c", TensorProto.BOOL)], [info("z")]))


def in_a_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model(helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "g", [], [info("y")]))


def in_a_list_of_an_attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    made = in_a_constant(numpy_helper.from_array(np.ones(8, np.float32), "w"))
    made.graph.node[0].attribute.add(name="more").tensors.append(tensor)
    return made


def in_a_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    made = as_initializer(numpy_helper.from_array(np.ones(8, np.float32), "w"))
    made.functions.add(name="f", domain="d").node.append(helper.make_node("Constant", [], ["y"], value=tensor))
    return made


def sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    made = as_initializer(numpy_helper.from_array(np.ones(8, np.float32), "w"))
    made.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return made


PLACES: list[Callable[[onnx.TensorProto], onnx.ModelProto]] = [
    *(as_initializer, in_a_branch, in_a_constant, in_a_list_of_an_attribute, in_a_function, sparse),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["w.bin", "/etc/passwd", "../w.bin", "a/../w.bin", "*/_ORT_MEM_ADDR_/*"])
def test_external_data_is_refused_wherever_it_stands(
    place: Callable[[onnx.TensorProto], onnx.ModelProto], location: str
) -> None:
    data = place(outside(location)).SerializeToString()
    with pytest.raises(BundleError, match=r"^e\.onnx: takes values from another file"):
        refuse_external_data(data, "e.onnx")
    # A reader merges two halves of a message, so either may hold it.
    with pytest.raises(BundleError, match="takes values from another file"):
        refuse_external_data(as_initializer(numpy_helper.from_array(np.ones(8), "w")).SerializeToString() + data, "e")


@pytest.mark.parametrize("place", PLACES)
def test_an_engine_that_is_whole_passes(place: Callable[[onnx.TensorProto], onnx.ModelProto]) -> None:
    refuse_external_data(place(numpy_helper.from_array(np.ones(8, np.float32), "w")).SerializeToString(), "e")


@pytest.mark.parametrize("tag", [b"\xba\x80\x80\x80\x10", b"\xba\x80\x80\x80\x70", b"\xba\x80\x80\x80\x80\x01"])
def test_a_tag_longer_than_readers_look_at_hides_nothing(tag: bytes) -> None:
    graph = adding(outside("w.bin")).SerializeToString()
    with pytest.raises(BundleError, match=r"^e\.onnx: not an ONNX file"):
        refuse_external_data(tag + len(graph).to_bytes() + graph, "e.onnx")


@given(st.binary(max_size=200))
def test_any_bytes_pass_or_are_refused_and_raise_nothing_else(data: bytes) -> None:
    with suppress(BundleError):
        refuse_external_data(data, "e.onnx")


def test_a_bundle_with_such_an_engine_does_not_open(
    synthetic_bundle: Path, tmp_path: Path, reseal: Callable[[Path], None]
) -> None:
    bundle = Path(shutil.copytree(synthetic_bundle, tmp_path / "bundle"))
    file = bundle / "engines/depth-08.onnx"
    engine = onnx.load(str(file))
    values = numpy_helper.to_array(engine.graph.initializer[0])
    values.tofile(tmp_path / "values.bin")
    engine.graph.initializer[0].CopyFrom(outside("values.bin"))
    file.write_bytes(engine.SerializeToString())
    reseal(bundle)
    with pytest.raises(BundleError, match=r"depth-08\.onnx: takes values from another file"):
        Bundle.open(bundle)
    assert [check.name for check in verify(bundle) if not check.ok] == ["engines/depth-08.onnx"]
