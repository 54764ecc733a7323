"""Certifies a bundle: the cheapest routing whose loss of quality is shown to be below eps, per set of depths.

The routings of the families ``mixture`` and ``rule`` owe nothing to any test item, so all test users speak for them.
``learned`` and ``cascade`` are learned from the requests of two thirds of the users, the teachers, and the others
certify them: see ``teachers``.

Depth 0 is one of the depths where a bundle has a counting exit. Its tables have counted the validation items: teachers
are asked with tables that are counted without, by the same settings. Test items are in none.

Users with the same case, that is the same history and the same next item, may be copies of one user or users who happen
to be alike, and nothing in the data tells which. Copies are no evidence; users who are alike are, and may be those whom
a routing serves badly. So a routing must pass twice: with each case counted once, and with every user counted. Either
way the chance of a wrong certificate is at most delta, and copies can never help.

Nothing here is drawn at random: the order of users, and who is learned from, follow from a hash of each user's case.
There is no seed to choose, and other users, their order or their names change nothing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ArtefactError, ConfigError, DataError
from fathom.exporter.bundle.derive import rewrite
from fathom.exporter.bundle.teachers import teaching_cases
from fathom.exporter.certification.families import Family, family_members
from fathom.exporter.certification.outcomes import Costs, Outcomes, in_order, measure_costs, measure_outcomes
from fathom.runtime.bundle import Bundle
from fathom.runtime.counting import Counting
from fathom.runtime.engines.open import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, Manifest, depth_digests
from fathom.runtime.manifest import SCHEMA_VERSION as BUNDLE_SCHEMA
from fathom.selector.certificate import (
    SCHEMA_VERSION,
    Certificate,
    Claim,
    at_least,
    buckets,
    certified,
    users_needed,
)
from fathom.selector.features import Features
from fathom.selector.routing import Routing
from fathom.selector.schema import Floats
from fathom.training.counting import CountingSettings, count
from fathom.training.dataset import Dataset, Sequences
from fathom.training.splits import split

#: Requests of teachers that are asked at every depth, at most.
LEARNING_REQUESTS = 5_000
#: The part of delta that the bound of the agreement may fail with.
AGREEMENT_PART = 0.1


@dataclass(frozen=True)
class CertificationData:
    """Requests of a bundle's data set, asked at every depth: teachers' to learn from, test cases to judge by."""

    learning: Outcomes
    test: Outcomes
    costs: Costs
    part: str


def measure_bundle(
    bundle: Bundle, dataset: Dataset, *, progress: Callable[[str], None] = lambda _: None
) -> CertificationData:
    """Ask everything. Raises ArtefactError for another data set, DataError without cases."""
    source = bundle.manifest.source
    if dataset.sha256 != source.dataset:
        raise ArtefactError("the bundle was made from another data set; give the one it was made from")
    if source.split is None:
        raise ArtefactError(f"{bundle.path}: does not say how its data were split; export it again")
    cut = split(dataset, source.split)
    if not len(cut.test):
        raise DataError("no user has enough events for a test case; there is nothing to certify with")
    teaching, _ = teaching_cases(cut, bundle.manifest.model.max_history, LEARNING_REQUESTS)
    with open_engine(bundle) as engine:
        costs = measure_costs(bundle, engine)
        learning = measure_outcomes(
            bundle,
            engine,
            teaching,
            counting=recounted(bundle, cut.train),
            progress=lambda text: progress(f"learning: {text}"),
        )
        test = measure_outcomes(bundle, engine, cut.test, progress=lambda text: progress(f"test: {text}"))
    return CertificationData(learning, test, costs, source.split)


def recounted(bundle: Bundle, train: Sequences) -> Counting | None:
    """The bundle's counting exit as if there were nothing but ``train``; None where it has none."""
    info = bundle.manifest.counting
    if info is None:
        return None
    settings = CountingSettings(**{field.name: getattr(info, field.name) for field in fields(CountingSettings)})
    found = count(train, bundle.manifest.items, settings)
    return Counting(found.offsets, found.neighbours, found.weights, found.popularity, info.window, info.decay)


def check_risk(eps: float, delta: float) -> None:
    """Raise ConfigError for eps or delta outside (0, 1)."""
    if not (0 < eps < 1 and 0 < delta < 1):
        raise ConfigError(f"eps is {eps} and delta {delta}; both lie between 0 and 1, as 0.05")


def certify(
    bundle: Bundle,
    data: CertificationData,
    *,
    eps: float,
    delta: float,
    family: Family = "mixture",
    depth_sets: Sequence[tuple[int, ...]],
) -> Certificate:
    """Claims for every set of depths, wrong anywhere with probability at most delta.

    Raises ConfigError for eps or delta outside (0, 1), or a set of fewer than two depths or of others than those which
    the bundle answers at and the family knows.
    """
    check_risk(eps, delta)
    sets, known = [tuple(sorted(depths)) for depths in depth_sets], choosable(bundle, family)
    for depths in sets:
        if len(depths) < 2 or not set(depths) <= set(known):
            raise ConfigError(f"depths {depths} cannot be certified: {family} knows {known} here; give two or more")
    test, copies = in_order(data.test)
    level = delta / _tests(sets, family)
    claims = [_claim(data, test, copies, depths, family, eps=eps, level=level) for depths in sets]
    means = data.costs.of(test.lengths).mean(0)
    return Certificate(
        schema_version=SCHEMA_VERSION,
        metric="ndcg@10",
        eps=eps,
        delta=delta,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        seed=None,
        dataset=bundle.manifest.source.dataset,
        part=f"{data.part}, test",
        files=answering_files(bundle.manifest),
        costs_ms={d: round(float(ms), 4) for d, ms in zip(data.costs.depths, means, strict=True)},
        claims=tuple(claims),
        depths=depth_digests(bundle.manifest),
        merged=int(copies.sum()),
    )


def choosable(bundle: Bundle, family: Family) -> tuple[int, ...]:
    """The depths that a family may choose from, ascending: a cascade only reads the network's exits, so not depth 0."""
    return bundle.depths if family == "cascade" else bundle.manifest.served_depths


def _tests(sets: Sequence[tuple[int, ...]], family: Family) -> int:
    """How many families of routings are tested, each of which may be wrong.

    Mixtures over depths without 0 are those that are tested first with it: they cannot be wrong where these are not.
    """
    return len({tuple(filter(None, depths)) for depths in sets} if family == "mixture" else set(sets))


def write_certificate(bundle: Bundle, certificate: Certificate) -> Manifest:
    """Put a certificate into the bundle's folder, which is replaced as a whole and gets a new version."""
    data = (json.dumps(certificate.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    return rewrite(bundle, {CERTIFICATE_FILE: data}, schema_version=BUNDLE_SCHEMA)


def _claim(
    data: CertificationData,
    test: Outcomes,
    copies: NDArray[np.bool_],
    depths: tuple[int, ...],
    family: Family,
    *,
    eps: float,
    level: float,
) -> Claim:
    costs, test = data.costs.at_depths(depths), test.at_depths(depths)
    routings, judges = family_members(family, data.learning.at_depths(depths), test, costs)
    test, copies = test.select(judges), copies[judges]
    each_once = test.select(~copies)
    counted = [each_once, test] if copies.any() else [each_once]
    passed = min(
        certified(each.quality[:, -1], (_routed(routing, each) for routing in routings), eps=eps, level=level)
        for each in counted
    )
    needed = _needed(counted, routings[passed], eps=eps, level=level) if passed < len(routings) else None
    claim = Claim(depths, family, level, len(each_once), needed=needed)
    if passed == 0:
        return claim
    chosen = routings[passed - 1]
    full, quality = each_once.quality[:, -1], _routed(chosen, each_once)
    return replace(
        claim,
        routing=chosen,
        kept=round(float(quality.mean() / full.mean()), 6),
        saved=round(1 - _share_of_compute(chosen, each_once, costs, walked=family == "cascade"), 6),
        agreement=_agreement(counted, chosen, level=level * AGREEMENT_PART),
        buckets=buckets(full, quality, _by(each_once), level=level),
    )


def _share_of_compute(routing: Routing, requests: Outcomes, costs: Costs, *, walked: bool) -> float:
    """Of what the deepest depth costs for all of them."""
    ms = costs.of(requests.lengths, walked=walked)
    alone = costs.of(requests.lengths)
    return float((routing.probabilities(requests.routing_inputs) * ms).sum() / alone[:, -1].sum())


def _routed(routing: Routing, requests: Outcomes) -> Floats:
    """The quality that each request is expected to get, (n,)."""
    expected: Floats = (routing.probabilities(requests.routing_inputs) * requests.quality).sum(1)
    return expected


def _needed(counted: Sequence[Outcomes], routing: Routing, *, eps: float, level: float) -> int | None:
    needed = [users_needed(each.quality[:, -1], _routed(routing, each), eps=eps, level=level) for each in counted]
    known = [count for count in needed if count is not None]
    # It is an estimate; that those who are there were too few is certain.
    return max(*known, len(counted[0]) + 1) if len(known) == len(needed) else None


def _agreement(counted: Sequence[Outcomes], routing: Routing, *, level: float) -> float | None:
    """A bound of the mean agreement of requests that are not routed to the deepest depth, however users count."""
    bounds = []
    for each in counted:
        chance = routing.probabilities(each.routing_inputs)[:, :-1]
        # Bounded like an agreement: each request counts with its chance to be routed elsewhere.
        weighted, elsewhere = (chance * each.agreement[:, :-1]).sum(1), chance.sum(1)
        if elsewhere.any():
            bounds.append(at_least(weighted[elsewhere > 0] / elsewhere[elsewhere > 0], level=level))
    return round(min(bounds), 6) if bounds else None


def _by(test: Outcomes) -> Mapping[str, Floats]:
    names = Features._fields
    return {name: test.features[:, names.index(name)] for name in ("length", "popularity")}


def answering_files(manifest: Manifest) -> dict[str, str]:
    """Path -> sha256 of every file that answers depend on: all but the certificate."""
    return {name: entry.sha256 for name, entry in manifest.files.items() if name != CERTIFICATE_FILE}
