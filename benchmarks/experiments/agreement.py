"""Can a request's depth be told by how much of the deepest depth's answer a shallower one gives?

For each NAME=BUNDLE:DATASET, every depth is asked for the requests of the teachers, which everything is learned from,
and for those of the other users, which judge. First how well it can be told whether the shallowest depth of the network
gives at least 8 of the deepest depth's 10 items, from the request alone and with that depth's answer. Then what
routings keep of the top 10 at equal measured cost, against random mixing, and what they save where they keep .90 or .95
of it. Beside what a server can follow stand a threshold of complexity, a cascade and boosted trees. Stored as
``agreement/NAME-seed-S``, S the seed that the bundles were trained with.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.experiments.cascade import cascade, walked_costs, with_answer
from fathom.benchmarks.experiments.quality.stored import network_title, stored_networks
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun
from fathom.errors import ConfigError
from fathom.exporter.certification.certify import CertificationData, measure_bundle
from fathom.exporter.certification.hull import area_above, cost_of
from fathom.exporter.certification.learners import LEARNERS, PRICES, relative_costs
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.exporter.certification.routing_curves import (
    STEPS,
    Curve,
    Policy,
    auc,
    curve_of,
    evaluate_policy,
    hindsight,
    policies,
    static_curve,
)
from fathom.exporter.certification.routing_report import judges
from fathom.runtime.bundle import Bundle
from fathom.selector.learned import Predictor
from fathom.selector.routing import least_total, one_hot
from fathom.selector.schema import Floats
from fathom.show import Activity
from fathom.training.dataset import Dataset

LEVELS = (0.9, 0.95)
#: Agreement that is enough: 8 of 10.
ENOUGH = 0.8
RESAMPLES = 500
SAVING = ("length", "rule", "learned", "cascade")
PREDICTING = ("learned", "cascade", "boosted")
#: Policies that decide before any layer, and after the first.
NAMES = {
    "length": "length alone",
    "rule": "complexity rule",
    "learned": "learned, before any layer",
    "cascade": "cascade",
    "boosted": "boosted trees (reference)",
    "hindsight": "hindsight (unreachable)",
}
LEARNED = {"LossModel": "ridge", "TableModel": "tables", "NetModel": "net"}


class Boosted:
    """Boosted trees, one per target: what a model that is too slow to serve would make of the same rows."""

    def __init__(self, trees: Sequence[Any]) -> None:
        self._trees = trees

    def predict(self, rows: Floats, /) -> Floats:
        """Losses (n, targets) of rows (n, features)."""
        return np.column_stack([tree.predict(rows) for tree in self._trees])

    @classmethod
    def fit(cls, rows: Floats, losses: Floats, users: NDArray[np.integer] | None = None) -> "Boosted":  # noqa: ARG003
        """Learn from rows (n, features), NaN where unknown, and losses (n, targets)."""
        from sklearn.ensemble import HistGradientBoostingRegressor

        settings = {"max_iter": 100, "learning_rate": 0.05, "max_depth": 3, "min_samples_leaf": 100, "random_state": 0}
        return cls([HistGradientBoostingRegressor(**settings).fit(rows, loss) for loss in losses.T])


def boosted(known: Outcomes, judged: Outcomes, costs: Costs) -> Policy:
    """Depths by boosted trees, before any layer."""
    told_of = np.isfinite(known.features).any(0)
    model = Boosted.fit(known.features[:, told_of], 1 - known.agreement[:, :-1])
    told = model.predict(judged.features[:, told_of])
    spent = relative_costs(known, costs).of(judged.features)
    return Policy("boosted", [one_hot(least_total(told, spent, price), spent.shape[1]) for price in PRICES])


def rule(known: Outcomes, judged: Outcomes) -> Policy:
    """The network's shallowest depth for requests below a threshold of complexity, the deepest for the others."""
    levels = np.quantile(known.complexity, np.linspace(0, 1, STEPS + 1)[1:])
    shallowest, deepest = judged.depths.index(judged.network_depths[0]), len(judged.depths) - 1
    places = [np.where(judged.complexity < level, shallowest, deepest) for level in levels]
    return Policy("rule", [one_hot(each, deepest + 1) for each in places])


def study(measured: CertificationData, walked: Costs, *, seed: int = 0) -> dict[str, Any]:
    """All figures of one network; ``walked``: see ``walked_costs``."""
    known, judged, costs = measured.learning, judges(measured), measured.costs
    static = static_curve(judged.agreement, judged, costs)
    tried = [*policies(known, judged, costs), rule(known, judged), boosted(known, judged, costs)]
    tried.append(hindsight(judged.agreement, judged, costs))
    curves = {policy.name: curve_of(policy, judged.agreement, judged, costs) for policy in tried}
    curves["cascade"] = curve_of(cascade(known, judged, walked), judged.agreement, judged, walked)
    return {
        "depths": judged.depths,
        "learned_from": len(known),
        "requests": len(judged),
        "static": [
            {"depth": depth, "ms": ms, "agreement": kept, "overlap": overlap}
            for depth, ms, kept, overlap in zip(
                judged.depths,
                _rounded(static.cost.mean(0)),
                _rounded(static.value.mean(0)),
                _rounded(judged.overlap.mean(0)),
                strict=True,
            )
        ],
        "enough": told_enough(known, judged),
        "policies": [asdict(evaluate_policy(curves[name], static, seed=seed)) for name in NAMES],
        "beyond_length": {
            name: further_above(curves[name], curves["length"], static, seed=seed) for name in PREDICTING
        },
        "saved": [saved(level, static, {name: curves[name] for name in SAVING}, seed=seed) for level in LEVELS],
    }


def told_enough(known: Outcomes, judged: Outcomes) -> dict[str, Any]:
    """AUC of «the shallowest depth of the network gives at least 8 of the 10», by what is known and who has learned."""
    known, judged = (each.at_depths(each.network_depths) for each in (known, judged))
    losses, enough = 1 - known.agreement[:, :1], judged.agreement[:, 0] >= ENOUGH - 1e-9
    seen = {
        "request": (known.features, judged.features),
        "answer": (with_answer(known), with_answer(judged)),
    }
    return {
        "share": float(enough.mean()),
        **{name: _aucs(rows, losses, known.users, asked, enough) for name, (rows, asked) in seen.items()},
    }


def _aucs(
    rows: Floats, losses: Floats, users: NDArray[np.integer], asked: Floats, enough: NDArray[np.bool_]
) -> dict[str, float]:
    told_of = np.isfinite(rows).any(0)
    rows, asked = rows[:, told_of], asked[:, told_of]
    models: dict[str, Predictor] = {LEARNED[each.__name__]: each.fit(rows, losses, users) for each in LEARNERS}
    models["boosted"] = Boosted.fit(rows, losses)
    return {name: auc(-model.predict(asked)[:, 0], enough) for name, model in models.items()}


def saved(level: float, static: Curve, curves: Mapping[str, Curve], *, seed: int = 0) -> dict[str, Any]:
    """Shares of the deepest depth's cost that are saved where this much agreement is kept: value, low and high (95 %).

    Settings of a policy, and the deepest depth, may be mixed. The mixture mixes static depths. ``ratio``: what a policy
    saves over what the mixture saves. Users are resampled.
    """
    weights = _weights(len(static.value), seed)
    deepest = weights @ static.cost[:, -1]
    shares = {"mixture": _saved(level, weights, static, deepest)}
    shares |= {name: _saved(level, weights, curve, deepest) for name, curve in curves.items()}
    ratios = {name: shares[name] / np.maximum(shares["mixture"], 1e-9) for name in curves}
    return {
        "level": level,
        **{name: _interval(values) for name, values in shares.items()},
        "ratio": {name: _interval(values) for name, values in ratios.items()},
    }


def further_above(curve: Curve, other: Curve, static: Curve, *, seed: int = 0) -> dict[str, float]:
    """How much further above the hull a curve lies than another: value, low and high (95 %), users resampled."""
    heights = []
    for weight in _weights(len(static.value), seed):
        lowest = weight @ static.cost, weight @ static.value
        heights.append([area_above(weight @ each.cost, weight @ each.value, *lowest) for each in (curve, other)])
    return _interval(np.subtract(*np.array(heights).T))


def _weights(count: int, seed: int) -> Floats:
    """Of users, (1 + RESAMPLES, count): all alike, then as they are drawn."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn]) / count


def _saved(level: float, weights: Floats, curve: Curve, deepest: Floats) -> Floats:
    """For each weighting (m, n) of the users, (m,)."""
    costs, values = weights @ curve.cost, weights @ curve.value
    least = [
        cost_of(level, np.append(cost, most), np.append(value, 1.0))
        for cost, value, most in zip(costs, values, deepest, strict=True)
    ]
    return 1 - np.array(least) / deepest


def _interval(values: Floats) -> dict[str, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def section(folder: Path) -> str:
    """The stored runs as docs/results.md tells them, "" without any."""
    runs = stored_networks(folder, "agreement")
    return paragraphs(_told(runs), _areas(runs), _savings(runs)) if runs else ""


def fact(folder: Path) -> list[str]:
    """What a choice before any layer saves where .95 of the top 10 is kept, for each network that was measured."""
    runs = stored_networks(folder, "agreement")
    if not runs:
        return []
    level = LEVELS[-1]
    rows = [(run, next(each for each in run["result"]["saved"] if each["level"] == level)) for run in runs]
    said = ", ".join(
        f"{row['ratio']['learned']['value']:.2f} times on {network_title(run)}"
        f" ({row['ratio']['length']['value']:.2f} by the history's length alone)"
        for run, row in rows
    )
    kept = f"engine time saved with {level:.0%} of depth 16's top 10 kept"
    return [f"{kept}, a depth chosen for each request, against mixing at random (estimates, not certificates): {said}"]


def _told(runs: Sequence[StoredRun]) -> str:
    rows = [
        {
            "network": network_title(run),
            "requests": run["result"]["requests"],
            "kept": next(each["agreement"] for each in run["result"]["static"] if each["depth"]),
            "overlap": next(each["overlap"] for each in run["result"]["static"] if each["depth"]),
            **{key: _list(run["result"]["enough"][key].values()) for key in ("request", "answer")},
            "share": run["result"]["enough"]["share"],
        }
        for run in runs
    ]
    about = (
        "Agreement: the share of the deepest depth's top 10 that an answer has too. AUC of «the shallowest depth of the"
        " network gives at least 8 of the 10»: ridge, monotone tables, a small net, and boosted trees as a reference."
        " All of it is learned from the histories of a third of the users and judged on the other users' whole ones."
    )
    columns = (
        "network={network} | requests={requests:,} | agreement of the shallowest={kept:.3f} | rank-biased overlap="
        "{overlap:.3f} | at least 8 of 10={share:.1%} | AUC from the request={request}"
        " | AUC with the shallowest answer={answer}"
    )
    return paragraphs("## Agreement with the deepest depth", about, table_of(rows, columns))


def _areas(runs: Sequence[StoredRun]) -> str:
    rows = [
        {
            "network": network_title(run),
            **{each["name"]: _area(each) for each in run["result"]["policies"]},
            **{f"{name}_less": _area(each, "value") for name, each in run["result"]["beyond_length"].items()},
        }
        for run in runs
    ]
    columns = "network={network}" + "".join(f" | {what}={{{name}}}" for name, what in NAMES.items())
    columns += "".join(f" | {NAMES[name]}, less length alone={{{name}_less}}" for name in PREDICTING)
    about = (
        "Mean agreement above the convex hull of the static depths (random mixing reaches every point of the hull),"
        " over the hull's range of measured cost, in thousandths, with a 95 % interval over users. Length alone: depths"
        " are chosen as if all requests lost as much, so that a long history, which costs more, gets a shallower one;"
        " what is above that comes of knowing more of the request."
    )
    return paragraphs("### Agreement above random mixing", about, table_of(rows, columns))


def _savings(runs: Sequence[StoredRun]) -> str:
    rows = [
        {
            "network": network_title(run),
            "level": each["level"],
            "mixture": _share(each["mixture"]),
            **{name: f"{_share(each[name])}, {each['ratio'][name]['value']:.2f} times" for name in SAVING},
        }
        for run in runs
        for each in run["result"]["saved"]
    ]
    columns = "network={network} | agreement={level:.2f} | mixture={mixture}"
    columns += "".join(f" | {NAMES[name]}={{{name}}}" for name in SAVING)
    about = (
        "Engine time saved against the deepest depth where this much agreement is kept, with a 95 % interval over"
        " users, and how many times what the mixture saves. Estimates on the judging users, not certificates."
    )
    return paragraphs("### Saved at equal agreement", about, table_of(rows, columns))


def _area(each: StoredRun, value: str = "area") -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(1e3 * each[key] for key in (value, "low", "high")))


def _share(each: StoredRun) -> str:
    return "{:.1%} [{:.1%}, {:.1%}]".format(*(each[key] for key in ("value", "low", "high")))


def _list(values: Any) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 6) for value in values]


def network(text: str) -> tuple[str, Path, Path]:
    """Name, bundle and data set of NAME=BUNDLE:DATASET; raises ConfigError for anything else."""
    name, equals, paths = text.partition("=")
    bundle, colon, dataset = paths.rpartition(":")
    if not (name and equals and bundle and colon and dataset):
        raise ConfigError(f"{text!r} is not NAME=BUNDLE:DATASET, as ml-100k=build/bundle:build/dataset")
    return name, Path(bundle), Path(dataset)


def _measure(options: Namespace) -> Iterator[Run]:
    for name, path, data in [network(text) for text in options.networks]:
        dataset = Dataset.load(data)
        with Bundle.open(path) as bundle, Activity(f"{name}: ask every depth") as activity:
            measured = measure_bundle(bundle, dataset, progress=activity.update)
            walked = walked_costs(bundle, measured.costs)
            version = bundle.manifest.version
        config = {"dataset": name, "bundle_version": version, "levels": LEVELS, "enough": ENOUGH}
        result = study(measured, walked, seed=options.seed)
        yield Run(config, result, options.seed, f"agreement/{name}-seed-{options.seed}")


BENCHMARK = Benchmark(
    __doc__,
    "10 min a network, its bundle and data",
    {"networks": (str,), "--seed": 0},
    _measure,
    section,
    folders=("agreement",),
)
