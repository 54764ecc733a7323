"""TensorRT plans of both flavours: built, refused where they do not fit, and never in a server's way.

TensorRT-RTX builds without a GPU and is the library in all of these tests: also where TensorRT, whose interface is the
same, would build on an Orin.
"""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest

from fathom.client import Client
from fathom.edge_profiles.profile import load_profile
from fathom.errors import BundleEditedError, BundleSchemaError, ConfigError, MissingExtraError, OutputError
from fathom.exporter.bundle.export import export
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.engines.precision import Precision
from fathom.exporter.formats import tensorrt as builder
from fathom.exporter.formats.ort import convert_to_ort
from fathom.exporter.formats.tensorrt import PlanBuilder, Target, add_plans, known_capabilities
from fathom.exporter.formats.timing_cache import TimingCache
from fathom.files import read_json, write_json
from fathom.local import running_server
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.engines.gpu import Gpu, this_gpu, this_platform
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.engines.plans import FLAVOURS, Flavour, Machine, PlanRefusedError, choose_plan
from fathom.runtime.engines.tensorrt import PlanEngine, _Segment, open_plan
from fathom.runtime.manifest import SCHEMA_VERSION, Manifest, Plan, version_of
from fathom.runtime.padding import length_buckets
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'fathom-recommender[rtx]'")

#: TensorRT-RTX says that what it keeps in a timing cache is nothing.
pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")

DEPTHS = (4, 8, 12, 16)
RTX = FLAVOURS["tensorrt-rtx"]
#: What builds as TensorRT does, for the GPU of the machine, with the library that is here.
STAND_IN = Flavour("tensorrt", "TensorRT", "tensorrt_rtx", "rtx", ahead=False)
ORIN = Gpu("8.7", "Orin, 8 multiprocessors")


@pytest.fixture(scope="module")
def planned(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with plans of every segment for two RTX cards. Shared: copy it before editing."""
    out = tmp_path_factory.mktemp("planned") / "bundle"
    add_plans(bundle_path, out, RTX, ["8.6", "8.9"])
    return out


@pytest.fixture(scope="module")
def small(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with its first segment alone."""
    profile = load_profile("mobile").model_copy(update={"depths": (4,)})
    out = tmp_path_factory.mktemp("small") / "bundle"
    slice_bundle(bundle_path, profile, out)
    return out


@pytest.fixture(scope="module")
def manifest(planned: Path) -> Manifest:
    with Bundle.open(planned) as bundle:
        return bundle.manifest


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu | None], None]:
    """A function that gives this machine another GPU, on which the stand-in may build."""

    def put(gpu: Gpu | None) -> None:
        monkeypatch.setattr(builder, "this_gpu", lambda: gpu)
        monkeypatch.setattr(builder, "OLDEST", 1)

    return put


@pytest.fixture(scope="module")
def both(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manifest]:
    """The manifest of the bundle with plans for two RTX cards and for an Orin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "this_gpu", lambda: ORIN)
        patch.setattr(builder, "OLDEST", 1)
        yield add_plans(planned, tmp_path_factory.mktemp("both") / "bundle", STAND_IN)


def rtx_machine(capability: str | None, version: str | None = trt.__version__) -> Machine:
    gpu = None if capability is None else Gpu(capability, "NVIDIA GeForce RTX")
    return Machine({"tensorrt-rtx": version, "tensorrt": None}, gpu, "linux-x86_64")


def an_orin(**changes: object) -> Machine:
    return replace(Machine({"tensorrt": trt.__version__, "tensorrt-rtx": None}, ORIN, this_platform()), **changes)


def test_every_segment_is_built_for_every_gpu(planned: Path, manifest: Manifest) -> None:
    assert [plan.compute_capability for plan in manifest.plans] == ["8.6", "8.9"]
    engines = [f"engines/depth-{depth:02d}.onnx" for depth in DEPTHS]
    for plan in manifest.plans:
        assert (plan.flavour, plan.version, plan.precision) == ("tensorrt-rtx", trt.__version__, "fp32")
        assert plan.histories[-1] == manifest.model.max_history
        assert sorted(plan.segments) == engines
        for file in plan.segments.values():
            assert (planned / file).stat().st_size > 10_000
    assert all(check.ok for check in verify(planned))


def test_plans_of_one_gpu_are_not_those_of_another(planned: Path, manifest: Manifest) -> None:
    first, second = (plan.segments["engines/depth-04.onnx"] for plan in manifest.plans)
    assert (planned / first).read_bytes() != (planned / second).read_bytes()


@pytest.mark.parametrize("capability", ["8.6", "8.9"])
def test_a_build_has_a_profile_per_length_bucket_and_the_types_of_the_onnx(bundle_path: Path, capability: str) -> None:
    with Bundle.open(bundle_path) as bundle:
        buckets = length_buckets(bundle.manifest.model.max_history)
        build = PlanBuilder(trt, "TensorRT-RTX", Target(capability, known_capabilities(trt)[capability]), buckets, None)
        network = build.parse(bundle.read("engines/depth-08.onnx"), "depth-08.onnx")
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    inputs = {each.name: each.dtype for each in map(network.get_input, range(network.num_inputs))}
    assert inputs.pop("hidden_in") == trt.float32
    assert set(inputs.values()) == {trt.int64}  # ids and seconds
    config = build.configure(network)
    assert len(buckets) > 1
    assert config.num_optimization_profiles == len(buckets)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == known_capabilities(trt)[capability]


def test_a_plan_for_this_machines_gpu_is_put_beside_the_others(planned: Path, both: Manifest) -> None:
    *rtx, orin = both.plans
    with Bundle.open(planned) as bundle:
        assert tuple(rtx) == bundle.manifest.plans
        kept = {name: bundle.manifest.files[name] for plan in rtx for name in plan.segments.values()}
    assert kept.items() <= both.files.items()
    assert (orin.flavour, orin.compute_capability) == ("tensorrt", "8.7")
    assert (orin.gpu, orin.platform) == (ORIN.name, this_platform())
    (folder,) = {Path(name).parent.as_posix() for name in orin.segments.values()}
    assert folder == "plans/tensorrt-sm87-orin-8-multiprocessors"


def test_a_plan_for_the_same_gpu_takes_the_place_of_the_old_one(small: Path, tmp_path: Path) -> None:
    add_plans(small, tmp_path / "one", RTX, ["8.6", "8.9"])
    again = add_plans(tmp_path / "one", tmp_path / "again", RTX, ["8.9", "12.0"])
    assert [plan.compute_capability for plan in again.plans] == ["8.6", "8.9", "12.0"]
    assert Target("9.0", gpu="NVIDIA H100 PCIe").folder == "sm90-nvidia-h100-pcie"


def test_what_was_timed_is_kept_in_a_file_and_given_to_the_next_build(
    small: Path, tmp_path: Path, on_gpu: Callable[[Gpu | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "orin.cache"
    on_gpu(ORIN)
    add_plans(small, tmp_path / "one", STAND_IN, timing_cache=cache)
    head, _, timed = cache.read_bytes().partition(b"\n")
    assert head.decode() == f"Fathom timing cache: TensorRT {trt.__version__} on {ORIN.name} (8.7)"
    assert len(timed) > 100
    assert len(TimingCache(cache, f"TensorRT {trt.__version__}", f"{ORIN.name} (8.7)")) == len(timed)
    assert not caplog.records
    on_gpu(Gpu("9.0", "NVIDIA H100 PCIe"))
    with caplog.at_level(logging.WARNING):
        add_plans(small, tmp_path / "two", STAND_IN, timing_cache=cache)
    assert "of another GPU or version of TensorRT, and begun anew" in caplog.text
    assert b"NVIDIA H100 PCIe (9.0)\n" in cache.read_bytes()


def test_the_plan_of_this_machine_is_chosen(both: Manifest) -> None:
    assert choose_plan(both, rtx_machine("8.9")).compute_capability == "8.9"
    assert choose_plan(both, an_orin()).gpu == ORIN.name
    # Where both could be run, TensorRT's: it has timed what it runs.
    changed = {"compute_capability": "8.9", "gpu": "NVIDIA GeForce RTX", "platform": "linux-x86_64"}
    here = both.plans[-1].model_copy(update=changed)
    machine = replace(rtx_machine("8.9"), libraries=dict.fromkeys(FLAVOURS, trt.__version__))
    assert choose_plan(both.model_copy(update={"plans": (*both.plans[:-1], here)}), machine) == here


def test_a_foreign_plan_is_refused(both: Manifest) -> None:
    for machine, words in (
        (rtx_machine("12.0"), r"8\.9 is foreign: this GPU has 12\.0"),
        (rtx_machine(None), "8.9 is foreign: there is no NVIDIA GPU here"),
        (
            an_orin(gpu=Gpu("8.7", "Orin, 16 multi")),
            "8.7 is foreign: it was tuned for Orin, 8 multi.*, this GPU is Orin, 16",
        ),
        (an_orin(gpu=Gpu("5.3", "NVIDIA Tegra X1")), r"TensorRT plan .* 8\.7 is foreign: this GPU has 5\.3"),
        (an_orin(platform="linux-riscv64"), "8.7 is foreign: it was built on .*, this is linux-riscv64"),
    ):
        with pytest.raises(PlanRefusedError, match=words) as refused:
            choose_plan(both, machine)
        assert refused.value.kind == "foreign"


def test_a_plan_of_another_version_is_stale(both: Manifest) -> None:
    with pytest.raises(
        PlanRefusedError, match=r"8\.6 is stale: TensorRT-RTX .* built it, 9\.9 is installed"
    ) as refused:
        choose_plan(both, rtx_machine("8.6", "9.9"))
    assert refused.value.kind == "stale"
    with pytest.raises(PlanRefusedError, match=r"8\.7 is stale: TensorRT .* built it, 10\.3\.0 is installed"):
        choose_plan(both, an_orin(libraries={"tensorrt": "10.3.0"}))


def test_a_plan_of_other_engines_is_stale(manifest: Manifest) -> None:
    engine = "engines/depth-08.onnx"
    files = manifest.files | {engine: manifest.files[engine].model_copy(update={"sha256": "0" * 64})}
    changed = manifest.model_copy(update={"files": files})
    with pytest.raises(PlanRefusedError, match=f"stale: {engine} has changed since"):
        choose_plan(changed, rtx_machine("8.6"))
    halved = manifest.model_copy(update={"precision": "fp16"})
    with pytest.raises(PlanRefusedError, match="stale: it computes in fp32, the bundle is in fp16"):
        choose_plan(halved, rtx_machine("8.6"))


def test_without_the_library_or_a_plan_nothing_is_run(both: Manifest) -> None:
    words = r"^TensorRT is not installed; pip install '.*\[tensorrt\]'; TensorRT-RTX is not installed; .*\[rtx\]'$"
    with pytest.raises(PlanRefusedError, match=words) as refused:
        choose_plan(both, rtx_machine("8.9", None))
    assert refused.value.kind == "missing"
    with pytest.raises(PlanRefusedError, match="the bundle has no TensorRT plans"):
        choose_plan(both.model_copy(update={"plans": ()}), rtx_machine("8.9"))


def test_on_a_gpu_that_no_plan_is_for_onnxruntime_answers(
    planned: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fathom.runtime.engines.plans.this_gpu", lambda: Gpu("12.1", "NVIDIA GB10"))
    with Bundle.open(planned) as bundle, open_engine(bundle) as engine:
        assert isinstance(engine, OnnxEngine)
        assert engine.run(np.array([[1, 2]]), None, 16).shape == (1, 16)
        assert engine.plan_refused == "foreign"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "foreign: this GPU has 12.1" in record.getMessage()


def test_a_damaged_plan_is_refused_in_one_line_and_onnxruntime_answers(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(planned, damaged)
    value = read_json(damaged / "manifest.json", kind="manifest", schema_version=SCHEMA_VERSION)
    file = "plans/tensorrt-rtx-sm89/depth-04.plan"
    data = (damaged / file).read_bytes()[:100]
    (damaged / file).write_bytes(data)
    value["files"][file] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_json(damaged / "manifest.json", value | {"version": version_of(value)})
    monkeypatch.setattr("fathom.runtime.engines.plans.this_gpu", lambda: Gpu("8.9", "NVIDIA GeForce RTX"))
    with Bundle.open(damaged) as bundle, open_engine(bundle) as engine:
        assert isinstance(engine, OnnxEngine)
        assert engine.plan_refused == "broken"
    (record,) = caplog.records
    said = f"{file}: TensorRT-RTX {trt.__version__} cannot read this plan on this machine"
    assert record.getMessage().endswith(said)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("pybind11::init(): factory function returned nullptr"),  # as of trt.Runtime without a driver
        MemoryError("std::bad_alloc"),
        RuntimeError("CUDA: cudaErrorMemoryAllocation\nand more"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_bindings_raise_is_a_refusal_in_one_line(
    planned: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr("fathom.runtime.engines.plans.this_gpu", lambda: Gpu("8.9", "NVIDIA GeForce RTX"))
    monkeypatch.setattr(trt, "Runtime", refuse)
    with (
        Bundle.open(planned) as bundle,
        pytest.raises(
            PlanRefusedError, match=r"TensorRT-RTX plan for compute capability 8\.9 cannot be opened"
        ) as refused,
    ):
        open_plan(bundle, bundle.depths)
    assert refused.value.kind == "broken"
    assert "\n" not in str(refused.value)
    assert type(error).__name__ in str(refused.value)


class NoContexts:
    """Of an engine that TensorRT has read, its shapes; there is no memory for what would run it."""

    num_io_tensors = 1

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.num_optimization_profiles = len(plan.histories)

    def get_tensor_name(self, _: int) -> str:
        return "items"

    def get_tensor_mode(self, _: str) -> object:
        return trt.TensorIOMode.INPUT

    def get_tensor_profile_shape(self, _: str, place: int) -> list[tuple[int, int]]:
        return [(1, 1), (1, 1), (self._plan.max_batch, self._plan.histories[place])]

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace()

    def create_execution_context(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("flavour", [RTX, STAND_IN], ids=lambda flavour: flavour.name)
def test_without_memory_for_a_context_a_plan_is_refused(manifest: Manifest, flavour: Flavour) -> None:
    with pytest.raises(PlanRefusedError, match=r"a\.plan: TensorRT.* the GPU may be short of memory") as refused:
        _Segment(trt, flavour, NoContexts(manifest.plans[0]), "a.plan", manifest.plans[0])
    assert refused.value.kind == "broken"


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
    command += ["--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = json.loads(process.stdout.readline())
        try:
            with Client(ready["address"]) as client:
                found = [client.recommend(history, k=5, depth=depth) for depth in DEPTHS]
                assert client.bundle().engine == "onnxruntime-cpu"
            with urlopen(f"http://{ready['metrics_address']}/metrics") as answer:
                metrics = answer.read().decode()
        finally:
            process.terminate()
        said = process.stderr.read()
    assert [[item.id for item in answer.items] for answer in found] == [
        [item.id for item in answer.items] for answer in expected
    ]
    assert "onnxruntime answers instead" in said
    assert 'fathom_plans_refused{bundle="tiny",reason="stale"} 1.0' in metrics
    assert f"TensorRT-RTX 1.0.0 built it, {trt.__version__} is installed" in said


def test_a_plan_that_was_edited_is_refused_with_its_bundle(planned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(planned, copy)
    plan = copy / "plans/tensorrt-rtx-sm86/depth-08.plan"
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


def test_plans_of_schema_8_are_those_of_tensorrt_rtx(planned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(planned, copy)
    value = read_json(copy / "manifest.json", kind="manifest", schema_version=SCHEMA_VERSION) | {"schema_version": 8}
    for plan in value["plans"]:
        for key in ("flavour", "gpu", "platform", "precision"):
            del plan[key]
    write_json(copy / "manifest.json", value | {"version": version_of(value)})
    with Bundle.open(copy) as bundle:
        assert choose_plan(bundle.manifest, rtx_machine("8.6")).flavour == "tensorrt-rtx"
    value["plans"][0]["flavour"] = "tensorrt"
    write_json(copy / "manifest.json", value | {"version": version_of(value)})
    with pytest.raises(BundleSchemaError, match="does not name the GPU, platform and precision"):
        Bundle.open(copy)


def test_a_slice_keeps_the_plans_of_its_engines_and_phones_get_none(planned: Path, tmp_path: Path) -> None:
    mobile = slice_bundle(planned, load_profile("mobile"), tmp_path / "mobile")
    assert [sorted(plan.segments) for plan in mobile.plans] == [["engines/depth-04.onnx", "engines/depth-08.onnx"]] * 2
    assert not (tmp_path / "mobile/plans/tensorrt-rtx-sm86/depth-12.plan").exists()
    phone = convert_to_ort(planned, tmp_path / "phone")
    assert phone.plans == ()
    assert not any(name.endswith(".plan") for name in phone.files)
    assert phone.version == version_of(phone.model_dump(mode="json"))


def test_what_cannot_be_built_is_refused_in_one_line(bundle_path: Path, tmp_path: Path) -> None:
    # 8.7 is an Orin, 5.3 a Nano, 9.0 an H100.
    for capability in ("8.7", "5.3", "9.0"):
        words = rf"unknown compute capability {capability}; TensorRT-RTX .* builds for 7\.5, .*; --to tensorrt, on the"
        with pytest.raises(ConfigError, match=words):
            add_plans(bundle_path, tmp_path / "out", RTX, ["8.9", capability])
    with pytest.raises(ConfigError, match="no compute capability given"):
        add_plans(bundle_path, tmp_path / "out", RTX, [])
    with pytest.raises(ConfigError, match="TensorRT-RTX times nothing, so it has no timing cache"):
        add_plans(bundle_path, tmp_path / "out", RTX, ["8.9"], timing_cache=tmp_path / "out")
    convert_to_ort(bundle_path, tmp_path / "phone")
    with pytest.raises(ConfigError, match="its engines are ort"):
        add_plans(tmp_path / "phone", tmp_path / "out", RTX, ["8.9"])
    assert not (tmp_path / "out").exists()


def test_tensorrt_builds_on_the_device_alone(
    bundle_path: Path, tmp_path: Path, on_gpu: Callable[[Gpu | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    on_gpu(None)
    with pytest.raises(ConfigError, match="TensorRT builds on the GPU that it builds for, and there is none here"):
        add_plans(bundle_path, out, STAND_IN)
    on_gpu(ORIN)
    with pytest.raises(ConfigError, match=r"machine's GPU, Orin, 8 .*, with compute capability 8\.7; leave out --gpu"):
        add_plans(bundle_path, out, STAND_IN, ["9.0"])
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(OutputError, match="notes: exists and is not a timing cache"):
        add_plans(bundle_path, out, STAND_IN, timing_cache=tmp_path / "notes")
    monkeypatch.setattr(builder, "OLDEST", 10)
    with pytest.raises(ConfigError, match=r"TensorRT 1\..* is too old: plans need 10 or newer"):
        add_plans(bundle_path, out, STAND_IN)
    with pytest.raises(MissingExtraError, match=r"TensorRT is not installed; run: pip install '.*\[tensorrt\]'"):
        add_plans(bundle_path, out, replace(FLAVOURS["tensorrt"], module="tensorrt_that_is_not_here"))
    assert not out.exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_plan_computes_in_the_precision_of_its_engines(
    checkpoint: Checkpoint, dataset: Dataset, tmp_path: Path, precision: Precision
) -> None:
    export(checkpoint, dataset, tmp_path / "bundle", name="tiny", precision=precision, max_loss=1.0)
    if precision == "int8":
        with pytest.raises(ConfigError, match="in int8; TensorRT-RTX builds from fp32 and fp16"):
            add_plans(tmp_path / "bundle", tmp_path / "out", RTX, ["8.9"])
        return
    profile = load_profile("mobile").model_copy(update={"depths": (4,)})
    slice_bundle(tmp_path / "bundle", profile, tmp_path / "small")
    made = add_plans(tmp_path / "small", tmp_path / "out", RTX, ["8.9"])
    assert [plan.precision for plan in made.plans] == ["fp16"]
    with Bundle.open(tmp_path / "bundle") as bundle:
        build = PlanBuilder(trt, "TensorRT-RTX", Target("8.9", known_capabilities(trt)["8.9"]), (16,), None)
        network = build.parse(bundle.read("engines/depth-04.onnx"), "depth-04.onnx")
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    products = {layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY}
    assert products == {trt.float16}


@pytest.mark.gpu
@pytest.mark.skipif(this_gpu() is None, reason="there is no CUDA device")
@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_a_plan_computes_what_onnxruntime_computes(bundle_path: Path, tmp_path: Path, flavour: Flavour) -> None:
    gpu = this_gpu()
    assert gpu is not None
    if flavour.version() is None:
        pytest.skip(f"{flavour.title} is not installed")
    if flavour.ahead and gpu.capability not in known_capabilities(flavour.load()):
        pytest.skip(f"{flavour.title} does not build for compute capability {gpu.capability}")
    cache = None if flavour.ahead else tmp_path / "cache"
    add_plans(bundle_path, tmp_path / "here", flavour, [gpu.capability], timing_cache=cache)
    rng = np.random.default_rng(0)
    with Bundle.open(tmp_path / "here") as bundle:
        expected = OnnxEngine(bundle, depths=bundle.depths, threads=1)
        with open_engine(bundle, device="tensorrt") as engine:
            assert isinstance(engine, PlanEngine)
            assert (engine.name, engine.plan_refused) == (flavour.name, None)
            for batch, length in ((1, 1), (3, 17), (40, bundle.manifest.model.max_history)):
                items = rng.integers(1, bundle.manifest.items + 1, (batch, length))
                times = 1_600_000_000 + np.cumsum(rng.integers(60, 90_000, items.shape), axis=1)
                for depth in bundle.depths:
                    found = engine.run(items, times, depth)
                    assert found == pytest.approx(expected.run(items, times, depth), abs=1e-3)
