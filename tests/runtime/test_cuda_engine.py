"""The engine for GPUs, and when it is taken. Without a GPU, onnxruntime runs it on the CPU, and nothing is captured."""

import logging
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from fathom.errors import ConfigError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.cuda import CudaEngine, TensorRtProviderEngine, tensorrt_options
from fathom.runtime.engines.gpu import this_gpu
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.engines.session import offers_cuda, starts
from fathom.runtime.manifest import ModelInfo
from tests.runtime.test_engine import EngineContract

CPU, TENSORRT = "CPUExecutionProvider", "TensorrtExecutionProvider"


class TestOnTheCpu(EngineContract):
    @pytest.fixture
    def engine(self, synthetic_bundle: Path) -> Engine:
        return CudaEngine(Bundle.open(synthetic_bundle), depths=(4, 8, 12, 16), device="cpu")


class TestNestedOnTheCpu(EngineContract):
    @pytest.fixture
    def engine(self, make_bundle) -> Engine:
        return CudaEngine(Bundle.open(make_bundle(strategy="nested")), depths=(4, 8, 12, 16), device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(this_gpu() is None, reason="there is no CUDA device")
class TestOnAGpu(EngineContract):
    @pytest.fixture
    def engine(self, synthetic_bundle: Path) -> Engine:
        return open_engine(Bundle.open(synthetic_bundle), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not starts(TENSORRT), reason="onnxruntime's TensorRT provider does not start here")
class TestOnAGpuByTensorRt(EngineContract):
    @pytest.fixture
    def engine(self, synthetic_bundle: Path, tmp_path: Path) -> Engine:
        bundle = Bundle.open(synthetic_bundle)
        return TensorRtProviderEngine(bundle, depths=bundle.depths, cache=tmp_path)


@pytest.mark.skipif(offers_cuda(), reason="onnxruntime has a CUDA provider here")
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(synthetic_bundle: Path) -> None:
    with Bundle.open(synthetic_bundle) as bundle:
        with pytest.raises(ConfigError, match="no CUDA provider; pip install 'fathom-recommender\\[gpu\\]'"):
            open_engine(bundle, device="cuda")
        assert isinstance(open_engine(bundle), OnnxEngine)


@pytest.mark.skipif(offers_cuda(), reason="onnxruntime has a CUDA provider here")
def test_tensorrt_that_is_asked_for_and_not_there_is_an_error(synthetic_bundle: Path) -> None:
    assert not starts(TENSORRT)
    with Bundle.open(synthetic_bundle) as bundle:
        engine = bundle.read(bundle.manifest.depths[4].segments[0])
        with pytest.warns(UserWarning, match="is not in available provider names"):
            session = onnxruntime.InferenceSession(engine, providers=[TENSORRT], enable_fallback=0)
        assert session.get_providers() == [CPU]  # so it has to be asked
        with pytest.raises(ConfigError, match=r"no TensorRT provider; pip install 'fathom-recommender\[gpu\]'"):
            open_engine(bundle, device="tensorrt")


def test_the_tensorrt_provider_gets_one_profile_and_a_cache_for_each_engine(tmp_path: Path) -> None:
    model = ModelInfo(block="hstu", layers=4, width=8, heads=2, max_history=20, uses_timestamps=True)
    options = tensorrt_options(model, None)
    assert options["trt_profile_min_shapes"] == "items:1x1,timestamps:1x1,item_vectors:1x1x8,hidden_in:1x1x8"
    assert options["trt_profile_max_shapes"] == "items:32x20,timestamps:32x20,item_vectors:32x20x8,hidden_in:32x20x8"
    assert "trt_engine_cache_enable" not in options
    kept = tensorrt_options(model, tmp_path / "cache" / "0123")
    assert kept["trt_engine_cache_path"] == str(tmp_path / "cache" / "0123")
    assert kept["trt_timing_cache_path"] == str(tmp_path / "cache")
    assert (tmp_path / "cache" / "0123").is_dir()


def test_engines_that_are_made_for_processors_are_refused(synthetic_bundle: Path) -> None:
    with Bundle.open(synthetic_bundle) as bundle:
        for changed, words in (({"precision": "int8"}, "onnx int8"), ({"format": "ort"}, "ort fp32")):
            other = replace(bundle, manifest=bundle.manifest.model_copy(update=changed))
            with pytest.raises(ConfigError, match=f"engines in {words} are for processors; export fp32 or fp16 onnx"):
                CudaEngine(other, depths=bundle.depths)


def test_a_provider_that_does_not_start_is_said_aloud_and_the_cpu_answers(
    synthetic_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object, **__: object) -> CudaEngine:
        raise ConfigError("onnxruntime runs on CPUExecutionProvider")

    monkeypatch.setattr("fathom.runtime.engines.open.offers_cuda", lambda: True)
    monkeypatch.setattr("fathom.runtime.engines.open.CudaEngine", refuses)
    with Bundle.open(synthetic_bundle) as bundle, caplog.at_level(logging.WARNING):
        assert isinstance(open_engine(bundle), OnnxEngine)
        assert "the GPU is not used, the CPU answers instead: onnxruntime runs on CPU" in caplog.text
        caplog.clear()
        assert isinstance(open_engine(bundle, device="cpu"), OnnxEngine)
        assert not caplog.text
