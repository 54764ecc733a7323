"""Incremental inference: computes new positions only, from the keys and values that are cached of those before.

The model is causal, so a position's state never changes when the history grows; a layer looks back over its span only,
so keys and values of the newest ``span - 1`` positions are all that a new one needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleError
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.manifest import Manifest
from fathom.runtime.padding import left_padded

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CachedState:
    """What is cached of a history at a depth.

    ``length``: its items. ``past``: (depth x 2 heads, P, width / heads), keys and values of every layer at its newest
    P = min(span - 1, length) positions. ``hidden``: (length, width), where the next segment goes on, if known.
    """

    depth: int
    length: int
    past: Floats
    hidden: Floats | None

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return self.past.nbytes + (0 if self.hidden is None else self.hidden.nbytes)


class CachedHistory(NamedTuple):
    """A history of input ids (index + 1) and seconds, and the state that is cached of its first items, if any."""

    ids: Ids
    timestamps: Ids | None
    state: CachedState | None

    @property
    def new(self) -> int:
        """Items of which nothing is cached."""
        return len(self.ids) - (self.state.length if self.state else 0)


#: User vectors (batch, width), and what is to be cached of each history.
Incremental = tuple[Floats, list[CachedState]]


class IncrementalFiles(NamedTuple):
    """The engine files for incremental inference, and the shapes that they work on; ``segments``: depth -> file."""

    span: int
    heads: int
    width: int
    context: str
    segments: Mapping[int, str]

    @classmethod
    def of(cls, manifest: Manifest) -> "IncrementalFiles | None":
        """Those of a bundle, if it has them."""
        model, extension = manifest.model, manifest.extension
        if extension is None:
            return None
        return cls(extension.span, model.heads, model.width, extension.context, extension.segments)


class Runs(Protocol):
    """One engine file, opened."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names of what it reads."""

    @property
    def outputs(self) -> Sequence[str]:
        """The names of what it can give."""

    def run(self, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """These outputs; ``feeds`` may hold more than it reads."""


class _Ran(NamedTuple):
    """Of one row: its user vector (width,), and what was computed at its new positions.

    ``made``: keys and values, in parts of some layers each. ``hidden``: of its last segment, unless nothing follows it.
    """

    user: Floats
    made: list[Floats]
    hidden: Floats | None


class IncrementalRunner:
    """Runs them; ``load`` opens an engine file by its path inside the bundle."""

    def __init__(
        self, files: IncrementalFiles, vectors: ItemVectors, load: Callable[[str], Runs], depths: Sequence[int]
    ) -> None:
        self._span = files.span
        self._each = 2 * files.heads
        self._size = files.width // files.heads
        self._vectors = vectors
        self._scale = np.float32(files.width**0.5)
        chain = [depth for depth in sorted(files.segments) if depth <= max(depths)]
        self._segments = {depth: load(files.segments[depth]) for depth in chain}
        context = load(files.context)
        read = {name for segment in self._segments.values() for name in segment.inputs}
        self._context_names = [name for name in context.outputs if name in read]
        self._context = context if self._context_names else None
        _check_names(context, {"items", "timestamps", "new_items"}, set(), files.context)
        for depth, segment in self._segments.items():
            gives = {"user_vector", "last_made"} if depth == chain[-1] else {"hidden_out"}
            _check_names(segment, {"hidden_in", "past", "new_items", *context.outputs}, gives, files.segments[depth])
        # The place in the path of each segment's first layer: the exit before has computed its own for one position.
        self._starts = dict(zip(chain, [0, *(depth - 1 for depth in chain)], strict=False))

    def run(self, histories: Sequence[CachedHistory], depths: Sequence[int]) -> Incremental:
        """User vectors (B, width), each at its depth, and what is to be cached of each history now.

        A cached state must be of this depth or deeper, or have ``hidden`` and cover its whole history. Histories
        that are new in the same number of items run together.
        """
        users = np.empty((len(histories), self._vectors.width), np.float32)
        kept: dict[int, CachedState] = {}
        groups: dict[int | None, list[int]] = {}
        # The deepest first: whoever leaves a batch is then at its end.
        for row in sorted(range(len(depths)), key=depths.__getitem__, reverse=True):
            history = histories[row]
            groups.setdefault(history.new if history.state else None, []).append(row)
        for new, rows in groups.items():
            chosen, at = [histories[row] for row in rows], [depths[row] for row in rows]
            if new is None:
                users[rows], found = self._start(chosen, at)
            elif new:
                users[rows], found = self._extend(chosen, new, at)
            else:
                found = []
                for row in rows:
                    users[row], deeper = self._deepen(histories[row], depths[row])
                    found.append(deeper)
            kept |= zip(rows, found, strict=True)
        return users, [kept[row] for row in range(len(histories))]

    def _start(self, histories: Sequence[CachedHistory], depths: Sequence[int]) -> tuple[Floats, list[CachedState]]:
        """From nothing, padded on the left to the longest."""
        longest = max(len(history.ids) for history in histories)
        items, times = _inputs(histories, longest)
        past = np.empty((len(items), depths[0] * self._each, 0, self._size), np.float32)
        ran = self._run(items, times, longest, self._embed(items), past, 0, depths)
        kept = []
        for history, depth, (_, made, hidden) in zip(histories, depths, ran, strict=True):
            length = len(history.ids)
            newest = min(self._span - 1, length)
            rest = None if hidden is None else hidden[longest - length :].copy()
            kept.append(CachedState(depth, length, _joined(made, newest), rest))
        return _users(ran), kept

    def _extend(
        self, histories: Sequence[CachedHistory], new: int, depths: Sequence[int]
    ) -> tuple[Floats, list[CachedState]]:
        """By so many new items each."""
        olds = [history.state for history in histories if history.state is not None]
        seen = max(old.past.shape[1] for old in olds)
        items, times = _inputs(histories, seen + new)
        if len(olds) == 1:
            past = olds[0].past[None, : depths[0] * self._each]
        else:
            past = np.zeros((len(olds), depths[0] * self._each, seen, self._size), np.float32)
            for row, (old, depth) in enumerate(zip(olds, depths, strict=True)):
                layers = depth * self._each
                past[row, :layers, seen - old.past.shape[1] :] = old.past[:layers]
        hidden = self._embed(items[:, seen:])
        ran = self._run(items, times, new, hidden, past, 0, depths)
        kept = []
        for old, depth, (_, made, rest) in zip(olds, depths, ran, strict=True):
            whole = None
            if rest is not None and old.depth == depth and old.hidden is not None:
                whole = np.concatenate((old.hidden, rest))
            shifted = _shifted(old.past[: depth * self._each], _joined(made, new), self._span - 1)
            kept.append(CachedState(depth, old.length + new, shifted, whole))
        return _users(ran), kept

    def _deepen(self, history: CachedHistory, depth: int) -> tuple[Floats, CachedState]:
        """By the layers between the cached depth and this one, for all positions."""
        old = history.state
        assert old is not None
        assert old.hidden is not None
        start = old.depth - 1
        items, times = _inputs([history], old.length)
        past = np.empty((1, (depth - start) * self._each, 0, self._size), np.float32)
        (ran,) = self._run(items, times, old.length, old.hidden[None], past, old.depth, [depth])
        new = np.concatenate((old.past[: start * self._each], *ran.made))
        return ran.user, CachedState(depth, old.length, new, ran.hidden)

    def _run(
        self, items: Ids, times: Ids, new: int, hidden: Floats, past: Floats, known: int, depths: Sequence[int]
    ) -> list[_Ran]:
        """The segments above depth ``known``, on the newest positions of rows whose ``depths`` do not ascend.

        ``past`` begins with the first of their layers. Each row leaves at its exit, and those above go on.
        """
        feeds: dict[str, NDArray[Any]] = {
            "items": items,
            "timestamps": times,
            "new_items": items[:, items.shape[1] - new :],
        }
        if self._context is not None:
            names = self._context_names
            feeds |= dict(zip(names, self._context.run(names, feeds), strict=True))
        chain = [each for each in self._segments if known < each <= depths[0]]
        base = self._starts[chain[0]]
        made: list[list[Floats]] = [[] for _ in depths]
        rows = len(depths)
        ran: list[_Ran] = []
        for each in chain:
            segment = self._segments[each]
            stay = sum(depth > each for depth in depths[:rows])
            feeds["hidden_in"] = hidden
            feeds["past"] = past[:, (self._starts[each] - base) * self._each : (each - base) * self._each]
            wanted = [name for name in ("hidden_out", "made") if name in segment.outputs]
            wanted += ["last_made", "user_vector"] if stay < rows else []
            found = dict(zip(wanted, segment.run(wanted, feeds), strict=True))
            hidden, rest = found.get("hidden_out", hidden), found.get("hidden_out")
            if "made" in found:
                for parts, part in zip(made[:rows], found["made"], strict=True):
                    parts.append(part)
            if stay < rows:
                left = [
                    _Ran(
                        found["user_vector"][row],
                        [*made[row], found["last_made"][row]],
                        None if rest is None else rest[row],
                    )
                    for row in range(stay, rows)
                ]
                ran = left + ran
                feeds = {name: values[:stay] for name, values in feeds.items()}
                hidden, past, rows = hidden[:stay], past[:stay], stay
        return ran

    def _embed(self, items: Ids) -> Floats:
        """Input ids -> (B, N, width), zero for padding."""
        hidden = self._vectors.padded(items)
        hidden *= self._scale
        return hidden


def _check_names(engine: Runs, known: set[str], needed: set[str], file: str) -> None:
    """Raise BundleError for an engine that reads what is not known, or does not give what is needed."""
    if not known.issuperset(engine.inputs) or not needed.issubset(engine.outputs):
        raise BundleError(f"{file}: not an engine for incremental inference; export the bundle again")


def _users(ran: Sequence[_Ran]) -> Floats:
    return np.stack([each.user for each in ran])


def _joined(made: Sequence[Floats], newest: int) -> Floats:
    """What all layers made of the newest positions of one history, (layers, at most ``newest``, size)."""
    return np.concatenate([part[:, -newest:] for part in made])


def _shifted(past: Floats, made: Floats, most: int) -> Floats:
    """The newest positions of both, (layers, at most ``most``, size)."""
    new = min(made.shape[1], most)
    old = min(past.shape[1], most - new)
    joined = np.empty((past.shape[0], old + new, past.shape[2]), np.float32)
    joined[:, :old] = past[:, past.shape[1] - old :]
    joined[:, old:] = made[:, made.shape[1] - new :]
    return joined


def _inputs(histories: Sequence[CachedHistory], length: int) -> tuple[Ids, Ids]:
    """The newest ``length`` ids and seconds of each, (B, length)."""
    ids = [history.ids for history in histories]
    times = [() if history.timestamps is None else history.timestamps for history in histories]
    return left_padded(ids, length), left_padded(times, length)
