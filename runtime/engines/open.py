"""Opens the engine that suits a bundle and this machine."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from fathom.errors import ConfigError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.cuda import CudaEngine, TensorRtProviderEngine
from fathom.runtime.engines.onnx import OnnxEngine
from fathom.runtime.engines.plans import PlanRefusedError
from fathom.runtime.engines.session import Device, offers_cuda
from fathom.runtime.engines.tensorrt import PlanEngine, open_plan

log = logging.getLogger("fathom.runtime")


AnyEngine = OnnxEngine | CudaEngine | PlanEngine


def open_engine(
    bundle: Bundle,
    *,
    threads: int = 1,
    depths: Collection[int] | None = None,
    incremental: bool = False,
    device: Device | Literal["auto", "tensorrt"] = "auto",
    tensorrt_cache: Path | None = None,
) -> AnyEngine:
    """The engine for this bundle and machine, with the given depths (all of the bundle when None).

    ``device``: auto takes the GPU where there is one that can be used: by the bundle's TensorRT plan that fits, else by
    onnxruntime's CUDA provider, and says in a warning why what is installed cannot be used. tensorrt: by the plan, else
    by onnxruntime's TensorRT provider, which keeps its engines in ``tensorrt_cache``.
    ``threads``: threads inside one run on the CPU. ``incremental``: with the engines for incremental inference too,
    where the bundle has them and the CPU runs it.
    Raises ConfigError for a depth, format or device that cannot be served here, BundleError for an engine file that
    breaks the contract.
    """
    if bundle.manifest.format == "executorch":
        raise ConfigError(
            f"{bundle.path}: its engines are .pte files, which phones run; serve the bundle they are from"
        )
    wanted = tuple(sorted(set(bundle.depths if depths is None else depths)))
    missing = [depth for depth in wanted if depth not in bundle.depths]
    if missing or not wanted:
        asked = f"no depth {missing[0]}" if missing else "no depth asked for"
        raise ConfigError(f"{bundle.path}: {asked}; the bundle has {', '.join(map(str, bundle.depths))}")
    refused = None
    if device != "cpu" and bundle.manifest.plans:
        try:
            return open_plan(bundle, wanted)
        except PlanRefusedError as error:
            log.warning("%s: no TensorRT plan is used, onnxruntime answers instead: %s", bundle.path, error)
            refused = error.kind
    engine: AnyEngine
    if device == "tensorrt":
        engine = TensorRtProviderEngine(bundle, depths=wanted, cache=tensorrt_cache)
    else:
        engine = _on_cuda(bundle, wanted, device) or OnnxEngine(
            bundle, depths=wanted, threads=threads, incremental=incremental
        )
    engine.plan_refused = refused
    return engine


def _on_cuda(bundle: Bundle, depths: tuple[int, ...], device: Device | Literal["auto"]) -> CudaEngine | None:
    """None where the CPU is to answer."""
    if device == "cuda":
        return CudaEngine(bundle, depths=depths)
    if device == "auto" and offers_cuda():
        try:
            return CudaEngine(bundle, depths=depths)
        except ConfigError as error:
            log.warning("%s: the GPU is not used, the CPU answers instead: %s", bundle.path, error)
    return None
