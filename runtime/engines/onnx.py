"""onnxruntime on the CPU."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.incremental import CachedHistory, Incremental, IncrementalFiles, IncrementalRunner
from fathom.runtime.engines.interface import BaseEngine, load_chains, model_inputs, run_apart
from fathom.runtime.engines.segment import Segment, check_chains
from fathom.runtime.engines.session import Device

#: Positions that onnxruntime computes at once: with more, what a layer leaves no longer stays in the cache of a core.
MOST_POSITIONS = 2048
#: What a run costs besides its positions, in positions.
RUN_POSITIONS = 100


class OnnxEngine(BaseEngine):
    """onnxruntime on the CPU; segments that several depths share are loaded once.

    A context manager; holds a session per segment, with ``incremental`` two, and one per depth; no state between runs.
    """

    name = "onnxruntime-cpu"
    device: Device = "cpu"

    def __init__(self, bundle: Bundle, *, depths: tuple[int, ...], threads: int, incremental: bool = False) -> None:
        self.depths = depths
        self._bundle = bundle

        def load(name: str, *, recurring: bool = False) -> Segment:
            return Segment(bundle.read(name), bundle.path / name, threads, recurring=recurring)

        self._chains = load_chains(bundle, depths, load)
        # A manifest has one chain for all depths or an engine for each.
        self.mixes = len(self._chains[depths[-1]]) > 1
        check_chains(self._chains.values(), bundle.manifest.model)
        files = IncrementalFiles.of(bundle.manifest) if incremental else None
        self._incremental = None if files is None else IncrementalRunner(files, bundle.vectors, load, depths)

    @property
    def incremental(self) -> bool:
        """See ``Engine.incremental``."""
        return self._incremental is not None

    @property
    def grows(self) -> bool:
        """See ``Engine.grows``; not where a first segment looks the items' vectors up itself."""
        return all("item_vectors" in chain[0].inputs for chain in self._chains.values())

    def run_incremental(self, histories: Sequence[CachedHistory], depths: Sequence[int]) -> Incremental:
        """See ``Engine.run_incremental``."""
        assert self._incremental is not None, "only where ``incremental``"
        return self._incremental.run(histories, depths)

    def run(self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depth: int) -> NDArray[np.float32]:
        """See ``Engine.run``; KeyError for a depth that it does not have."""
        return self.run_each(items, timestamps, [depth] * len(items))

    def run_each(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """See ``Engine.run_each``; KeyError for a depth that it does not have."""
        if len(items) == 1:
            return self._run(items, timestamps, depths)
        if not self.mixes and len(set(depths)) > 1:
            return run_apart(self.run, items, timestamps, depths)
        lengths = items.shape[1] - (items != 0).argmax(axis=1)
        order = lengths.argsort(kind="stable")
        parts = _parts(lengths.take(order))
        if len(parts) == 1 and len(set(depths)) == 1:
            return self._run(items, timestamps, depths)
        users = np.empty((len(items), self._bundle.vectors.width), np.float32)
        for part in parts:
            # The deepest first: whoever leaves is then at the end.
            rows = order[part]
            newest = slice(-int(lengths[rows[-1]]), None)
            at = np.take(depths, rows)
            deepest_first = (-at).argsort(kind="stable")
            rows, at = rows[deepest_first], at[deepest_first]
            times = None if timestamps is None else timestamps[rows, newest]
            users[rows] = self._run(items[rows, newest], times, at.tolist())
        return users

    def _run(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> NDArray[np.float32]:
        """Rows whose ``depths`` do not ascend; each leaves at its exit, and those above go on."""
        feeds = model_inputs(self._bundle, items, timestamps)
        chain = self._chains[depths[0]]
        exits = [len(self._chains[depth]) for depth in depths]
        left: list[NDArray[np.float32]] = []
        for place, segment in enumerate(chain, 1):
            stay = sum(each > place for each in exits)
            wanted = (["hidden_out"] if stay else []) + (["user_vector"] if stay < len(exits) else [])
            found = dict(zip(wanted, segment.run(wanted, feeds), strict=True))
            if stay < len(exits):
                left.append(found["user_vector"][stay:])
                exits = exits[:stay]
                feeds = {name: values[:stay] for name, values in feeds.items()}
            if stay:
                feeds["hidden_in"] = found["hidden_out"][:stay]
        return left[0] if len(left) == 1 else np.concatenate(left[::-1])

    def walk(
        self, items: NDArray[np.int64], timestamps: NDArray[np.int64] | None, depths: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """See ``Engine.walk``; depths that share no segment start from the history again."""
        feeds = model_inputs(self._bundle, items, timestamps)
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
            yield vectors

    def close(self) -> None:
        """See ``Engine.close``."""
        self._chains.clear()
        self._incremental = None


def _parts(lengths: NDArray[np.intp], first: int = 0) -> list[slice]:
    """The runs of histories whose lengths (n,) ascend, ``first`` being the first one's place.

    One run, unless it has too many positions, or less padding is worth another.
    """
    n, longest = len(lengths), int(lengths[-1])
    cut = max(0, n - max(1, MOST_POSITIONS // longest))
    # What a run of its own saves for the shortest one, two, ...
    saved = np.arange(1, n) * (longest - lengths[:-1])
    if n > 1 and saved.max() > RUN_POSITIONS:
        cut = int(saved.argmax()) + 1
    if not cut:
        return [slice(first, first + n)]
    return _parts(lengths[:cut], first) + _parts(lengths[cut:], first + cut)
