"""The certificate: what a routing was shown to keep of the deepest depth's answers, but for delta.

There are claims of two kinds. ``quality``: NDCG@10 as routed is at least (1 - eps) of the deepest depth's.
``agreement``: the routed answers share at least 1 - eps of the deepest depth's top 10 on average, and at most a share
``below`` of them shares less than ``floor`` of it. The second needs no right answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fathom.errors import ArtefactError, brief
from fathom.files import parse_json
from fathom.selector.betting import is_negative, largest_shown
from fathom.selector.routing import Routing
from fathom.selector.schema import STRICT, AnyDepth, Floats, Share, validated

SCHEMA_VERSION: Literal[3] = 3
#: Routings that older certificates may hold.
OLD_POLICIES = ("rule", "cascade")

Kind = Literal["quality", "agreement"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Items of two answers that are compared.
TOP = 10
_Between = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class Bucket:
    """A part of the users under the certified routing.

    ``kept``: what its claim's ``kept`` is, of these users; ``low``: a bound below which it is, in any bucket of the
    claim, with probability at most the claim's level.
    """

    name: str
    users: int
    kept: float
    low: float


@dataclass(frozen=True, config=STRICT)
class Promise:
    """What every claim of a kind says, any of them wrongly with probability at most ``delta``, and of which cases.

    ``eps``, ``floor``, ``below``: as the module says; the last two are None for quality. ``created``: when it was
    tested. ``dataset``: sha256 of the data; ``part``: the cases of which split. ``merged``: test users left out of the
    claims' ``users`` because another has the same case; None in certificates that did not look for them.
    """

    eps: _Between
    delta: _Between
    created: str
    dataset: str
    part: str
    merged: Annotated[int, Field(ge=0)] | None = None
    floor: Share | None = None
    below: _Between | None = None


@dataclass(frozen=True, config=STRICT)
class Claim:
    """What is certified for all profiles that allow these depths.

    ``level``: the part of delta that the family of its routing was tested at. ``routing``: the cheapest that was
    certified, for these depths or, with the same deepest one, for some of them; None for none. ``needed``: about how
    many users would do for the next cheaper one, None where more users would not help. ``kept``: estimate of the
    quality kept, or of the share of the top 10; ``saved``: of the compute saved, against the deepest depth.
    ``agreement``: the routed top 10 shares at least so much with the deepest depth's, but for a tenth of ``level``,
    where they were not the same depth; None where no request is routed elsewhere. ``under``: for kind agreement, the
    estimated share of answers below the floor.
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
    kind: Kind = "quality"
    under: Share | None = None

    def __post_init__(self) -> None:
        if len(self.depths) < 2 or list(self.depths) != sorted(set(self.depths)):
            raise ValueError("depths must be two or more, ascending")
        routed = () if self.routing is None else self.routing.depths
        if routed and (not set(routed) <= set(self.depths) or routed[-1] != self.depths[-1]):
            raise ValueError("the routing is for other depths than the claim")


@dataclass(frozen=True, config=STRICT)
class Certificate:
    """``selector/certificate.json``: what was promised, on which data, for which engines.

    ``promises``: one for each kind of claim. ``files``: sha256 of every file that the answers depend on. ``costs_ms``:
    depth -> mean milliseconds of a request alone on the machine that certified. ``depths``: depth -> sha256 over what
    it ran, engines in their order among it; empty before schema 2. Older schemas are read as this one.
    """

    schema_version: Literal[3]
    promises: dict[Kind, Promise]
    files: dict[str, str]
    costs_ms: dict[AnyDepth, float]
    claims: tuple[Claim, ...]
    depths: dict[AnyDepth, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not {claim.kind for claim in self.claims} <= set(self.promises):
            raise ValueError("a claim is of a kind that nothing is promised of")
        agreement = self.promises.get("agreement")
        if agreement is not None and (agreement.floor is None or agreement.below is None):
            raise ValueError("agreement is promised without a floor, or without the share below it")

    @property
    def certified(self) -> bool:
        """Whether any claim holds."""
        return any(claim.routing is not None for claim in self.claims)

    def claim(self, depths: Sequence[int], *, kind: Kind = "quality") -> Claim | None:
        """The claim of a kind for exactly these depths."""
        return next((claim for claim in self.of(kind) if claim.depths == tuple(depths)), None)

    def of(self, kind: Kind) -> tuple[Claim, ...]:
        """The claims of a kind."""
        return tuple(claim for claim in self.claims if claim.kind == kind)

    def beside(self, other: "Certificate | None" = None) -> "Certificate":
        """With the other's promises and claims of kinds that this one has none of."""
        kinds = [] if other is None else [kind for kind in other.promises if kind not in self.promises]
        if other is None or not kinds:
            return self
        promises = self.promises | {kind: other.promises[kind] for kind in kinds}
        claims = self.claims + tuple(claim for kind in kinds for claim in other.of(kind))
        return Certificate(self.schema_version, promises, self.files, self.costs_ms, claims, self.depths)

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
        return validated(
            _ADAPTER, _as_newest(value), kind="certificate", where=where, newest=SCHEMA_VERSION, remedy=remedy
        )


_ADAPTER = TypeAdapter(Certificate)


def _as_newest(value: Any) -> Any:
    """Schemas 1 and 2 held one promise, of quality, and the seed of an order that is no longer drawn.

    Claims with a routing that is no longer served are left out, as if nothing had been tested.
    """
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("claims"), list):
        value = {**value, "claims": [claim for claim in value["claims"] if not _has_old_routing(claim)]}
    if value.get("schema_version") not in (1, 2):
        return value
    rest = {key: found for key, found in value.items() if key not in ("metric", "seed")}
    promise = {key: rest.pop(key) for key in ("eps", "delta", "created", "dataset", "part", "merged") if key in rest}
    return {**rest, "schema_version": SCHEMA_VERSION, "promises": {"quality": promise}}


def _has_old_routing(claim: Any) -> bool:
    routing = claim.get("routing") if isinstance(claim, dict) else None
    return isinstance(routing, dict) and routing.get("policy") in OLD_POLICIES


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

    ``full``, ``routed`` (n,): quality of each user, 0 to 1; or ones, and the agreement of each.
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
