"""Whatever is given in place of an input ends in one line that says what belongs there."""

import os
from pathlib import Path

import pytest
import typer

from fathom.cli import app
from fathom.errors import FathomError

PROGRAM = typer.main.get_command(app)
#: Command line -> what makes the artefact that belongs at {wrong}.
LINES = {
    "train {wrong} --out {new}": "fathom data prepare",
    "evaluate {checkpoint} --data {wrong}": "fathom data prepare",
    "evaluate {wrong} --data {dataset}": "fathom train",
    "rank {checkpoint} --data {wrong} --out {new}": "fathom data prepare",
    "rank {wrong} --data {dataset} --out {new}": "fathom train",
    "heal {wrong} {plan} --data {dataset} --out {new}": "fathom train",
    "heal {checkpoint} {wrong} --data {dataset} --out {new}": "fathom plan",
    "heal {checkpoint} {plan} --data {wrong} --out {new}": "fathom data prepare",
    "export {wrong} --data {dataset} --out {new}": "fathom train",
    "export {checkpoint} --data {wrong} --out {new}": "fathom data prepare",
    "export {checkpoint} {wrong} --data {dataset} --out {new}": "fathom plan",
    "plan {wrong} --out {new}": "fathom rank",
    "plan {ranking} --strategy lattice --lattice {wrong} --out {new}": "fathom rank --lattice",
    "plan {ranking} --compare --lattice {wrong}": "fathom rank --lattice",
    "stability {wrong} {ranking}": "fathom rank",
    "certify {bundle} --data {wrong}": "fathom data prepare",
    "history import {wrong} --to sqlite:{new}": "fathom data prepare",
    "demo {bundle} --data {wrong}": "fathom data prepare",
    "loadtest --trace {wrong}": "fathom data prepare",
    "certify {wrong} --data {dataset}": "",
    "bundle inspect {wrong}": "",
    "bundle quality {wrong}": "",
    "bundle slice {wrong} --profile cloud --out {new}": "",
    "bundle convert {wrong} --to ort --out {new}": "",
    "bundle convert {wrong} --to triton --out {new}": "",
    "bundle convert {bundle} --to executorch --checkpoint {wrong} --out {new}": "fathom train",
    "demo {wrong} --data {dataset}": "",
    "serve {wrong} --port 0": "",
}
#: The artefacts that are given, and the lines in which each is right.
GIVEN = {
    "dataset": "fathom data prepare",
    "checkpoint": "fathom train",
    "ranking": "fathom rank",
    "plan": "fathom plan",
    "bundle": "",
    **dict.fromkeys(("csv", "evaluation", "stages", "plans", "empty", "missing", "pipe", "pipes", "below a file"), "-"),
}


@pytest.fixture(scope="module")
def places(tiny_build: Path, tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What may be given, by its name in ``GIVEN``."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "empty").mkdir()
    (folder / "pipes").mkdir()
    for name in ("pipe", *(f"pipes/{head}.json" for head in ("meta", "config", "manifest", "lattice"))):
        os.mkfifo(folder / name)
    return {
        **{name: tiny_build / name for name in ("dataset", "checkpoint", "bundle", "plans")},
        **{name: tiny_build / f"{name}.json" for name in ("ranking", "evaluation", "stages")},
        **{name: folder / name for name in ("empty", "missing", "pipe", "pipes")},
        "plan": tiny_build / "plans/nested.json",
        "csv": tiny_csv,
        "below a file": tiny_csv / "dataset",
    }


@pytest.mark.parametrize("line", LINES)
def test_an_artefact_of_another_kind_is_refused_in_one_line(line: str, places: dict[str, Path], tmp_path: Path) -> None:
    for name, made_by in GIVEN.items():
        right = LINES[line] == made_by or ("loadtest" in line and name == "dataset")
        if right:
            continue
        paths = {**places, "new": tmp_path / "new", "wrong": places[name]}
        arguments = [part.format(**paths) for part in line.split()]
        with pytest.raises(FathomError) as caught:
            PROGRAM.main(arguments, standalone_mode=False)
        words = str(caught.value)
        assert "\n" not in words, (name, words)
        assert len(words) < 300, (name, words)
        assert str(places[name]) in words, (name, words)
        if name == "csv":
            assert LINES[line] in words, words
        assert list(tmp_path.iterdir()) == [], name
