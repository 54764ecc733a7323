"""Does the certificate keep its word? Simulated users whose losses are known, for both kinds of claims.

Three depths, whose mixtures are tested as `fathom certify` tests them. Coverage: every shallower depth keeps exactly
what is promised, and the share of replications in which any mixture is certified that keeps no more. Power: the
share of replications in which all requests may go to the shallowest depth, where it loses nothing, or little; beside
it the same for one sequence of tests from depth to depth, which a dip on the way brings to its end.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.exporter.certification.claims import judge
from fathom.exporter.certification.families import STEPS, Members, mixtures
from fathom.exporter.certification.hypotheses import BELOW, Terms
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.selector.certificate import TOP as K
from fathom.selector.features import Features
from fathom.selector.routing import Mixture, mixed

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Outcomes]

REPLICATIONS = 1_000
USERS = (1_000, 5_000, 20_000)
DELTA = 0.05
DEPTHS = (4, 8, 16)
COSTS = Costs(DEPTHS, np.array([1, 200]), np.array([[1.0, 2.0, 4.0]] * 2))
#: Allowed loss, and the share of users whom a shallower depth answers as if it were another model.
CHANGED = ((0.05, 0.3), (0.01, 0.1))
HIT_RATE = 0.34


class Population(NamedTuple):
    """Users of whom it is known what each depth keeps, (3,), and how often it gives an answer below the floor, (3,)."""

    name: str
    terms: Terms
    kept: Floats
    under: Floats
    draw: Draw

    @property
    def about(self) -> dict[str, Any]:
        """For a row."""
        return {"kind": self.terms.kind, "population": self.name, "eps": self.terms.eps}

    def any_wrong(self, certified: Sequence[Mixture]) -> bool:
        """Whether one of these keeps no more than a routing must keep more than."""
        shares = np.array([routing.shares for routing in certified]).reshape(-1, len(DEPTHS))
        short = shares @ self.kept <= 1 - self.terms.eps + 1e-9
        bad = shares @ self.under >= self.terms.below - 1e-9
        return bool((short | (bad & (self.terms.kind == "agreement"))).any())


def ndcg(random: np.random.Generator, users: int) -> Floats:
    """NDCG@10 of users of whom HIT_RATE have their item among the ten, at any place."""
    hit = random.random(users) < HIT_RATE
    return np.where(hit, 1 / np.log2(random.integers(0, 10, users) + 2), 0.0)


def routed(random: np.random.Generator, full: Floats, *, changed: float, loss: float) -> Floats:
    """What a depth gives: ``changed`` of the users have luck of their own, and ``loss`` of the mean is lost."""
    other = np.where(random.random(len(full)) < changed, ndcg(random, len(full)), full)
    return np.where(random.random(len(full)) < loss, 0.0, other)


def outcomes(quality: Floats, shared: NDArray[np.integer]) -> Outcomes:
    """Requests with this quality (n, D), that share so many of the deepest depth's ten items (n, D)."""
    users = len(quality)
    places = np.arange(K)
    return Outcomes(
        DEPTHS,
        users=np.arange(users),
        lengths=np.ones(users, dtype=np.int64),
        features=np.zeros((users, len(Features._fields))),
        complexity=np.zeros(users),
        quality=quality,
        best=places + K * (places >= shared[:, :, None]),
        scores=np.zeros((users, len(DEPTHS), K)),
        digests=np.zeros(users, dtype="V32"),
    )


def of_quality(name: str, eps: float, changed: float, losses: Sequence[float]) -> Population:
    """Depths that lose so much, (2,), the shallowest first."""

    def draw(random: np.random.Generator, users: int) -> Outcomes:
        full = ndcg(random, users)
        quality = [routed(random, full, changed=changed, loss=loss) for loss in losses]
        return outcomes(np.column_stack([*quality, full]), np.full((users, len(DEPTHS)), K))

    kept = 1 - np.array([*losses, 0.0])
    return Population(name, Terms("quality", eps), kept, np.zeros(len(DEPTHS)), draw)


def of_agreement(name: str, eps: float, missing: float, bad: float) -> Population:
    """Shallower depths miss so much of the top 10 on average, and a share ``bad`` of requests misses six of ten."""
    rest = (missing - 0.6 * bad) / (1 - bad)
    least = int(rest * K)

    def draw(random: np.random.Generator, users: int) -> Outcomes:
        size = users, len(DEPTHS) - 1
        few = least + (random.random(size) < rest * K - least)
        missed = np.where(random.random(size) < bad, 6, few)
        return outcomes(np.zeros((users, len(DEPTHS))), K - np.column_stack([missed, np.zeros(users, dtype=np.int64)]))

    kept, under = np.full(len(DEPTHS), 1 - missing), np.full(len(DEPTHS), bad)
    kept[-1], under[-1] = 1.0, 0.0
    return Population(name, Terms("agreement", eps), kept, under, draw)


def one_sequence(eps: float) -> tuple[list[Sequence[Mixture]], Floats, Floats]:
    """Mixtures of neighbours, from the deepest depth to the shallowest, in one sequence with all of the level."""
    steps = [each for deep, shallow in pairwise(DEPTHS[::-1]) for each in mixed(DEPTHS, deep, shallow, STEPS)]
    return [[each for each in steps if each.shares[-1] < 1 - eps - 1e-9]], np.ones(1), np.zeros((1, 1))


def certified(population: Population, sequences: Any, users: int, random: np.random.Generator) -> list[Mixture]:
    """The mixtures that one draw of users certifies."""
    drawn = population.draw(random, users)
    routings, weights, transitions = sequences
    members = Members(routings, weights, transitions, np.ones(users, dtype=np.bool_))
    found = judge(members, (drawn,), COSTS, population.terms, level=DELTA).certified
    return [routing for routing, _ in found if isinstance(routing, Mixture)]


def share(
    event: Callable[[list[Mixture]], bool],
    population: Population,
    sequences: Any,
    users: int,
    replications: int,
    seed: int,
) -> float:
    """Of the replications, in how many something is true of what is certified."""
    random = np.random.default_rng([seed, users, int(1e4 * population.terms.eps)])
    return sum(event(certified(population, sequences, users, random)) for _ in range(replications)) / replications


def coverage(replications: int, seed: int) -> list[dict[str, Any]]:
    """How often anything is certified wrongly."""
    rows = []
    for population, users in product(AT_THE_LIMIT, USERS):
        asked = (population, mixtures(DEPTHS, population.terms.eps), users, replications, seed)
        rows.append({**population.about, "users": users, "wrong": share(population.any_wrong, *asked)})
    return rows


def power(replications: int, seed: int) -> list[dict[str, Any]]:
    """How often all requests may go to the shallowest depth: by the tests as they are, and by one sequence of them."""
    rows = []
    for population, users in product(WELL_WITHIN, USERS):
        arms = {"several": mixtures(DEPTHS, population.terms.eps), "one": one_sequence(population.terms.eps)}
        shares = {name: share(_all_shallow, population, arm, users, replications, seed) for name, arm in arms.items()}
        rows.append({**population.about, "users": users, **shares})
    return rows


def _all_shallow(found: list[Mixture]) -> bool:
    return any(routing.shares[0] == 1 for routing in found)


#: Nothing but a part of the requests at a shallower depth may be certified.
AT_THE_LIMIT = (
    *(of_quality("both depths lose eps", eps, changed, (eps, eps)) for eps, changed in CHANGED),
    of_agreement("both depths miss eps of the top 10", 0.05, 0.05, 0.01),
    of_agreement("as many answers below the floor as may be", 0.05, 0.04, BELOW),
)
#: The shallowest depth keeps more than it must.
WELL_WITHIN = (
    *(of_quality("nothing is lost", eps, changed, (0.0, 0.0)) for eps, changed in CHANGED),
    *(of_quality("depth 8 loses 2 eps, depth 4 nothing", eps, changed, (0.0, 2 * eps)) for eps, changed in CHANGED),
    of_agreement("half of eps is missed, half as many below the floor as may be", 0.05, 0.025, BELOW / 2),
)


def _section(run: StoredRun) -> str:
    config, result = run["config"], run["result"]
    about = (
        f"{config['replications']:,} simulated replications each, delta {config['delta']:.0%}, depths"
        f" {', '.join(map(str, config['depths']))}. Coverage: the share in which anything is certified that keeps no"
        " more than is promised must stay below delta."
    )
    how = (
        "Power: all requests may go to the shallowest depth. Several sequences of tests, as `fathom certify` has them,"
        " beside one sequence from depth to depth."
    )
    start = "kind={kind} | population={population} | eps={eps:.0%} | users={users:,}"
    return paragraphs(
        "### Does the certificate keep its word?",
        about,
        table_of(result["coverage"], f"{start} | certified wrongly={{wrong:.1%}}"),
        how,
        table_of(result["power"], f"{start} | several sequences={{several:.1%}} | one sequence={{one:.1%}}"),
    )


def _measure(options: Namespace) -> list[Run]:
    config = {"replications": options.replications, "delta": DELTA, "depths": DEPTHS, "hit_rate": HIT_RATE}
    asked = options.replications, options.seed
    return [Run(config, {"coverage": coverage(*asked), "power": power(*asked)}, options.seed)]


BENCHMARK = Benchmark(
    __doc__,
    "an hour, no bundle",
    {"--replications": REPLICATIONS, "--seed": 0},
    _measure,
    of_runs(_section, "certificate"),
)
