"""Artefacts are written whole or not at all."""

import json
from pathlib import Path

import pytest

from fathom.errors import ArtefactError
from fathom.files import new_folder, read_json, sha256_tree, write_bytes, write_json


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    with new_folder(target) as folder:
        (folder / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), new_folder(target) as folder:
        (folder / "a.txt").write_text("new")
        raise RuntimeError
    assert (target / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]


def test_a_folder_replaces_the_old_one_as_a_whole_and_clears_what_a_killed_writer_left(
    tmp_path: Path,
) -> None:
    target = tmp_path / "artefact"
    left = tmp_path / ".artefact.tmp-killed"
    left.mkdir()
    for text in ["old", "new"]:
        with new_folder(target) as folder:
            (folder / f"{text}.txt").write_text(text)
    assert [p.name for p in target.iterdir()] == ["new.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]


def test_the_hash_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = sha256_tree(tmp_path)
    (tmp_path / "b").write_text("y")
    assert len({first, second, sha256_tree(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no plan here"),
        ("{", "not a plan"),
        ("[1]", "has no schema_version"),
        ("{}", "has no schema_version"),
        (b"\xff\xfe", "not a plan"),
        (json.dumps({"schema_version": 9}), "newer than 1; upgrade Fathom"),
        (json.dumps({"schema_version": 0}), "build it again"),
    ],
)
def test_json_that_is_not_ours_is_refused_in_one_line(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ArtefactError, match=message) as caught:
        read_json(path, kind="plan", schema_version=1)
    assert "\n" not in str(caught.value)
