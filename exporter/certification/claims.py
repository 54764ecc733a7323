"""From what a test has shown to claims: for each set of depths the cheapest routing that was certified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from fathom.exporter.certification.families import Family, Members
from fathom.exporter.certification.graphical import rejected
from fathom.exporter.certification.hypotheses import Terms
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.selector.certificate import Claim, at_least, buckets
from fathom.selector.features import Features
from fathom.selector.routing import Mixture, Routing
from fathom.selector.schema import Floats

#: The part of delta that the bound of the agreement may fail with.
AGREEMENT_PART = 0.1


@dataclass(frozen=True)
class Judged:
    """A family of routings after its test, any of it wrong with probability at most ``level``.

    ``certified``: with the share of the deepest depth's compute that each saves. ``next``: the same of the routings
    that ended their sequences. ``planned``: about the part of delta that these had. ``counted``: the requests that
    judged, each case once, and everybody where that differs; at the depths of ``costs``.
    """

    certified: tuple[tuple[Routing, float], ...]
    next: tuple[tuple[Routing, float], ...]
    counted: tuple[Outcomes, ...]
    costs: Costs
    terms: Terms
    level: float
    planned: float


def judge(members: Members, counted: tuple[Outcomes, ...], costs: Costs, terms: Terms, *, level: float) -> Judged:
    """Test the routings of a family, in their order."""
    sequences, weights, transitions, _ = members
    # Stakes that suit the smallest share of the level with which a sequence begins.
    planned = level * float(weights[weights > 0].min())
    counts = rejected(
        sequences,
        lambda routing: terms.evidence(routing, counted, level=planned),
        weights=weights,
        transitions=transitions,
        level=level,
    )
    passed = [routing for routings, count in zip(sequences, counts, strict=True) for routing in routings[:count]]
    begun = [each for each in zip(sequences, counts, weights.tolist(), strict=True) if each[1] or each[2]]
    failed = [routings[count] for routings, count, _ in begun if count < len(routings)]
    saved = [_with_saved(routings, counted[0], costs) for routings in (passed, failed)]
    return Judged(saved[0], saved[1], counted, costs, terms, level, planned)


def _with_saved(routings: Sequence[Routing], requests: Outcomes, costs: Costs) -> tuple[tuple[Routing, float], ...]:
    """With the share of the deepest depth's compute that each routing saves."""
    ms = costs.of(requests.lengths)
    spent = [float((routing.probabilities(requests.features) * ms).sum()) for routing in routings]
    return tuple(
        (routing, round(1 - each / float(ms[:, -1].sum()), 6)) for routing, each in zip(routings, spent, strict=True)
    )


def claim_for(depths: tuple[int, ...], family: Family, tests: Sequence[Judged]) -> Claim:
    """The claim for a set of depths: of all that was certified and that the set allows, what saves most.

    So a set never has a dearer routing than one that allows only some of its depths, the deepest among them.
    """
    over = [test for test in tests if set(depths) <= set(test.costs.depths) and test.costs.depths[-1] == depths[-1]]
    own = min(over, key=lambda test: len(test.costs.depths))
    claim = Claim(depths, family, own.level, len(own.counted[0]), kind=own.terms.kind)
    allowed = [
        (saved, test, found)
        for test in tests
        for routing, saved in test.certified
        if (found := _within(routing, depths)) is not None
    ]
    saved, test, routing = max(allowed, key=itemgetter(0), default=(0.0, own, None))
    claim = replace(claim, needed=_needed(own, depths, more_than=max(saved, 0.0)))
    # What saves nothing is no routing, however surely it loses nothing.
    if routing is None or saved <= 0:
        return claim
    each_once = test.counted[0].at_depths(routing.depths)
    terms, kept = test.terms, test.terms.kept(routing, each_once)
    full = each_once.quality[:, -1] if terms.kind == "quality" else np.ones(len(each_once))
    return replace(
        claim,
        users=len(each_once),
        routing=routing,
        kept=round(float(kept.mean() / full.mean()), 6),
        saved=saved,
        agreement=_agreement(test, routing),
        buckets=buckets(full, kept, _by(each_once), level=test.level),
        under=round(float(terms.under(routing, each_once).mean()), 6) if terms.kind == "agreement" else None,
    )


def _within(routing: Routing, depths: tuple[int, ...]) -> Routing | None:
    """A routing as one over these depths; None where it needs others, or has another deepest depth."""
    if routing.depths[-1] != depths[-1]:
        return None
    if not isinstance(routing, Mixture):
        return routing if set(routing.depths) <= set(depths) else None
    shares = {depth: share for depth, share in zip(routing.depths, routing.shares, strict=True) if share}
    if not set(shares) <= set(depths):
        return None
    return Mixture("mixture", depths, tuple(shares.get(depth, 0.0) for depth in depths))


def _needed(test: Judged, depths: tuple[int, ...], *, more_than: float) -> int | None:
    """About how many different users would do for the nearest routing that a set allows and that saves more."""
    cheaper = [routing for routing, saved in test.next if saved > more_than and _within(routing, depths) is not None]
    needed = [test.terms.needed(routing, test.counted, level=test.planned) for routing in cheaper]
    known = [count for count in needed if count is not None]
    # It is an estimate; that those who are there were too few is certain.
    return max(min(known), len(test.counted[0]) + 1) if known else None


def _agreement(test: Judged, routing: Routing) -> float | None:
    """A bound of the mean agreement of requests that are not routed to the deepest depth, however users count."""
    bounds = []
    for each in (counted.at_depths(routing.depths) for counted in test.counted):
        chance = routing.probabilities(each.features)[:, :-1]
        # Bounded like an agreement: each request counts with its chance to be routed elsewhere.
        weighted, elsewhere = (chance * each.agreement[:, :-1]).sum(1), chance.sum(1)
        if elsewhere.any():
            shares = weighted[elsewhere > 0] / elsewhere[elsewhere > 0]
            bounds.append(at_least(shares, level=test.level * AGREEMENT_PART))
    return round(min(bounds), 6) if bounds else None


def _by(requests: Outcomes) -> Mapping[str, Floats]:
    names = Features._fields
    return {name: requests.features[:, names.index(name)] for name in ("length", "popularity")}
