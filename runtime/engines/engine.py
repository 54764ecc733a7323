"""Runs a bundle's segments: the Engine interface, and onnxruntime on the CPU behind it."""

import logging
from collections.abc import Collection, Generator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ConfigError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.cuda import CudaEngine
from fathom.runtime.engines.extension import Extender, Form, History, Kept
from fathom.runtime.engines.plans import PlanRefusedError
from fathom.runtime.engines.segment import Segment
from fathom.runtime.engines.session import Device, offers_cuda
from fathom.runtime.engines.tensorrt import RtxEngine, open_plan

log = logging.getLogger("fathom.runtime")

#: Positions that onnxruntime computes at once: with more, what a layer leaves no longer stays in the cache of a core.
MOST_POSITIONS = 2048


class Engine(Protocol):
    """What turns histories into user vectors; one batch has one depth."""

    @property
    def name(self) -> str:
        """For people and metrics, as ``onnxruntime-cpu``."""
        ...

    @property
    def device(self) -> Device:
        """Where onnxruntime computes beside it: the search for items is made there."""
        ...

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that ``run`` accepts, ascending."""
        ...

    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """User vectors (batch, width), unit rows.

        ``items``: int64 (batch, history) input ids, item index + 1, padded on the left with 0, at least one item a row.
        ``timestamps``: seconds, of the same shape and padding, or None when unknown; a model without them ignores them.
        """
        ...

    def walk(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> Generator[NDArray[np.float32], NDArray[np.intp] | None, None]:
        """Like ``run`` at each of ``depths``, ascending, going on from what the depth before has computed.

        Rows that are sent back are the only ones that go on, counted among those of the vectors just given.
        """
        ...

    @property
    def resumes(self) -> bool:
        """Whether ``resume`` can be called."""
        ...

    def resume(self, histories: Sequence[History], depth: int) -> tuple[NDArray[np.float32], list[Kept]]:
        """User vectors (batch, width) as ``run``, computing only what is not kept, and what is to be kept now."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; ``run`` must not be called afterwards."""
        ...


def open_engine(
    bundle: Bundle,
    *,
    threads: int = 1,
    depths: Collection[int] | None = None,
    extends: bool = False,
    device: Device | Literal["auto"] = "auto",
) -> "OnnxEngine | CudaEngine | RtxEngine":
    """The engine for this bundle and machine, with the given depths (all of the bundle when None).

    ``device``: auto takes the GPU where there is one that can be used: by the bundle's TensorRT plan that fits, else by
    onnxruntime's CUDA provider, and says in a warning why what is installed cannot be used.
    ``threads``: threads inside one run on the CPU. ``extends``: with the second form too, where the bundle has it and
    the CPU runs it.
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
    if device != "cpu" and bundle.manifest.plans:
        try:
            return open_plan(bundle, wanted)
        except PlanRefusedError as error:
            log.warning("%s: TensorRT is not used, onnxruntime answers instead: %s", bundle.path, error)
    if device == "cuda":
        return CudaEngine(bundle, depths=wanted)
    if device == "auto" and offers_cuda():
        try:
            return CudaEngine(bundle, depths=wanted)
        except ConfigError as error:
            log.warning("%s: the GPU is not used, the CPU answers instead: %s", bundle.path, error)
    return OnnxEngine(bundle, depths=wanted, threads=threads, extends=extends)


class OnnxEngine:
    """onnxruntime on the CPU; segments that several depths share are loaded once.

    A context manager; holds a session per segment, with ``extends`` two, and no state between runs.
    """

    name = "onnxruntime-cpu"
    device: Device = "cpu"

    def __init__(self, bundle: Bundle, *, depths: tuple[int, ...], threads: int, extends: bool = False) -> None:
        self.depths = depths
        self._timestamps = bundle.manifest.model.uses_timestamps
        self._vectors = bundle.vectors

        def load(name: str) -> Segment:
            return Segment(bundle.read(name), bundle.path / name, threads)

        segments: dict[str, Segment] = {}
        self._chains: dict[int, list[Segment]] = {}
        for depth in depths:
            names = bundle.segments(depth)
            for name in names:
                if name not in segments:
                    segments[name] = load(name)
            self._chains[depth] = [segments[name] for name in names]
            for place, segment in enumerate(self._chains[depth]):
                segment.check(bundle.manifest.model, first=place == 0, last=place == len(names) - 1)
        self._extender = None
        if extends and (form := Form.of(bundle.manifest)) is not None:
            self._extender = Extender(form, bundle.vectors, load, depths)

    @property
    def resumes(self) -> bool:
        """See ``Engine.resumes``."""
        return self._extender is not None

    def resume(self, histories: Sequence[History], depth: int) -> tuple[NDArray[np.float32], list[Kept]]:
        """See ``Engine.resume``."""
        assert self._extender is not None, "only where ``resumes``"
        return self._extender.resume(histories, depth)

    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """See ``Engine.run``; KeyError for a depth that it does not have."""
        parts = min(-(-items.size // MOST_POSITIONS), len(items))
        if parts > 1:
            times = [None] * parts if timestamps is None else np.array_split(timestamps, parts)
            pairs = zip(np.array_split(items, parts), times, strict=True)
            return np.concatenate([self.run(some, at, depth) for some, at in pairs])
        feeds = self._feeds(items, timestamps)
        *passed, last = self._chains[depth]
        for segment in passed:
            feeds["hidden_in"] = segment.run(["hidden_out"], feeds)[0]
        return last.run(["user_vector"], feeds)[0]

    def walk(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> Generator[NDArray[np.float32], NDArray[np.intp] | None, None]:
        """See ``Engine.walk``; depths that share no segment start from the history again."""
        feeds = self._feeds(items, timestamps)
        done: list[Segment] = []
        for place, depth in enumerate(depths):
            chain = self._chains[depth]
            if done != chain[: len(done)]:
                feeds.pop("hidden_in", None)
                done = []
            for segment in chain[len(done) : -1]:
                feeds["hidden_in"] = segment.run(["hidden_out"], feeds)[0]
            if place + 1 < len(depths) and self._chains[depths[place + 1]][: len(chain)] == chain:
                vectors, feeds["hidden_in"] = chain[-1].run(["user_vector", "hidden_out"], feeds)
                done = chain
            else:
                vectors, done = chain[-1].run(["user_vector"], feeds)[0], chain[:-1]
            rows = yield vectors
            if rows is not None:
                feeds = {name: value[rows] for name, value in feeds.items()}

    def _feeds(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = {"items": items, "item_vectors": self._vectors.padded(items)}
        if self._timestamps:
            feeds["timestamps"] = np.zeros_like(items) if timestamps is None else timestamps
        return feeds

    def close(self) -> None:
        """See ``Engine.close``."""
        self._chains.clear()
        self._extender = None

    def __enter__(self) -> "OnnxEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
