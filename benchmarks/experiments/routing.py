"""Is knowing the request worth anything? Every policy against static depths, and what can be certified.

    python -m fathom.benchmarks.experiments.routing ml-100k --seeds 0

For each data set and seed the network ``ladder`` of the benchmark ``quality`` (trained now unless it lies in
build/quality) is exported, asked at every depth through its engines, and certified with every family of routings.
Policies are learned on validation items and judged on test items; beside them stands the cross-fitted reference,
boosted trees over all features and what the first exit says of its own answer. Bundles lie in build/routing. Writes
``results/routing/DATASET-seed-S.json``.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.experiments.quality.arms import ARMS
from fathom.benchmarks.experiments.quality.study import Study, open_dataset
from fathom.benchmarks.record import run, save_run
from fathom.edge_profiles.profile import TIER_DEFAULTS, load_profile
from fathom.exporter.bundle.export import export
from fathom.exporter.certification.certify import CertificationData, certify, measure_bundle
from fathom.exporter.certification.families import FAMILIES
from fathom.exporter.certification.outcomes import Outcomes
from fathom.exporter.certification.routing_curves import (
    Curve,
    evaluate_policy,
    needs_more,
    prices,
    routed,
    static_curve,
)
from fathom.exporter.certification.routing_report import make_report
from fathom.runtime.bundle import Bundle
from fathom.selector.routing import one_hot
from fathom.show import Activity
from fathom.training.dataset import Dataset

WORK = Path("build/routing")
EPSILONS = (0.05, 0.01)
DELTA = 0.05


def opened(name: str, seed: int, dataset: Dataset) -> Bundle:
    """The network's bundle, exported unless it lies there from the same checkpoint."""
    checkpoint = Study(name, dataset, seed).checkpoint(ARMS["ladder"])
    path = WORK / f"{name}-seed-{seed}" / "bundle"
    if not path.exists() or Bundle.open(path).manifest.source.checkpoint != checkpoint.sha256:
        with Activity(f"{name} seed {seed}: export") as activity:
            export(checkpoint, dataset, path, name=name, progress=activity.update)
    return Bundle.open(path)


def boosted(measured: CertificationData) -> Curve:
    """Depths by boosted trees: what a model that is too slow to serve would get out of the same request."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    known, test, costs = measured.validation, measured.test, measured.costs
    seen, asked = _everything(known), _everything(test)
    told_of = np.isfinite(seen).any(0)
    losses = known.quality[:, -1:] - known.quality[:, :-1]
    trees = [
        HistGradientBoostingRegressor(
            max_iter=100, learning_rate=0.05, max_depth=3, min_samples_leaf=100, random_state=0
        ).fit(seen[:, told_of], loss)
        for loss in losses.T
    ]
    told = np.column_stack([*(tree.predict(asked[:, told_of]) for tree in trees), np.zeros(len(test))])
    relative = costs.of(test.lengths).mean(0)
    relative = relative / relative[-1]
    chances = [one_hot((told + price * relative).argmin(1), len(relative)) for price in prices()]
    return routed("boosted", chances, test, costs)


def _everything(outcomes: Outcomes) -> NDArray[np.float64]:
    return np.column_stack([outcomes.features, outcomes.confidence[:, 0]])


def study(name: str, seed: int) -> dict[str, Any]:
    """All figures of one network."""
    dataset = open_dataset(name, None)
    bundle = opened(name, seed, dataset)
    with Activity(f"{name} seed {seed}: ask every depth") as activity:
        measured = measure_bundle(bundle, dataset, progress=activity.update)
    report = make_report(name, measured, seed=seed)
    reference = evaluate_policy(boosted(measured), static_curve(measured.test, measured.costs), seed=seed)
    return {
        "report": {**report.as_dict(), "policies": [asdict(each) for each in (*report.policies, reference)]},
        "agreement": [round(float(value), 6) for value in measured.test.agreement.mean(0)],
        "needs_more": {tier: _needs_more(measured, profile) for tier, profile in TIER_DEFAULTS.items()},
        "claims": [_claim(bundle, measured, eps, family) for eps in EPSILONS for family in FAMILIES],
    }


def _needs_more(measured: CertificationData, name: str) -> dict[str, float]:
    profile = load_profile(name)
    found = needs_more(
        measured.validation, measured.test, shallow=profile.shallow, deep=profile.deep, threshold=profile.threshold
    )
    return {"shallow": profile.shallow, "deep": profile.deep, **found}


def _claim(bundle: Bundle, measured: CertificationData, eps: float, family: Any) -> dict[str, Any]:
    certificate = certify(bundle, measured, eps=eps, delta=DELTA, family=family, depth_sets=[bundle.depths])
    claim = certificate.claims[0]
    words = None if claim.routing is None else claim.routing.words
    figures = {name: getattr(claim, name) for name in ("policy", "users", "kept", "saved", "agreement", "needed")}
    return {"eps": eps, "delta": DELTA, "routing": words, **figures, "buckets": [asdict(b) for b in claim.buckets]}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    for name in chosen.datasets:
        for seed in chosen.seeds:
            result = study(name, seed)
            config = {"dataset": name, "epsilons": EPSILONS, "delta": DELTA}
            path = save_run(f"routing/{name}-seed-{seed}", config=config, result=result, seed=seed)
            areas = ", ".join(f"{p['name']} {p['area']:+.5f}" for p in result["report"]["policies"])
            print(f"stored in {path}: {areas}; certified: {result['claims'][0]['routing']}")


if __name__ == "__main__":
    run(main)
