"""One process's part of the work: answers histories with a bundle as a server does, in batches of like length."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import BundleEditedError, ConfigError, UnavailableError
from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.engines.session import Device
from fathom.runtime.index_retriever import open_retriever
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.query import IndexedQuery, filter_of, history_of
from fathom.runtime.runner import BatchItem, Runner
from fathom.runtime.settings import PipelineSettings
from fathom.selector.choice import DepthReason, DepthRequest, PolicyName
from fathom.selector.chooser import DepthChooser
from fathom.serving.describe import own_profile

#: The depth of a user of whom nothing can be said.
NO_DEPTH = -1
#: Their reason; those of all others are of ``DepthReason``.
NOT_FOUND = "not_found"


@dataclass(frozen=True)
class ScoreOptions:
    """What decides the answers beside bundle and histories: ``profile`` and ``policy`` as for `fathom serve`.

    ``k``: items per user. ``depth``: for all users, in place of the policy. ``include_seen``: items of the history may
    be returned too.
    """

    k: int = 10
    profile: str = "cloud"
    policy: PolicyName = "auto"
    depth: int | None = None
    include_seen: bool = False


@dataclass(frozen=True)
class Work:
    """What every process is given: a bundle in this very version, and what to do with it."""

    bundle: Path
    version: str
    options: ScoreOptions
    device: Device | Literal["auto"] = "auto"


class Piece(NamedTuple):
    """Some users' histories: their indices of the catalogue, oldest first, one after the other, (events,).

    ``offsets``: int64 (users + 1,). ``timestamps``: seconds (events,), None where they are not known.
    """

    number: int
    items: NDArray[np.integer]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64] | None


class Scored(NamedTuple):
    """The answers to a piece: of every user the number of items (users,), and all items and scores (sum of those,).

    ``depths``: int16 (users,), NO_DEPTH where no item of the history is known and the bundle has no counting exit.
    ``reasons``: one per user.
    """

    lengths: NDArray[np.int64]
    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    depths: NDArray[np.int16]
    reasons: list[str]


class _Answer(NamedTuple):
    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    depth: int
    reason: str


class _Waiting(NamedTuple):
    row: int
    work: BatchItem
    reason: DepthReason


_NOTHING = _Answer(np.empty(0, np.int64), np.empty(0, np.float32), NO_DEPTH, NOT_FOUND)


def score_piece(work: Work, piece: Piece) -> Scored:
    """The answers to a piece; raises BundleError and ConfigError, and UnavailableError where the engine fails."""
    return _scorer(work).score(piece)


@lru_cache(maxsize=1)
def _scorer(work: Work) -> "Scorer":
    """One per process, for all its pieces."""
    bundle = Bundle.open(work.bundle)
    if bundle.manifest.version != work.version:
        raise BundleEditedError(f"{work.bundle}: is no longer version {work.version}; run it again")
    limit_blas_threads(1)
    return Scorer(bundle, open_engine(bundle, device=work.device), work.options)


def depth_chooser(bundle: Bundle, options: ScoreOptions) -> tuple[DepthChooser, DeviceProfile]:
    """What chooses the depths, and for which profile; raises ConfigError where it cannot."""
    profile = own_profile(options.profile, bundle, force=True)
    served = bundle.manifest.served_depths
    if options.depth is not None and options.depth not in served:
        raise ConfigError(f"{bundle.path}: no depth {options.depth}; the bundle has {', '.join(map(str, served))}")
    settings = PipelineSettings()
    chooser = DepthChooser(
        bundle.certificate,
        served,
        policy=options.policy,
        alpha=settings.feedback_alpha,
        at_share=bundle.complexity.at_share,
    )
    chooser.require(profile)
    return chooser, profile


class Scorer:
    """Answers pieces with one engine, in one thread."""

    def __init__(self, bundle: Bundle, engine: Engine, options: ScoreOptions) -> None:
        self._bundle = bundle
        self._options = options
        self._chooser, self._profile = depth_chooser(bundle, options)
        settings = PipelineSettings.for_profile(self._profile)
        retriever = open_retriever(bundle, block_items=settings.retrieval_items, device=engine.device)
        self._runner = Runner(bundle, LiveCatalogue(bundle), engine, retriever)
        model = bundle.manifest.model
        self._max_history, self._uses_timestamps = model.max_history, model.uses_timestamps
        self._max_batch, self._max_batch_tokens = settings.max_batch, settings.max_batch_tokens

    def score(self, piece: Piece) -> Scored:
        """The answers to a piece; raises UnavailableError where the engine fails."""
        users = len(piece.offsets) - 1
        answers = [_NOTHING] * users
        lanes: dict[int, list[_Waiting]] = {}
        for row in range(users):
            events = slice(piece.offsets[row], piece.offsets[row + 1])
            times = None if piece.timestamps is None else piece.timestamps[events]
            answered = self._begin(row, piece.items[events], times, lanes)
            if answered is not None:
                answers[row] = answered
        for depth, lane in lanes.items():
            for batch in self._batches(lane):
                results = self._runner.run([depth] * len(batch), [each.work for each in batch])
                for each, result in zip(batch, results, strict=True):
                    if isinstance(result, UnavailableError):
                        raise result
                    answers[each.row] = _Answer(result.indices, result.scores, depth, each.reason.value)
        return Scored(
            np.array([len(answer.indices) for answer in answers], np.int64),
            np.concatenate([answer.indices for answer in answers]),
            np.concatenate([answer.scores for answer in answers]),
            np.array([answer.depth for answer in answers], np.int16),
            [answer.reason for answer in answers],
        )

    def _begin(
        self,
        row: int,
        items: NDArray[np.integer],
        timestamps: NDArray[np.int64] | None,
        lanes: dict[int, list[_Waiting]],
    ) -> _Answer | None:
        """The answer of a user where it needs no engine; others wait in the lane of their depth."""
        options, bundle, counting = self._options, self._bundle, self._bundle.counting
        k = min(options.k, len(bundle.catalogue))
        if not len(items):
            if counting is None or options.depth:
                return _NOTHING
            popular = counting.best(items, k, ItemFilter(exclude=np.empty(0, np.int64)))
            return _Answer(*popular, 0, DepthReason.POPULAR.value)
        query = IndexedQuery(items, k, self._profile, timestamps, options.depth, include_seen=options.include_seen)
        history = history_of(query, len(bundle.catalogue), self._max_history)
        inspect = partial(bundle.inspect, history.items, history.timestamps)
        choice = self._chooser.choose(DepthRequest(self._profile, history.items, inspect, options.depth))
        keep = filter_of(query, history.seen, bundle.catalogue)
        if choice.depth == 0 and counting is not None:
            return _Answer(*counting.best(history.items, k, keep), 0, choice.reason.value)
        times = history.timestamps if self._uses_timestamps else None
        work = BatchItem(history.items + 1, times, k, keep)
        lanes.setdefault(choice.depth, []).append(_Waiting(row, work, choice.reason))
        return None

    def _batches(self, lane: list[_Waiting]) -> Iterator[list[_Waiting]]:
        """A lane in batches of like length, so that next to nothing is padded; each as large as the profile allows."""
        batch: list[_Waiting] = []
        for each in sorted(lane, key=lambda waiting: len(waiting.work.ids)):
            tokens = (len(batch) + 1) * len(each.work.ids)
            if batch and (len(batch) == self._max_batch or tokens > self._max_batch_tokens):
                yield batch
                batch = []
            batch.append(each)
        if batch:
            yield batch
