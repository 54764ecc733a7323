"""TensorRT plans beside a bundle's ONNX engines, by one builder for both flavours.

TensorRT-RTX builds ahead of time, for GPUs that need not be here; a plan is for one compute capability. TensorRT times
kernels on the GPU of the machine, and a plan is for that GPU. Either holds for one version of its library. The ONNX
engines stay in the bundle: where no plan fits a machine, onnxruntime answers.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, Literal, cast

from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import bound_to_engines, derive_bundle, open_source
from fathom.exporter.formats.timing_cache import TimingCache
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.gpu import this_gpu, this_platform
from fathom.runtime.engines.plans import FLAVOURS, MAX_BATCH, USUAL_BATCH, Flavour
from fathom.runtime.manifest import CERTIFICATE_FILE, Manifest, Plan
from fathom.runtime.padding import length_buckets

#: The first version with strongly typed networks, and ids of 64 bits as inputs.
OLDEST = 10


@dataclass(frozen=True)
class Target:
    """What a plan is built for; see ``Plan``. ``setting``: the library's name for the capability, None: this GPU."""

    capability: str
    setting: Any = None
    gpu: str | None = None
    platform: str | None = None

    @property
    def folder(self) -> str:
        """A name for files, as ``sm87-orin``."""
        words = f"sm{self.capability.replace('.', '')} {self.gpu or ''}"
        return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def add_plans(
    source: Path,
    out: Path,
    flavour: Flavour,
    capabilities: Sequence[str] | None = None,
    *,
    timing_cache: Path | None = None,
) -> Manifest:
    """Write to ``out`` the bundle with a plan of every engine for each GPU; return its manifest.

    ``capabilities``: compute capabilities, as 8.9; with TensorRT that of this machine's GPU, as without it.
    ``timing_cache``: a file of what TensorRT has timed, which is written anew. Plans of other flavours and for other
    GPUs stay. Raises MissingExtraError without the library, BundleError for a source that is refused, ConfigError for
    one that the library cannot build, or a GPU that it does not build for. A certificate is left behind: it holds for
    the files that it was tested on.
    """
    trt = flavour.load()
    targets = _targets(flavour, trt, capabilities)
    if flavour.ahead and timing_cache is not None:
        raise ConfigError(f"{flavour.title} times nothing, so it has no timing cache; leave out --timing-cache")
    library = f"{flavour.title} {trt.__version__}"
    with open_source(source, out) as bundle:
        bound_to_engines(bundle)
        if bundle.manifest.precision not in ("fp32", "fp16"):
            raise ConfigError(f"{source}: in {bundle.manifest.precision}; {flavour.title} builds from fp32 and fp16")
        plans = {(plan.flavour, plan.compute_capability, plan.gpu): plan for plan in bundle.manifest.plans}
        new: dict[str, bytes] = {}
        for target in targets:
            cache = None if flavour.ahead else TimingCache(timing_cache, library, f"{target.gpu} ({target.capability})")
            plan, built = _plan(trt, flavour, bundle, target, cache)
            if cache is not None:
                cache.save()
            plans[plan.flavour, plan.compute_capability, plan.gpu] = plan
            new |= built
        replaced = {file for old in bundle.manifest.plans for file in old.segments.values()}
        replaced -= {file for plan in plans.values() for file in plan.segments.values()}
        drop = {CERTIFICATE_FILE, *replaced}
        return derive_bundle(bundle, out, new, drop=drop, plans=tuple(plans.values()), fits={})


def _targets(flavour: Flavour, trt: ModuleType, capabilities: Sequence[str] | None) -> list[Target]:
    """What is to be built; ConfigError for what the library cannot build here."""
    if not flavour.ahead:
        return [_this_machine(flavour, trt, capabilities)]
    known = known_capabilities(trt)
    unknown = [each for each in capabilities or () if each not in known]
    if unknown or not capabilities:
        asked = f"unknown compute capability {unknown[0]}" if unknown else "no compute capability given"
        other = FLAVOURS["tensorrt"]
        raise ConfigError(
            f"{asked}; {flavour.title} {trt.__version__} builds for {', '.join(sorted(known, key=float))};"
            f" --to {other.name}, on the device, for the others"
        )
    return [Target(each, known[each]) for each in dict.fromkeys(capabilities)]


def _this_machine(flavour: Flavour, trt: ModuleType, capabilities: Sequence[str] | None) -> Target:
    if int(trt.__version__.partition(".")[0]) < OLDEST:
        raise ConfigError(f"{flavour.title} {trt.__version__} is too old: plans need {OLDEST} or newer")
    gpu = this_gpu()
    if gpu is None:
        raise ConfigError(
            f"{flavour.title} builds on the GPU that it builds for, and there is none here, or no cuda-bindings; run"
            " this on the device, or build ahead with --to tensorrt-rtx"
        )
    if capabilities is not None and list(capabilities) != [gpu.capability]:
        raise ConfigError(
            f"{flavour.title} builds for this machine's GPU, {gpu.name}, with compute capability {gpu.capability};"
            " leave out --gpu, or run this on the device"
        )
    return Target(gpu.capability, gpu=gpu.name, platform=this_platform())


def known_capabilities(trt: ModuleType) -> dict[str, Any]:
    """Compute capability, as 8.9 -> TensorRT-RTX's name for it."""
    names = (name for name in dir(trt.ComputeCapability) if name.startswith("SM") and name[2:].isdigit())
    return {f"{name[2:-1]}.{name[-1]}": getattr(trt.ComputeCapability, name) for name in names}


def _plan(
    trt: ModuleType, flavour: Flavour, bundle: Bundle, target: Target, cache: TimingCache | None
) -> tuple[Plan, dict[str, bytes]]:
    """All engines of a bundle for one GPU, and the files of that plan."""
    manifest = bundle.manifest
    engines = sorted({name for info in manifest.depths.values() for name in info.segments})
    buckets = length_buckets(manifest.model.max_history)
    place = f"plans/{flavour.name}-{target.folder}"
    segments = {engine: f"{place}/{PurePosixPath(engine).stem}.plan" for engine in engines}
    plan = Plan(
        flavour=flavour.name,
        version=trt.__version__,
        compute_capability=target.capability,
        gpu=target.gpu,
        platform=target.platform,
        precision=cast(Literal["fp32", "fp16"], manifest.precision),
        max_batch=MAX_BATCH,
        histories=buckets,
        segments=segments,
        built_from={engine: manifest.files[engine].sha256 for engine in engines},
    )
    builder = PlanBuilder(trt, flavour.title, target, buckets, cache)
    return plan, {name: builder.build(bundle.read(engine), bundle.path / engine) for engine, name in segments.items()}


class PlanBuilder:
    """Builds plans for one GPU with either library, ``trt``; ``buckets``: the longest history of each profile."""

    def __init__(
        self, trt: ModuleType, title: str, target: Target, buckets: Iterable[int], cache: TimingCache | None
    ) -> None:
        self._trt, self._title, self._target, self._cache = trt, title, target, cache
        self._buckets = tuple(buckets)
        self._logger = trt.Logger(trt.Logger.ERROR)
        try:
            self._builder = trt.Builder(self._logger)
        except TypeError as error:  # what the bindings raise where the library gives them none
            raise ConfigError(f"{title} {trt.__version__} does not start on this machine: {error}") from error

    def build(self, engine: bytes, name: object) -> bytes:
        """One engine as a plan; ``name``: what an error calls it."""
        network = self.parse(engine, name)
        config = self.configure(network)
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise ConfigError(f"{name}: {self._title} {self._trt.__version__} could not build a plan of this engine")
        if self._cache is not None:
            self._cache.update()
        return bytes(plan)

    def parse(self, engine: bytes, name: object) -> Any:
        """The network of an ONNX file, whose operators say what is computed in which precision; until the next one."""
        trt = self._trt
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = parser = trt.OnnxParser(network, self._logger)  # the network's weights are in its memory
        if not parser.parse(engine):
            reason = parser.get_error(0).desc().splitlines()[0] if parser.num_errors else "it cannot be read"
            raise ConfigError(f"{name}: {self._title} refuses this engine: {reason}; export the bundle in fp32 or fp16")
        return network

    def configure(self, network: Any) -> Any:
        """An optimization profile per length bucket, the GPU, and fp32 that is not rounded to TF32."""
        config = self._builder.create_builder_config()
        config.clear_flag(self._trt.BuilderFlag.TF32)
        if self._target.setting is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(self._target.setting, 0)
        if self._cache is not None:
            self._cache.attach(config)
        shortest = 1
        for longest in self._buckets:
            profile = self._builder.create_optimization_profile()
            for value in (network.get_input(place) for place in range(network.num_inputs)):
                rest = tuple(value.shape)[2:]
                least, most = (1, shortest, *rest), (MAX_BATCH, longest, *rest)
                profile.set_shape(value.name, least, (USUAL_BATCH, longest, *rest), most)
            config.add_optimization_profile(profile)
            shortest = longest + 1
        return config
