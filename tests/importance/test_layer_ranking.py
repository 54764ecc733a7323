"""ranking.json: what is saved comes back, and what is broken is refused in one line; the picture is drawn."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import ArtefactError
from fathom.importance.layer_ranking import LayerRanking, MethodScores
from fathom.importance.plot import plot_ranking


@pytest.fixture
def ranking() -> LayerRanking:
    fisher = MethodScores((0.5, 0.1, 0.2), (0.4, 0.05, 0.1), (0.6, 0.2, 0.3), (1, 3, 2), 1.5)
    ablation = MethodScores((0.0, -0.1, 0.2), (-0.1, -0.2, 0.1), (0.1, 0.0, 0.3), (2, 3, 1), 2.5)
    tau = {"fisher": {"fisher": 1.0, "ablation": 1 / 3}, "ablation": {"fisher": 1 / 3, "ablation": 1.0}}
    methods = {"fisher": fisher, "ablation": ablation}
    return LayerRanking(3, "c" * 64, "d" * 64, 256, 7, methods, tau, (0.75, 0.0, 0.75), (0, 2, 1))


def test_a_saved_ranking_comes_back_equal(ranking: LayerRanking, tmp_path: Path) -> None:
    path = tmp_path / "new" / "ranking.json"
    ranking.save(path)
    assert LayerRanking.load(path) == ranking


def test_the_file_has_the_shape_that_other_stages_read(ranking: LayerRanking, tmp_path: Path) -> None:
    ranking.save(tmp_path / "ranking.json")
    value = json.loads((tmp_path / "ranking.json").read_text())
    assert value["schema_version"] == 1
    assert value["methods"]["fisher"]["ranks"] == [1, 3, 2]
    assert value["consensus"] == {"scores": [0.75, 0.0, 0.75], "order": [0, 2, 1]}
    assert value["kendall_tau"]["fisher"]["ablation"] == 1 / 3
    assert {"layers", "checkpoint", "dataset", "users", "seed"} <= value.keys()


def test_nan_is_refused_before_anything_is_written(ranking: LayerRanking) -> None:
    nan = replace(ranking.methods["fisher"], scores=(0.5, float("nan"), 0.2))
    with pytest.raises(ArtefactError, match="method fisher has a value that is NaN or infinite"):
        replace(ranking, methods=ranking.methods | {"fisher": nan})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "consensus",
            {"scores": [1, 2, 3], "order": [0, 1, 1]},
            "the consensus order is not each of the layers 0..2 once",
        ),
        (
            "consensus",
            {"scores": [1, float("nan"), 3], "order": [0, 1, 2]},
            "the consensus does not have 3 finite scores",
        ),
        ("consensus", {}, "not a layer ranking: KeyError"),
        ("layers", 4, "method fisher does not have 4 scores"),
        ("layers", "many", "not a layer ranking: ValueError"),
        ("methods", {}, "it holds no method"),
        ("methods", [], "not a layer ranking: AttributeError"),
        ("kendall_tau", {}, "Kendall's tau of method fisher with each method is missing"),
        ("schema_version", 2, "newer than 1; upgrade Fathom"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(
    ranking: LayerRanking, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path = tmp_path / "ranking.json"
    ranking.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ArtefactError, match=message) as error:
        LayerRanking.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"ranking\.json: no layer ranking here"):
        LayerRanking.load(tmp_path / "ranking.json")


def test_the_picture_is_a_png(ranking: LayerRanking, tmp_path: Path) -> None:
    path = tmp_path / "ranking.png"
    plot_ranking(ranking, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [file.name for file in tmp_path.iterdir()] == ["ranking.png"]
