"""How a server routes the requests of each profile, what was certified of it, and how many users more would take."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fathom.edge_profiles.profile import load_profile, profile_names
from fathom.runtime.manifest import Manifest
from fathom.selector.certificate import Certificate, Kind, Promise
from fathom.selector.chooser import DepthChooser

#: More users than any claim needs.
MANY = 1 << 62
HEADER = ["profile", "depths", "routing", "kept", "agreement", "saved", "users", "more users"]


@dataclass(frozen=True)
class RoutingRow:
    """Profiles that a bundle routes alike: those whose depths it serves are the same.

    ``depths``: those that it chooses from, ascending. ``routing``: in words. ``kept``: of the quality; ``agreement``: a
    bound for requests at a shallower depth, or, where agreement is what is certified, the share kept over all requests.
    ``kind``: of the claim that is followed; None for none. ``saved``, ``users``, ``needed``: as it says, or the claim
    that takes the fewest users more. All None where nothing was tested for these depths.
    """

    profiles: tuple[str, ...]
    depths: tuple[int, ...]
    routing: str
    certified: bool
    kept: float | None = None
    agreement: float | None = None
    saved: float | None = None
    users: int | None = None
    needed: int | None = None
    kind: Kind | None = None

    @property
    def cells(self) -> list[str]:
        """As text, in the order of ``HEADER``."""
        shares = ["" if share is None else f"{share:.1%}" for share in (self.kept, self.agreement, self.saved)]
        users = "" if self.users is None else f"{self.users:,}"
        depths = " ".join(map(str, self.depths))
        return [_short(self.profiles), depths, self.routing, *shares, users, self._more_users()]

    def _more_users(self) -> str:
        if self.users is None:
            return "not tested"
        return "would not help" if self.needed is None else f"about {self.needed:,}"


def routing_rows(manifest: Manifest, certificate: Certificate | None) -> list[RoutingRow]:
    """A row for the profiles that come with Fathom and share a depth with the bundle, by the depths that it serves."""
    chooser = DepthChooser(certificate, manifest.served_depths, policy="auto", alpha=0.01)
    profiles = [load_profile(name) for name in profile_names()]
    served = {
        profile.name: tuple(depth for depth in profile.depths if depth in manifest.served_depths)
        for profile in profiles
        if set(profile.depths) & set(manifest.depths)
    }
    alike = groupby(sorted(served, key=lambda name: (served[name], name)), key=served.__getitem__)
    return [_row(chooser, tuple(names), depths) for depths, names in alike]


def _row(chooser: DepthChooser, names: tuple[str, ...], depths: tuple[int, ...]) -> RoutingRow:
    profile = load_profile(names[0])
    policy, claims = chooser.policy(profile), chooser.claims(profile)
    if not claims:
        return RoutingRow(names, depths, f"not certified: depth {policy.deepest}", certified=False)
    nearest = min(claims, key=lambda claim: claim.needed or MANY)
    claim = next((claim for claim in claims if claim.routing is not None), nearest)
    if claim.routing is None:
        routing, kind = f"not certified: depth {policy.deepest}", None
    else:
        routing, kind = claim.routing.words, claim.kind
    shares = (claim.kept, claim.agreement) if claim.kind == "quality" else (None, claim.kept)
    figures = (*shares, claim.saved, claim.users, claim.needed)
    return RoutingRow(names, claim.depths, routing, policy.certified, *figures, kind)


def table_rows(rows: Sequence[RoutingRow]) -> list[list[str]]:
    """Rows of text, the header first."""
    return [HEADER, *(row.cells for row in rows)]


def title(certificate: Certificate | None, rows: Sequence[RoutingRow]) -> str:
    """What is promised of the routings that are certified."""
    kinds = {row.kind for row in rows}
    promises = {} if certificate is None else certificate.promises
    told = [
        f"{kind.capitalize()}: {promise_words(kind, promise)}, confidence {percent(1 - promise.delta)}"
        for kind, promise in promises.items()
        if kind in kinds
    ]
    return "; ".join(told) or "Routing"


def promise_words(kind: Kind, promise: Promise) -> str:
    """What is promised, for people."""
    least = percent(1 - promise.eps)
    if kind == "quality":
        return f"at least {least} of the deepest depth's NDCG@10"
    below, floor = percent(promise.below or 0), percent(promise.floor or 0)
    return f"at least {least} of the deepest depth's top 10 on average, less than {floor} of it for at most {below}"


def shortfall(rows: Sequence[RoutingRow], bundle: Path) -> str:
    """Where nothing is certified: what it would take, in one line; else nothing."""
    if any(row.certified for row in rows):
        return ""
    tested = [row for row in rows if row.users is not None]
    if not tested:
        return f"nothing is certified: run `fathom certify {bundle} --data DATASET`"
    near = min(tested, key=lambda row: row.needed or MANY)
    if near.needed is None:
        return "nothing is certified, and more users would not help: the next shallower depth already loses too much"
    return f"nothing is certified: that would take about {near.needed:,} test users, and there are {near.users:,}"


def percent(share: float) -> str:
    """Not rounded to whole ones: 99.5 % is no promise of 100 %."""
    return f"{100 * share:.10g} %"


def _short(names: tuple[str, ...]) -> str:
    """Names of profiles, or the tier's where all of its profiles are among them."""
    profiles = [load_profile(name) for name in profile_names()]
    tiers = {profile.tier for profile in profiles}
    whole = sorted(tier for tier in tiers if {each.name for each in profiles if each.tier == tier} <= set(names))
    return ", ".join([*whole, *(name for name in names if load_profile(name).tier not in whole)])
