"""A bandit that learns its threshold from live requests, beside a certificate computed from the same requests.

For each NAME=BUNDLE:DATASET, requests are drawn from the judging users of the benchmark ``agreement``, as if they came
live; one in ten is answered at every depth, by the deepest, and shows what each setting would have kept of its top 10.
Settings are those of the learned routing, and mixtures of the shallowest depth with the deepest. The certificate is
tested after 200 of these, 400, 800 and so on, as a server does that certifies itself again. The bandit follows the
cheapest setting whose shortfall is below eps by a bound that holds for all settings at all times (empirical Bernstein,
Audibert et al. 2009), as thresholds under a risk bound do (arXiv 2509.23666); a second bandit has no bound, and keeps
the mean loss at eps through a price on the shortfall, which rises while too much is lost. Stored as
``bandit/NAME-seed-S``.
"""

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.experiments.agreement import network
from fathom.benchmarks.experiments.quality.stored import network_title, stored_networks
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run
from fathom.exporter.certification.certify import CertificationData, measure_bundle
from fathom.exporter.certification.routing_curves import Policy, curve_of, policies
from fathom.exporter.certification.routing_report import judges
from fathom.runtime.bundle import Bundle
from fathom.selector.betting import is_negative
from fathom.selector.schema import Floats
from fathom.show import Activity
from fathom.training.dataset import Dataset

EPSILONS = (0.1, 0.05)
DELTA = 0.05
#: One request in so many is answered at every depth.
AUDITED = 10
CHECKED_AFTER = (1_000, 5_000, 20_000, 100_000)
FIRST_TEST = 200
#: How fast the price on the shortfall moves.
PRICE_STEP = 0.05


@dataclass(frozen=True)
class Settings:
    """What can be followed, the cheapest first, the deepest depth last: agreement and cost of each request (n, m)."""

    agreement: Floats
    cost: Floats

    @classmethod
    def of(cls, measured: CertificationData) -> "Settings":
        """Those of one network."""
        judged, costs = judges(measured), measured.costs
        shallowest, depths = judged.depths.index(judged.network_depths[0]), len(judged.depths)
        chances = []
        for share in np.linspace(1, 0, 11):
            chance = np.zeros((len(judged), depths))
            chance[:, shallowest], chance[:, -1] = share, 1 - share
            chances.append(chance)
        learned = next(each for each in policies(measured.learning, judged, costs) if each.name == "learned")
        curve = curve_of(Policy("all", [*learned.chances, *chances]), judged.agreement, judged, costs)
        order = np.lexsort((-curve.value.mean(0), curve.cost.mean(0)))
        # No setting that another one beats in both.
        best = [place for n, place in enumerate(order) if curve.value.mean(0)[place] > _most(curve.value, order[:n])]
        return cls(curve.value[:, best], curve.cost[:, best])


def _most(value: Floats, places: Any) -> float:
    return float(value[:, places].mean(0).max(initial=-1.0))


def certified(audits: Floats, eps: float, saved: Floats) -> NDArray[np.int64]:  # noqa: ARG001
    """The cheapest setting that the tests have reached, from the deepest on."""
    followed = np.full(len(audits), audits.shape[1] - 1)
    for test in range(int(math.log2(len(audits) / FIRST_TEST)) + 1):
        count, level = FIRST_TEST << test, DELTA / 2 ** (test + 1)
        place = audits.shape[1] - 1
        while place and is_negative(1 - eps - audits[:count, place - 1], largest=1 - eps, delta=level):
            place -= 1
        followed[count:] = np.minimum(followed[count:], place)
    return followed


def bounded(audits: Floats, eps: float, saved: Floats) -> NDArray[np.int64]:  # noqa: ARG001
    """The cheapest setting whose shortfall is below eps by a bound for all of them at all times."""
    count = np.arange(1, len(audits))[:, None]
    mean = audits.cumsum(0)[:-1] / count
    variance = np.maximum((audits**2).cumsum(0)[:-1] / count - mean**2, 0)
    wide = np.log(3 * audits.shape[1] * count * (count + 1) / DELTA)
    shortfall = 1 - mean + np.sqrt(2 * variance * wide / count) + 3 * wide / count
    shortfall[:, -1] = 0.0
    return np.append(audits.shape[1] - 1, np.argmax(shortfall <= eps, axis=1))


def priced(audits: Floats, eps: float, saved: Floats) -> NDArray[np.int64]:
    """The setting that saves most, less a price on its shortfall that rises while more than eps is lost."""
    mean = audits.cumsum(0) / np.arange(1, len(audits) + 1)[:, None]
    followed, price = [audits.shape[1] - 1], 1.0
    for shown, last in zip(mean[:-1], audits[1:], strict=True):
        followed.append(int(np.argmax(saved - price * (1 - shown))))
        price = max(0.0, price + PRICE_STEP * (1 - last[followed[-1]] - eps))
    return np.array(followed)


#: Which setting is followed until each audited request (t,), given the agreement of all settings on these (t, m).
WAYS: dict[str, Callable[[Floats, float, Floats], NDArray[np.int64]]] = {
    "certified": certified,
    "bounded": bounded,
    "priced": priced,
}


def simulate(settings: Settings, eps: float, way: str, replications: int, seed: int) -> list[dict[str, Any]]:
    """After so many requests: what was saved, what was lost, and how often the setting followed loses too much."""
    true, spent = settings.agreement.mean(0), settings.cost.mean(0)
    saved = 1 - spent / spent[-1]
    found: dict[int, list[tuple[float, float, bool]]] = {count: [] for count in CHECKED_AFTER}
    for replication in range(replications):
        rng = np.random.default_rng([seed, replication])
        audits = settings.agreement[rng.integers(len(settings.agreement), size=CHECKED_AFTER[-1] // AUDITED)]
        followed = WAYS[way](audits, eps, saved)
        for count in CHECKED_AFTER:
            places = followed[: count // AUDITED]
            # The others of each ten are routed.
            routed = (AUDITED - 1) / AUDITED * float(np.mean(saved[places]))
            found[count].append((routed, float(np.mean(1 - true[places])), bool(true[places[-1]] < 1 - eps)))
    return [
        {
            "eps": eps,
            "way": way,
            "requests": count,
            "saved": float(np.mean([each[0] for each in rows])),
            "lost": float(np.mean([each[1] for each in rows])),
            "wrong": float(np.mean([each[2] for each in rows])),
        }
        for count, rows in found.items()
    ]


def section(folder: Path) -> str:
    """The stored runs as docs/results.md tells them, "" without any."""
    runs = stored_networks(folder, "bandit")
    rows = [{"network": network_title(run), **row} for run in runs for row in run["result"]["rows"]]
    about = (
        "Learning a threshold while requests arrive, simulated on the judging users: one request in ten is answered at"
        " every depth. Certified: tested after 200 of these, 400 and so on. Bounded: a bandit that follows the cheapest"
        " setting below eps by a bound for all settings at all times. Priced: a bandit without a bound. Saved: engine"
        " time so far. Lost: of the deepest depth's top 10, by what was routed. Too much: the share of replications in"
        f" which the setting that is followed at the end loses more than eps; promised is {DELTA:.0%}."
    )
    columns = "network={network} | eps={eps:.0%} | requests={requests:,} | way={way} | saved={saved:.1%}"
    table = table_of(rows, f"{columns} | lost={{lost:.1%}} | too much={{wrong:.1%}}")
    return paragraphs("### A bandit beside a certificate", about, table) if rows else ""


def _measure(options: Namespace) -> Iterator[Run]:
    for name, path, data in [network(text) for text in options.networks]:
        dataset = Dataset.load(data)
        with Bundle.open(path) as bundle, Activity(f"{name}: ask every depth") as activity:
            settings = Settings.of(measure_bundle(bundle, dataset, progress=activity.update))
            version = bundle.manifest.version
        config = {"dataset": name, "bundle_version": version, "replications": options.replications, "delta": DELTA}
        rows = [
            row
            for eps in EPSILONS
            for way in WAYS
            for row in simulate(settings, eps, way, options.replications, options.seed)
        ]
        result = {"settings": settings.agreement.shape[1], "users": len(settings.agreement), "rows": rows}
        yield Run(config, result, options.seed, f"bandit/{name}-seed-{options.seed}")


BENCHMARK = Benchmark(
    __doc__,
    "10 min a network, its bundle and data",
    {"networks": (str,), "--replications": 100, "--seed": 0},
    _measure,
    section,
    folders=("bandit",),
)
