"""Certifies a bundle: the cheapest routing whose loss of quality is shown to be below eps, per set of depths.

The routings of the family ``mixture`` and ``rule`` owe nothing to any outcome, so all test users speak for them.
``learned`` and ``cascade`` are learned from a third of the users, and the others certify them.

Users with the same case, that is the same history and the same next item, may be copies of one user or users who happen
to be alike, and nothing in the data tells which. Copies are no evidence; users who are alike are, and may be those whom
a routing serves badly. So a routing must pass twice: with each case counted once, and with every user counted. Either
way the chance of a wrong certificate is at most delta, and copies can never help.

Nothing here is drawn at random: the order of users, and who is learned from, follow from a hash of each user's case.
There is no seed to choose, and other users, their order or their names change nothing.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ArtefactError, ConfigError, DataError
from fathom.exporter.bundle.derive import rewrite
from fathom.exporter.certification.outcomes import Costs, Outcomes, Progress, measure_costs, measure_outcomes
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.engine import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, Manifest, depth_digest
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
from fathom.selector.learned import LossModel
from fathom.selector.routing import (
    Asked,
    Cascade,
    Learned,
    Routing,
    gated,
    neighbours_mixed,
    priced,
    thresholds,
)
from fathom.training.dataset import Dataset
from fathom.training.splits import split

Family = Literal["mixture", "rule", "learned", "cascade"]
FAMILIES: tuple[Family, ...] = ("mixture", "rule", "learned", "cascade")

#: Steps of a family between two neighbouring depths, or in all.
STEPS = 20
#: The share of users that a learned family learns from.
LEARNING = 1 / 3
#: The part of delta that the bound of the agreement may fail with.
AGREEMENT_PART = 0.1

Floats = NDArray[np.float64]
#: Requests that something is learned from, at least.
FEWEST = 50


@dataclass(frozen=True)
class CertificationData:
    """The cases of a bundle's data set, asked at every depth: validation to learn from, test to judge by."""

    validation: Outcomes
    test: Outcomes
    costs: Costs
    part: str


def measure_bundle(bundle: Bundle, dataset: Dataset, *, progress: Progress = lambda _: None) -> CertificationData:
    """Ask everything. Raises ArtefactError for another data set, DataError without cases."""
    source = bundle.manifest.source
    if dataset.sha256 != source.dataset:
        raise ArtefactError("the bundle was made from another data set; give the one it was made from")
    if source.split is None:
        raise ArtefactError(f"{bundle.path}: does not say how its data were split; export it again")
    cut = split(dataset, source.split)
    with open_engine(bundle) as engine:
        costs = measure_costs(bundle, engine)
        parts = {}
        for name in ("validation", "test"):
            cases = getattr(cut, name)
            if not len(cases):
                raise DataError(f"no user has enough events for a {name} case; there is nothing to certify with")
            parts[name] = measure_outcomes(
                bundle,
                engine,
                cases,
                progress=lambda text, name=name: progress(f"{name}: {text}"),  # type: ignore[misc]
            )
    return CertificationData(parts["validation"], parts["test"], costs, source.split)


def check_risk(eps: float, delta: float) -> None:
    """Raise ConfigError for eps or delta outside (0, 1)."""
    if not (0 < eps < 1 and 0 < delta < 1):
        raise ConfigError(f"eps is {eps} and delta {delta}; both lie between 0 and 1, as 0.05")


def certify(
    bundle: Bundle,
    measured: CertificationData,
    *,
    eps: float,
    delta: float,
    family: Family = "mixture",
    depth_sets: Sequence[tuple[int, ...]],
) -> Certificate:
    """Claims for every set of depths, wrong anywhere with probability at most delta.

    Raises ConfigError for eps or delta outside (0, 1), or a set of fewer than two depths or of others than the
    bundle's.
    """
    check_risk(eps, delta)
    for depths in depth_sets:
        if len(depths) < 2 or not set(depths) <= set(bundle.depths):
            raise ConfigError(f"depths {depths} cannot be certified: the bundle has {bundle.depths}; give two or more")
    test, copies = in_order(measured.test)
    claims = [
        _claim(measured, test, copies, tuple(sorted(depths)), family, eps=eps, level=delta / len(depth_sets))
        for depths in depth_sets
    ]
    means = measured.costs.of(test.lengths).mean(0)
    return Certificate(
        schema_version=SCHEMA_VERSION,
        metric="ndcg@10",
        eps=eps,
        delta=delta,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        seed=None,
        dataset=bundle.manifest.source.dataset,
        part=f"{measured.part}, test",
        files=answering_files(bundle.manifest),
        costs_ms={d: round(float(ms), 4) for d, ms in zip(measured.costs.depths, means, strict=True)},
        claims=tuple(claims),
        depths={depth: depth_digest(bundle.manifest, depth) for depth in bundle.depths},
        merged=int(copies.sum()),
    )


def write_certificate(bundle: Bundle, certificate: Certificate) -> Manifest:
    """Put a certificate into the bundle's folder, which is replaced as a whole and gets a new version."""
    data = (json.dumps(certificate.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    return rewrite(bundle, {CERTIFICATE_FILE: data}, schema_version=BUNDLE_SCHEMA)


def in_order(test: Outcomes) -> tuple[Outcomes, NDArray[np.bool_]]:
    """The same requests in the order that betting reads them in, and which of them repeat an earlier case, (n,).

    A request's place follows from a hash of its case and of how many equal ones were met before. So the order is as
    good as random, copies are spread evenly, and the first of each case stand as they would without any copies.
    """
    met: Counter[bytes] = Counter()
    keys, repeats = [], []
    for digest in test.digests.tolist():
        keys.append(sha256(digest + met[digest].to_bytes(8, "little")).digest())
        repeats.append(met[digest] > 0)
        met[digest] += 1
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    return test.select(order), np.array(repeats, dtype=np.bool_)[order]


def distinct(requests: Outcomes) -> Outcomes:
    """Each case once."""
    ordered, copies = in_order(requests)
    return ordered.select(~copies)


def _claim(
    measured: CertificationData,
    test: Outcomes,
    copies: NDArray[np.bool_],
    depths: tuple[int, ...],
    family: Family,
    *,
    eps: float,
    level: float,
) -> Claim:
    costs = measured.costs.at_depths(depths)
    test = test.at_depths(depths)
    members: Sequence[Routing]
    if family in ("learned", "cascade"):
        known, judges = _learning(measured, test, copies)
        members = learned_members(known, costs) if family == "learned" else cascade_members(known, costs)
        test, copies = test.select(judges), copies[judges]
    else:
        members = neighbours_mixed(depths, STEPS) if family == "mixture" else thresholds(depths, STEPS)
    each_once = test.select(~copies)
    counted = [each_once, test] if copies.any() else [each_once]
    passed = [
        certified(each.quality[:, -1], (_routed(member, each) for member in members), eps=eps, level=level)
        for each in counted
    ]
    if min(passed) == 0:
        return Claim(depths, family, level, len(each_once), needed=_needed(counted, members[0], eps=eps, level=level))
    chosen = members[min(passed) - 1]
    full, quality = each_once.quality[:, -1], _routed(chosen, each_once)
    alone = costs.of(each_once.lengths)
    ms = costs.of(each_once.lengths, walked=True) if family == "cascade" else alone
    return Claim(
        depths,
        family,
        level,
        len(each_once),
        routing=chosen,
        kept=round(float(quality.mean() / full.mean()), 6),
        saved=round(1 - float((chosen.probabilities(each_once.asked) * ms).sum() / alone[:, -1].sum()), 6),
        agreement=_agreement(counted, chosen, level=level * AGREEMENT_PART),
        buckets=buckets(full, quality, _by(each_once), level=level),
    )


def _routed(member: Routing, requests: Outcomes) -> Floats:
    """The quality that each request is expected to get, (n,)."""
    expected: Floats = (member.probabilities(requests.asked) * requests.quality).sum(1)
    return expected


def _needed(counted: Sequence[Outcomes], member: Routing, *, eps: float, level: float) -> int | None:
    needed = [users_needed(each.quality[:, -1], _routed(member, each), eps=eps, level=level) for each in counted]
    known = [count for count in needed if count is not None]
    # It is an estimate; that those who are there were too few is certain.
    return max(*known, len(counted[0]) + 1) if len(known) == len(needed) else None


def _agreement(counted: Sequence[Outcomes], member: Routing, *, level: float) -> float | None:
    """A bound of the mean agreement of requests that are not routed to the deepest depth, however users count."""
    bounds = []
    for each in counted:
        chance = member.probabilities(each.asked)[:, :-1]
        # Bounded like an agreement: each request counts with its chance to be routed elsewhere.
        weighted, elsewhere = (chance * each.agreement[:, :-1]).sum(1), chance.sum(1)
        if elsewhere.any():
            bounds.append(at_least(weighted[elsewhere > 0] / elsewhere[elsewhere > 0], level=level))
    return round(min(bounds), 6) if bounds else None


def _by(test: Outcomes) -> Mapping[str, Floats]:
    names = Features._fields
    return {name: test.features[:, names.index(name)] for name in ("length", "popularity")}


def _learning(
    measured: CertificationData, test: Outcomes, copies: NDArray[np.bool_]
) -> tuple[list[Outcomes], NDArray[np.bool_]]:
    """What is learned from, and which rows of ``test`` may judge it: none whose case was learned from."""
    each_once = test.select(~copies)
    learners = each_once.select(np.arange(int(len(each_once) * LEARNING)))
    learned = set(learners.digests.tolist())
    judges = np.array([digest not in learned for digest in test.digests.tolist()], dtype=np.bool_)
    judged = set(test.digests[judges].tolist())
    # In an order of its own: cross-validation takes its folds by place.
    validation, _ = in_order(measured.validation.at_depths(test.depths))
    unseen = np.array([digest not in judged for digest in validation.digests.tolist()], dtype=np.bool_)
    return [learners, validation.select(unseen & np.isin(validation.users, learners.users))], judges


def learned_members(known: Sequence[Outcomes], costs: Costs) -> list[Learned]:
    """The family ``learned``, from requests whose answers are known; raises DataError for too few."""
    asked, quality, relative = _together(known, costs, walked=False)
    model = LossModel.fit(asked.features, quality[:, -1:] - quality[:, :-1])
    return priced(model, costs.depths, relative, asked, 3 * STEPS)


def cascade_members(known: Sequence[Outcomes], costs: Costs) -> list[Cascade]:
    """The family ``cascade``, from requests whose answers are known; raises DataError for too few."""
    asked, quality, relative = _together(known, costs, walked=True)
    gates = [
        LossModel.fit(asked.at_exit(place), quality[:, place + 1 :] - quality[:, place, None])
        for place in range(len(costs.depths) - 1)
    ]
    return gated(gates, costs.depths, relative, asked, 3 * STEPS)


def _together(known: Sequence[Outcomes], costs: Costs, *, walked: bool) -> tuple[Asked, Floats, list[float]]:
    """Requests, their quality (n, D), and the mean cost of each depth relative to the deepest."""
    asked = Asked(*(np.concatenate(parts) for parts in zip(*(each.asked for each in known), strict=True)))
    if len(asked.features) < FEWEST:
        raise DataError(f"{len(asked.features)} requests are too few to learn a routing from; use the mixture")
    ms = np.concatenate([costs.of(each.lengths, walked=walked) for each in known])
    relative: list[float] = (ms.mean(0) / ms[:, -1].mean()).tolist()
    return asked, np.concatenate([each.quality for each in known]), relative


def answering_files(manifest: Manifest) -> dict[str, str]:
    """Path -> sha256 of every file that answers depend on: all but the certificate."""
    return {name: entry.sha256 for name, entry in manifest.files.items() if name != CERTIFICATE_FILE}
