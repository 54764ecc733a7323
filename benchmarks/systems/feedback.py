"""Does the server notice that its certificate no longer fits? Streams with and without drift.

Needs a certified bundle. Each value of a stream is what the server's feedback sees: of a random test history that the
certificate routes below the deepest depth, the share of the deepest depth's top 10 that it gets too. Drifted: the same
histories after the popularity of all items was shuffled (item i is replaced by item p(i), for a random permutation p).
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.errors import ConfigError
from fathom.exporter.certification.outcomes import measure_outcomes
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine
from fathom.selector.betting import Evidence
from fathom.selector.certificate import Claim
from fathom.show import Activity
from fathom.training.dataset import Dataset
from fathom.training.splits import Cases, split

SEED = 0
ALPHA = 0.01
REPLICATIONS = 100
#: Feedback values of one replication: at 1 % of the requests, what a million requests give.
LENGTH = 10_000
USERS = 2_000

Floats = NDArray[np.float64]


def shuffled(cases: Cases, items: int, seed: int) -> Cases:
    """The same histories of other items."""
    permutation = np.random.default_rng(seed).permutation(items).astype(np.int32)
    old = cases.histories
    histories = replace(old, items=permutation[old.items])
    return replace(cases, histories=histories, targets=permutation[cases.targets])


def agreements(bundle: Bundle, engine: Engine, claim: Claim, cases: Cases) -> tuple[Floats, Floats]:
    """Agreement of each request and depth below the deepest, flat, and the chance that it is the next to be seen."""
    assert claim.routing is not None
    with Activity("ask every depth") as activity:
        found = measure_outcomes(bundle, engine, cases, progress=activity.update).at_depths(claim.depths)
    chance = claim.routing.probabilities(found.features)[:, :-1]
    return found.agreement[:, :-1].ravel(), (chance / chance.sum()).ravel()


def until_alarm(values: Floats, expected: float) -> int | None:
    """Feedback values until the alarm; None when it is not raised."""
    evidence = Evidence(expected)
    for count, value in enumerate(values.tolist(), 1):
        evidence.add(value)
        if evidence.capital >= 1 / ALPHA:
            return count
    return None


def replicate(seen: tuple[Floats, Floats], expected: float, replications: int, seed: int) -> dict[str, Any]:
    """Streams drawn with replacement: how many raise the alarm, and after how many values."""
    random = np.random.default_rng(seed)
    values, chance = seen
    drawn = (until_alarm(random.choice(values, LENGTH, p=chance), expected) for _ in range(replications))
    alarms = [count for count in drawn if count is not None]
    return {
        "mean_agreement": round(float(values @ chance), 4),
        "replications": replications,
        "alarms": len(alarms),
        "median_values_until_alarm": median(alarms) if alarms else None,
    }


def measure(options: Namespace) -> Iterator[Run]:
    """Streams without drift, then with it."""
    bundle, dataset = Bundle.open(options.bundle), Dataset.load(options.data)
    claim = bundle.certificate.claim(bundle.depths) if bundle.certificate else None
    if claim is None or claim.routing is None or claim.agreement is None or bundle.manifest.source.split is None:
        raise ConfigError(f"{options.bundle}: routes nothing below the deepest depth; certify it first")
    cases = split(dataset, bundle.manifest.source.split).test
    rows = np.random.default_rng(SEED).permutation(len(cases))[:USERS]
    cases = Cases(cases.histories.select(rows), cases.targets[rows], cases.users[rows])
    result: dict[str, Any] = {"expected": claim.agreement}
    with open_engine(bundle) as engine:
        for name, given in (("no drift", cases), ("drift", shuffled(cases, bundle.manifest.items, SEED))):
            seen = agreements(bundle, engine, claim, given)
            result[name] = replicate(seen, claim.agreement, options.replications, SEED)
    config = {"bundle": bundle.manifest.name, "routing": claim.routing.words, "alpha": ALPHA, "values": LENGTH}
    yield Run({**config, "users": len(cases)}, result, SEED)


def render(run: StoredRun) -> str:
    """A row per stream."""
    config, result = run["config"], run["result"]
    return paragraphs(
        "### Does feedback notice drift?",
        f"{config['bundle']}: {config['routing']}. Values as the server's feedback sees them, {config['values']:,} in a"
        f" stream, until the e-process passes 1/{config['alpha']}; expected: at least {result['expected']:.3f}. Drift:"
        " the popularity of all items shuffled.",
        table_of(
            [{"name": name, **result[name]} for name in ("no drift", "drift")],
            "stream={name} | mean agreement={mean_agreement:.3f} | alarms={alarms} of {replications}"
            " | values until the alarm, median={median_values_until_alarm:,.0f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "10 min, a certified bundle and its data",
    {"bundle": Path, "--data": Path, "--replications": REPLICATIONS},
    measure,
    of_runs(render, "feedback"),
)
