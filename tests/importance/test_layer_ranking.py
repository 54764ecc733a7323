"""ranking.json: what is saved comes back, and what is broken is refused in one line; the picture is drawn."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import ArtefactError
from fathom.importance.layer_ranking import LayerRanking, MethodScores
from fathom.importance.report.plot import plot_ranking


@pytest.fixture
def ranking() -> LayerRanking:
    fisher = MethodScores((0.5, 0.1, 0.2), (0.4, 0.05, 0.1), (0.6, 0.2, 0.3), (1, 3, 2), 1.5)
    ablation = MethodScores((0.0, -0.1, 0.2), (-0.1, -0.2, 0.1), (0.1, 0.0, 0.3), (2, 3, 1), 2.5)
    tau = {"fisher": {"fisher": 1.0, "ablation": 1 / 3}, "ablation": {"fisher": 1 / 3, "ablation": 1.0}}
    methods = {"fisher": fisher, "ablation": ablation}
    head = LayerRanking(3, "c" * 64, "d" * 64, 256, 7, methods, tau, (0.75, 0.0, 0.75), (0, 2, 1))
    return replace(
        head,
        methods=methods | {"fisher": replace(fisher, stability=0.9)},
        kemeny_order=(0, 2, 1),
        tiers={"critical": (0.6, 0.0, 0.4), "middle": (0.4, 0.1, 0.5), "redundant": (0.0, 0.9, 0.1)},
        consensus_stability=0.8,
        left_out={"attention": "it needs attention weights"},
        graded_subsets=8,
    )


def test_a_saved_ranking_comes_back_equal(ranking: LayerRanking, tmp_path: Path) -> None:
    path = tmp_path / "new" / "ranking.json"
    ranking.save(path)
    assert LayerRanking.load(path) == ranking


def test_the_file_has_the_shape_that_other_stages_read(ranking: LayerRanking, tmp_path: Path) -> None:
    ranking.save(tmp_path / "ranking.json")
    value = json.loads((tmp_path / "ranking.json").read_text())
    assert value["schema_version"] == 1
    assert value["methods"]["fisher"]["ranks"] == [1, 3, 2]
    assert value["consensus"]["scores"] == [0.75, 0.0, 0.75]
    assert value["consensus"]["order"] == value["consensus"]["kemeny_order"] == [0, 2, 1]
    assert value["consensus"]["tiers"]["redundant"] == [0.0, 0.9, 0.1]
    assert value["left_out"] == {"attention": "it needs attention weights"}
    assert value["kendall_tau"]["fisher"]["ablation"] == 1 / 3
    assert {"layers", "checkpoint", "dataset", "users", "seed"} <= value.keys()


def test_a_file_from_before_the_tiers_loads(ranking: LayerRanking, tmp_path: Path) -> None:
    path = tmp_path / "ranking.json"
    ranking.save(path)
    value = json.loads(path.read_text())
    del value["left_out"], value["graded_subsets"]
    value["consensus"] = {key: value["consensus"][key] for key in ("scores", "order")}
    for method in value["methods"].values():
        del method["stability"]
    path.write_text(json.dumps(value))
    old = LayerRanking.load(path)
    assert (old.kemeny_order, old.tiers, old.consensus_stability, old.left_out) == (None, {}, None, {})
    assert old.methods["fisher"].stability is None
    assert old.tier(0) == "critical"


def test_the_tier_of_a_layer_follows_its_place(ranking: LayerRanking) -> None:
    assert [ranking.tier(layer) for layer in range(3)] == ["critical", "redundant", "middle"]


def test_a_ranking_is_read_compared_and_shown_without_torch() -> None:
    code = "import sys, fathom.importance.stability, fathom.importance.report.page; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_nan_is_refused_before_anything_is_written(ranking: LayerRanking) -> None:
    nan = replace(ranking.methods["fisher"], scores=(0.5, float("nan"), 0.2))
    with pytest.raises(ArtefactError, match="method fisher has a value that is NaN or infinite"):
        replace(ranking, methods=ranking.methods | {"fisher": nan})
    with pytest.raises(ArtefactError, match="a tier or the stability has a value that is NaN or infinite"):
        replace(ranking, consensus_stability=float("nan"))


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
            "NaN is not a number that JSON has",
        ),
        ("consensus", {"scores": [1, 2], "order": [0, 1, 2]}, "the consensus does not have 3 finite scores"),
        (
            "consensus",
            {"scores": [1, 2, 3], "order": [0, 1, 2], "kemeny_order": [0, 0, 2]},
            "the Kemeny order is not each of the layers 0..2 once",
        ),
        (
            "consensus",
            {"scores": [1, 2, 3], "order": [0, 1, 2], "tiers": {"critical": [1, 0, 0]}},
            "the tiers are not critical, middle, redundant with 3 probabilities each",
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
