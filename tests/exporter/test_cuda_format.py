"""A bundle for CUDA graphs: the same answers from engines without a branch, on a GPU and on a CPU."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from fathom.client import Client
from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.formats.cuda import convert_for_cuda
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.cuda import CudaEngine
from fathom.runtime.engines.gpu import this_gpu
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.engines.open import open_engine


def same_answers(engine: CudaEngine, bundle: Bundle, *, within: float) -> None:
    """Against onnxruntime on the CPU, in several shapes, the same shape again, and with a depth in between."""
    rng = np.random.default_rng(0)
    with OnnxEngine(bundle, depths=bundle.depths, threads=1) as expected:
        for batch, length in ((1, 1), (3, 17), (4, 17), (3, 17), (40, 32), (3, 20), (3, 18)):
            items = rng.integers(1, bundle.manifest.items + 1, (batch, min(length, bundle.manifest.model.max_history)))
            times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)
            for depth in (16, 4, 8, 12, 4, 16):
                for at in (times, None):
                    users = engine.run(items, at, depth)
                    assert users == pytest.approx(expected.run(items, at, depth), abs=within)
            walked = engine.walk(items, times, (4, 16))
            assert next(walked) == pytest.approx(expected.run(items, times, 4), abs=within)
            assert next(walked) == pytest.approx(expected.run(items, times, 16), abs=within)


def test_a_converted_bundle_answers_as_the_first_does(bundle_path: Path, tmp_path: Path) -> None:
    convert_for_cuda(bundle_path, tmp_path / "cuda")
    for each in (bundle_path, tmp_path / "cuda"):
        with Bundle.open(each) as bundle, CudaEngine(bundle, depths=bundle.depths, device="cpu") as engine:
            same_answers(engine, bundle, within=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(this_gpu() is None, reason="there is no CUDA device")
def test_graphs_compute_what_the_cpu_computes(bundle_path: Path, tmp_path: Path) -> None:
    convert_for_cuda(bundle_path, tmp_path / "cuda")
    for each, captured in ((bundle_path, False), (tmp_path / "cuda", True)):
        with Bundle.open(each) as bundle, open_engine(bundle) as engine:
            assert isinstance(engine, CudaEngine)
            assert engine.captured == captured
            same_answers(engine, bundle, within=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(this_gpu() is None, reason="there is no CUDA device")
def test_a_server_on_a_gpu_answers_as_one_on_the_processor(bundle_path: Path, tmp_path: Path) -> None:
    convert_for_cuda(bundle_path, tmp_path / "cuda")
    rng = np.random.default_rng(0)
    asked = [([f"item-{i}" for i in rng.integers(0, 40, rng.integers(1, 30))], depth) for depth in (4, 8, 12, 16) * 10]
    answers = []
    for device, engine in (("cpu", "onnxruntime-cpu"), ("cuda", "onnxruntime-cuda")):
        options = ("--device", device, "--profile", "cloud-h100")
        with running_server(tmp_path / "cuda", *options) as server, Client(server.address) as client:
            assert client.bundle().engine == engine
            found = [client.recommend(items, k=5, depth=depth) for items, depth in asked]
            answers.append([[item.id for item in each.items] for each in found])
    assert answers[0] == answers[1]


def test_converted_engines_have_no_branches_and_another_version(bundle_path: Path, tmp_path: Path) -> None:
    made = convert_for_cuda(bundle_path, tmp_path / "cuda")
    with Bundle.open(bundle_path) as bundle:
        assert made.version != bundle.manifest.version
        assert made.depths == bundle.manifest.depths
    for info in made.depths.values():
        for name in info.segments:
            graph = onnx.load(tmp_path / "cuda" / name).graph
            assert "If" not in {node.op_type for node in graph.node}
            assert "read_exit" not in {each.name for each in graph.input}
    again = convert_for_cuda(tmp_path / "cuda", tmp_path / "again")
    assert again.version == made.version
    with pytest.raises(ConfigError, match="cannot replace the one that it is made from"):
        convert_for_cuda(bundle_path, bundle_path)


def test_a_bundle_in_a_precision_that_no_gpu_runs_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    with Bundle.open(bundle_path) as bundle:
        derive_bundle(bundle, tmp_path / "packed", precision="int4+lora")
    with pytest.raises(ConfigError, match=r"in int4\+lora; a GPU runs fp32 and fp16"):
        convert_for_cuda(tmp_path / "packed", tmp_path / "cuda")
    assert not (tmp_path / "cuda").exists()
