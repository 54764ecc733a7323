"""What goes into a pipeline and what comes out of it; the one place where a query is checked against the catalogue."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import InvalidRequestError, NotFoundError, brief
from fathom.runtime.item_filter import Indices, ItemFilter, Mask, Scores
from fathom.runtime.prefix_cache import Owner, Reused
from fathom.runtime.reasons import LeaveOneOut, Reasons
from fathom.runtime.rules import Arrangement, Rules, without_pins
from fathom.runtime.shares import ANYBODY, Client
from fathom.selector.choice import Choice, PolicyName


@dataclass(frozen=True, slots=True)
class Range:
    """A numeric attribute of items and its bounds, inclusive, None where there is none."""

    attribute: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(slots=True)
class IndexedQuery:
    """One request, its items as indices of the catalogue.

    ``items``: known item indices, oldest first, of any length; at least one where the bundle has no counting exit or
    the depth is fixed above 0. ``timestamps``: seconds, one per item, or None. ``k``: at least 1. ``depth``: run
    exactly this one. ``deadline_s``: on the clock of ``time.monotonic``.
    ``exclude``, ``allow``: item indices (``allow`` None = all). ``categories``: of at least one of them, when any.
    ``include_seen``: items of the history may be returned too. ``seen``: in place of the history, the item indices that
    are left out as seen (None = the history). ``client``: whose it is; clients share the engine.
    ``owner``: whose history it is, where that is known. ``scope``: what is cached for one scope, no other one finds.
    ``include_reasons``: say which items of the history every
    answered item is due to. ``ranges``: bounds of attributes that all hold. ``rules``: how the best items are arranged.
    ``policy``: how the depth is chosen, in place of what the pipeline was told.
    ``asked_s``: the time of the request on the clock of ``timestamps``; None where it is not known.
    ``context``: what is known of its context, see ``Context.rows``.
    Not to be changed; not frozen, because building it would take four times as long (so with all that a request needs).
    """

    items: Sequence[int] | NDArray[np.integer]
    k: int
    profile: DeviceProfile
    timestamps: Sequence[int] | NDArray[np.integer] | None = None
    depth: int | None = None
    deadline_s: float | None = None
    exclude: Sequence[int] | NDArray[np.integer] = ()
    allow: Sequence[int] | NDArray[np.integer] | None = None
    categories: frozenset[str] = frozenset()
    include_seen: bool = False
    seen: Sequence[int] | NDArray[np.integer] | None = None
    client: Client = ANYBODY
    owner: Owner | None = None
    scope: bytes = b""
    include_reasons: bool = False
    ranges: Sequence[Range] = ()
    rules: Rules | None = None
    policy: PolicyName | None = None
    asked_s: int | None = None
    context: tuple[int, ...] = ()

    @property
    def is_filtered(self) -> bool:
        """Whether other items may be returned than the best of all that the user has not had."""
        other = self.allow is not None or self.seen is not None or self.rules is not None
        return bool(other or len(self.exclude) or self.categories or self.ranges or self.include_seen)


@dataclass(slots=True)
class Timing:
    """Microseconds of each stage; ``engine_us`` and ``retrieval_us`` are those of the whole batch."""

    select_us: int
    queue_us: int
    engine_us: int
    retrieval_us: int
    total_us: int

    @classmethod
    def of(cls, start_s: float, queued_s: float, began_s: float, engine_s: float, retrieval_s: float) -> Self:
        """From the moments of a request that ends now, on the clock of ``time.monotonic``, and its batch's seconds."""
        return cls(
            select_us=int((queued_s - start_s) * 1e6),
            queue_us=int((began_s - queued_s) * 1e6),
            engine_us=int(engine_s * 1e6),
            retrieval_us=int(retrieval_s * 1e6),
            total_us=int((time.monotonic() - start_s) * 1e6),
        )


@dataclass(slots=True)
class Answer:
    """``indices`` int64 and ``scores`` float32, best first; fewer than k when the filter leaves fewer.

    ``scores``: of the depth's search; at depth 0 those of ``Counting.best``. ``reused``: what of the request was known
    already. ``catalogue_version``: of the catalogue that it is from. ``reasons``: of every item, if asked for.
    """

    indices: Indices
    scores: Scores
    choice: Choice
    history_used: int
    timing: Timing
    reused: Reused = "nothing"
    catalogue_version: int = 0
    reasons: Reasons = ()


class QueryHistory(NamedTuple):
    """A query's history as arrays: all ``seen`` items (any,), and the newest of them that the engine reads, (n,).

    ``timestamps``: seconds of ``items``, None where they are not known. ``catalogue_items``: when it was read.
    """

    seen: Indices
    items: Indices
    timestamps: NDArray[np.int64] | None
    catalogue_items: int


def history_of(
    query: IndexedQuery, catalogue_items: int, max_history: int, *, may_be_empty: bool = False
) -> QueryHistory:
    """The history of a query; raises InvalidRequestError where it, its timestamps or ``k`` cannot be."""
    seen, timestamps = _indices(query.items, "items", catalogue_items), None
    if query.timestamps is not None:
        timestamps = np.asarray(query.timestamps, dtype=np.int64)
        if len(timestamps) != len(seen):
            raise InvalidRequestError(f"{len(timestamps)} timestamps for {len(seen)} items; give one per item or none")
    if query.k < 1 or not (seen.size or may_be_empty):
        raise InvalidRequestError(f"k is {query.k} and the history has {seen.size} items; both start at 1")
    newest = slice(-max_history, None)
    return QueryHistory(seen, seen[newest], None if timestamps is None else timestamps[newest], catalogue_items)


def leave_one_out(query: IndexedQuery, history: QueryHistory) -> LeaveOneOut:
    """The histories that say which items of its own a query's answer is due to."""
    times = None if query.timestamps is None else np.asarray(query.timestamps, dtype=np.int64)
    return LeaveOneOut.of(history.items, history.seen, times)


class Catalogue(Protocol):
    """Items by index."""

    def __len__(self) -> int: ...

    def category_mask(self, categories: Iterable[str], /) -> Mask:
        """True, shape (n,), for the items of at least one of these categories; NotFoundError for an unknown one."""

    def attribute(self, name: str, /) -> NDArray[np.float64] | None:
        """Of all items, (n,), NaN where it is not known; None where no item ever had it."""


def filter_of(query: IndexedQuery, seen: Indices, catalogue: Catalogue) -> ItemFilter:
    """Which items may answer a query whose history is ``seen`` (any,), item indices.

    Raises InvalidRequestError, and NotFoundError for an unknown category or attribute.
    """
    mask = catalogue.category_mask(query.categories) if query.categories else None
    for wanted in query.ranges:
        inside = _range_mask(wanted, catalogue)
        mask = inside if mask is None else mask & inside
    exclude = _indices(query.exclude, "exclude", len(catalogue)) if len(query.exclude) else None
    if not query.include_seen:
        if query.seen is not None:
            seen = _indices(query.seen, "seen", len(catalogue))
        exclude = seen if exclude is None else np.concatenate((seen, exclude))
    return ItemFilter(
        exclude=np.empty(0, np.int64) if exclude is None else exclude,
        allow=None if query.allow is None else _indices(query.allow, "allow", len(catalogue)),
        mask=mask,
    )


def arrangement_of(
    query: IndexedQuery, keep: ItemFilter, catalogue_items: int
) -> tuple[ItemFilter, Arrangement | None]:
    """The filter of a query for what is not pinned, and its rules, if any; what the user has had may be pinned."""
    rules = query.rules
    if rules is None:
        return keep, None
    _indices(list(rules.pins.values()), "pins", catalogue_items)
    pinnable = replace(keep, exclude=_indices(query.exclude, "exclude", catalogue_items))
    return without_pins(keep, rules), Arrangement(rules, pinnable)


def _range_mask(wanted: Range, catalogue: Catalogue) -> Mask:
    values = catalogue.attribute(wanted.attribute)
    if values is None:
        raise NotFoundError(f"no item of this catalogue has the attribute {brief(wanted.attribute)!r}")
    if wanted.at_least is None and wanted.at_most is None:
        return ~np.isnan(values)
    # What is not known is NaN, which no comparison lets through.
    inside: Mask = values >= (-np.inf if wanted.at_least is None else wanted.at_least)
    return inside if wanted.at_most is None else inside & (values <= wanted.at_most)


def _indices(values: Sequence[int] | NDArray[np.integer], name: str, catalogue_items: int) -> Indices:
    array: Indices = np.asarray(values, dtype=np.int64)
    if len(array):
        # As Python's integers: numpy lets go of the interpreter to find a maximum, and the engine's thread takes it.
        numbers = array.tolist()
        if min(numbers) < 0 or max(numbers) >= catalogue_items:
            raise InvalidRequestError(f"{name} holds an index outside 0..{catalogue_items - 1}")
    return array
