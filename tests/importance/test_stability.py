"""How alike several rankings are."""

from dataclasses import replace

import pytest

from fathom.errors import ArtefactError, ConfigError
from fathom.importance.layer_ranking import LayerRanking, MethodScores
from fathom.importance.stability import compare_rankings
from fathom.importance.statistics import borda, kemeny, order_by, ranks_of


def ranking(**scores: list[float]) -> LayerRanking:
    methods = {}
    for name, values in scores.items():
        methods[name] = MethodScores(tuple(values), tuple(values), tuple(values), tuple(ranks_of(values)), 0.0)
    tau = {a: dict.fromkeys(scores, 1.0) for a in scores}
    ranks = [method.ranks for method in methods.values()]
    consensus, best = borda(ranks), kemeny(ranks)
    assert best is not None
    layers = len(consensus)
    order = tuple(order_by(consensus))
    return LayerRanking(layers, None, None, 1, 0, methods, tau, tuple(consensus), order, kemeny_order=tuple(best))


def test_equal_rankings_are_wholly_alike() -> None:
    one = ranking(fisher=[8, 7, 6, 5, 4, 3, 2, 1], ablation=[8, 7, 5, 6, 4, 3, 1, 2])
    found = compare_rankings({"a": one, "b": one, "c": one})
    assert (found.rankings, found.layers, list(found.methods)) == (3, 8, ["fisher", "ablation"])
    assert found.kemeny is not None
    for alike in (*found.methods.values(), found.consensus, found.kemeny):
        assert (alike.mean, alike.lowest, alike.overlap) == (1, 1, 1)


def test_mean_lowest_and_overlap_over_all_pairs() -> None:
    up, swapped, down = [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 7, 6, 8], [8, 7, 6, 5, 4, 3, 2, 1]
    files = {name: ranking(fisher=scores) for name, scores in (("a", up), ("b", swapped), ("c", down))}
    found = compare_rankings(files)
    taus = [26 / 28, -1, -26 / 28]
    for alike in (found.methods["fisher"], found.consensus, found.kemeny):
        assert alike is not None
        assert alike.mean == pytest.approx(sum(taus) / 3)
        assert alike.lowest == -1
        # The first two of eight: layers 7 and 6, 7 and 5, 0 and 1.
        assert alike.overlap == pytest.approx((0.5 + 0 + 0) / 3)


def test_methods_that_are_not_in_all_rankings_are_named() -> None:
    one, other = ranking(fisher=[1, 2], ablation=[1, 2]), ranking(gradient=[2, 1], fisher=[2, 1])
    found = compare_rankings({"a": one, "b": other})
    assert list(found.methods) == ["fisher"]
    assert found.only_in_some == ("ablation", "gradient")
    assert found.methods["fisher"].mean == -1


def test_an_old_ranking_has_no_kemeny_order_to_compare() -> None:
    one = ranking(fisher=[1, 2, 3])
    assert compare_rankings({"a": one, "b": replace(one, kemeny_order=None)}).kemeny is None


def test_what_cannot_be_compared_is_refused_in_one_line() -> None:
    one = ranking(fisher=[1, 2, 3])
    with pytest.raises(ConfigError, match="name two different files or more"):
        compare_rankings({"a": one})
    with pytest.raises(ArtefactError, match=r"^b\.json ranks 4 layers and a\.json 3; they cannot be compared$"):
        compare_rankings({"a.json": one, "b.json": ranking(fisher=[1, 2, 3, 4])})
