from pathlib import Path

import pytest

from fathom.errors import ConfigError
from fathom.importance.lattice.lattice import masks_on_the_way, measure_lattice
from fathom.importance.methods.ablation import Ablation
from fathom.importance.methods.block_influence import BlockInfluence
from fathom.importance.rank import rank_layers
from fathom.importance.report.lattice_plot import plot_lattice
from fathom.importance.toy import GatedToy, toy_batches


def test_a_lattice_is_drawn_with_the_choice_of_each_method(tmp_path: Path) -> None:
    model, batches = GatedToy([1.0, 0.5, 0.0, 0.7]), toy_batches(2, 8)
    lattice = measure_lattice(model, batches, tmp_path / "lattice", about={})
    methods = {"ablation": Ablation(), "block_influence": BlockInfluence()}
    for graded in (lattice, None):
        plot_lattice(lattice, rank_layers(model, batches, methods, lattice=graded), (1, 2, 4), tmp_path / "l.png")
        assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")


def test_a_sample_has_no_frontier(tmp_path: Path) -> None:
    model, batches = GatedToy([1.0, 0.5, 0.7]), toy_batches(1, 4)
    masks = masks_on_the_way([[0, 1, 2]])
    sample = measure_lattice(model, batches, tmp_path / "lattice", masks=masks, about={})
    ranking = rank_layers(model, batches, {"ablation": Ablation()})
    with pytest.raises(ConfigError, match="measure every subset"):
        plot_lattice(sample, ranking, (1, 3), tmp_path / "l.png")
    assert not (tmp_path / "l.png").exists()
