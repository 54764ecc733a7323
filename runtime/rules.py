"""How the best items are arranged: pins, boosts, caps of categories, and diversity; exact for any ranking."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.item_filter import NO_BONUS, Bonus, Indices, ItemFilter, Mask, Scores, are_kept, both

#: Diversity chooses among the best so many items for each one that is wanted, and at least among so many.
POOL_FACTOR = 5
LEAST_POOL = 100
#: But among at most so many, and for so many places: what comes behind them follows by score.
LARGEST_POOL = 1_000
MOST_DIVERSE = 200
#: Items that are looked at first for each one that is wanted, where categories are capped.
CAPPED_FACTOR = 2

Found = tuple[Indices, Scores]
#: The k best items that a filter lets through: (indices int64, scores float32), best first, fewer where fewer are left.
Best = Callable[[int, ItemFilter], Found]
#: The scores of item indices (m,) in the same ranking, float32 (m,).
ScoresOf = Callable[[Indices], Scores]
#: The vectors of item indices (m,), float32 (m, width), unit rows.
VectorsOf = Callable[[Indices], NDArray[np.float32]]
#: The categories of an item index.
CategoriesOf = Callable[[int], Sequence[str]]
#: The items of at least one of some categories, bool (n,).
MembersOf = Callable[[Sequence[str]], Mask]


@dataclass(frozen=True, slots=True)
class Rules:
    """What one request asks for, its items as indices of the catalogue.

    ``pins``: position (1 is the first) -> item, each item once. ``boosts``: added to scores. ``caps``: category -> how
    many of its items may be returned; the empty string: of every category. ``diversity``: 0 to 1.
    """

    pins: Mapping[int, int] = field(default_factory=dict)
    boosts: Bonus = NO_BONUS
    caps: Mapping[str, int] = field(default_factory=dict)
    diversity: float = 0.0

    def looked_at(self, k: int) -> int:
        """How many of the best items are looked at first, to return k."""
        return looked_at(k, capped=bool(self.caps), diverse=bool(self.diversity))


def looked_at(k: int, *, capped: bool, diverse: bool) -> int:
    """How many of the best items are looked at first, to return k by such rules."""
    if diverse:
        return max(min(POOL_FACTOR * k, LARGEST_POOL), LEAST_POOL, k)
    return CAPPED_FACTOR * k if capped else k


class Arrangement(NamedTuple):
    """The rules of a request, and which items may be pinned."""

    rules: Rules
    pinnable: ItemFilter

    @property
    def pins(self) -> Indices:
        """The items that are pinned, by position."""
        return np.array([item for _, item in sorted(self.rules.pins.items())], np.int64)


class Ranking(NamedTuple):
    """What arranging takes: a ranking of all items, boosts included, and what is known of each."""

    best: Best
    scores: ScoresOf
    vectors: VectorsOf
    categories: CategoriesOf
    members: MembersOf


def without_pins(keep: ItemFilter, rules: Rules) -> ItemFilter:
    """A filter for the items that are not pinned."""
    if not rules.pins:
        return keep
    pinned = np.fromiter(rules.pins.values(), np.int64, len(rules.pins))
    return replace(keep, exclude=np.concatenate((keep.exclude, pinned)))


def arrange(k: int, keep: ItemFilter, arrangement: Arrangement, ranking: Ranking, first: Found | None = None) -> Found:
    """At most k items, (indices int64, scores float32), in the order in which they are returned.

    ``keep``: which items may be returned beside the pinned ones, without these. ``first``: the ``looked_at`` best of
    them, where they are known already.
    """
    rules = arrangement.rules
    pinned: Found = np.empty(0, np.int64), np.empty(0, np.float32)
    if rules.pins:
        pins = arrangement.pins[are_kept(arrangement.pins, arrangement.pinnable)]
        pinned = pins, ranking.scores(pins)
    free = max(k - len(pinned[0]), 0)
    others = _others(free, k, keep, rules, ranking, pinned[0], first)
    return _placed(k, others, pinned, rules.pins) if len(pinned[0]) else others


def _others(
    free: int, k: int, keep: ItemFilter, rules: Rules, ranking: Ranking, pinned: Indices, first: Found | None
) -> Found:
    """At most ``free`` items beside the pinned ones; ever more are looked at until they are found, or all are."""
    asked = rules.looked_at(k)
    items, scores = ranking.best(asked, keep) if first is None else first
    if not rules.caps and not rules.diversity:
        return items[:free], scores[:free]
    used = Counter(name for item in pinned.tolist() for name in set(ranking.categories(item)))
    found: list[Found] = []
    diversity = rules.diversity
    while True:
        left = _Left([ranking.categories(item) for item in items.tolist()], rules.caps, used)
        places = _chosen(free, (items, scores), diversity, ranking, left)
        found.append((items.take(places), scores.take(places)))
        free -= len(places)
        if not free or len(items) < asked:
            return np.concatenate([each for each, _ in found]), np.concatenate([each for _, each in found])
        # Those that were looked at are chosen, or barred for good: categories only get fuller.
        keep = _without(keep, items, ranking.members(left.full))
        asked, diversity = 2 * asked, 0.0
        items, scores = ranking.best(asked, keep)


def _without(keep: ItemFilter, items: Indices, barred: Mask) -> ItemFilter:
    """A filter that lets neither some items through nor those of a mask (n,)."""
    mask = ~barred if keep.mask is None else both(keep.mask, ~barred)
    return replace(keep, exclude=np.concatenate((keep.exclude, items)), mask=mask)


def _chosen(free: int, found: Found, diversity: float, ranking: Ranking, left: "_Left") -> NDArray[np.intp]:
    """Places of at most ``free`` of some candidates, best first, in the order in which they are chosen."""
    if diversity:
        _diverse(min(free, MOST_DIVERSE), ranking.vectors(found[0]), found[1], diversity, left)
    for place in left.places.nonzero()[0].tolist():
        if len(left.chosen) == free:
            break
        if left.places[place]:
            left.choose(place)
    return np.array(left.chosen, np.intp)


class _Left:
    """Which of n candidates may still be chosen, and those that are, in their order.

    ``names``: the categories of each. ``used``: how many items of a category are returned so far.
    """

    def __init__(self, names: Sequence[Sequence[str]], caps: Mapping[str, int], used: Counter[str]) -> None:
        self._names = names
        self._caps = caps
        self._used = used
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        self.places = np.ones(len(names), np.bool_)
        self.chosen: list[int] = []
        if caps:
            for place, of in enumerate(names):
                for name in of:
                    self._places[name].append(place)
        for name in self.full:
            self.places[self._places[name]] = False

    @property
    def full(self) -> list[str]:
        """Categories of candidates of which no more may be chosen."""
        return [name for name in self._places if self._is_full(name)]

    def choose(self, place: int) -> None:
        """Choose a candidate, perhaps the last of its categories."""
        self.chosen.append(place)
        self.places[place] = False
        if self._caps:
            for name in set(self._names[place]):
                self._used[name] += 1
                if self._is_full(name):
                    self.places[self._places[name]] = False

    def _is_full(self, name: str) -> bool:
        return self._used[name] >= min(self._caps.get(name, math.inf), self._caps.get("", math.inf))


def _diverse(most: int, vectors: NDArray[np.float32], scores: Scores, diversity: float, left: _Left) -> None:
    """Choose by maximal marginal relevance (Carbonell and Goldstein, 1998): one by one the candidate with the largest

    (1 - diversity) * relevance - diversity * largest cosine to those that are chosen already;

    relevance: the score, scaled so that the pool's best has 1 and its last 0. Equal ones: the better score first, then
    the lowest index.
    """
    if not len(scores):
        return
    wide = scores.astype(np.float64)
    span = wide[0] - wide[-1]
    relevance = (1.0 - diversity) * ((wide - wide[-1]) / span if span > 0 else np.ones(len(wide)))
    alike = np.full(len(wide), -np.inf)
    while len(left.chosen) < most and left.places.any():
        if left.chosen:
            place = int(np.where(left.places, relevance - diversity * alike, -np.inf).argmax())
        else:
            place = int(left.places.argmax())
        left.choose(place)
        np.maximum(alike, vectors @ vectors[place], out=alike)


def _placed(k: int, others: Found, pinned: Found, pins: Mapping[int, int]) -> Found:
    """Pinned items at their positions, those beyond the end at its last free ones, the others in between."""
    score_of = dict(zip(pinned[0].tolist(), pinned[1].tolist(), strict=True))
    wanted = sorted((position, item) for position, item in pins.items() if item in score_of)
    total = min(k, len(others[0]) + len(wanted))
    slots = {position - 1: item for position, item in wanted if position <= total}
    beyond = [item for position, item in wanted if position > total]
    free = [slot for slot in range(total) if slot not in slots]
    if beyond:
        beyond = beyond[: len(free)]
        slots |= zip(free[len(free) - len(beyond) :], beyond, strict=True)
    items, scores = np.empty(total, np.int64), np.empty(total, np.float32)
    at = np.array(sorted(slots), np.int64)
    items[at] = [slots[slot] for slot in at.tolist()]
    scores[at] = [score_of[slots[slot]] for slot in at.tolist()]
    rest = np.setdiff1d(np.arange(total), at)
    items[rest], scores[rest] = others[0][: len(rest)], others[1][: len(rest)]
    return items, scores
