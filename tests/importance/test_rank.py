"""The driver: what it measures, that it repeats, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.errors import ArtefactError, ConfigError, DataError, MissingExtraError, NotApplicableError
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.methods.attention import Attention
from fathom.importance.rank import RankProgress, rank_layers
from fathom.importance.registry import load_methods, method_names
from fathom.importance.toy import GatedToy, toy_batches
from fathom.pieces import over_processes

GATES = [0.05, 2.0, 0.0, 0.3]


def without_seconds(ranking: LayerRanking) -> list[object]:
    methods = [(name, m.scores, m.low, m.high, m.ranks) for name, m in ranking.methods.items()]
    consensus = [ranking.consensus_scores, ranking.consensus_order, ranking.kemeny_order, ranking.tiers]
    return [methods, ranking.kendall_tau, *consensus]


def test_the_default_methods_put_the_decisive_layer_first_and_the_irrelevant_one_last() -> None:
    model, batches = GatedToy(GATES), toy_batches(3, 20)
    for batch in batches:
        batch.labels.copy_(model._logits(batch, model.run_layer(batch, 1, batch.inputs)).argmax(-1))
    ranking = rank_layers(model, batches, load_methods(), seed=0, checkpoint="c", dataset="d")
    assert (ranking.consensus_order[0], ranking.consensus_order[-1]) == (1, 2)
    assert (ranking.users, ranking.layers, ranking.checkpoint, ranking.dataset) == (60, 4, "c", "d")
    for method in ranking.methods.values():
        assert method.ranks[1] == 1
        assert np.all(np.array(method.low) <= method.scores)
        assert np.all(np.array(method.high) >= method.scores)
    assert all(row[name] == 1.0 for name, row in ranking.kendall_tau.items())


def test_equal_seeds_give_equal_results_whichever_other_methods_run() -> None:
    model, batches = GatedToy(GATES), toy_batches(3, 20)
    first = rank_layers(model, batches, load_methods(["fisher", "ablation"]), seed=5)
    second = rank_layers(model, batches, load_methods(["fisher", "ablation"]), seed=5)
    assert without_seconds(first) == without_seconds(second)
    alone = rank_layers(model, batches, load_methods(["fisher"]), seed=5)
    assert alone.methods["fisher"].scores == first.methods["fisher"].scores
    other = rank_layers(model, batches, load_methods(["fisher"]), seed=6)
    assert other.methods["fisher"].scores != first.methods["fisher"].scores


def test_tiers_draw_the_same_users_for_every_method_with_a_row_per_user() -> None:
    rows = torch.arange(4.0) + torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    tilted = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(8, 1)
    model, batches = GatedToy(GATES), toy_batches(1, 8)
    # Two methods that always disagree on the order: every resample is a tie, and equal layers go by the lower index.
    opposed = rank_layers(model, batches, {"one": Fixed(rows), "opposite": Fixed(-rows)})
    assert opposed.tiers["critical"] == (1, 0, 0, 0)
    assert opposed.tiers["redundant"] == (0, 0, 0, 1)
    assert opposed.methods["one"].stability == pytest.approx(opposed.methods["opposite"].stability)
    assert opposed.methods["one"].stability != 1
    # Folds, which are not users, are drawn by themselves.
    folds = rank_layers(model, batches, {"one": Fixed(rows), "opposite": Fixed(-rows[:5])})
    assert folds.tiers["critical"] != (1, 0, 0, 0)
    steady = rank_layers(model, batches, {"one": Fixed(tilted)})
    assert (steady.methods["one"].stability, steady.consensus_stability) == (1, 1)
    assert steady.kemeny_order == steady.consensus_order == (3, 0, 1, 2)


def test_progress_counts_the_batches_of_each_method() -> None:
    seen: list[RankProgress] = []
    rank_layers(GatedToy(GATES), toy_batches(2, 4), load_methods(["gradient", "ablation"]), progress=seen.append)
    assert seen == [
        RankProgress("gradient", 1, 2, 1, 2, 0.25),
        RankProgress("gradient", 1, 2, 2, 2, 0.5),
        RankProgress("ablation", 2, 2, 1, 2, 0.75),
        RankProgress("ablation", 2, 2, 2, 2, 1.0),
    ]


def test_progress_never_falls_when_a_method_goes_through_the_batches_again() -> None:
    seen: list[RankProgress] = []
    methods = load_methods(["greedy_elimination", "ablation"])
    rank_layers(GatedToy(GATES), toy_batches(2, 4), methods, progress=seen.append)
    assert [step.share for step in seen] == sorted(step.share for step in seen)
    assert len(seen) > 6
    assert seen[-1].share == 1


@pytest.mark.parametrize("gates", [[], [1.0]])
def test_fewer_than_two_layers_cannot_be_ranked(gates: list[float]) -> None:
    with pytest.raises(
        ConfigError, match=f"nothing to rank: the number of layers is {len(gates)}, a ranking needs at least 2"
    ):
        rank_layers(GatedToy(gates), toy_batches(1, 4), load_methods())


def test_no_data_and_no_methods_are_refused() -> None:
    with pytest.raises(DataError, match="no users to rank layers on"):
        rank_layers(GatedToy(GATES), [], load_methods())
    with pytest.raises(ConfigError, match="name at least one importance method"):
        rank_layers(GatedToy(GATES), toy_batches(1, 4), {})


def test_layers_that_never_run_are_refused() -> None:
    class Partial(GatedToy):
        @property
        def layers(self) -> tuple[int, ...]:
            return (0, 2)

    with pytest.raises(ConfigError, match=r"does not run each of its layers once, but \[0, 2\]"):
        rank_layers(Partial(GATES), toy_batches(1, 4), load_methods())


class Broken:
    """A method whose library is not there."""

    def scores(self, *_: object) -> Tensor:
        raise MissingExtraError("captum", "importance")


def test_methods_that_do_not_apply_are_left_out_when_all_were_asked_for() -> None:
    methods = {"attention": Attention(), "broken": Broken(), **load_methods(["ablation"])}
    model, batches = GatedToy(GATES), toy_batches(1, 4)
    ranking = rank_layers(model, batches, methods, skip_inapplicable=True)
    assert list(ranking.methods) == ["ablation"]
    assert ranking.left_out == {
        "attention": "the attention method needs a model with attention weights; layer 0 has none",
        "broken": "captum is not installed; run: pip install 'fathom-recommender[importance]'",
    }
    assert rank_layers(model, batches, load_methods(["ablation"])).left_out == {}


def test_a_method_asked_for_by_name_stops_when_it_does_not_apply() -> None:
    with pytest.raises(NotApplicableError, match="the attention method needs"):
        rank_layers(GatedToy(GATES), toy_batches(1, 4), {"attention": Attention(), **load_methods(["ablation"])})
    with pytest.raises(MissingExtraError, match="captum is not installed"):
        rank_layers(GatedToy(GATES), toy_batches(1, 4), {"broken": Broken()})


def test_when_every_method_is_left_out_there_is_nothing_to_rank_by() -> None:
    with pytest.raises(ConfigError, match=r"^nothing to rank by: no method can judge this model here; .*; captum"):
        methods = {"attention": Attention(), "broken": Broken()}
        rank_layers(GatedToy(GATES), toy_batches(1, 4), methods, skip_inapplicable=True)


@pytest.mark.parametrize("method", sorted(set(method_names()) - {"attention", "meta_learning"}))
def test_nan_activations_name_the_first_layer_that_made_them(method: str) -> None:
    model = GatedToy(GATES)
    torch.nn.init.constant_(model.blocks[1].weight, float("nan"))
    with pytest.raises(ArtefactError, match=r"^the output of layer 1 is NaN or infinite; the model cannot be ranked"):
        rank_layers(model, toy_batches(2, 8), load_methods([method]))


class Fixed:
    """A method that returns what it is given."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def scores(self, *_: object) -> Tensor:
        return self.rows


def test_a_method_that_returns_nonsense_is_named() -> None:
    nan = torch.ones(4, 4)
    nan[2, 3] = float("nan")
    with pytest.raises(NotApplicableError, match=r"^importance method 'mine' gave NaN or infinity for layers \[3\]"):
        rank_layers(GatedToy(GATES), toy_batches(1, 4), {"mine": Fixed(nan)})
    with pytest.raises(
        ConfigError, match=r"^importance method 'mine' returned shape \(4, 3\), not \(samples, 4 layers\)"
    ):
        rank_layers(GatedToy(GATES), toy_batches(1, 4), {"mine": Fixed(torch.ones(4, 3))})


def test_processes_share_the_methods_and_give_the_same_ranking() -> None:
    methods = load_methods(["fisher", "gradient", "ablation"])
    model, batches = GatedToy([1.0, 0.3, 0.0]), toy_batches(2, 6)
    seen: list[RankProgress] = []
    alone = rank_layers(model, batches, methods, seed=3)
    shared = rank_layers(model, batches, methods, seed=3, runner=over_processes(2), progress=seen.append)
    assert without_seconds(shared) == without_seconds(alone)
    assert [each.share for each in seen] == [1 / 3, 2 / 3, 1.0]
