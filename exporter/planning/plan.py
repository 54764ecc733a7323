"""DepthPlan: which layers each depth executes, and in which order.

``prefix``            the first d layers
``nested``            layer 0 and the d-1 most important others, in original order
``permuted-prefix``   layer 0 and the most important others up to the first depth, in original order; then the next
                      most important up to the second depth, in original order; and so on
``greedy``            layer 0 and the d-1 others that are left when layers are removed one by one, always the one that
                      is missed least; in original order
``lattice``           the nested sets that hold layer 0 whose measured utilities sum highest, in original order
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from fathom.artefacts import PLAN, expect
from fathom.errors import ArtefactError, PlanError
from fathom.files import read_json, sha256_bytes, write_json
from fathom.importance.lattice.values import best_chain, layers_of
from fathom.importance.layer_ranking import LayerRanking

if TYPE_CHECKING:
    from fathom.importance.lattice.lattice import Lattice

SCHEMA_VERSION = 1
MAX_DEPTH = 32
DEFAULT_DEPTHS = (4, 8, 12, 16)

Strategy = Literal["prefix", "nested", "permuted-prefix", "greedy", "lattice"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
#: The strategies that execute layers in their original order.
ORIGINAL_ORDER: tuple[Strategy, ...] = ("prefix", "nested", "greedy", "lattice")

#: The method whose ranks are the order of a greedy plan: what was removed last comes first.
GREEDY_METHOD = "greedy_elimination"

#: The metric of a lattice that a plan is chosen by. Log p moves with every layer for every user, while NDCG@10 stays 0
#: for most of them, so that among a few hundred users a handful would choose the best chain.
DEFAULT_METRIC = "loss"


@dataclass(frozen=True)
class DepthPlan:
    """For each depth, the layers in execution order; ``ranking`` is the sha256 of the LayerRanking it came from, or for
    ``lattice`` of the one that ranks the same checkpoint.

    Every plan holds these rules, checked when it is made: a depth d executes d distinct layers, layer 0 first, and a
    deeper path executes every layer of a shallower one. Raises PlanError when they are broken.
    """

    strategy: Strategy
    layers: int
    paths: Mapping[int, tuple[int, ...]]
    ranking: str | None = None

    def __post_init__(self) -> None:
        _check(self)

    @staticmethod
    def make(
        ranking: LayerRanking | None,
        strategy: str,
        depths: Sequence[int] = DEFAULT_DEPTHS,
        *,
        layers: int | None = None,
        lattice: "Lattice | None" = None,
        metric: str = DEFAULT_METRIC,
        ranking_sha256: str | None = None,
    ) -> "DepthPlan":
        """Apply a strategy to the order of a ranking: its consensus, or for ``greedy`` that of its greedy elimination.

        ``prefix`` needs ``layers`` only; ``lattice`` also needs the ``lattice`` of the ranking's checkpoint, and is the
        best by ``metric``, "loss" (log p) or "ndcg@10". Raises PlanError for an unknown strategy, impossible depths, or
        a strategy that lacks what it follows; ArtefactError for a lattice that does not fit, see ``check_lattice``.
        """
        if ranking is None:
            if strategy != "prefix" or layers is None:
                raise PlanError(f"the {strategy} plan needs a ranking; run `fathom rank` first")
            return DepthPlan.from_order(range(layers), strategy, depths)
        if strategy == "lattice" and lattice is not None:
            check_lattice(lattice, ranking)
            wanted = _depths(depths, ranking.layers)
            chain = best_chain(lattice.mean(metric), wanted, keep=(0,))
            paths = {depth: layers_of(subset) for depth, subset in zip(wanted, chain, strict=True)}
            return DepthPlan("lattice", ranking.layers, paths, ranking_sha256)
        order = _last_removed_first(ranking) if strategy == "greedy" else ranking.consensus_order
        return DepthPlan.from_order(order, strategy, depths, ranking_sha256=ranking_sha256)

    @staticmethod
    def from_order(
        order: Sequence[int],
        strategy: str,
        depths: Sequence[int] = DEFAULT_DEPTHS,
        *,
        ranking_sha256: str | None = None,
    ) -> "DepthPlan":
        """Apply a strategy to layers ordered by importance, the most important first; ``prefix`` ignores the order.

        ``greedy`` takes the layer that was removed last first. Raises PlanError for an unknown strategy, for
        ``lattice``, which follows no order, or for impossible depths.
        """
        wanted, order = _depths(depths, len(order)), _layer_0_first(order)
        paths: dict[int, tuple[int, ...]]
        match strategy:
            case "prefix":
                return DepthPlan("prefix", len(order), {depth: tuple(range(depth)) for depth in wanted})
            case "nested" | "greedy":
                paths = {depth: tuple(sorted(order[:depth])) for depth in wanted}
                return DepthPlan(strategy, len(order), paths, ranking_sha256)
            case "permuted-prefix":
                executed: tuple[int, ...] = ()
                paths = {}
                for depth in wanted:
                    executed += tuple(sorted(order[len(executed) : depth]))
                    paths[depth] = executed
                return DepthPlan("permuted-prefix", len(order), paths, ranking_sha256)
            case "lattice":
                raise PlanError(
                    "the lattice plan needs a lattice; measure it with `fathom rank --lattice FOLDER`,"
                    " then give it with --lattice FOLDER"
                )
        raise PlanError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}")

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths, shallowest first."""
        return tuple(sorted(self.paths))

    @property
    def is_chain(self) -> bool:
        """Whether a deeper depth can go on from where a shallower one stopped."""
        return is_chain(self.paths)

    @property
    def sha256(self) -> str:
        """Names what the plan executes; where it came from does not count."""
        executed = [self.strategy, self.layers, [[depth, list(self.paths[depth])] for depth in self.depths]]
        return sha256_bytes(json.dumps(executed).encode())

    def validate(self, layers: int) -> None:
        """Raise PlanError unless a model of so many layers can run this plan."""
        if layers != self.layers:
            raise PlanError(f"the plan is for {self.layers} layers but the model has {layers}; make a new plan")

    def save(self, path: Path) -> None:
        """Write ``plan.json``, whole or not at all."""
        write_json(
            path,
            {
                "schema_version": SCHEMA_VERSION,
                "strategy": self.strategy,
                "layers": self.layers,
                "paths": {str(depth): list(self.paths[depth]) for depth in self.depths},
                "ranking": self.ranking,
            },
        )

    @staticmethod
    def load(path: Path) -> "DepthPlan":
        """Read ``plan.json``; raises ArtefactError when it is not one, PlanError when it breaks a plan's rules."""
        expect(path, PLAN)
        value = read_json(path, kind="plan", schema_version=SCHEMA_VERSION)
        try:
            paths = {int(depth): tuple(int(layer) for layer in path) for depth, path in value["paths"].items()}
            ranking = value.get("ranking")
            return DepthPlan(value["strategy"], int(value["layers"]), paths, ranking and str(ranking))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{path}: not a plan: {type(error).__name__}: {error}; make it again") from None
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None


def is_chain(paths: Mapping[int, Sequence[int]]) -> bool:
    """Whether each path begins with the whole of the next shallower one."""
    ordered = [tuple(paths[depth]) for depth in sorted(paths)]
    return all(long[: len(short)] == short for short, long in pairwise(ordered))


def check_lattice(lattice: "Lattice", ranking: LayerRanking) -> None:
    """Raise ArtefactError unless the lattice holds every subset of the ranking's checkpoint, run in original order."""
    known = lattice.about.get("checkpoint")
    if (lattice.layers, known) != (ranking.layers, ranking.checkpoint):
        raise ArtefactError(
            f"the lattice was measured on checkpoint {_name(known)} of {lattice.layers} layers, the ranking on"
            f" {_name(ranking.checkpoint)} of {ranking.layers}; measure both with one `fathom rank --lattice FOLDER`"
        )
    if not lattice.is_whole:
        raise ArtefactError(
            f"a plan needs every subset of the layers; this lattice is a sample of {len(lattice.masks):,}:"
            " measure it without --lattice-orders"
        )
    if not lattice.in_original_order:
        raise ArtefactError(
            "the lattice was measured on a checkpoint that executes its layers in another order than a plan would;"
            " rank the checkpoint that was not healed, with --lattice FOLDER"
        )


def _name(sha256: str | None) -> str:
    return sha256[:12] if sha256 else "unknown"


def _last_removed_first(ranking: LayerRanking) -> list[int]:
    if GREEDY_METHOD not in ranking.methods:
        names = ",".join([GREEDY_METHOD, *ranking.methods])
        raise PlanError(f"the greedy plan needs a ranking by {GREEDY_METHOD}; run `fathom rank --methods {names}`")
    return sorted(range(ranking.layers), key=ranking.methods[GREEDY_METHOD].ranks.__getitem__)


def _depths(depths: Sequence[int], layers: int) -> tuple[int, ...]:
    if not depths or list(depths) != sorted(set(depths)):
        raise PlanError(f"depths must rise without repeats, as 4,8,12,16; got {','.join(map(str, depths))!r}")
    if depths[0] < 1 or depths[-1] > min(layers, MAX_DEPTH):
        raise PlanError(f"depths must lie in 1..{min(layers, MAX_DEPTH)} for {layers} layers; got {list(depths)}")
    return tuple(depths)


def _layer_0_first(order: Sequence[int]) -> tuple[int, ...]:
    # Layer 0 reads raw embeddings; no other layer has ever seen them, so a path that skips it starts blind.
    return (0, *(layer for layer in order if layer != 0))


def _check(plan: DepthPlan) -> None:
    if plan.strategy not in STRATEGIES:
        raise PlanError(f"unknown strategy {plan.strategy!r}; use one of {', '.join(STRATEGIES)}")
    _depths(plan.depths, plan.layers)
    for depth, path in plan.paths.items():
        if len(path) != depth or len(set(path)) != depth:
            raise PlanError(f"depth {depth} must execute {depth} different layers, not {list(path)}")
        if path[0] != 0:
            raise PlanError(f"depth {depth} must execute layer 0 first, not {list(path)}")
        if not all(0 <= layer < plan.layers for layer in path):
            raise PlanError(f"depth {depth} names a layer outside 0..{plan.layers - 1}: {list(path)}")
        if plan.strategy == "prefix" and path != tuple(range(depth)):
            raise PlanError(f"a prefix plan executes the first layers; depth {depth} has {list(path)}")
        if plan.strategy in ORIGINAL_ORDER and path != tuple(sorted(path)):
            raise PlanError(f"a {plan.strategy} plan keeps the original order; depth {depth} has {list(path)}")
    for shallow, deep in pairwise(plan.depths):
        if not set(plan.paths[shallow]) <= set(plan.paths[deep]):
            raise PlanError(f"depth {deep} does not execute every layer of depth {shallow}")
    if plan.strategy == "permuted-prefix" and not plan.is_chain:
        raise PlanError("in a permuted-prefix plan every path must begin with the next shallower one")
