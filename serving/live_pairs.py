"""Which pairs of items an append adds to what is counted: those with an item that a bundle was not trained with."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from fathom.serving.history.contract import StoredEvent

#: (an item, one that followed it) -> the sum of the later event's weight / lag; an item with itself: its events' sum.
Pairs = defaultdict[tuple[str, str], float]


def new_pairs(
    history: Sequence[StoredEvent],
    new: Collection[str],
    is_added: Callable[[str], bool],
    max_lag: int,
    weights: Mapping[str, float],
) -> Pairs:
    """Pairs of a user's history that hold a new event (by its id) and an added item, at a lag of 1 to ``max_lag``.

    ``history``: in its order, the new events in their places. Each event is new once, so each pair is counted once.
    ``weights``: of types of events, 1 for others; events of weight 0 are as if they had not been.
    """
    if weights:
        history = [event for event in history if weights.get(event.type, 1)]
    pairs: Pairs = defaultdict(float)
    added = [is_added(event.item_id) for event in history]
    fresh = [event.event_id in new for event in history]
    for place, event in enumerate(history):
        if not added[place]:
            continue
        if fresh[place]:
            pairs[event.item_id, event.item_id] += weights.get(event.type, 1)
        for lag in range(1, max_lag + 1):
            earlier, later = place - lag, place + lag
            if earlier >= 0 and (fresh[earlier] or fresh[place]):
                _count(pairs, history[earlier], event, weights.get(event.type, 1) / lag)
            # Of two added items the later one has counted, or will count, the pair.
            if later < len(history) and not added[later] and (fresh[later] or fresh[place]):
                _count(pairs, event, history[later], weights.get(history[later].type, 1) / lag)
    return pairs


def _count(pairs: Pairs, earlier: StoredEvent, later: StoredEvent, gain: float) -> None:
    if earlier.item_id != later.item_id:
        pairs[earlier.item_id, later.item_id] += gain
