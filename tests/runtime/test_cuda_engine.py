"""The engine for GPUs, and when it is taken. Without a GPU, onnxruntime runs it on the CPU, and nothing is captured."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from fathom.errors import ConfigError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.cuda import CudaEngine
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.engines.session import offers_cuda
from fathom.runtime.engines.tensorrt import gpu_capability
from tests.runtime.test_engine import EngineContract


class TestOnTheCpu(EngineContract):
    @pytest.fixture
    def engine(self, synthetic_bundle: Path) -> Engine:
        return CudaEngine(Bundle.open(synthetic_bundle), depths=(4, 8, 12, 16), device="cpu")


class TestNestedOnTheCpu(EngineContract):
    @pytest.fixture
    def engine(self, make_bundle) -> Engine:
        return CudaEngine(Bundle.open(make_bundle(strategy="nested")), depths=(4, 8, 12, 16), device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(gpu_capability() is None, reason="there is no CUDA device")
class TestOnAGpu(EngineContract):
    @pytest.fixture
    def engine(self, synthetic_bundle: Path) -> Engine:
        return open_engine(Bundle.open(synthetic_bundle), device="cuda")


@pytest.mark.skipif(offers_cuda(), reason="onnxruntime has a CUDA provider here")
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(synthetic_bundle: Path) -> None:
    with Bundle.open(synthetic_bundle) as bundle:
        with pytest.raises(ConfigError, match="no CUDA provider; pip install 'fathom-recommender\\[gpu\\]'"):
            open_engine(bundle, device="cuda")
        assert isinstance(open_engine(bundle), OnnxEngine)


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
