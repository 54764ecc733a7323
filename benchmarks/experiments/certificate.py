"""Does the certificate keep its word? Simulated users with a known loss, and real outcomes with a loss made known.

Coverage: the true loss is exactly eps, and the share of 1,000 replications in which the routing is certified all the
same. Power: nothing is lost, though a part of the users is answered differently, and the share that is certified.
"""

from argparse import Namespace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.selector.certificate import certified

Floats = NDArray[np.float64]

REPLICATIONS = 1_000
USERS = (5_000, 10_000, 20_000)
EPSILONS = (0.05, 0.01)
DELTA = 0.05
#: The share of users that a shallow depth answers as if it were another model: what depth 4 does on MovieLens-1M.
CHANGED = (0.1, 0.3)
HIT_RATE = 0.34


def ndcg(random: np.random.Generator, users: int) -> Floats:
    """NDCG@10 of users of whom HIT_RATE have their item among the ten, at any place."""
    hit = random.random(users) < HIT_RATE
    return np.where(hit, 1 / np.log2(random.integers(0, 10, users) + 2), 0.0)


def routed(random: np.random.Generator, full: Floats, *, changed: float, loss: float) -> Floats:
    """What a routing gives: ``changed`` of the users have luck of their own, and ``loss`` of the mean is lost."""
    other = np.where(random.random(len(full)) < changed, ndcg(random, len(full)), full)
    return np.where(random.random(len(full)) < loss, 0.0, other)


def share_certified(*, users: int, changed: float, eps: float, loss: float, replications: int, seed: int) -> float:
    """Of the replications."""
    random = np.random.default_rng([seed, users, int(1e4 * changed), int(1e4 * eps), int(1e4 * loss)])
    count = 0
    for _ in range(replications):
        full = ndcg(random, users)
        count += certified(full, [routed(random, full, changed=changed, loss=loss)], eps=eps, level=DELTA)
    return count / replications


def shares(replications: int, seed: int) -> list[dict[str, Any]]:
    """Every combination, with the loss at eps (coverage) and at zero (power)."""
    return [
        {
            "users": users,
            "changed": changed,
            "eps": eps,
            **{
                name: share_certified(
                    users=users, changed=changed, eps=eps, loss=loss, replications=replications, seed=seed
                )
                for name, loss in (("wrong", eps), ("power", 0.0))
            },
        }
        for eps, changed, users in product(EPSILONS, CHANGED, USERS)
    ]


def _section(run: StoredRun) -> str:
    about = (
        f"{run['config']['replications']:,} simulated replications each, delta {run['config']['delta']:.0%}: the first"
        " share must stay below delta, the second is the power."
    )
    return paragraphs(
        "### Does the certificate keep its word?",
        about,
        table_of(
            run["result"]["rows"],
            "eps={eps:.0%} | users answered differently={changed:.0%} | users={users:,}"
            " | certified at a loss of exactly eps={wrong:.1%} | certified at no loss={power:.1%}",
        ),
    )


def _measure(options: Namespace) -> list[Run]:
    config = {"replications": options.replications, "delta": DELTA, "hit_rate": HIT_RATE}
    return [Run(config, {"rows": shares(options.replications, options.seed)}, options.seed)]


BENCHMARK = Benchmark(
    __doc__,
    "5 min, no bundle",
    {"--replications": REPLICATIONS, "--seed": 0},
    _measure,
    of_runs(_section, "certificate"),
)
