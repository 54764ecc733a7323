"""Certifies a bundle: the cheapest routing that is shown to keep enough of the deepest depth's answers.

There is a claim for each set of depths that a profile allows. Sets with the same deepest depth share a family of
mixtures and its test, so of two such sets the larger never gets the dearer routing. delta is shared equally between
the families that are tested: one for each deepest depth, or for each set where they are learned.

Mixtures owe nothing to any test item, so all test users speak for them. ``learned`` is learned from the requests of a
third of the users, the teachers, and the others certify it: see ``teachers``.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ArtefactError, ConfigError, DataError
from fathom.exporter.bundle.derive import rewrite
from fathom.exporter.bundle.teachers import teaching_cases
from fathom.exporter.certification.claims import Judged, claim_for, judge
from fathom.exporter.certification.families import Family, family_members
from fathom.exporter.certification.hypotheses import BELOW, FLOOR, Terms
from fathom.exporter.certification.outcomes import Costs, Outcomes, in_order, measure_costs, measure_outcomes
from fathom.exporter.certification.recorded import recorded_outcomes
from fathom.runtime.bundle import Bundle
from fathom.runtime.counting import Counting
from fathom.runtime.engines.open import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, Manifest, depth_digests
from fathom.runtime.manifest import SCHEMA_VERSION as BUNDLE_SCHEMA
from fathom.selector.certificate import SCHEMA_VERSION, Certificate, Kind, Promise
from fathom.training.counting import CountingSettings, count
from fathom.training.dataset import Dataset, Sequences
from fathom.training.splits import split

#: Requests of teachers that are asked at every depth, at most.
LEARNING_REQUESTS = 5_000


@dataclass(frozen=True)
class CertificationData:
    """Requests asked at every depth: teachers' to learn from, of a data set, and those that judge.

    ``dataset``: the sha256 of the data; ``part``: which requests of it judge.
    """

    learning: Outcomes
    test: Outcomes
    costs: Costs
    part: str
    dataset: str


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
    return CertificationData(learning, test, costs, f"{source.split}, test", source.dataset)


def measure_recorded(
    bundle: Bundle, folder: Path, *, progress: Callable[[str], None] = lambda _: None
) -> CertificationData:
    """Ask the requests that a server has recorded: for mixtures and their agreement, since nothing else is known.

    Raises as ``recorded_outcomes``.
    """
    with open_engine(bundle) as engine:
        costs = measure_costs(bundle, engine)
        test = recorded_outcomes(bundle, engine, folder, progress=progress)
    return CertificationData(test, test, costs, "recorded requests", sha256(test.digests.tobytes()).hexdigest())


def recounted(bundle: Bundle, train: Sequences) -> Counting | None:
    """The bundle's counting exit as if there were nothing but ``train``; None where it has none."""
    info = bundle.manifest.counting
    if info is None:
        return None
    settings = CountingSettings(**{field.name: getattr(info, field.name) for field in fields(CountingSettings)})
    found = count(train, bundle.manifest.items, settings)
    return Counting(found.offsets, found.neighbours, found.weights, found.popularity, info.window, info.decay)


def check_risk(eps: float, delta: float, floor: float = FLOOR, below: float = BELOW) -> None:
    """Raise ConfigError for what is to be shown, or delta, outside (0, 1)."""
    for name, value in (("eps", eps), ("delta", delta), ("floor", floor), ("below", below)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} is {value}; it lies between 0 and 1, as 0.05")


def certify(
    bundle: Bundle,
    data: CertificationData,
    *,
    eps: float,
    delta: float,
    family: Family = "mixture",
    depth_sets: Sequence[tuple[int, ...]],
    kind: Kind = "quality",
    floor: float = FLOOR,
    below: float = BELOW,
) -> Certificate:
    """Claims of one kind for every set of depths, wrong anywhere with probability at most delta.

    Raises ConfigError for eps, delta, floor or below outside (0, 1), or a set of fewer than two depths or of others
    than those which the bundle answers at.
    """
    check_risk(eps, delta, floor, below)
    sets, served = [tuple(sorted(depths)) for depths in depth_sets], bundle.manifest.served_depths
    for depths in sets:
        if len(depths) < 2 or not set(depths) <= set(served):
            raise ConfigError(f"depths {depths} cannot be certified: the bundle has {served}; give two or more")
    test, copies = in_order(data.test)
    groups = _groups(sets, family)
    tests = [
        _judged(data, test, copies, depths, family, Terms(kind, eps, floor, below), level=delta / len(groups))
        for depths in groups
    ]
    means = data.costs.of(test.lengths).mean(0)
    promise = Promise(
        eps=eps,
        delta=delta,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        dataset=data.dataset,
        part=data.part,
        merged=int(copies.sum()),
        floor=floor if kind == "agreement" else None,
        below=below if kind == "agreement" else None,
    )
    return Certificate(
        schema_version=SCHEMA_VERSION,
        promises={kind: promise},
        files=answering_files(bundle.manifest),
        costs_ms={d: round(float(ms), 4) for d, ms in zip(data.costs.depths, means, strict=True)},
        claims=tuple(claim_for(depths, family, tests) for depths in sets),
        depths=depth_digests(bundle.manifest),
    )


def _groups(sets: Sequence[tuple[int, ...]], family: Family) -> list[tuple[int, ...]]:
    """The depths of each family of routings that is tested; delta is shared equally between them.

    Sets with the same deepest depth have one family of mixtures, over all depths of these sets, and each takes from it
    what it allows. What is learned is learned for each set.
    """
    if family != "mixture":
        return list(dict.fromkeys(sets))
    together: dict[int, set[int]] = {}
    for depths in sets:
        together.setdefault(depths[-1], set()).update(depths)
    return [tuple(sorted(depths)) for depths in together.values()]


def _judged(
    data: CertificationData,
    test: Outcomes,
    copies: NDArray[np.bool_],
    depths: tuple[int, ...],
    family: Family,
    terms: Terms,
    *,
    level: float,
) -> Judged:
    costs, test = data.costs.at_depths(depths), test.at_depths(depths)
    known = data.learning.at_depths(depths)
    members = family_members(family, known, test, costs, eps=terms.eps)
    test, copies = test.select(members.judges), copies[members.judges]
    each_once = test.select(~copies)
    counted = (each_once, test) if copies.any() else (each_once,)
    return judge(members, counted, costs, terms, level=level)


def write_certificate(bundle: Bundle, certificate: Certificate) -> Manifest:
    """Put a certificate into the bundle's folder, which is replaced as a whole and gets a new version.

    Claims of a kind that it does not hold stay as they are.
    """
    form = certificate.beside(bundle.certificate).to_json()
    data = (json.dumps(form, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    return rewrite(bundle, {CERTIFICATE_FILE: data}, schema_version=BUNDLE_SCHEMA)


def answering_files(manifest: Manifest) -> dict[str, str]:
    """Path -> sha256 of every file that answers depend on: all but the certificate."""
    return {name: entry.sha256 for name, entry in manifest.files.items() if name != CERTIFICATE_FILE}
