"""What a lattice predicts of each plan, against the users' own values; nothing is predicted for what it did not run."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fathom.errors import ArtefactError, PlanError
from fathom.exporter.planning.plan import DepthPlan
from fathom.exporter.planning.predict import predict
from fathom.importance.lattice.lattice import Lattice
from fathom.importance.lattice.values import mask_of, sizes
from fathom.importance.layer_ranking import LayerRanking
from fathom.training.metrics import Interval

MakeRanking = Callable[..., LayerRanking]
MakeLattice = Callable[..., Lattice]

DEPTHS = (2, 3, 5, 6)
CONSENSUS, GREEDY = [3, 5, 0, 1, 4, 2], [4, 2, 5, 0, 1, 3]
IN_ORDER = ("prefix", "nested", "greedy", "lattice")


def gains(lattice: Lattice, path: tuple[int, ...], metric: str) -> np.ndarray:
    """Of each user, one by one."""
    mask = mask_of(path)
    if metric == "loss":
        return np.array([-loss for loss in lattice.losses[:, mask].tolist()])
    return np.array([1 / np.log2(place + 2) if place < 10 else 0.0 for place in lattice.places[:, mask].tolist()])


@pytest.mark.parametrize("metric", ["loss", "ndcg@10"])
def test_each_figure_is_that_of_the_layers_that_the_plan_runs(
    make_ranking: MakeRanking, make_lattice: MakeLattice, metric: str
) -> None:
    ranking, lattice = make_ranking(CONSENSUS, greedy=GREEDY), make_lattice(6)
    found = predict(ranking, lattice, DEPTHS, metric="ndcg@10")
    assert (found.users, found.depths) == (40, DEPTHS)
    for strategy in IN_ORDER:
        plan = DepthPlan.make(ranking, strategy, DEPTHS, lattice=lattice, metric="ndcg@10")
        for depth in DEPTHS:
            own, prefix = (gains(lattice, path, metric) for path in (plan.paths[depth], tuple(range(depth))))
            prediction = found.by_metric[metric][strategy][depth]
            assert prediction.layers == plan.paths[depth]
            assert prediction.value == pytest.approx(own.mean(), abs=1e-6)
            if strategy == "prefix":
                assert prediction.difference is None
                continue
            assert prediction.difference is not None
            assert prediction.difference.value == pytest.approx((own - prefix).mean(), abs=1e-6)
            resample = np.random.default_rng(1).integers(40, size=(4000, 40))
            low, high = np.quantile((own - prefix)[resample].mean(1), [0.025, 0.975])
            width = max(high - low, 1e-6)
            assert prediction.difference.low == pytest.approx(low, abs=0.1 * width)
            assert prediction.difference.high == pytest.approx(high, abs=0.1 * width)


def test_a_difference_is_paired(make_ranking: MakeRanking, make_lattice: MakeLattice) -> None:
    lattice = make_lattice(6)
    users, gain = np.linspace(-9, -1, 40), np.where(np.arange(64) >> 5 & 1, 0.5, 0.0)
    lattice = replace(lattice, losses=-(users[:, None] + gain).astype(np.float32))
    found = predict(make_ranking(CONSENSUS), lattice, (2, 3)).by_metric["loss"]["nested"]
    assert [found[depth].layers for depth in (2, 3)] == [(0, 3), (0, 3, 5)]
    for depth, expected in ((2, 0.0), (3, 0.5)):
        difference = found[depth].difference
        assert difference is not None
        assert (difference.value, difference.low, difference.high) == pytest.approx((expected,) * 3, abs=1e-6)


def test_no_plan_is_above_the_best_subset_of_its_size(make_ranking: MakeRanking, make_lattice: MakeLattice) -> None:
    for seed in range(5):
        lattice = make_lattice(6, seed=seed)
        found = predict(make_ranking(CONSENSUS, greedy=GREEDY), lattice, DEPTHS)
        for metric, by_name in found.by_metric.items():
            for depth in DEPTHS:
                of_size = [m for m in range(64) if sizes(6)[m] == depth and m & 1]
                best = by_name["best"][depth]
                assert best.value == pytest.approx(max(lattice.mean(metric)[of_size]))
                assert 0 in best.layers
                assert all(best.value >= by_name[strategy][depth].value for strategy in IN_ORDER)


def test_nothing_is_predicted_for_another_order(make_ranking: MakeRanking, make_lattice: MakeLattice) -> None:
    found = predict(make_ranking(CONSENSUS), make_lattice(6), DEPTHS)
    assert found.left_out["permuted-prefix"] == "not in a lattice: it changes the order"
    assert "greedy_elimination,one" in found.left_out["greedy"]
    for by_name in found.by_metric.values():
        assert list(by_name) == ["prefix", "nested", "lattice", "best"]
    assert {"permuted-prefix", "greedy"} == set(found.as_dict()["left_out"])


def test_the_table_shows_each_value_above_its_difference(make_ranking: MakeRanking, make_lattice: MakeLattice) -> None:
    found = predict(make_ranking(CONSENSUS), make_lattice(6), (3, 6))
    cells = found.by_metric["ndcg@10"]["nested"]
    known = replace(cells[3], value=0.12345, difference=Interval(-0.00123, -0.1, 0.00004))
    whole = replace(cells[6], value=1.5)
    found.by_metric["ndcg@10"] = {
        "prefix": {3: replace(known, difference=None), 6: replace(whole, difference=None)},
        "nested": {3: known, 6: whole},
    }
    assert found.rows("ndcg@10") == [
        ["strategy", "depth 3", "depth 6"],
        ["prefix", ".1235", "1.5000"],
        ["nested", ".1235\n-.0012 [-.1000, +.0000]", "1.5000\nthe layers of prefix"],
    ]


def test_a_lattice_or_depths_that_do_not_fit_are_refused(make_ranking: MakeRanking, make_lattice: MakeLattice) -> None:
    ranking = make_ranking(CONSENSUS)
    with pytest.raises(ArtefactError, match="measure both with one"):
        predict(ranking, make_lattice(6, checkpoint="other"), DEPTHS)
    with pytest.raises(ArtefactError, match="in another order"):
        predict(ranking, replace(make_lattice(6), executed=(5, 4, 3, 2, 1, 0)), DEPTHS)
    with pytest.raises(PlanError, match=r"depths must lie in 1\.\.6"):
        predict(ranking, make_lattice(6), (4, 8))
