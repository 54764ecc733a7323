"""The lattice against direct evaluation, its shards, and what is read from it against brute force."""

from itertools import combinations, permutations
from math import factorial
from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.errors import ArtefactError, ConfigError
from fathom.importance.interface import run_skipping
from fathom.importance.lattice import lattice as lattice_module
from fathom.importance.lattice.lattice import (
    Lattice,
    LatticeProgress,
    all_masks,
    judge_subsets,
    masks_on_the_way,
    measure_lattice,
    random_orders,
)
from fathom.importance.lattice.values import (
    best_chain,
    best_subsets,
    interactions,
    layers_of,
    mask_of,
    sampled_shapley_values,
    shapley_values,
    sizes,
)
from fathom.importance.toy import GatedToy, ToyBatch, toy_batches
from fathom.pieces import PieceRunner, over_processes, over_ray

GATES = [1.0, 0.5, 0.0, 0.7, 0.3]


@pytest.fixture(scope="module")
def toy() -> GatedToy:
    return GatedToy(GATES)


@pytest.fixture(scope="module")
def batches() -> list[ToyBatch]:
    return toy_batches(3, 8)


@pytest.fixture(scope="module")
def measured(toy: GatedToy, batches: list[ToyBatch], tmp_path_factory: pytest.TempPathFactory) -> Lattice:
    return measure_lattice(toy, batches, tmp_path_factory.mktemp("lattice") / "lattice", about={"seed": 0})


def test_every_subset_is_what_running_it_alone_gives(toy: GatedToy, batches: list[ToyBatch], measured: Lattice) -> None:
    for mask in measured.masks:
        skip = set(toy.layers) - set(layers_of(int(mask)))
        alone = [toy.judge(batch, run_skipping(toy, batch, skip)) for batch in batches]
        np.testing.assert_allclose(measured.losses[:, mask], torch.cat([loss for loss, _ in alone]).detach(), atol=1e-6)
        assert (measured.places[:, mask] == torch.cat([place for _, place in alone]).numpy()).all()


def test_a_whole_lattice_runs_each_layer_boundary_once(batches: list[ToyBatch]) -> None:
    class Counting(GatedToy):
        passes = 0

        def run_layer(self, batch: ToyBatch, layer: int, hidden: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            return super().run_layer(batch, layer, hidden)

    model = Counting(GATES)
    judge_subsets(model, batches[0], all_masks(5))
    assert model.passes == 2**5 - 1


def test_the_execution_order_may_differ_from_the_index(batches: list[ToyBatch], tmp_path: Path) -> None:
    class Turned(GatedToy):
        @property
        def layers(self) -> tuple[int, ...]:
            return (3, 0, 4, 1, 2)

    model = Turned(GATES)
    masks = np.array([mask_of([0, 3]), mask_of([1, 2, 4])])
    losses, _ = judge_subsets(model, batches[0], masks)
    for column, mask in enumerate(masks.tolist()):
        skip = set(range(5)) - set(layers_of(mask))
        expected = model.losses(batches[0], run_skipping(model, batches[0], skip)).detach()
        np.testing.assert_allclose(losses[:, column], expected, atol=1e-6)
    measure_lattice(model, batches, tmp_path / "turned", about={})
    assert (turned := Lattice.load(tmp_path / "turned")).executed == (3, 0, 4, 1, 2)
    assert not turned.in_original_order


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bits(
    toy: GatedToy, batches: list[ToyBatch], measured: Lattice, tmp_path: Path
) -> None:
    seen: list[LatticeProgress] = []

    def stop_at_ten(progress: LatticeProgress) -> None:
        seen.append(progress)
        if len(seen) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_lattice(toy, batches, tmp_path / "lattice", about={"seed": 0}, progress=stop_at_ten)
    assert not (tmp_path / "lattice").exists()
    again = measure_lattice(toy, batches, tmp_path / "lattice", about={"seed": 0}, progress=seen.append)
    assert [each.done for each in seen] == list(range(1, 25))
    assert {each.total for each in seen} == {24}
    assert seen[-1].seconds_left == 0
    assert np.array_equal(again.losses, measured.losses)
    assert np.array_equal(again.places, measured.places)
    assert [path.name for path in tmp_path.iterdir()] == ["lattice"]


def test_shards_of_other_work_are_not_used(toy: GatedToy, batches: list[ToyBatch], tmp_path: Path) -> None:
    def stop(_: LatticeProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_lattice(GatedToy(GATES, seed=1), batches, tmp_path / "l", about={"seed": 1}, progress=stop)
    seen: list[LatticeProgress] = []
    measure_lattice(toy, batches, tmp_path / "l", about={"seed": 0}, progress=seen.append)
    assert seen[0].done == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of a start of Ray that took too long
@pytest.mark.parametrize("runner", [over_processes(2), over_ray()], ids=["processes", "ray"])
def test_wherever_the_work_is_done_it_gives_the_same_bits(
    toy: GatedToy, batches: list[ToyBatch], measured: Lattice, tmp_path: Path, runner: PieceRunner
) -> None:
    shared = measure_lattice(toy, batches, tmp_path / "lattice", about={"seed": 0}, runner=runner)
    assert np.array_equal(shared.losses, measured.losses)
    assert np.array_equal(shared.places, measured.places)


def test_it_is_read_as_it_was_written(measured: Lattice, tmp_path: Path) -> None:
    measured.save(tmp_path / "l")
    again = Lattice.load(tmp_path / "l")
    assert again.about == {"seed": 0}
    assert again.layers == 5
    assert again.is_whole
    assert again.executed == (0, 1, 2, 3, 4)
    assert again.in_original_order
    assert np.array_equal(again.losses, measured.losses)
    np.save(tmp_path / "l" / "masks.npy", measured.masks[1:])
    with pytest.raises(ArtefactError, match="do not fit together"):
        Lattice.load(tmp_path / "l")
    with pytest.raises(ArtefactError, match="lattice"):
        Lattice.load(tmp_path)


def test_a_loss_that_is_not_finite_is_refused(batches: list[ToyBatch], tmp_path: Path) -> None:
    model = GatedToy([1.0, 0.5])
    model.gates[1] = float("nan")
    with pytest.raises(ArtefactError, match="NaN or infinite"):
        measure_lattice(model, batches, tmp_path / "l", about={})


def test_a_lattice_of_too_many_layers_asks_for_a_sample() -> None:
    with pytest.raises(ConfigError, match="sample it"):
        all_masks(lattice_module.MOST_LAYERS + 1)


def test_the_utilities_are_log_p_and_ndcg(measured: Lattice) -> None:
    assert np.array_equal(measured.utilities("loss"), -measured.losses)
    gains = measured.utilities("ndcg@10")
    first, third = measured.places == 0, measured.places == 2
    assert (gains[first] == 1).all()
    np.testing.assert_allclose(gains[third], 0.5)
    with pytest.raises(ConfigError, match="unknown metric"):
        measured.utilities("accuracy")


def test_shapley_values_are_the_mean_gain_over_all_orders(measured: Lattice) -> None:
    values = measured.mean("loss")
    expected = np.zeros(5)
    for order in permutations(range(5)):
        mask = 0
        for layer in order:
            expected[layer] += values[mask | 1 << layer] - values[mask]
            mask |= 1 << layer
    found = shapley_values(values)
    np.testing.assert_allclose(found, expected / factorial(5), atol=1e-12)
    assert found.sum() == pytest.approx(values[-1] - values[0], abs=1e-12)
    assert found[2] == 0
    np.testing.assert_allclose(shapley_values(measured.utilities("loss").astype(float)).mean(0), found, atol=1e-12)


def test_interactions_are_the_mean_mixed_gain() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=2**4)
    found = interactions(values)
    for i, j in combinations(range(4), 2):
        others = [layer for layer in range(4) if layer not in (i, j)]
        expected = 0.0
        for size in range(3):
            for rest in combinations(others, size):
                base = mask_of(rest)
                mixed = values[base | 1 << i | 1 << j] - values[base | 1 << i] - values[base | 1 << j] + values[base]
                expected += mixed * factorial(size) * factorial(2 - size) / factorial(3)
        assert found[i, j] == found[j, i] == pytest.approx(expected)


def test_layers_that_add_up_do_not_interact() -> None:
    gains = np.array([0.5, 0.1, 0.0, 2.0])
    values = np.array([sum(gains[list(layers_of(mask))]) for mask in range(16)])
    np.testing.assert_allclose(shapley_values(values), gains)
    np.testing.assert_allclose(interactions(values), np.zeros((4, 4)), atol=1e-12)


@pytest.mark.parametrize("keep", [(), (0,), (2, 5)])
def test_the_best_subsets_and_the_best_chain_equal_brute_force(keep: tuple[int, ...]) -> None:
    depths = (2, 3, 5)
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=2**6)
        size, must = sizes(6), mask_of(keep)
        chains = [
            (a, b, c)
            for a, b, c in (
                (a, b, c)
                for a in range(64)
                if size[a] == 2 and a & must == must
                for b in range(64)
                if size[b] == 3 and a & b == a
                for c in range(64)
                if size[c] == 5 and b & c == b
            )
        ]
        expected = max(chains, key=lambda chain: sum(values[list(chain)]))
        assert best_chain(values, depths, keep=keep) == list(expected)
        best = best_subsets(values, keep=keep)
        for wanted in range(len(keep), 7):
            of_size = [mask for mask in range(64) if size[mask] == wanted and mask & must == must]
            assert best[wanted] == max(of_size, key=lambda mask: values[mask])
        assert best[: len(keep)] == [-1] * len(keep)


def test_impossible_chains_and_lattices_are_refused() -> None:
    for depths in ((3, 2), (), (2, 9), (1, 3)):
        with pytest.raises(ConfigError, match=r"must rise within 2\.\.6"):
            best_chain(np.zeros(64), depths, keep=(0, 1))
    with pytest.raises(ConfigError, match=r"2\^layers"):
        shapley_values(np.zeros(63))


def test_a_sample_of_orders_estimates_the_shapley_values(
    toy: GatedToy, batches: list[ToyBatch], measured: Lattice, tmp_path: Path
) -> None:
    every = [list(order) for order in permutations(range(5)) if order[0] < order[-1]]
    for orders, tolerance in ((every, 1e-6), (random_orders(5, 4, seed=0), 0.05)):
        masks = masks_on_the_way(orders)
        sample = measure_lattice(toy, batches, tmp_path / "sample", masks=masks, about={"orders": orders})
        found = sampled_shapley_values(sample, "loss")
        assert found.shape == (24, 5)
        values = measured.mean("loss")
        assert found.mean(0).sum() == pytest.approx(values[-1] - values[0], abs=1e-5)
        np.testing.assert_allclose(found.mean(0), shapley_values(values), atol=tolerance)


def test_more_layers_than_a_mask_has_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="a lattice is sampled up to 62 layers, not 66"):
        masks_on_the_way(random_orders(66, 1, seed=0))
