"""From a bundle and its data to a certificate and a report, through the bundle's own engines."""

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ArtefactError, BundleError, ConfigError, DataError
from fathom.exporter.bundle.report import fact_rows
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.bundle.teachers import are_teachers, case_digests, teaching_cases
from fathom.exporter.certification.certify import (
    LEARNING_REQUESTS,
    CertificationData,
    certify,
    measure_bundle,
    recounted,
    write_certificate,
)
from fathom.exporter.certification.families import FAMILIES, Family
from fathom.exporter.certification.hull import hull
from fathom.exporter.certification.outcomes import Costs, Outcomes, measure_outcomes
from fathom.exporter.certification.routing_curves import PolicyResult, auc, policies
from fathom.exporter.certification.routing_report import (
    RoutingReport,
    bucket_rows,
    certificate_rows,
    draw,
    judge,
    make_report,
    what_is_needed,
    write_report,
)
from fathom.exporter.certification.routing_table import percent
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.manifest import CERTIFICATE_FILE, MANIFEST_NAME, version_of
from fathom.selector.certificate import KINDS, Kind
from fathom.selector.features import Features
from fathom.selector.routing import Mixture
from fathom.training.checkpoint import Checkpoint
from fathom.training.counting import fit_counting
from fathom.training.dataset import Dataset
from fathom.training.evaluate import Part, evaluate_model
from fathom.training.splits import split

DEPTHS = (4, 8, 12, 16)
ALL = (0, *DEPTHS)


@pytest.fixture(scope="module")
def measured(bundle_path: Path, dataset: Dataset) -> CertificationData:
    return measure_bundle(Bundle.open(bundle_path), dataset)


def outcomes(
    count: int, *, signal: float = 0.0, loss: float = 0.0, seed: int = 0, depths: tuple[int, ...] = DEPTHS
) -> Outcomes:
    """Requests whose shallow depths lose ``loss`` of what they find, and more where the first feature is large."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1, (count, len(Features._fields)))
    found = np.where(rng.random(count) < 0.5, 1 / np.log2(rng.integers(0, 10, count) + 2), 0.0)
    size = len(depths)
    quality = np.repeat(found[:, None], size, axis=1)
    for column in range(size - 1):
        chance = np.clip(loss + signal * (features[:, 0] > 1), 0, 1) * (size - 1 - column) / (size - 1)
        quality[:, column] = np.where(rng.random(count) < chance, 0.0, found)
    # Of ten items, the six last ones are others where the right one was lost.
    answers = np.tile(np.arange(10), (count, size, 1))
    answers[quality != quality[:, -1:], 4:] += 100
    return Outcomes(
        depths,
        users=np.arange(count),
        lengths=rng.integers(1, 200, count),
        features=features,
        complexity=rng.random(count),
        quality=quality,
        best=answers,
        scores=-np.sort(-rng.random((count, size, 10))),
        digests=np.array([rng.bytes(32) for _ in range(count)], dtype="V32"),
    )


def simulated(
    *, signal: float = 0.0, loss: float = 0.0, count: int = 6000, depths: tuple[int, ...] = DEPTHS
) -> CertificationData:
    lengths = np.array([1, 200])
    ms = np.array([[0.02, 0.5, 0.8, 1.1, 1.4], [0.04, 3.0, 6.0, 9.0, 12.0]])[:, -len(depths) :]
    return CertificationData(
        outcomes(count, signal=signal, loss=loss, seed=1, depths=depths),
        outcomes(count, signal=signal, loss=loss, seed=2, depths=depths),
        Costs(depths, lengths, ms),
        "leave-one-out, test",
        "d" * 64,
    )


def evaluated(checkpoint: Checkpoint, dataset: Dataset, part: Part) -> dict[str, float]:
    """NDCG@10 of every depth as the evaluation of the checkpoint measures it, with the weights of counting_bundle."""
    cut = split(dataset, "leave-one-out")
    counting = fit_counting(checkpoint.model, cut, dataset.n_items)
    counting = replace(counting, weights=dict.fromkeys(DEPTHS, 0.3))
    report = evaluate_model(checkpoint.model, dataset, cut, part=part, counting=counting, baselines=())
    return {name: system.metrics["ndcg@10"].value for name, system in report.systems.items()}


def test_every_depth_answers_as_the_evaluation_of_the_checkpoint_says(
    counting_bundle: Path, checkpoint: Checkpoint, dataset: Dataset
) -> None:
    measured = measure_bundle(Bundle.open(counting_bundle), dataset)
    expected = evaluated(checkpoint, dataset, "test")
    for column, depth in enumerate(ALL):
        assert measured.test.quality[:, column].mean() == pytest.approx(expected[f"depth {depth}"], abs=1e-6)
    assert (measured.test.agreement[:, -1] == 1).all()
    assert (measured.test.agreement <= 1).all()
    assert (measured.costs.ms > 0).all()
    between = measured.costs.of(np.array([18]))
    assert between.shape == (1, 5)


def test_nothing_is_learned_from_answers_to_cases_that_the_counting_exit_has_counted(
    counting_bundle: Path, checkpoint: Checkpoint, dataset: Dataset
) -> None:
    bundle, cut = Bundle.open(counting_bundle), split(dataset, "leave-one-out")
    expected = evaluated(checkpoint, dataset, "validation")
    with open_engine(bundle) as engine:
        counted = measure_outcomes(bundle, engine, cut.validation)
        uncounted = measure_outcomes(bundle, engine, cut.validation, counting=recounted(bundle, cut.train))
    for column, depth in enumerate(ALL):
        assert uncounted.quality[:, column].mean() == pytest.approx(expected[f"depth {depth}"], abs=1e-6)
    # Events without any order: what was counted looks predictable, and only that.
    assert counted.quality[:, 0].mean() > 1.5 * uncounted.quality[:, 0].mean()
    # Teachers are asked with the same tables: a whole training history is that of a validation case.
    learning, whole = measure_bundle(bundle, dataset).learning, {}
    for history, best in zip(cut.validation.histories, uncounted.best[:, 0].tolist(), strict=True):
        whole[history[-20:].tobytes()] = best
    cases, _ = teaching_cases(cut, 20, LEARNING_REQUESTS)
    asked = [history[-20:].tobytes() for history in cases.histories]
    same = [row for row, window in enumerate(asked) if window in whole]
    assert len(same) > 10
    assert all(learning.best[row, 0].tolist() == whole[asked[row]] for row in same)
    assert np.isnan(learning.quality).all()


def test_walking_the_exits_gives_what_each_depth_gives_alone(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    items = np.random.default_rng(0).integers(1, 41, (5, 9))
    times = np.sort(np.random.default_rng(1).integers(1, 10**9, (5, 9)), axis=1)
    with open_engine(bundle) as engine:
        alone = {depth: engine.run(items, times, depth) for depth in DEPTHS}
        for depths in (DEPTHS, (4, 16), (8,)):
            for depth, vectors in zip(depths, engine.walk(items, times, depths), strict=True):
                np.testing.assert_allclose(vectors, alone[depth], atol=1e-5)


def test_a_mixture_that_loses_less_than_eps_is_certified_and_one_that_loses_more_is_not(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    work = simulated(loss=0.09)
    claim = certify(bundle, work, eps=0.05, delta=0.05, depth_sets=[DEPTHS]).claims[0]
    assert claim.routing is not None
    assert claim.kept is not None
    # Depth 4 loses 9 %, depth 8 6 %, depth 12 3 %.
    assert 0.95 < claim.kept < 0.97
    assert claim.saved is not None
    assert 0.2 < claim.saved < 0.5
    # 0.4 for the 2 to 5 % that are lost, 1 for the others: the bound lies a little below that mean.
    assert claim.agreement is not None
    assert 0.95 < claim.agreement < 0.99
    # More users would show that a little more may go to shallower depths.
    assert claim.needed is not None
    assert claim.needed > claim.users
    free = certify(bundle, simulated(), eps=0.05, delta=0.05, depth_sets=[DEPTHS, (4, 8)])
    assert [each.routing.shares[0] for each in free.claims if each.routing] == [1.0, 1.0]
    assert [each.level for each in free.claims] == [0.025, 0.025]
    assert [each.needed for each in free.claims] == [None, None]


def test_a_certified_claim_says_how_many_users_the_next_cheaper_routing_would_take(bundle_path: Path) -> None:
    claim = certify(
        Bundle.open(bundle_path), simulated(loss=0.06, count=1500), eps=0.05, delta=0.05, depth_sets=[DEPTHS]
    ).claims[0]
    assert claim.routing is not None
    assert (claim.needed or 0) > claim.users


def test_too_few_users_certify_nothing_and_are_told_so(bundle_path: Path, measured: CertificationData) -> None:
    certificate = certify(Bundle.open(bundle_path), measured, eps=0.05, delta=0.05, depth_sets=[DEPTHS])
    claim = certificate.claims[0]
    assert claim.routing is None
    assert claim.users == len(measured.test)
    assert "not certified" in certificate_rows(certificate, "quality")[1][1]
    assert not certificate.certified
    assert what_is_needed(certificate).startswith(("depths 4, 8, 12, 16 need about", "the first steps"))
    few = simulated(count=12)
    assert certify(Bundle.open(bundle_path), few, eps=0.05, delta=0.05, depth_sets=[DEPTHS]).claims[0].needed


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_0_is_certified_where_it_loses_little(bundle_path: Path, family: Family) -> None:
    bundle = Bundle.open(bundle_path)
    asked = {"eps": 0.05, "delta": 0.05, "family": family, "depth_sets": [ALL, DEPTHS]}
    with_0, without = certify(bundle, simulated(loss=0.01, depths=ALL), **asked).claims  # type: ignore[arg-type]
    assert with_0.saved is not None
    assert without.saved is not None
    assert with_0.saved > 0.9 > without.saved
    lossy = certify(bundle, simulated(loss=0.5, depths=ALL), **asked).claims[0]  # type: ignore[arg-type]
    assert (lossy.saved or 0) < 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", [0.02, 0.2])
def test_more_depths_never_make_a_routing_dearer(bundle_path: Path, family: Family, loss: float) -> None:
    bundle, work = Bundle.open(bundle_path), simulated(loss=loss, signal=0.2, depths=ALL)
    sets = [ALL, DEPTHS, (4, 16), (0, 4, 8)]
    claims = certify(bundle, work, eps=0.05, delta=0.04, family=family, depth_sets=sets).claims
    everything, without_0, two, _ = claims
    assert (everything.saved or 0) >= (without_0.saved or 0) >= (two.saved or 0)
    # Mixtures below the same deepest depth are one family.
    assert [claim.level for claim in claims] == [0.02 if family == "mixture" else 0.01] * 4
    for claim, depths in zip(claims, sets, strict=True):
        if isinstance(claim.routing, Mixture):
            assert claim.routing.depths == depths


def test_a_dip_on_the_way_down_does_not_hide_a_shallower_depth_that_loses_nothing(bundle_path: Path) -> None:
    work = simulated(count=3000)
    lost = np.random.default_rng(4).random(3000) < 0.15
    work.test.quality[lost, 2] = 0.0
    claim = certify(Bundle.open(bundle_path), work, eps=0.05, delta=0.05, depth_sets=[DEPTHS]).claims[0]
    assert isinstance(claim.routing, Mixture)
    assert claim.routing.shares == (1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_saves_nothing_and_what_cannot_lose_more_than_promised_is_not_certified(
    bundle_path: Path, kind: Kind
) -> None:
    bundle, work = Bundle.open(bundle_path), simulated()
    asked = {"eps": 0.05, "delta": 0.05, "depth_sets": [DEPTHS], "kind": kind}
    dear = replace(work, costs=replace(work.costs, ms=work.costs.ms[:, ::-1].copy()))
    claim = certify(bundle, dear, **asked).claims[0]  # type: ignore[arg-type]
    assert (claim.routing, claim.needed) == (None, None)
    for count in (1, 3, 6):
        claim = certify(bundle, simulated(count=count), **asked).claims[0]  # type: ignore[arg-type]
        assert claim.routing is None
        assert claim.needed is None or claim.needed > count


def test_agreement_is_certified_on_average_and_above_its_floor_without_right_answers(bundle_path: Path) -> None:
    bundle, work = Bundle.open(bundle_path), simulated(loss=0.06)
    asked = {"eps": 0.05, "delta": 0.05, "depth_sets": [DEPTHS], "kind": "agreement"}
    certificate = certify(bundle, work, **asked)  # type: ignore[arg-type]
    claim = certificate.claim(DEPTHS, kind="agreement")
    assert claim is not None
    assert certificate.claim(DEPTHS) is None
    assert isinstance(claim.routing, Mixture)
    # Depth 4 shares 4 of ten where it loses, 3 % of all here: 1.8 % on average, and as many are below a half.
    assert claim.under is not None
    assert 0 < claim.under < 0.05
    assert claim.kept == pytest.approx(1 - 0.6 * claim.under, abs=1e-5)
    assert (certificate.promises["agreement"].floor, certificate.promises["agreement"].below) == (0.5, 0.05)
    unknown = replace(work, test=replace(work.test, quality=np.full_like(work.test.quality, np.nan)))
    assert certify(bundle, unknown, **asked).claims == certificate.claims  # type: ignore[arg-type]
    strict = certify(bundle, work, below=0.01, **asked).claims[0]  # type: ignore[arg-type]
    assert strict.under is not None
    assert strict.under < 0.01
    lenient = certify(bundle, work, floor=0.3, **asked).claims[0]  # type: ignore[arg-type]
    assert (strict.saved or 0) < (claim.saved or 0) <= (lenient.saved or 0)
    assert lenient.under == 0


def test_mixtures_with_and_without_depth_0_are_one_test(bundle_path: Path) -> None:
    bundle, work = Bundle.open(bundle_path), simulated(loss=0.2, depths=ALL)
    asked = {"eps": 0.05, "delta": 0.04, "depth_sets": [ALL, DEPTHS]}
    assert [claim.level for claim in certify(bundle, work, **asked).claims] == [0.04, 0.04]  # type: ignore[arg-type]
    learned = certify(bundle, work, family="learned", **asked)  # type: ignore[arg-type]
    assert [claim.level for claim in learned.claims] == [0.02, 0.02]


def test_a_bundle_without_a_counting_exit_has_no_depth_0(uncounted_bundle: Path) -> None:
    work = simulated(signal=0.5, depths=ALL)
    with pytest.raises(ConfigError, match=r"cannot be certified: the bundle has \(4, 8, 12, 16\)"):
        certify(Bundle.open(uncounted_bundle), work, eps=0.05, delta=0.05, depth_sets=[ALL])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_certified_and_learned_ones_by_users_they_did_not_learn_from(
    bundle_path: Path, family: Family
) -> None:
    work = simulated(signal=0.5)
    certificate = certify(Bundle.open(bundle_path), work, eps=0.05, delta=0.05, family=family, depth_sets=[DEPTHS])
    claim = certificate.claims[0]
    learned = family == "learned"
    assert claim.users == (np.count_nonzero(~are_teachers(work.test.digests)) if learned else 6000)
    assert claim.routing is not None
    assert claim.saved is not None
    if learned:
        # It knows whom the shallow depth fails: nearly nothing is lost by nearly all requests at depth 4.
        assert claim.saved > 0.5


def copied(measured: CertificationData, times: int) -> CertificationData:
    """Every test user so many times over: the first, then the copies, under other ids and in another order."""
    rows = np.tile(np.arange(len(measured.test)), times)
    rows = np.concatenate(
        [rows[: len(measured.test)], np.random.default_rng(0).permutation(rows[len(measured.test) :])]
    )
    return replace(measured, test=replace(measured.test.select(rows), users=np.arange(len(rows))))


@pytest.mark.parametrize(
    ("family", "loss", "kind"),
    [*((family, loss, "quality") for family in FAMILIES for loss in (0.0, 0.04)), ("mixture", 0.04, "agreement")],
)
def test_copies_of_users_are_counted_and_certify_nothing_that_one_of_each_does_not(
    bundle_path: Path, family: Family, loss: float, kind: Kind
) -> None:
    bundle = Bundle.open(bundle_path)
    for count in (100, 1500 if family == "mixture" else 500):
        once = simulated(signal=0.3, loss=loss, count=count)
        asked = {"eps": 0.05, "delta": 0.05, "family": family, "depth_sets": [DEPTHS], "kind": kind}
        single = certify(bundle, once, **asked)  # type: ignore[arg-type]
        for times in (2, 50):
            several = certify(bundle, copied(once, times), **asked)  # type: ignore[arg-type]
            merged = [each.promises[kind].merged for each in (single, several)]
            assert merged == [0, (times - 1) * count]
            assert several.claims[0].users == single.claims[0].users
            assert (several.claims[0].saved or 0) <= (single.claims[0].saved or 0)
            assert certificate_rows(several, kind)[-1][2] == f"{merged[1]:,}"


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_the_order_of_users_nor_their_ids_change_a_certificate(bundle_path: Path, family: Family) -> None:
    work = simulated(signal=0.3, loss=0.03, count=1500)
    order = np.random.default_rng(5).permutation(1500)
    names = np.random.default_rng(6).permutation(1500)
    other = replace(work.test.select(order), users=names[work.test.users[order]])
    first, second = (
        certify(Bundle.open(bundle_path), each, eps=0.05, delta=0.05, family=family, depth_sets=[DEPTHS]).claims[0]
        for each in (work, replace(work, test=other))
    )
    assert first.routing is not None
    assert first.users == second.users
    assert (first.routing, first.saved) == (second.routing, second.saved)


def test_the_same_history_and_next_item_are_one_case_whoever_and_whenever(dataset: Dataset) -> None:
    cases = split(dataset, "leave-one-out").test
    found = case_digests(cases, 200).tolist()
    cut = {(cases.histories[row].tobytes(), int(cases.targets[row])) for row in range(len(cases))}
    assert len(set(found)) == len(cut)
    assert cases.histories.timestamps is not None
    later = replace(cases.histories, timestamps=cases.histories.timestamps + 1)
    assert case_digests(replace(cases, histories=later, users=cases.users + 1), 200).tolist() == found
    targets = cases.targets.copy()
    targets[0] += 1
    assert [
        a == b for a, b in zip(case_digests(replace(cases, targets=targets), 200).tolist(), found, strict=True)
    ] == [
        False,
        *[True] * (len(cases) - 1),
    ]
    # The engines see no further back.
    assert case_digests(cases, 3).tolist() != found


def test_a_dataset_with_every_user_three_times_certifies_what_it_certifies_with_one_of_each(
    bundle_path: Path, dataset: Dataset, measured: CertificationData
) -> None:
    users = dataset.n_users
    tripled = replace(
        dataset,
        sequences=dataset.sequences.select(np.tile(np.arange(users), 3)),
        user_ids=tuple(f"{name}-{copy}" for copy in range(3) for name in dataset.user_ids),
    )
    bundle = Bundle.open(bundle_path)
    asked = {"eps": 0.9, "delta": 0.3, "depth_sets": [DEPTHS]}
    once = certify(bundle, measured, **asked)  # type: ignore[arg-type]
    thrice = certify(bundle, measure_bundle(bundle, tripled), **asked)  # type: ignore[arg-type]
    merged = once.promises["quality"].merged
    assert merged is not None
    assert thrice.promises["quality"].merged == merged + 2 * len(measured.test)
    assert thrice.claims[0].users == once.claims[0].users == len(measured.test) - merged
    assert once.claims[0].routing is not None
    assert thrice.claims[0].routing == once.claims[0].routing


def test_learned_routing_lies_above_the_hull_where_features_tell_and_on_it_where_they_do_not() -> None:
    for signal, above in ((0.5, True), (0.0, False)):
        work = simulated(signal=signal, loss=0.05)
        tried, test = policies(work.learning, work.test, work.costs), work.test
        for value in (test.agreement, test.quality):
            judged = {each.name: each for each in judge(tried, value, test, work.costs)}
            assert (judged["learned"].low > 0) == above
            assert judged["hindsight"].low > 0
            assert judged["learned"].area <= judged["hindsight"].area


def test_hull_and_auc_are_what_their_definitions_say() -> None:
    cost, quality = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.15, 0.3, 0.2])
    corners, heights = hull(cost, quality)
    assert corners.tolist() == [1.0, 3.0, 4.0]
    assert heights.tolist() == [0.1, 0.3, 0.2]
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert auc(score, positive) == pytest.approx(np.mean(pairs))


def test_a_certificate_becomes_part_of_the_bundle_and_only_of_that_one(bundle_path: Path, tmp_path: Path) -> None:
    home = tmp_path / "bundle"
    shutil.copytree(bundle_path, home)
    bundle = Bundle.open(home)
    work = simulated(loss=0.05, depths=ALL)
    certificate = certify(bundle, work, eps=0.05, delta=0.05, depth_sets=[ALL, DEPTHS, (4, 8)])
    assert set(certificate.depths) == set(certificate.costs_ms) == set(ALL)
    manifest = write_certificate(bundle, certificate)
    assert manifest.version != bundle.manifest.version
    assert Bundle.open(home).certificate == certificate
    assert write_certificate(Bundle.open(home), certificate).version == manifest.version
    # What is certified of another kind comes beside it.
    agreement = certify(bundle, work, eps=0.05, delta=0.05, depth_sets=[ALL], kind="agreement")
    write_certificate(Bundle.open(home), agreement)
    certificate = certificate.beside(agreement)
    assert set(certificate.promises) == set(KINDS)
    assert Bundle.open(home).certificate is not None
    assert set(Bundle.open(home).certificate.claims) == set(certificate.claims)  # type: ignore[union-attr]
    certificate = Bundle.open(home).certificate or certificate
    assert fact_rows(manifest)
    slice_bundle(home, load_profile("mobile"), tmp_path / "mobile")
    assert Bundle.open(tmp_path / "mobile").certificate == certificate
    # What was certified with another counting exit is refused.
    with pytest.raises(BundleError, match="certifies another depth 0"):
        write_certificate(Bundle.open(home), replace(certificate, depths={**certificate.depths, 0: "0" * 64}))
    # A certificate of other engines is refused, however well the manifest lists it.
    other = replace(certificate, files=dict.fromkeys(certificate.files, "0" * 64))
    with pytest.raises(BundleError, match=r"certifies another .*; run `fathom certify` on this bundle"):
        write_certificate(Bundle.open(home), other)
    assert Bundle.open(home).certificate == certificate
    (home / CERTIFICATE_FILE).unlink()
    with pytest.raises(BundleError, match="missing"):
        Bundle.open(home)


@pytest.mark.parametrize("depths", [DEPTHS, ALL])
def test_the_report_holds_the_figures_and_needs_nothing_else(
    depths: tuple[int, ...], bundle_path: Path, tmp_path: Path
) -> None:
    work = simulated(loss=0.05, count=1500, depths=depths)
    certificate = certify(Bundle.open(bundle_path), work, eps=0.05, delta=0.05, depth_sets=[DEPTHS])
    report = make_report("<name>", work)
    write_report(report, certificate, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"routing.json", "routing.png", "routing.html"}
    stored = json.loads((tmp_path / "report" / "routing.json").read_bytes())
    for judged in (stored["policies"], stored["agreement"]):
        assert [each["name"] for each in judged] == ["length", "learned", "hindsight"]
        assert {len(shares) for each in judged for shares in each["shares"]} == {len(depths)}
    assert stored["alike"].keys() == {"top 1", "top 5", "top 10", "rank-biased overlap"}
    assert all(alike[-1] == 1.0 for alike in stored["alike"].values())
    assert stored["alike"]["top 10"][0] < stored["alike"]["top 5"][0] < stored["alike"]["top 1"][0] == 1.0
    assert sum(requests for _, _, requests in stored["reliability"]) == stored["users"]
    page = (tmp_path / "report" / "routing.html").read_text()
    assert "<name>" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "report" / "routing.png").read_bytes().startswith(b"\x89PNG")
    assert len(bucket_rows(certificate.claims[0], 0.05)) == 7
    # Copies of users make no interval narrower.
    assert make_report("<name>", copied(work, 3)) == report


@pytest.mark.parametrize(
    ("name", "static"),
    [
        ("clicks", [(1.0, 0.10), (2.0, 0.11), (3.0, 0.12), (4.0, 0.121)]),
        ("a name " * 40, [(1.0, 0.1), (2.0, 0.1), (3.0, 0.1), (4.0, 0.1)]),
        ("unbroken" * 40, [(0.01, 1e-5), (100.0, 0.5), (150.0, 0.9), (200.0, 0.95)]),
    ],
)
def test_no_text_of_the_picture_lies_on_another_or_is_cut_off(name: str, static: list[tuple[float, float]]) -> None:
    spread = static[-1][1] - static[0][1]
    judged = [
        PolicyResult(policy, static, [[1.0]], area, area - spread / 9, area + spread / 9)
        for policy, area in (("length", spread / 3), ("learned", -spread))
    ]
    hull_ends = [static[0], static[-1]]
    picture = draw(RoutingReport(name, DEPTHS, 943, static, hull_ends, judged, {}, 0.0, judged, {}, ()))
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    # Ticks beyond the ends of an axis are not drawn.
    hidden = {
        id(tick.label1)
        for axis in (axis for axes in picture.axes for axis in (axes.xaxis, axes.yaxis))
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [
        text for text in picture.findobj(Text) if text.get_text() and text.get_visible() and id(text) not in hidden
    ]
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts]
    shown = [(text, box) for text, box in boxes if box.width > 0]
    assert {"4", "8", "12", "16", "learned", "hull of static depths"} <= {text for text, _ in shown}
    whole = picture.bbox
    for text, box in shown:
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, text
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1, text
    for (one, first), (other, second) in combinations(shown, 2):
        assert not first.overlaps(second), (one, other)


def test_bad_input_gets_one_line(
    bundle_path: Path, dataset: Dataset, measured: CertificationData, tmp_path: Path
) -> None:
    bundle = Bundle.open(bundle_path)
    with pytest.raises(ArtefactError, match="another data set"):
        measure_bundle(bundle, replace(dataset, sha256="e" * 64))
    for wrong in (
        {"eps": 0.0},
        {"delta": 1.0},
        {"floor": 0.0},
        {"below": 1.0},
        {"depth_sets": [(4,)]},
        {"depth_sets": [(4, 5)]},
    ):
        with pytest.raises(ConfigError, match=r"^[^\n]+$"):
            certify(bundle, measured, **({"eps": 0.05, "delta": 0.05, "depth_sets": [DEPTHS]} | wrong))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="too few"):
        certify(bundle, simulated(count=30), eps=0.05, delta=0.05, family="learned", depth_sets=[DEPTHS])
    older = tmp_path / "older"
    shutil.copytree(bundle_path, older)
    manifest = json.loads((older / MANIFEST_NAME).read_text())
    del manifest["source"]["split"]
    (older / MANIFEST_NAME).write_text(json.dumps(manifest | {"version": version_of(manifest)}))
    with pytest.raises(ArtefactError, match="export it again"):
        measure_bundle(Bundle.open(older), dataset)


@pytest.mark.parametrize(
    ("eps", "shown"), [(0.05, "95 %"), (0.025, "97.5 %"), (0.005, "99.5 %"), (0.0004, "99.96 %"), (0.07, "93 %")]
)
def test_a_promise_is_not_rounded_up(eps: float, shown: str) -> None:
    assert percent(1 - eps) == shown
