"""How alike layer rankings are: of several training seeds, draws of users, or data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from fathom.errors import ArtefactError, ConfigError
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.statistics import kendall_tau, order_by, quarter


@dataclass(frozen=True)
class Alike:
    """How alike several orders of the same layers are, over all pairs of them.

    mean, lowest: Kendall's tau, -1..1; overlap: mean share of the first quarter of the layers that both have, 0..1; two
    random orders of 16 layers share 0.25.
    """

    mean: float
    lowest: float
    overlap: float


@dataclass(frozen=True)
class Stability:
    """How alike rankings are: by each method that all of them have, and by their consensus (Borda's and Kemeny's).

    kemeny: None where a ranking has none; only_in_some: the methods that are not in all.
    """

    rankings: int
    layers: int
    methods: dict[str, Alike]
    consensus: Alike
    kemeny: Alike | None
    only_in_some: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_rankings(rankings: Mapping[str, LayerRanking]) -> Stability:
    """Compare rankings, each under a name of its own.

    Raises ConfigError for fewer than two, ArtefactError for rankings of different numbers of layers.
    """
    if len(rankings) < 2:
        raise ConfigError("stability compares rankings with each other: name two different files or more")
    (first, one), *others = rankings.items()
    for name, other in others:
        if other.layers != one.layers:
            raise ArtefactError(f"{name} ranks {other.layers} layers and {first} {one.layers}; they cannot be compared")

    names = list(dict.fromkeys(name for ranking in rankings.values() for name in ranking.methods))
    shared = [name for name in names if all(name in ranking.methods for ranking in rankings.values())]
    orders = [ranking.kemeny_order for ranking in rankings.values()]
    known = [[-order.index(layer) for layer in range(one.layers)] for order in orders if order is not None]
    return Stability(
        rankings=len(rankings),
        layers=one.layers,
        methods={name: _alike([ranking.methods[name].scores for ranking in rankings.values()]) for name in shared},
        consensus=_alike([ranking.consensus_scores for ranking in rankings.values()]),
        kemeny=_alike(known) if len(known) == len(rankings) else None,
        only_in_some=tuple(name for name in names if name not in shared),
    )


def _alike(scores: Sequence[Sequence[float]]) -> Alike:
    top = quarter(len(scores[0]))
    taus = [kendall_tau(a, b) for a, b in combinations(scores, 2)]
    firsts = [set(order_by(each)[:top]) for each in scores]
    shared = [len(a & b) / top for a, b in combinations(firsts, 2)]
    return Alike(sum(taus) / len(taus), min(taus), sum(shared) / len(shared))
