"""How a client has the best items arranged, and which attributes it wants them to have."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fathom.client import arguments
from fathom.errors import InvalidRequestError, brief
from fathom.protos.fathom.v1 import recommender_pb2 as pb


@dataclass(frozen=True)
class Range:
    """Bounds of a numeric attribute, inclusive; None: no bound. An item without the attribute is not returned."""

    attribute: str
    at_least: float | None = None
    at_most: float | None = None

    def message(self) -> pb.Range:
        """The message that goes over the wire; raises InvalidRequestError when it cannot be built."""
        bounds = {name: getattr(self, name) for name in ("at_least", "at_most")}
        return arguments.message(
            pb.Range,
            attribute=arguments.text("attribute", self.attribute),
            **{name: arguments.number(name, bound) for name, bound in bounds.items() if bound is not None},
        )


@dataclass(frozen=True)
class Boost:
    """What is added to the score of one item or of all of a category, -10 to 10; below 0 buries."""

    amount: float
    item_id: str = ""
    category: str = ""

    def message(self) -> pb.Boost:
        """The message that goes over the wire; raises InvalidRequestError when it cannot be built."""
        item, category = arguments.text("item_id", self.item_id), arguments.text("category", self.category)
        if bool(item) == bool(category):
            raise InvalidRequestError("a boost is for an item_id or for a category; give one of them")
        what = {"item_id": item} if item else {"category": category}
        return arguments.message(pb.Boost, amount=arguments.number("a boost's amount", self.amount), **what)


@dataclass(frozen=True)
class Rules:
    """How the best items are arranged; they take the place of the server's own, as ``Rules()`` does.

    ``pins``: position (1 is the first) -> item id. ``boosts``: those that meet in an item are added up. ``caps``:
    category -> how many of its items at most; the empty text: of every category. ``diversity``: 0, the best items, to
    1, items that are least like each other.
    """

    pins: Mapping[int, str] = field(default_factory=dict)
    boosts: Iterable[Boost] = ()
    caps: Mapping[str, int] = field(default_factory=dict)
    diversity: float = 0.0

    def message(self) -> pb.Rules:
        """The message that goes over the wire; raises InvalidRequestError when it cannot be built."""
        text, integer, message = arguments.text, arguments.integer, arguments.message
        pins, caps = _mapping("pins", self.pins), _mapping("caps", self.caps)
        return message(
            pb.Rules,
            pins=[
                message(pb.Pin, item_id=text("pins", item), position=integer("pins", position))
                for position, item in pins.items()
            ],
            boosts=[each.message() for each in arguments.instances("boosts", self.boosts, Boost)],
            caps=[
                message(pb.Cap, category=text("caps", name), at_most=integer("caps", most))
                for name, most in caps.items()
            ],
            diversity=arguments.number("diversity", self.diversity),
        )


def _mapping(name: str, value: object) -> Mapping[object, object]:
    if isinstance(value, Mapping):
        return value
    raise InvalidRequestError(f"{name} is {brief(value)} ({type(value).__name__}); give a dict")
