"""Rules as a request or the server's own file states them: checked against their contract, and looked up."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fathom.errors import InvalidRequestError, NotFoundError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.item_filter import Bonus, sum_of
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.rules import Rules
from fathom.serving.limits import check_boost, check_id, echo

#: Pins, boosts and caps that rules may have, of each.
MOST_RULES = 100


@dataclass(frozen=True, slots=True)
class ServerRules:
    """What a server's rules say of one bundle: lists of ids by name, and the rules of requests that bring none."""

    block_lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    default: pb.Rules | None = None


def check_rules(rules: pb.Rules) -> None:
    """Raise InvalidRequestError for the first rule that contradicts the contract, whatever the catalogue is."""
    for name, given in (("pins", rules.pins), ("boosts", rules.boosts), ("caps", rules.caps)):
        if len(given) > MOST_RULES:
            raise InvalidRequestError(f"rules has {len(given)} {name}, at most {MOST_RULES}")
    items, positions = [pin.item_id for pin in rules.pins], [pin.position for pin in rules.pins]
    for item in items:
        check_id("a pin's item_id", item)
    if 0 in positions:
        raise InvalidRequestError(f"pin {echo(items[positions.index(0)])} is at position 0; the first is 1")
    if len(set(items)) < len(items) or len(set(positions)) < len(positions):
        raise InvalidRequestError("pins name an item or a position twice; give each once")
    for boost in rules.boosts:
        check_boost("a boost's amount", boost.amount)
        if boost.WhichOneof("what") is None:
            raise InvalidRequestError("a boost names neither an item nor a category; give one of them")
        check_id("a boost's item_id or category", boost.item_id or boost.category)
    capped = [cap.category for cap in rules.caps]
    if len(set(capped)) < len(capped):
        raise InvalidRequestError("caps name a category twice; give each once")
    if not 0 <= rules.diversity <= 1:
        raise InvalidRequestError(f"diversity is {rules.diversity:g}; give a number from 0 to 1")


def indexed_rules(rules: pb.Rules, catalogue: LiveCatalogue) -> Rules:
    """Checked rules in item indices; NotFoundError for an unknown category. Unknown items are left out."""
    pins = {pin.position: item for pin in rules.pins if (item := catalogue.find(pin.item_id)) is not None}
    for cap in rules.caps:
        if cap.category and not catalogue.has_category(cap.category):
            raise _unknown(cap.category)
    return Rules(
        pins=pins,
        boosts=_boosts(rules, catalogue),
        caps={cap.category: cap.at_most for cap in rules.caps},
        diversity=rules.diversity,
    )


def _boosts(rules: pb.Rules, catalogue: LiveCatalogue) -> Bonus:
    items: defaultdict[int, float] = defaultdict(float)
    categories: defaultdict[str, float] = defaultdict(float)
    for boost in rules.boosts:
        if boost.WhichOneof("what") == "category":
            if not catalogue.has_category(boost.category):
                raise _unknown(boost.category)
            categories[boost.category] += boost.amount
        elif (item := catalogue.find(boost.item_id)) is not None:
            items[item] += boost.amount
    ascending = sorted(items)
    found = np.array(ascending, np.int64), np.array([items[item] for item in ascending], np.float32)
    return sum_of(found, _category_boosts(categories, catalogue)) if categories else found


def _category_boosts(amounts: Mapping[str, float], catalogue: LiveCatalogue) -> Bonus:
    """What is added to the items of categories; in one number per item, as they can be most of them."""
    total, boosted = np.zeros(len(catalogue)), np.zeros(len(catalogue), np.bool_)
    for name, amount in amounts.items():
        members = catalogue.in_category(name)
        total[members] += amount
        boosted[members] = True
    items = boosted.nonzero()[0].astype(np.int64, copy=False)
    return items, total.take(items).astype(np.float32)


def _unknown(category: str) -> NotFoundError:
    return NotFoundError(f"category {echo(category)} is not in the catalogue")
