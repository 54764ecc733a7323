"""How the best items are arranged: pins, boosts, caps of categories, and diversity; exact for any ranking."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.item_filter import NO_BONUS, Bonus, Indices, ItemFilter, Scores, are_kept

#: Diversity chooses among the best so many items for each one that is wanted, and at least among so many.
POOL_FACTOR = 5
LEAST_POOL = 100
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
        if self.diversity:
            return max(POOL_FACTOR * k, LEAST_POOL)
        return CAPPED_FACTOR * k if self.caps else k


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
    while True:
        used = Counter(name for item in pinned.tolist() for name in set(ranking.categories(item)))
        chosen = _chosen(free, items, scores, rules, ranking, used)
        if len(chosen) == free or len(items) < asked:
            return items.take(chosen), scores.take(chosen)
        asked *= 2
        items, scores = ranking.best(asked, keep)


def _chosen(
    free: int, items: Indices, scores: Scores, rules: Rules, ranking: Ranking, used: Counter[str]
) -> NDArray[np.intp]:
    """Places of at most ``free`` of some candidates, best first, in the order in which they are chosen."""
    if not rules.caps and not rules.diversity:
        return np.arange(min(free, len(items)))
    names = [set(ranking.categories(item)) for item in items.tolist()] if rules.caps else None
    if rules.diversity:
        return _diverse(free, ranking.vectors(items), scores, rules, names, used)
    assert names is not None, "there are caps"
    chosen: list[int] = []
    for place, of in enumerate(names):
        if len(chosen) == free:
            break
        if _has_room(of, rules.caps, used):
            chosen.append(place)
            used.update(of)
    return np.array(chosen, np.intp)


def _diverse(
    free: int,
    vectors: NDArray[np.float32],
    scores: Scores,
    rules: Rules,
    names: Sequence[set[str]] | None,
    used: Counter[str],
) -> NDArray[np.intp]:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998): one by one the candidate with the largest

    (1 - diversity) * relevance - diversity * largest cosine to those that are chosen already;

    relevance: the score, scaled so that the pool's best has 1 and its last 0. Equal ones: the better score first, then
    the lowest index.
    """
    if not len(scores):
        return np.empty(0, np.intp)
    wide = scores.astype(np.float64)
    span = wide[0] - wide[-1]
    relevance = (1.0 - rules.diversity) * ((wide - wide[-1]) / span if span > 0 else np.ones(len(wide)))
    alike = np.full(len(wide), -np.inf)
    left = np.ones(len(wide), np.bool_)
    chosen: list[int] = []
    while len(chosen) < free:
        if names is not None:
            left &= np.fromiter((_has_room(of, rules.caps, used) for of in names), np.bool_, len(names))
        if not left.any():
            break
        worth = relevance - rules.diversity * alike if chosen else relevance
        place = int(np.where(left, worth, -np.inf).argmax()) if chosen else int(left.argmax())
        chosen.append(place)
        left[place] = False
        np.maximum(alike, vectors @ vectors[place], out=alike)
        if names is not None:
            used.update(names[place])
    return np.array(chosen, np.intp)


def _has_room(names: set[str], caps: Mapping[str, int], used: Counter[str]) -> bool:
    """Whether one more item of these categories may be returned."""
    every = caps.get("")
    for name in names:
        most = caps.get(name)
        if (most is not None and used[name] >= most) or (every is not None and used[name] >= every):
            return False
    return True


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
