"""Incremental inference: computes new positions only, from the keys and values that are cached of those before.

The model is causal, so a position's state never changes when the history grows; a layer looks back over its span only,
so keys and values of the newest ``span - 1`` positions are all that a new one needs.
"""

from collections.abc import Mapping, Sequence
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


#: New items that a step computes at most: its tables of positions end there (docs/bundle-format.md).
MOST_STEPPED = 8
#: The outputs that the engines above need, and those of an exit.
_PASSED_ON, _OF_EXIT = ("hidden_out", "made"), ("last_made", "user_vector")
#: User vectors (batch, width), and what is to be cached of each history.
Incremental = tuple[Floats, list[CachedState]]


class IncrementalFiles(NamedTuple):
    """The engine files for incremental inference, and the shapes that they work on.

    ``segments``: depth -> file. ``steps``: depth -> a file with all of its layers; none in older bundles.
    """

    span: int
    heads: int
    width: int
    context: str
    segments: Mapping[int, str]
    steps: Mapping[int, str] = {}

    @classmethod
    def of(cls, manifest: Manifest) -> "IncrementalFiles | None":
        """Those of a bundle, if it has them."""
        model, extension = manifest.model, manifest.extension
        if extension is None:
            return None
        return cls(extension.span, model.heads, model.width, extension.context, extension.segments, extension.steps)


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


class Load(Protocol):
    """Opens an engine file by its path inside the bundle."""

    def __call__(self, name: str, /, *, recurring: bool = False) -> Runs:
        """``recurring``: it will run on few new positions, nearly always as many."""


class _Part(NamedTuple):
    """An engine that computes the layers ``start`` to ``end`` of a depth's path; its exit is that of depth ``end``."""

    start: int
    end: int
    engine: Runs


class _Ran(NamedTuple):
    """Of one row: its user vector (width,), and what was computed at its new positions.

    ``made``: keys and values, in parts of some layers each. ``hidden``: of its last segment, unless nothing follows it.
    """

    user: Floats
    made: list[Floats]
    hidden: Floats | None


class IncrementalRunner:
    """Runs them: what is cached goes on by one step, everything else by segments, which several depths share."""

    def __init__(self, files: IncrementalFiles, vectors: ItemVectors, load: Load, depths: Sequence[int]) -> None:
        self._span = files.span
        self._each = 2 * files.heads
        self._size = files.width // files.heads
        self._vectors = vectors
        self._scale = np.float32(files.width**0.5)
        chain = [depth for depth in sorted(files.segments) if depth <= max(depths)]
        # The first layer of each: the exit before has computed its own for one position.
        starts = [0, *(depth - 1 for depth in chain)]
        self._segments = [
            _Part(start, depth, load(files.segments[depth])) for start, depth in zip(starts, chain, strict=False)
        ]
        self._steps = {
            depth: _Part(0, depth, load(file, recurring=True)) for depth, file in files.steps.items() if depth in depths
        }
        context = load(files.context)
        read = {name for part in self._parts for name in part.engine.inputs}
        self._context_names = [name for name in context.outputs if name in read]
        self._context = context if self._context_names else None
        _check_names(context, {"items", "timestamps", "new_items"}, set(), files.context)
        known = {"hidden_in", "past", "new_items", *context.outputs}
        for _, depth, segment in self._segments:
            gives = {"user_vector", "last_made"} if depth == chain[-1] else {"hidden_out"}
            _check_names(segment, known, gives, files.segments[depth])
        for depth, step in self._steps.items():
            _check_names(step.engine, known, {"user_vector", "made"}, files.steps[depth])

    @property
    def _parts(self) -> list[_Part]:
        return [*self._segments, *self._steps.values()]

    def run(self, histories: Sequence[CachedHistory], depths: Sequence[int]) -> Incremental:
        """User vectors (B, width), each at its depth, and what is to be cached of each history now.

        A cached state must be of this depth or deeper, or have ``hidden`` and cover its whole history. Histories
        that are new, or that grow by the same number of items at the same depth, run together.
        """
        users = np.empty((len(histories), self._vectors.width), np.float32)
        kept: dict[int, CachedState] = {}
        groups: dict[tuple[int, int] | None, list[int]] = {}
        # The deepest first: whoever leaves a batch is then at its end.
        for row in sorted(range(len(depths)), key=depths.__getitem__, reverse=True):
            history = histories[row]
            groups.setdefault((history.new, depths[row]) if history.state else None, []).append(row)
        for growth, rows in groups.items():
            chosen = [histories[row] for row in rows]
            if growth is None:
                users[rows], found = self._start(chosen, [depths[row] for row in rows])
            elif growth[0]:
                users[rows], found = self._extend(chosen, *growth)
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
        feeds = self._feeds(histories, longest, longest)
        feeds["hidden_in"] = self._embed(feeds["new_items"])
        past = np.empty((len(histories), depths[0] * self._each, 0, self._size), np.float32)
        ran = self._run(self._chain(0, depths[0]), feeds, past, depths)
        kept = []
        for history, depth, (_, made, hidden) in zip(histories, depths, ran, strict=True):
            length = len(history.ids)
            newest = min(self._span - 1, length)
            rest = None if hidden is None else hidden[longest - length :].copy()
            kept.append(CachedState(depth, length, np.concatenate([part[:, -newest:] for part in made]), rest))
        return _users(ran), kept

    def _extend(self, histories: Sequence[CachedHistory], new: int, depth: int) -> tuple[Floats, list[CachedState]]:
        """By so many new items each."""
        layers = depth * self._each
        olds = [history.state for history in histories if history.state is not None]
        seen = max(old.past.shape[1] for old in olds)
        if len(olds) == 1:
            past = olds[0].past[None, :layers]
        else:
            past = np.zeros((len(olds), layers, seen, self._size), np.float32)
            for row, old in enumerate(olds):
                past[row, :, seen - old.past.shape[1] :] = old.past[:layers]
        feeds = self._feeds(histories, seen + new, new)
        feeds["hidden_in"] = self._embed(feeds["new_items"])
        step = self._steps.get(depth) if new <= MOST_STEPPED else None
        parts = self._chain(0, depth) if step is None else [step]
        ran = self._run(parts, feeds, past, [depth] * len(olds))
        kept = []
        for old, (_, made, rest) in zip(olds, ran, strict=True):
            whole = None
            if rest is not None and old.depth == depth and old.hidden is not None:
                whole = np.concatenate((old.hidden, rest))
            kept.append(CachedState(depth, old.length + new, _shifted(old.past, made, self._span - 1), whole))
        return _users(ran), kept

    def _deepen(self, history: CachedHistory, depth: int) -> tuple[Floats, CachedState]:
        """By the layers between the cached depth and this one, for all positions."""
        old = history.state
        assert old is not None
        assert old.hidden is not None
        start = old.depth - 1
        feeds = self._feeds([history], old.length, old.length)
        feeds["hidden_in"] = old.hidden[None]
        past = np.empty((1, (depth - start) * self._each, 0, self._size), np.float32)
        (ran,) = self._run(self._chain(old.depth, depth), feeds, past, [depth])
        new = np.concatenate((old.past[: start * self._each], *ran.made))
        return ran.user, CachedState(depth, old.length, new, ran.hidden)

    def _chain(self, known: int, depth: int) -> list[_Part]:
        """The segments above depth ``known``, up to ``depth``."""
        return [part for part in self._segments if known < part.end <= depth]

    def _feeds(self, histories: Sequence[CachedHistory], known: int, new: int) -> dict[str, NDArray[Any]]:
        """What all parts read of so many newest positions, the ``new`` ones being computed."""
        ids = [history.ids for history in histories]
        feeds: dict[str, NDArray[Any]] = {"new_items": left_padded(ids, new)}
        if self._context is not None:
            times = [() if history.timestamps is None else history.timestamps for history in histories]
            feeds |= {"items": left_padded(ids, known), "timestamps": left_padded(times, known)}
            names = self._context_names
            feeds |= dict(zip(names, self._context.run(names, feeds), strict=True))
        return feeds

    def _run(
        self, parts: Sequence[_Part], feeds: dict[str, NDArray[Any]], past: Floats, depths: Sequence[int]
    ) -> list[_Ran]:
        """Parts that follow each other, on rows whose ``depths`` do not ascend.

        ``past`` begins with the first of their layers. Each row leaves at its exit, and those above go on.
        """
        base = parts[0].start
        made: list[list[Floats]] = [[] for _ in depths]
        rows = len(depths)
        ran: list[_Ran] = []
        for start, end, engine in parts:
            stay = sum(depth > end for depth in depths[:rows])
            feeds["past"] = past[:, (start - base) * self._each : (end - base) * self._each]
            names = _PASSED_ON if stay == rows else (*_PASSED_ON, *_OF_EXIT)
            wanted = [name for name in names if name in engine.outputs]
            found = dict(zip(wanted, engine.run(wanted, feeds), strict=True))
            rest, last = found.get("hidden_out"), found.get("last_made")
            if "made" in found:
                for before, more in zip(made[:rows], found["made"], strict=True):
                    before.append(more)
            if stay < rows:
                for before, more in zip(made[stay:rows], () if last is None else last[stay:], strict=False):
                    before.append(more)
                users = found["user_vector"]
                left = [_Ran(users[row], made[row], None if rest is None else rest[row]) for row in range(stay, rows)]
                ran = left + ran
                feeds = {name: values[:stay] for name, values in feeds.items()}
                past, rows = past[:stay], stay
            if stay and rest is not None:
                feeds["hidden_in"] = rest[:stay]
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
    return np.array([each.user for each in ran])


def _shifted(past: Floats, made: Sequence[Floats], most: int) -> Floats:
    """The newest positions of both, (layers, at most ``most``, size); ``made``: in parts of some layers each."""
    new = min(made[0].shape[1], most)
    old = min(past.shape[1], most - new)
    joined = np.empty((sum(map(len, made)), old + new, past.shape[2]), np.float32)
    joined[:, :old] = past[: len(joined), past.shape[1] - old :]
    first = 0
    for part in made:
        joined[first : first + len(part), old:] = part[:, part.shape[1] - new :]
        first += len(part)
    return joined
