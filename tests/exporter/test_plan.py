"""A plan says which layers each depth executes; every plan that can be made or loaded holds the same rules."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import ArtefactError, PlanError
from fathom.exporter.plan import DepthPlan, is_chain
from fathom.importance.layer_ranking import LayerRanking

MakeRanking = Callable[[list[int]], LayerRanking]

ORDER = [5, 1, 0, 9, 14, 3, 2, 4, 6, 8, 7, 10, 11, 13, 12, 15]

orders = st.integers(2, 16).flatmap(lambda layers: st.permutations(range(layers)))


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


@given(data=st.data(), strategy=st.sampled_from(["prefix", "nested", "permuted-prefix"]))
def test_every_plan_starts_with_layer_0_and_nests(make_ranking: MakeRanking, data: Any, strategy: str) -> None:
    order = data.draw(orders)
    plan = DepthPlan.make(make_ranking(order), strategy, data.draw(some_depths(len(order))))
    for depth, path in plan.paths.items():
        assert path[0] == 0
        assert len(set(path)) == len(path) == depth
    for shallow, deep in pairwise(plan.depths):
        assert set(plan.paths[shallow]) < set(plan.paths[deep])
        if strategy != "nested":
            assert plan.paths[deep][:shallow] == plan.paths[shallow]


@given(data=st.data())
def test_permuted_prefix_runs_the_layers_of_nested(make_ranking: MakeRanking, data: Any) -> None:
    order = data.draw(orders)
    depths = data.draw(some_depths(len(order)))
    nested, permuted = (DepthPlan.make(make_ranking(order), name, depths) for name in ("nested", "permuted-prefix"))
    assert {d: sorted(path) for d, path in permuted.paths.items()} == {d: list(p) for d, p in nested.paths.items()}


@given(data=st.data(), strategy=st.sampled_from(["prefix", "nested", "permuted-prefix"]))
def test_a_saved_plan_loads_as_it_was(
    make_ranking: MakeRanking, tmp_path_factory: pytest.TempPathFactory, data: Any, strategy: str
) -> None:
    order = data.draw(orders)
    plan = DepthPlan.make(make_ranking(order), strategy, data.draw(some_depths(len(order))), ranking_sha256="ab")
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
    with pytest.raises(PlanError, match="use one of prefix, nested, permuted-prefix"):
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
        ("nested", {2: (0, 9)}, "outside 0..3"),
        ("nested", {2: (0, 1), 3: (0, 2, 3)}, "every layer of depth 2"),
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
