"""The certificate: quality as routed is at least (1 - eps) x quality at the deepest depth, but for delta.

Per user, F is the quality at the deepest depth and R what the routing is expected to give; the mean of
Z = (1 - eps) F - R is below zero exactly when the loss is less than eps. Members of a family of routings are tested by
betting, from the safest to the most aggressive, each at the same level, and the first failure ends it: so the chance
that any routing is certified wrongly is at most delta (fixed-sequence testing). Z is never clipped: with no loss at
all, a loss clipped at zero would look like a large one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fathom.errors import ArtefactError, brief
from fathom.files import parse_json
from fathom.selector.betting import is_negative, largest_shown, values_needed
from fathom.selector.routing import Routing
from fathom.selector.schema import STRICT, AnyDepth, Floats, Share, validated

SCHEMA_VERSION: Literal[2] = 2


@dataclass(frozen=True, config=STRICT)
class Bucket:
    """A part of the users under the certified routing.

    ``kept``: quality as routed / at the deepest depth; ``low``: a bound below which it is, in any bucket of the claim,
    with probability at most the claim's level.
    """

    name: str
    users: int
    kept: float
    low: float


@dataclass(frozen=True, config=STRICT)
class Claim:
    """What is certified for all profiles that allow these depths.

    ``level``: the claim's part of delta. ``routing``: the cheapest that was certified; None for none. ``needed``: about
    how many users would do for the next cheaper one, None where more users would not help. ``kept``, ``saved``:
    estimated quality kept, and compute saved, against the deepest depth. ``agreement``: the routed top 10 shares at
    least so much with the deepest depth's, with confidence 1 - delta / 10, where they were not the same depth; None
    where no request is routed elsewhere.
    """

    depths: tuple[AnyDepth, ...]
    policy: str
    level: Share
    users: int
    routing: Routing | None = None
    kept: float | None = None
    saved: float | None = None
    agreement: Share | None = None
    needed: int | None = None
    buckets: tuple[Bucket, ...] = ()

    def __post_init__(self) -> None:
        if len(self.depths) < 2 or list(self.depths) != sorted(set(self.depths)):
            raise ValueError("depths must be two or more, ascending")
        if self.routing is not None and self.routing.depths != self.depths:
            raise ValueError("the routing is for other depths than the claim")


@dataclass(frozen=True, config=STRICT)
class Certificate:
    """``selector/certificate.json``: what was promised, on which data, for which engines.

    ``dataset``: its sha256; ``part``: the cases of which split. ``files``: sha256 of every file that the answers depend
    on. ``costs_ms``: depth -> mean milliseconds of a request alone on the machine that certified. ``depths``: depth ->
    sha256 over what it ran, engines in their order among it; empty before schema 2. ``merged``: test users left out of
    ``users`` because another has the same case; None in certificates that did not look for them. ``seed``: of the order
    of users, in certificates written before that order followed from the data.
    """

    schema_version: Literal[1, 2]
    metric: Literal["ndcg@10"]
    eps: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    created: str
    seed: int | None
    dataset: str
    part: str
    files: dict[str, str]
    costs_ms: dict[AnyDepth, float]
    claims: tuple[Claim, ...]
    depths: dict[AnyDepth, str] = field(default_factory=dict)
    merged: Annotated[int, Field(ge=0)] | None = None

    @property
    def certified(self) -> bool:
        """Whether any claim holds."""
        return any(claim.routing is not None for claim in self.claims)

    def claim(self, depths: Sequence[int]) -> Claim | None:
        """The claim for exactly these depths."""
        return next((claim for claim in self.claims if claim.depths == tuple(depths)), None)

    def differing(self, files: Mapping[str, str]) -> str | None:
        """The first of the given files (path -> sha256) that is not the one which was certified."""
        return next((path for path in sorted(files) if self.files.get(path) != files[path]), None)

    def differing_depth(self, depths: Mapping[int, str]) -> int | None:
        """The first of these depths (depth -> sha256 over what it runs) that did not run that when certified."""
        return next((depth for depth in sorted(depths) if self.depths.get(depth) != depths[depth]), None)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, read back by ``parse``."""
        form: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return form

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> "Certificate":
        """From the bytes of a file that ``where`` names; of this schema or an older one. Raises ArtefactError."""
        try:
            value = parse_json(data)
        except ValueError as error:
            raise ArtefactError(f"{where}: not a certificate: {brief(error, 100)}") from None
        remedy = "certify the bundle again"
        return validated(_ADAPTER, value, kind="certificate", where=where, newest=SCHEMA_VERSION, remedy=remedy)


_ADAPTER = TypeAdapter(Certificate)


def certified(full: Floats, routed: Iterable[Floats], *, eps: float, level: float) -> int:
    """How many of a family's routings are certified, from the first on.

    ``full`` (n,): quality of each user at the deepest depth, 0 to 1. ``routed``: (n,) for each routing, the safest
    first. Users in an order that owes nothing to their quality.
    """
    count = 0
    for quality in routed:
        if not is_negative((1 - eps) * full - quality, largest=1 - eps, delta=level):
            break
        count += 1
    return count


def users_needed(full: Floats, routed: Floats, *, eps: float, level: float) -> int | None:
    """About how many users such as these (n,) would certify a routing; None where it loses eps or more."""
    return values_needed((1 - eps) * full - routed, largest=1 - eps, delta=level)


def kept_at_least(full: Floats, routed: Floats, *, level: float) -> float:
    """A lower bound of routed (n,) over full quality (n,), in the mean of the users, at this level."""

    def shown(share: float) -> bool:
        return is_negative(share * full - routed, largest=share, delta=level)

    return largest_shown(shown)


def at_least(values: Floats, *, level: float) -> float:
    """A lower bound of the mean of values (n,) in [0, 1], at this level."""

    def shown(mean: float) -> bool:
        return is_negative(mean - values, largest=mean, delta=level)

    return largest_shown(shown)


def buckets(full: Floats, routed: Floats, by: Mapping[str, Floats], *, level: float) -> tuple[Bucket, ...]:
    """Thirds of the users by each feature in ``by`` (n,), low to high; bounds hold for all of them together.

    ``full``, ``routed`` (n,): quality of each user, 0 to 1.
    """
    thirds: list[tuple[str, NDArray[np.bool_]]] = []
    for feature, values in by.items():
        low, high = np.quantile(values, [1 / 3, 2 / 3])
        thirds += [
            (f"{feature} up to {low:.3g}", values <= low),
            (f"{feature} {low:.3g} to {high:.3g}", (values > low) & (values <= high)),
            (f"{feature} above {high:.3g}", values > high),
        ]
    filled = [(name, members) for name, members in thirds if members.any()]
    return tuple(
        Bucket(
            name,
            int(members.sum()),
            float(routed[members].mean() / max(full[members].mean(), 1e-12)),
            kept_at_least(full[members], routed[members], level=level / len(filled)),
        )
        for name, members in filled
    )
