"""The measurement of importance methods against lattices: small networks, every step real, and what it writes."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.experiments.drawing import svg
from fathom.benchmarks.experiments.importance_tables import importance_section, lattice_figure, load_measured
from fathom.importance import choice
from fathom.importance.methods import meta_learning
from fathom.training.checkpoint import Checkpoint, CheckpointConfig
from fathom.training.data import prepare
from fathom.training.dataset import Dataset
from fathom.training.model import ElasticModel, ModelSettings
from fathom.training.presets import TrainConfig

LAYERS = 6


@pytest.fixture(scope="module")
def stored(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the benchmark was run on small networks of two data sets."""
    folder = tmp_path_factory.mktemp("grades")
    for seed, name in product((0, 1), ("one", "two")):
        home = folder / "build" / "quality" / name
        dataset = Dataset.load(home / "dataset") if seed else prepare(str(tiny_csv), home / "dataset")
        torch.manual_seed(seed)
        config = ModelSettings(layers=LAYERS, depths=(2, LAYERS), width=16, max_history=12).for_items(dataset.n_items)
        about = CheckpointConfig(model=config, train=TrainConfig(), dataset=dataset.sha256, split="leave-one-out")
        parts = (dataset.item_ids, dataset.titles, dataset.categories, {})
        Checkpoint(ElasticModel(config), about, *parts).save(home / f"seed-{seed}" / "ladder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NUMBA_DISABLE_JIT", "1")
        patch.setattr(meta_learning, "TRAINED", folder / "meta_learning.json")
        patch.setattr(choice, "GRADED", folder / "graded.json")
        main(["run", "importance", "one", "two", *["--seeds", "0", "1", "--users", "20", "--workers", "1"]])
    return folder


def _run(folder: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "results" / "importance" / f"{name}-seed-0.json").read_bytes())
    return value


def test_the_truth_is_stored_with_what_a_subset_costs_alone(stored: Path) -> None:
    result = _run(stored, "one")["result"]
    assert result["one_by_one"]["subsets"] == 2**LAYERS
    assert result["one_by_one"]["largest_difference"] < 1e-5
    assert result["one_by_one"]["other_places"] == 0
    for truth in result["truth"].values():
        assert truth["sum_error"] < 1e-6
        assert sum(truth["shapley"]["value"]) == pytest.approx(truth["best"][-1] - truth["best"][0], abs=1e-4)
        assert all(w <= m <= b for w, m, b in zip(truth["worst"], truth["mean"], truth["best"], strict=True))
        assert [len(chosen) for chosen in truth["chain"]] == [2, LAYERS]
    assert result["ranking"]["grades"].keys() == {"loss", "ndcg@10"}


def test_meta_learning_is_graded_as_trained_on_the_other_data_sets_and_ships_trained_on_all(stored: Path) -> None:
    trained = json.loads((stored / "build" / "importance" / "one-seed-0" / "meta_learning.json").read_bytes())
    assert trained["trained_on"] == ["two-seed-0", "two-seed-1"]
    assert json.loads((stored / "meta_learning.json").read_bytes())["trained_on"][::2] == ["one-seed-0", "two-seed-0"]
    assert "meta_learning" in _run(stored, "one")["result"]["ranking"]["methods"]


def test_methods_can_be_chosen_by_the_grades_that_were_stored(stored: Path) -> None:
    known = choice.Graded.load(stored / "graded.json")
    assert [len(model.truth) for model in known] == [LAYERS] * 4
    names = known[0].scores.keys()
    assert "block_influence" in names
    fastest = min(known[0].seconds, key=lambda name: known[0].seconds[name])
    assert choice.choose_methods(known, names, known[0].forward_seconds, 1e6)
    assert choice.choose_methods(known, [fastest], known[0].forward_seconds, 1e6) == [fastest]


def test_the_page_shows_each_method_with_its_grade_and_draws_the_lattices(stored: Path) -> None:
    measured = load_measured(stored / "results")
    page = importance_section(measured)
    taus = [
        one.result["ranking"]["grades"]["loss"]["block_influence"]["tau"] for one in measured if one.dataset == "one"
    ]
    row = next(line for line in page.splitlines() if line.startswith("| block influence |"))
    found = [float(number) for number in re.findall(r"-?[0-9]+\.[0-9]+", row.split(" | ")[1])]
    assert found == pytest.approx([sum(taus) / 2, min(taus), max(taus)], abs=0.006)
    assert all(
        start in page for start in ("| consensus |", "| the first layers", "| one, seed 0 |", "| two | auto, 60 s |")
    )
    assert "Over 4 networks, " in page
    assert len(svg(lattice_figure(measured))) > 10_000
    assert importance_section(load_measured(stored / "build")) == ""
