"""Runs a bundle's segments with onnxruntime on an NVIDIA GPU, by its CUDA provider or by its TensorRT provider."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleError, ConfigError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import StatelessEngine, load_chains, run_in_parts
from fathom.runtime.engines.plans import MAX_BATCH, USUAL_BATCH
from fathom.runtime.engines.segment import Segment, check_chains
from fathom.runtime.engines.session import Device, require_tensorrt
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.manifest import ModelInfo
from fathom.runtime.padding import length_buckets

#: Made by ``exporter/engines/lookup_graph.py``, which describes it.
LOOKUP = Path(__file__).with_name("lookup.onnx")


class CudaEngine(StatelessEngine):
    """See ``Engine``: what a segment leaves stays on the device until the user vectors are read.

    Histories are padded to the end of their length bucket and batches to a power of two, so that few shapes occur. For
    each shape the launches of a segment, some hundred, are captured as a CUDA graph and repeated in one call: the first
    two batches of a shape are slow. Engines that compute an exit only on demand cannot be captured and run without:
    `fathom bundle convert --to cuda` makes engines that can.
    """

    #: Requests in the largest run; None: any number.
    _most: int | None = None

    def __init__(self, bundle: Bundle, *, depths: tuple[int, ...], device: Device = "cuda") -> None:
        kind = bundle.manifest.format, bundle.manifest.precision
        if kind not in {("onnx", "fp32"), ("onnx", "fp16")}:
            raise ConfigError(
                f"{bundle.path}: engines in {' '.join(kind)} are for processors; export fp32 or fp16 onnx"
            )
        self.depths = depths
        self.device = device
        self.name = f"onnxruntime-{device}"
        self._buckets = length_buckets(bundle.manifest.model.max_history)
        self._timestamps = bundle.manifest.model.uses_timestamps
        self._chains = load_chains(bundle, depths, lambda name: self._load(bundle, name))
        check_chains(self._chains.values(), bundle.manifest.model)
        self._lookup = _CudaSegment(LOOKUP.read_bytes(), LOOKUP, device)
        self._table = _table(bundle.vectors, device)
        self._buffers: dict[tuple[int, int], _Buffers] = {}

    def _load(self, bundle: Bundle, name: str) -> "_CudaSegment":
        return _CudaSegment(bundle.read(name), bundle.path / name, self.device)

    @property
    def captured(self) -> bool:
        """Whether batches are repeated as CUDA graphs."""
        return all(segment.captured for chain in self._chains.values() for segment in chain)

    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """See ``Engine.run``; KeyError for a depth that it does not have."""
        chain = self._chains[depth]
        if self._most is not None and len(items) > self._most:
            return run_in_parts(self.run, items, timestamps, depth, self._most)
        batch, length = items.shape
        shape = 1 << (batch - 1).bit_length(), next(end for end in self._buckets if end >= length)
        buffers = self._buffers.get(shape)
        if buffers is None:
            number = len(self._buffers)
            buffers = self._buffers[shape] = _Buffers(number, shape, self._table, self.device)
        buffers.fill("items", items)
        if self._timestamps:
            buffers.fill("timestamps", np.zeros_like(items) if timestamps is None else timestamps)
        self._lookup.run_on(buffers, 0, "item_vectors")
        for place, segment in enumerate(chain):
            segment.run_on(buffers, place, "user_vector" if place == len(chain) - 1 else "hidden_out")
        users: NDArray[np.float32] = buffers.values["user_vector"].numpy()[:batch].copy()
        return users

    def close(self) -> None:
        """See ``Engine.close``."""
        self._chains.clear()
        self._buffers.clear()
        self._lookup.forget()
        self._table = None


class TensorRtProviderEngine(CudaEngine):
    """The same by onnxruntime's TensorRT provider, for machines where TensorRT has no Python interface.

    It builds its engines when the bundle is opened, which can take minutes; ``cache``: the folder where it keeps them,
    and its timing cache. Raises ConfigError where the provider does not run.
    """

    _most = MAX_BATCH

    def __init__(self, bundle: Bundle, *, depths: tuple[int, ...], cache: Path | None = None) -> None:
        require_tensorrt()
        self._cache = cache
        super().__init__(bundle, depths=depths)
        self.name = "onnxruntime-tensorrt"

    def _load(self, bundle: Bundle, name: str) -> "_CudaSegment":
        # The provider knows an engine in its cache by its graph, whatever its weights are.
        sha256 = bundle.manifest.files[name].sha256
        options = tensorrt_options(bundle.manifest.model, None if self._cache is None else self._cache / sha256[:16])
        return _CudaSegment(bundle.read(name), bundle.path / name, self.device, options)


def tensorrt_options(model: ModelInfo, cache: Path | None) -> dict[str, str]:
    """Options of onnxruntime's TensorRT provider for the segments of a model.

    One optimization profile for all lengths: given more, the provider runs the first alone.
    """
    shapes = {
        kind: ",".join(
            f"{name}:{batch}x{length}{f'x{model.width}' if name in ('item_vectors', 'hidden_in') else ''}"
            for name in ("items", "timestamps", "item_vectors", "hidden_in")
        )
        for kind, batch, length in (
            ("min", 1, 1),
            ("opt", USUAL_BATCH, model.max_history),
            ("max", MAX_BATCH, model.max_history),
        )
    }
    options = {f"trt_profile_{kind}_shapes": value for kind, value in shapes.items()}
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        options |= dict.fromkeys(("trt_engine_cache_enable", "trt_timing_cache_enable"), "1")
        options |= {"trt_engine_cache_path": str(cache), "trt_timing_cache_path": str(cache.parent)}
    return options


def _table(vectors: ItemVectors, device: Device) -> Any:
    """All item vectors on the device, in fp32, and one of zeros behind them."""
    import onnxruntime

    rows = np.zeros((len(vectors) + 1, vectors.width), np.float32)
    rows[:-1] = np.asarray(vectors)
    return onnxruntime.OrtValue.ortvalue_from_numpy(rows, device, 0)


class _Buffers:
    """What batches of one shape read and leave, on the device; graphs hold the addresses."""

    def __init__(self, number: int, shape: tuple[int, int], table: Any, device: Device) -> None:
        import onnxruntime

        width = table.shape()[1]

        def reserve(shape: tuple[int, ...], kind: type) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0)

        self.number = number
        self._padded = np.zeros(shape, np.int64)
        self.values = {
            "items": reserve(shape, np.int64),
            "timestamps": reserve(shape, np.int64),
            "table": table,
            "item_vectors": reserve((*shape, width), np.float32),
            "user_vector": reserve((shape[0], width), np.float32),
        }
        # A segment reads the one and leaves the other.
        self.hidden = [reserve((*shape, width), np.float32) for _ in range(2)]

    def fill(self, name: str, values: NDArray[np.int64]) -> None:
        """Copy a batch to the device, with padding on its left and rows of padding below."""
        batch, length = values.shape
        self._padded[:] = 0
        self._padded[:batch, self._padded.shape[1] - length :] = values
        self.values[name].update_inplace(self._padded)


class _CudaSegment(Segment):
    """An engine file that reads and leaves its values on the device."""

    def __init__(self, engine: bytes, name: Path, device: Device, tensorrt: Mapping[str, str] | None = None) -> None:
        self.captured = device == "cuda" and tensorrt is None
        try:
            provider = device if tensorrt is None else "tensorrt"
            super().__init__(engine, name, 1, provider, captured=self.captured, tensorrt=tensorrt)
        except BundleError:  # it says so of an engine that cannot be captured
            if not self.captured:
                raise
            self.captured = False
            super().__init__(engine, name, 1, device)
        self._bindings: dict[tuple[int, int, str], tuple[Any, Any]] = {}

    def run_on(self, buffers: _Buffers, place: int, output: str) -> None:
        """Run at a place of a chain, for one of its outputs."""
        key = buffers.number, place, output
        if key not in self._bindings:
            self._bindings[key] = self._bind(buffers, place, output)
        binding, options = self._bindings[key]
        self._session.run_with_iobinding(binding, options)

    def forget(self) -> None:
        """Let go of all buffers."""
        self._bindings.clear()

    def _bind(self, buffers: _Buffers, place: int, output: str) -> tuple[Any, Any]:
        import onnxruntime

        binding, options = self._session.io_binding(), onnxruntime.RunOptions()
        values = buffers.values | {"hidden_in": buffers.hidden[place % 2], "hidden_out": buffers.hidden[1 - place % 2]}
        for name in self.inputs:
            binding.bind_ortvalue_input(name, values[name])
        binding.bind_ortvalue_output(output, values[output])
        if self.captured:
            options.add_run_config_entry("gpu_graph_id", str(len(self._bindings) + 1))
        return binding, options
