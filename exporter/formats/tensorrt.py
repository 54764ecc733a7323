"""TensorRT-RTX plans beside a bundle's ONNX engines, built ahead of time for GPUs that need not be here.

A plan holds for one compute capability and one version of the library. The ONNX engines stay in the bundle: where no
plan fits a machine, onnxruntime answers.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from fathom.errors import ConfigError, MissingExtraError
from fathom.exporter.bundle.derive import bound_to_engines, derive_bundle, open_source
from fathom.runtime.bundle import Bundle
from fathom.runtime.lanes import length_buckets
from fathom.runtime.manifest import Manifest, Plan

#: Requests in the largest batch that a plan accepts, and in the batch that it is tuned for.
MAX_BATCH, USUAL_BATCH = 32, 8


def add_plans(source: Path, out: Path, capabilities: Sequence[str]) -> Manifest:
    """Write to ``out`` the bundle with a plan of every engine for each compute capability, as 8.9; return its manifest.

    Every plan has an optimization profile per length bucket. Raises MissingExtraError without TensorRT-RTX, BundleError
    for a source that is refused, ConfigError for one that TensorRT-RTX cannot build, or a capability that it does not
    know. A certificate is left behind: it holds for the files that it was tested on.
    """
    trt = load_library()
    known = known_capabilities(trt)
    unknown = [each for each in capabilities if each not in known]
    if unknown or not capabilities:
        asked = f"unknown compute capability {unknown[0]}" if unknown else "no compute capability given"
        raise ConfigError(f"{asked}; TensorRT-RTX {trt.__version__} builds for {', '.join(sorted(known, key=float))}")
    with open_source(source, out) as bundle:
        drop = bound_to_engines(bundle)
        new: dict[str, bytes] = {}
        plans = []
        for each in dict.fromkeys(capabilities):
            plan, built = _plan(trt, bundle, each, known[each])
            plans.append(plan)
            new |= built
        return derive_bundle(bundle, out, new, drop=drop, plans=tuple(plans), fits={})


def _plan(trt: ModuleType, bundle: Bundle, capability: str, target: Any) -> tuple[Plan, dict[str, bytes]]:
    """All engines of a bundle for one compute capability, and the files of that plan."""
    manifest = bundle.manifest
    engines = sorted({name for info in manifest.depths.values() for name in info.segments})
    buckets = length_buckets(manifest.model.max_history)
    place = f"plans/sm{capability.replace('.', '')}"
    segments = {engine: f"{place}/{PurePosixPath(engine).stem}.plan" for engine in engines}
    plan = Plan(
        version=trt.__version__,
        compute_capability=capability,
        max_batch=MAX_BATCH,
        histories=buckets,
        segments=segments,
        built_from={engine: manifest.files[engine].sha256 for engine in engines},
    )
    files = {
        name: build_plan(trt, bundle.read(engine), bundle.path / engine, target, buckets)
        for engine, name in segments.items()
    }
    return plan, files


def load_library() -> ModuleType:
    """TensorRT-RTX, or MissingExtraError."""
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise MissingExtraError("TensorRT-RTX", "rtx") from error
    library: ModuleType = tensorrt_rtx
    return library


def known_capabilities(trt: ModuleType) -> dict[str, Any]:
    """Compute capability, as 8.9 -> the library's name for it."""
    names = (name for name in dir(trt.ComputeCapability) if name.startswith("SM") and name[2:].isdigit())
    return {f"{name[2:-1]}.{name[-1]}": getattr(trt.ComputeCapability, name) for name in names}


def build_plan(trt: ModuleType, engine: bytes, name: object, capability: Any, buckets: Iterable[int]) -> bytes:
    """One engine as a plan; its precision is that of the ONNX operators. ``name``: what an error calls it."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(engine):
        reason = parser.get_error(0).desc().splitlines()[0] if parser.num_errors else "it cannot be read"
        raise ConfigError(f"{name}: TensorRT-RTX refuses this engine: {reason}; export the bundle in fp32 or fp16")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    shortest = 1
    for longest in buckets:
        profile = builder.create_optimization_profile()
        for value in (network.get_input(place) for place in range(network.num_inputs)):
            rest = tuple(value.shape)[2:]
            least, most = (1, shortest, *rest), (MAX_BATCH, longest, *rest)
            profile.set_shape(value.name, least, (USUAL_BATCH, longest, *rest), most)
        config.add_optimization_profile(profile)
        shortest = longest + 1
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ConfigError(f"{name}: TensorRT-RTX {trt.__version__} could not build a plan of this engine")
    return bytes(plan)
