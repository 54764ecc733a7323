"""DepthPlan: which layers each depth executes, and in which order.

``prefix``            the first d layers
``nested``            layer 0 and the d-1 most important others, in original order
``permuted-prefix``   layer 0 and the most important others up to the first depth, in original order; then the next
                      most important up to the second depth, in original order; and so on
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

from fathom.errors import ArtefactError, PlanError
from fathom.files import read_json, sha256_bytes, write_json
from fathom.importance.layer_ranking import LayerRanking

SCHEMA_VERSION = 1
MAX_DEPTH = 32
DEFAULT_DEPTHS = (4, 8, 12, 16)

Strategy = Literal["prefix", "nested", "permuted-prefix"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True)
class DepthPlan:
    """For each depth, the layers in execution order; ``ranking`` is the sha256 of the LayerRanking it came from.

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
        ranking_sha256: str | None = None,
    ) -> "DepthPlan":
        """Apply a strategy to the consensus order of a ranking; ``prefix`` needs ``layers`` only.

        Raises PlanError for an unknown strategy, impossible depths, or a strategy that lacks its ranking.
        """
        count = ranking.layers if ranking is not None else layers
        if count is None or (ranking is None and strategy != "prefix"):
            raise PlanError(f"the {strategy} plan needs a ranking; run `fathom rank` first")
        order = ranking.consensus_order if ranking is not None else range(count)
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

        Raises PlanError for an unknown strategy or impossible depths.
        """
        wanted, order = _depths(depths, len(order)), _layer_0_first(order)
        paths: dict[int, tuple[int, ...]]
        match strategy:
            case "prefix":
                return DepthPlan("prefix", len(order), {depth: tuple(range(depth)) for depth in wanted})
            case "nested":
                paths = {depth: tuple(sorted(order[:depth])) for depth in wanted}
                return DepthPlan("nested", len(order), paths, ranking_sha256)
            case "permuted-prefix":
                executed: tuple[int, ...] = ()
                paths = {}
                for depth in wanted:
                    executed += tuple(sorted(order[len(executed) : depth]))
                    paths[depth] = executed
                return DepthPlan("permuted-prefix", len(order), paths, ranking_sha256)
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
        if plan.strategy == "nested" and path != tuple(sorted(path)):
            raise PlanError(f"a nested plan keeps the original order; depth {depth} has {list(path)}")
    for shallow, deep in pairwise(plan.depths):
        if not set(plan.paths[shallow]) <= set(plan.paths[deep]):
            raise PlanError(f"depth {deep} does not execute every layer of depth {shallow}")
    if plan.strategy == "permuted-prefix" and not plan.is_chain:
        raise PlanError("in a permuted-prefix plan every path must begin with the next shallower one")
