"""A small twin of the measurement of memory beside four models: real servers, few requests."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from traced_once import traced_shape

from fathom.benchmarks import registry
from fathom.benchmarks.leaderboard import leaderboard
from fathom.benchmarks.leaderboard_sources import of_four_models
from fathom.benchmarks.record import load_run, save_run
from fathom.benchmarks.systems import four_models
from fathom.benchmarks.untrained import untrained
from fathom.errors import ArtefactError, FathomError
from fathom.exporter.bundle.export import export
from fathom.runtime.bundle import Bundle
from fathom.training.model import ElasticModel

DEPTHS = {depth: tuple(range(depth)) for depth in (4, 8)}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ElasticModel]:
    """A bundle of two depths, and what it was exported from."""
    path = tmp_path_factory.mktemp("four") / "bundle"
    checkpoint, dataset = untrained(items=300, layers=8, paths=DEPTHS, **traced_shape())
    export(checkpoint, dataset, path, name="four")
    return path, checkpoint.model


def test_every_side_answers_at_every_depth_and_a_page_can_be_made_of_it(
    network: tuple[Path, ElasticModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LENGTHS": (5, 60), "REQUESTS": 2, "AT_ONCE": 2}.items():
        monkeypatch.setattr(four_models, name, value)
    case = four_models.case_of("two depths", *network, starts=1)
    sides = case["sides"]
    assert case["depths"] == (4, 8)
    assert len(sides) == 5
    for row in sides.values():
        assert 0 < row["uss_mb"] <= row["pss_mb"] <= row["rss_mb"]
    # Two tables of item vectors in place of one.
    assert sides[four_models.EACH]["disk_mb"] > sides[four_models.SHARED]["disk_mb"] > 0
    config = {"depths": "4, 8", "lengths": (5, 60), "requests": 2, "starts": 1}
    save_run("four_models", config=config, result={"cases": [case]}, folder=tmp_path)
    assert "| four models by hand, one table |" in four_models.BENCHMARK.section(tmp_path)
    memory, disk = leaderboard(of_four_models(load_run(tmp_path / "four_models.json")))
    assert memory.compared is not None
    assert {row.system for row in disk.rows} == set(sides)


def test_a_model_by_hand_that_differs_from_the_chain_is_an_error(
    network: tuple[Path, ElasticModel], tmp_path: Path
) -> None:
    path, model = network
    with Bundle.open(path) as bundle:
        folders = four_models.write_models(bundle, model, tmp_path)
        four_models.check_same(folders, bundle.depths, 300)
        np.save(folders[four_models.SHARED] / "vectors.npy", -bundle.vectors.rows)
        with pytest.raises(FathomError, match="depth 4, history 10: the model by hand differs"):
            four_models.check_same(folders, bundle.depths, 300)


def test_a_checkpoint_that_the_bundle_is_not_of_is_refused(network: tuple[Path, ElasticModel], tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    registry.add_arguments(parser, four_models.BENCHMARK)
    checkpoint, _ = untrained(items=300, width=8, layers=1, paths={1: (0,)})
    checkpoint.save(tmp_path / "other")
    options = parser.parse_args([str(network[0]), "--checkpoint", str(tmp_path / "other")])
    with pytest.raises(ArtefactError, match="was exported from another checkpoint"):
        four_models.trained(options)
