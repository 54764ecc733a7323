"""TensorRT-RTX plans: built for GPUs that are not here, refused where they do not fit, and never in a server's way."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fathom.client import Client
from fathom.edge_profiles.profile import load_profile
from fathom.errors import BundleEditedError, BundleSchemaError, ConfigError
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.formats.ort import convert_to_ort
from fathom.exporter.formats.tensorrt import add_plans
from fathom.files import read_json, write_json
from fathom.local import running_server
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.engines.plans import PlanRefusedError, choose_plan
from fathom.runtime.engines.tensorrt import RtxEngine, gpu_capability
from fathom.runtime.manifest import SCHEMA_VERSION, Manifest, version_of

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'fathom-recommender[rtx]'")

DEPTHS = (4, 8, 12, 16)


@pytest.fixture(scope="module")
def planned(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with plans of every segment for two GPUs. Shared: copy it before editing."""
    out = tmp_path_factory.mktemp("planned") / "bundle"
    add_plans(bundle_path, out, ["8.6", "8.9"])
    return out


@pytest.fixture(scope="module")
def manifest(planned: Path) -> Manifest:
    with Bundle.open(planned) as bundle:
        return bundle.manifest


def test_every_segment_is_built_for_every_gpu(planned: Path, manifest: Manifest) -> None:
    assert [plan.compute_capability for plan in manifest.plans] == ["8.6", "8.9"]
    engines = [f"engines/depth-{depth:02d}.onnx" for depth in DEPTHS]
    for plan in manifest.plans:
        assert plan.version == trt.__version__
        assert plan.histories[-1] == manifest.model.max_history
        assert sorted(plan.segments) == engines
        for file in plan.segments.values():
            assert (planned / file).stat().st_size > 10_000
    assert all(check.ok for check in verify(planned))


def test_plans_of_one_gpu_are_not_those_of_another(planned: Path, manifest: Manifest) -> None:
    first, second = (plan.segments["engines/depth-04.onnx"] for plan in manifest.plans)
    assert (planned / first).read_bytes() != (planned / second).read_bytes()


def test_the_plan_of_this_gpu_is_chosen(manifest: Manifest) -> None:
    assert choose_plan(manifest, library=trt.__version__, capability="8.9").compute_capability == "8.9"


def test_a_foreign_plan_is_refused(manifest: Manifest) -> None:
    with pytest.raises(PlanRefusedError, match=r"8\.9 is foreign: this GPU has 12\.0"):
        choose_plan(manifest, library=trt.__version__, capability="12.0")


def test_a_plan_of_another_version_is_stale(manifest: Manifest) -> None:
    with pytest.raises(PlanRefusedError, match=r"8\.6 is stale: TensorRT-RTX .* built it, 9\.9 is installed"):
        choose_plan(manifest, library="9.9", capability="8.6")


def test_a_plan_of_an_engine_that_has_changed_is_stale(manifest: Manifest) -> None:
    engine = "engines/depth-08.onnx"
    files = manifest.files | {engine: manifest.files[engine].model_copy(update={"sha256": "0" * 64})}
    changed = manifest.model_copy(update={"files": files})
    with pytest.raises(PlanRefusedError, match=f"stale: {engine} has changed since"):
        choose_plan(changed, library=trt.__version__, capability="8.6")


@pytest.mark.parametrize(
    ("library", "capability", "words"), [(None, "8.9", "is not installed"), (trt.__version__, None, "no NVIDIA GPU")]
)
def test_without_library_or_gpu_no_plan_is_run(
    manifest: Manifest, library: str | None, capability: str | None, words: str
) -> None:
    with pytest.raises(PlanRefusedError, match=words):
        choose_plan(manifest, library=library, capability=capability)


def test_on_a_gpu_that_no_plan_is_for_onnxruntime_answers(
    planned: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fathom.runtime.engines.tensorrt.gpu_capability", lambda: "12.1")
    with Bundle.open(planned) as bundle, open_engine(bundle) as engine:
        assert isinstance(engine, OnnxEngine)
        assert engine.run(np.array([[1, 2]]), None, 16).shape == (1, 16)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "foreign: this GPU has 12.1" in record.getMessage()


def test_a_server_with_stale_plans_says_so_and_answers_the_same(
    planned: Path, bundle_path: Path, tmp_path: Path
) -> None:
    stale = tmp_path / "stale"
    shutil.copytree(planned, stale)
    value = read_json(stale / "manifest.json", kind="manifest", schema_version=SCHEMA_VERSION)
    for plan in value["plans"]:
        plan["version"] = "1.0.0"
    write_json(stale / "manifest.json", value | {"version": version_of(value)})
    with Bundle.open(bundle_path) as bundle:
        history = list(bundle.catalogue.ids[:3])
    with running_server(bundle_path) as local, Client(local.address) as client:
        expected = [client.recommend(history, k=5, depth=depth) for depth in DEPTHS]
    command = [sys.executable, "-m", "fathom", "serve", str(stale), "--port", "0", "--json", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = json.loads(process.stdout.readline())
        try:
            with Client(ready["address"]) as client:
                found = [client.recommend(history, k=5, depth=depth) for depth in DEPTHS]
                assert client.bundle().engine == "onnxruntime-cpu"
        finally:
            process.terminate()
        said = process.stderr.read()
    assert [[item.id for item in answer.items] for answer in found] == [
        [item.id for item in answer.items] for answer in expected
    ]
    assert "onnxruntime answers instead" in said
    assert f"TensorRT-RTX 1.0.0 built it, {trt.__version__} is installed" in said


def test_a_plan_that_was_edited_is_refused_with_its_bundle(planned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(planned, copy)
    plan = copy / "plans/sm86/depth-08.plan"
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(BundleEditedError, match=r"depth-08\.plan"):
        Bundle.open(copy)


def test_a_plan_that_lacks_an_engine_is_refused(planned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(planned, copy)
    value = read_json(copy / "manifest.json", kind="manifest", schema_version=SCHEMA_VERSION)
    del value["plans"][0]["segments"]["engines/depth-08.onnx"]
    write_json(copy / "manifest.json", value | {"version": version_of(value)})
    with pytest.raises(BundleSchemaError, match="a TensorRT plan is not of the bundle's engines"):
        Bundle.open(copy)


def test_a_slice_keeps_the_plans_of_its_engines_and_phones_get_none(planned: Path, tmp_path: Path) -> None:
    mobile = slice_bundle(planned, load_profile("mobile"), tmp_path / "mobile")
    assert [sorted(plan.segments) for plan in mobile.plans] == [["engines/depth-04.onnx", "engines/depth-08.onnx"]] * 2
    assert not (tmp_path / "mobile/plans/sm86/depth-12.plan").exists()
    phone = convert_to_ort(planned, tmp_path / "phone")
    assert phone.plans == ()
    assert not any(name.endswith(".plan") for name in phone.files)
    assert phone.version == version_of(phone.model_dump(mode="json"))


def test_what_cannot_be_built_is_refused_in_one_line(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown compute capability 9\.0; TensorRT-RTX .* builds for 7\.5"):
        add_plans(bundle_path, tmp_path / "out", ["9.0"])
    with pytest.raises(ConfigError, match="no compute capability given"):
        add_plans(bundle_path, tmp_path / "out", [])
    convert_to_ort(bundle_path, tmp_path / "phone")
    with pytest.raises(ConfigError, match="its engines are ort"):
        add_plans(tmp_path / "phone", tmp_path / "out", ["8.9"])
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.skipif(gpu_capability() is None, reason="there is no CUDA device")
def test_a_plan_computes_what_onnxruntime_computes(bundle_path: Path, tmp_path: Path) -> None:
    capability = gpu_capability()
    assert capability is not None
    add_plans(bundle_path, tmp_path / "here", [capability])
    rng = np.random.default_rng(0)
    with Bundle.open(tmp_path / "here") as bundle:
        expected = OnnxEngine(bundle, depths=bundle.depths, threads=1)
        with open_engine(bundle) as engine:
            assert isinstance(engine, RtxEngine)
            for batch, length in ((1, 1), (3, 17), (40, bundle.manifest.model.max_history)):
                items = rng.integers(1, bundle.manifest.items + 1, (batch, length))
                times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)
                for depth in bundle.depths:
                    found = engine.run(items, times, depth)
                    assert found == pytest.approx(expected.run(items, times, depth), abs=1e-3)
