"""Runs a bundle's plan of either flavour, TensorRT or TensorRT-RTX, on this machine's GPU."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.errors import FathomError, brief
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import StatelessEngine, load_chains, model_inputs, run_in_parts
from fathom.runtime.engines.plans import FLAVOURS, Flavour, Machine, PlanRefusedError, choose_plan
from fathom.runtime.engines.session import Device
from fathom.runtime.manifest import Plan


def open_plan(bundle: Bundle, depths: Collection[int]) -> "PlanEngine":
    """The engine of the plan that fits this machine; PlanRefusedError where none does, or where it cannot be opened."""
    plan = choose_plan(bundle.manifest, Machine.here({plan.flavour for plan in bundle.manifest.plans}))
    try:
        return PlanEngine(bundle, plan, depths=tuple(sorted(depths)))
    except FathomError:
        raise
    except Exception as error:  # The bindings of TensorRT and CUDA raise what they like, as TypeError without a driver.
        words = f"the {FLAVOURS[plan.flavour].title} plan for compute capability {plan.compute_capability}"
        why = f"{type(error).__name__}: {brief(error, 200)}"
        raise PlanRefusedError(f"{words} cannot be opened: {why}", "broken") from error


class PlanEngine(StatelessEngine):
    """See ``Engine``: all segments of one plan, on one stream, for one thread.

    TensorRT-RTX captures a CUDA graph for each optimization profile, so one per length bucket; TensorRT launches each
    run. A batch beyond the plan's largest is run in parts.
    """

    device: Device = "cpu"

    def __init__(self, bundle: Bundle, plan: Plan, *, depths: tuple[int, ...]) -> None:
        from cuda.bindings import runtime as cuda

        flavour = FLAVOURS[plan.flavour]
        trt = flavour.load()
        self.name = flavour.name
        self.depths = depths
        self._cuda = cuda
        self._plan = plan
        self._width = bundle.manifest.model.width
        self._bundle = bundle
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))

        def load(engine: str) -> _Segment:
            file = plan.segments[engine]
            segment = runtime.deserialize_cuda_engine(bundle.read(file))
            if segment is None:
                words = f"{file}: {flavour.title} {trt.__version__} cannot read this plan on this machine"
                raise PlanRefusedError(words, "broken")
            return _Segment(trt, flavour, segment, file, plan)

        # Before anything is taken from the GPU: what is refused here leaves nothing behind there.
        self._chains = load_chains(bundle, depths, load)
        self._stream = self._got(cuda.cudaStreamCreate())
        for segment in {id(each): each for chain in self._chains.values() for each in chain}.values():
            segment.select_profiles(self._stream)
        positions = plan.max_batch * plan.histories[-1]
        hidden = positions * self._width * 4
        ids, users = positions * 8, plan.max_batch * self._width * 4
        sizes = {"items": ids, "timestamps": ids, "item_vectors": hidden, "user_vector": users}
        self._buffers = {name: self._got(cuda.cudaMalloc(size)) for name, size in sizes.items()}
        self._hidden = [self._got(cuda.cudaMalloc(hidden)) for _ in range(2)]

    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """See ``Engine.run``; KeyError for a depth that it does not have."""
        most = self._plan.max_batch
        if len(items) > most:
            return run_in_parts(self.run, items, timestamps, depth, most)
        batch, length = items.shape
        profile = next(place for place, longest in enumerate(self._plan.histories) if length <= longest)
        inputs = model_inputs(self._bundle, items, timestamps)
        for name, value in inputs.items():
            self._copy(self._buffers[name], np.ascontiguousarray(value), to_device=True)
        shapes = {name: value.shape for name, value in inputs.items()}
        shapes["hidden_in"] = (batch, length, self._width)
        for place, segment in enumerate(self._chains[depth]):
            # A segment has the same addresses in every run: its graph holds them.
            hidden = {"hidden_in": self._hidden[place % 2], "hidden_out": self._hidden[1 - place % 2]}
            segment.enqueue(profile, shapes, self._buffers | hidden, self._stream)
        users = np.empty((batch, self._width), np.float32)
        self._copy(self._buffers["user_vector"], users, to_device=False)
        self._got(self._cuda.cudaStreamSynchronize(self._stream))
        return users

    def close(self) -> None:
        """See ``Engine.close``."""
        self._chains.clear()
        for buffer in (*self._buffers.values(), *self._hidden):
            self._got(self._cuda.cudaFree(buffer))
        self._got(self._cuda.cudaStreamDestroy(self._stream))

    def _copy(self, buffer: int, array: NDArray[Any], *, to_device: bool) -> None:
        kinds = self._cuda.cudaMemcpyKind
        if to_device:
            call = (buffer, array.ctypes.data, array.nbytes, kinds.cudaMemcpyHostToDevice, self._stream)
        else:
            call = (array.ctypes.data, buffer, array.nbytes, kinds.cudaMemcpyDeviceToHost, self._stream)
        self._got(self._cuda.cudaMemcpyAsync(*call))

    def _got(self, answer: tuple[Any, ...]) -> Any:
        """What a call of CUDA returned besides its error code."""
        error, *values = answer
        if int(error) != 0:
            raise RuntimeError(f"CUDA: {error.name}")
        return values[0] if values else None


class _Segment:
    """One plan file with a context for each of its optimization profiles; ``name``: what an error calls it."""

    def __init__(self, trt: Any, flavour: Flavour, engine: Any, name: str, plan: Plan) -> None:
        self._engine, self._title, self._file = engine, flavour.title, name
        self._names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        self._inputs = [name for name in self._names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        taken = [
            engine.get_tensor_profile_shape(self._inputs[0], place) for place in range(engine.num_optimization_profiles)
        ]
        if [tuple(most)[:2] for _, _, most in taken] != [(plan.max_batch, longest) for longest in plan.histories]:
            raise PlanRefusedError(
                f"{name}: its shapes are not those that the manifest says; convert the bundle again", "broken"
            )
        self._contexts = [self._context(trt, captured=flavour.ahead) for _ in plan.histories]

    def _context(self, trt: Any, *, captured: bool) -> Any:
        """Of TensorRT's functions, those that make something give None where they cannot."""
        if not captured:
            return self._made(self._engine.create_execution_context())
        config = self._made(self._engine.create_runtime_config())
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._made(self._engine.create_execution_context(config))

    def _made(self, thing: Any) -> Any:
        if thing is None:
            words = f"{self._file}: {self._title} cannot make what runs this plan; the GPU may be short of memory"
            raise PlanRefusedError(words, "broken")
        return thing

    def select_profiles(self, stream: Any) -> None:
        """Give each context its optimization profile; comes before the first run."""
        for place, context in enumerate(self._contexts):
            if not context.set_optimization_profile_async(place, int(stream)):
                raise PlanRefusedError(
                    f"{self._file}: {self._title} refuses its optimization profile {place}", "broken"
                )

    def enqueue(self, profile: int, shapes: dict[str, tuple[int, ...]], buffers: dict[str, int], stream: Any) -> None:
        """Start a run; what it reads is in ``buffers``, and what it gives will be."""
        context = self._contexts[profile]
        for name in self._names:
            if name in self._inputs:
                context.set_input_shape(name, shapes[name])
            context.set_tensor_address(name, int(buffers[name]))
        if not context.execute_async_v3(int(stream)):
            raise RuntimeError(f"{self._title} could not run a segment")
