"""A plan says which layers each depth executes; every plan that can be made or loaded holds the same rules."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import ArtefactError, PlanError
from fathom.exporter.planning.compare import SIMPLEST_FIRST
from fathom.exporter.planning.plan import STRATEGIES, DepthPlan, is_chain
from fathom.importance.lattice.lattice import Lattice
from fathom.importance.lattice.values import mask_of
from fathom.importance.layer_ranking import LayerRanking
from fathom.runtime.manifest import Manifest
from fathom.training.model import Strategy as ModelStrategy

MakeRanking = Callable[..., LayerRanking]
MakeLattice = Callable[..., Lattice]

ORDER = [5, 1, 0, 9, 14, 3, 2, 4, 6, 8, 7, 10, 11, 13, 12, 15]

orders = st.integers(2, 16).flatmap(lambda layers: st.permutations(range(layers)))
few_layers = st.integers(2, 6).flatmap(lambda layers: st.permutations(range(layers)))


def some_depths(layers: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(1, layers), min_size=1, max_size=5).map(sorted)


def test_prefix_runs_the_first_layers() -> None:
    plan = DepthPlan.make(None, "prefix", (2, 4), layers=6)
    assert plan.paths == {2: (0, 1), 4: (0, 1, 2, 3)}
    assert plan.is_chain


def test_nested_runs_the_most_important_layers_in_original_order(make_ranking: MakeRanking) -> None:
    plan = DepthPlan.make(make_ranking(ORDER), "nested", (4, 6, 16))
    assert plan.paths == {4: (0, 1, 5, 9), 6: (0, 1, 3, 5, 9, 14), 16: tuple(range(16))}
    assert not plan.is_chain


def test_permuted_prefix_runs_the_most_important_layers_first(make_ranking: MakeRanking) -> None:
    plan = DepthPlan.make(make_ranking(ORDER), "permuted-prefix", (4, 6, 8))
    assert plan.paths == {4: (0, 1, 5, 9), 6: (0, 1, 5, 9, 3, 14), 8: (0, 1, 5, 9, 3, 14, 2, 4)}
    assert plan.is_chain


def test_greedy_runs_the_layers_that_were_removed_last_in_original_order(make_ranking: MakeRanking) -> None:
    ranking = make_ranking(ORDER, greedy=[7, 3, 0, 1, 2, 4, 5, 6, *range(8, 16)])
    plan = DepthPlan.make(ranking, "greedy", (2, 4, 6))
    assert plan.paths == {2: (0, 7), 4: (0, 1, 3, 7), 6: (0, 1, 2, 3, 4, 7)}
    assert not plan.is_chain


@given(data=st.data())
def test_greedy_is_nested_by_the_order_of_removal(make_ranking: MakeRanking, data: Any) -> None:
    consensus, removed_last_first = data.draw(st.permutations(range(9))), data.draw(st.permutations(range(9)))
    depths = data.draw(some_depths(9))
    greedy = DepthPlan.make(make_ranking(consensus, greedy=removed_last_first), "greedy", depths)
    assert greedy.paths == DepthPlan.make(make_ranking(removed_last_first), "nested", depths).paths


def test_greedy_needs_its_method(make_ranking: MakeRanking) -> None:
    with pytest.raises(PlanError, match="run `fathom rank --methods greedy_elimination,one`"):
        DepthPlan.make(make_ranking(ORDER), "greedy")


def chains(layers: int, depths: tuple[int, ...]) -> list[tuple[tuple[int, ...], ...]]:
    """Every way to choose nested sets of layers of these sizes that hold layer 0."""
    found: list[tuple[tuple[int, ...], ...]] = [()]
    for depth in depths:
        sets = [chosen for chosen in combinations(range(layers), depth) if chosen[0] == 0]
        found = [(*c, chosen) for c in found for chosen in sets if not c or set(c[-1]) <= set(chosen)]
    return found


@pytest.mark.parametrize("metric", ["loss", "ndcg@10"])
@pytest.mark.parametrize("depths", [(2, 3, 5), (1, 4), (3, 6), (2,)])
def test_the_lattice_plan_is_the_best_of_all_chains(
    make_ranking: MakeRanking, make_lattice: MakeLattice, metric: str, depths: tuple[int, ...]
) -> None:
    for seed in range(10):
        lattice = make_lattice(6, seed=seed, checkpoint="c")
        gains = lattice.utilities(metric).astype(float)
        best = max(chains(6, depths), key=lambda chain: sum(gains[:, mask_of(path)].mean() for path in chain))
        ranking = make_ranking([5, 4, 3, 2, 1, 0], checkpoint="c")
        plan = DepthPlan.make(ranking, "lattice", depths, lattice=lattice, metric=metric, ranking_sha256="ab")
        assert tuple(plan.paths[depth] for depth in depths) == best
        assert plan.ranking == "ab"


def test_the_lattice_plan_is_chosen_by_log_p_unless_told(make_ranking: MakeRanking, make_lattice: MakeLattice) -> None:
    lattice, ranking = make_lattice(6), make_ranking([0, 1, 2, 3, 4, 5])
    default, by_loss, by_ndcg = (
        DepthPlan.make(ranking, "lattice", (2, 3, 4), lattice=lattice, **metric)
        for metric in ({}, {"metric": "loss"}, {"metric": "ndcg@10"})
    )
    assert default.paths == by_loss.paths != by_ndcg.paths


def test_a_lattice_that_does_not_fit_the_ranking_is_refused(
    make_ranking: MakeRanking, make_lattice: MakeLattice
) -> None:
    def plan(lattice: Lattice | None) -> DepthPlan:
        ranking = make_ranking([0, 1, 2, 3], checkpoint="a" * 64)
        return DepthPlan.make(ranking, "lattice", (2, 4), lattice=lattice)

    whole = make_lattice(4, checkpoint="a" * 64)
    assert plan(whole).depths == (2, 4)
    with pytest.raises(PlanError, match="needs a lattice; measure it with `fathom rank --lattice FOLDER`"):
        plan(None)
    with pytest.raises(ArtefactError, match="on checkpoint bbbbbbbbbbbb of 4 layers, the ranking on aaaaaaaaaaaa of 4"):
        plan(make_lattice(4, checkpoint="b" * 64))
    with pytest.raises(ArtefactError, match="of 5 layers, the ranking on aaaaaaaaaaaa of 4"):
        plan(make_lattice(5, checkpoint="a" * 64))
    few = np.arange(6)
    sample = replace(whole, masks=whole.masks[few], losses=whole.losses[:, few], places=whole.places[:, few])
    with pytest.raises(ArtefactError, match="this lattice is a sample of 6"):
        plan(sample)
    with pytest.raises(ArtefactError, match="in another order"):
        plan(replace(whole, executed=(0, 2, 1, 3)))


def test_every_place_that_names_the_strategies_names_them_all() -> None:
    assert get_args(ModelStrategy) == STRATEGIES
    assert get_args(Manifest.model_fields["strategy"].annotation) == STRATEGIES
    assert sorted(SIMPLEST_FIRST) == sorted(STRATEGIES)


def make_any(
    make_ranking: MakeRanking, make_lattice: MakeLattice, order: list[int], strategy: str, depths: list[int]
) -> DepthPlan:
    """The plan, with all that any strategy may need."""
    lattice = make_lattice(len(order), users=2, seed=order[0]) if strategy == "lattice" else None
    ranking = make_ranking(order, greedy=order[::-1])
    return DepthPlan.make(ranking, strategy, depths, lattice=lattice, ranking_sha256="ab")


@given(data=st.data(), strategy=st.sampled_from(STRATEGIES))
def test_every_plan_starts_with_layer_0_and_nests(
    make_ranking: MakeRanking, make_lattice: MakeLattice, data: Any, strategy: str
) -> None:
    order = data.draw(orders if strategy != "lattice" else few_layers)
    plan = make_any(make_ranking, make_lattice, order, strategy, data.draw(some_depths(len(order))))
    for depth, path in plan.paths.items():
        assert path[0] == 0
        assert len(set(path)) == len(path) == depth
    for shallow, deep in pairwise(plan.depths):
        assert set(plan.paths[shallow]) < set(plan.paths[deep])
        if strategy in ("prefix", "permuted-prefix"):
            assert plan.paths[deep][:shallow] == plan.paths[shallow]
    if strategy != "permuted-prefix":
        assert all(path == tuple(sorted(path)) for path in plan.paths.values())


@given(data=st.data())
def test_permuted_prefix_runs_the_layers_of_nested(make_ranking: MakeRanking, data: Any) -> None:
    order = data.draw(orders)
    depths = data.draw(some_depths(len(order)))
    nested, permuted = (DepthPlan.make(make_ranking(order), name, depths) for name in ("nested", "permuted-prefix"))
    assert {d: sorted(path) for d, path in permuted.paths.items()} == {d: list(p) for d, p in nested.paths.items()}


@given(data=st.data(), strategy=st.sampled_from(STRATEGIES))
def test_a_saved_plan_loads_as_it_was(
    make_ranking: MakeRanking,
    make_lattice: MakeLattice,
    tmp_path_factory: pytest.TempPathFactory,
    data: Any,
    strategy: str,
) -> None:
    order = data.draw(orders if strategy != "lattice" else few_layers)
    plan = make_any(make_ranking, make_lattice, order, strategy, data.draw(some_depths(len(order))))
    path = tmp_path_factory.getbasetemp() / "plan.json"
    plan.save(path)
    assert DepthPlan.load(path) == plan
    assert DepthPlan.load(path).sha256 == plan.sha256


def test_a_plan_is_named_by_what_it_executes(make_ranking: MakeRanking) -> None:
    one, same = (DepthPlan.make(make_ranking(ORDER), "nested", (4, 8), ranking_sha256=sha) for sha in ("a", "b"))
    other = DepthPlan.make(make_ranking(ORDER), "nested", (4, 9))
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize("depths", [(), (0, 4), (4, 4), (8, 4), (4, 17), (-1,)])
def test_impossible_depths_are_refused(depths: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="depths must"):
        DepthPlan.make(None, "prefix", depths, layers=16)


def test_a_strategy_that_needs_a_ranking_says_so() -> None:
    with pytest.raises(PlanError, match="fathom rank"):
        DepthPlan.make(None, "nested", layers=16)


def test_an_unknown_strategy_is_refused(make_ranking: MakeRanking) -> None:
    with pytest.raises(PlanError, match="use one of prefix, nested, permuted-prefix, greedy, lattice"):
        DepthPlan.make(make_ranking(ORDER), "random")


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="for 16 layers but the model has 12"):
        DepthPlan.make(None, "prefix", layers=16).validate(12)


@pytest.mark.parametrize(
    ("strategy", "paths", "reason"),
    [
        ("prefix", {2: (0, 2)}, "first layers"),
        ("prefix", {2: (0,)}, "2 different layers"),
        ("nested", {2: (1, 2)}, "layer 0 first"),
        ("nested", {3: (0, 3, 1)}, "original order"),
        ("greedy", {3: (0, 3, 1)}, "a greedy plan keeps the original order"),
        ("lattice", {3: (0, 3, 1)}, "a lattice plan keeps the original order"),
        ("nested", {2: (0, 9)}, "outside 0..3"),
        ("nested", {2: (0, 1), 3: (0, 2, 3)}, "every layer of depth 2"),
        ("lattice", {2: (0, 1), 3: (0, 2, 3)}, "every layer of depth 2"),
        ("permuted-prefix", {2: (0, 2), 3: (0, 1, 2)}, "begin with"),
        ("other", {2: (0, 1)}, "unknown strategy"),
    ],
)
def test_a_plan_that_breaks_the_rules_is_refused(strategy: str, paths: Any, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    value = {"schema_version": 1, "strategy": strategy, "layers": 4, "paths": paths, "ranking": None}
    file.write_text(json.dumps(value))
    with pytest.raises(PlanError, match=reason) as caught:
        DepthPlan.load(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema_version": 1}', '{"schema_version": 1, "strategy": "prefix", "layers": 4, "paths": 3}']
)
def test_what_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(ArtefactError, match="not a plan"):
        DepthPlan.load(file)


def test_a_chain_needs_whole_prefixes() -> None:
    assert is_chain({1: (0,), 3: (0, 2, 1)})
    assert not is_chain({2: (0, 1), 3: (0, 2, 1)})
