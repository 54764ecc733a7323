"""Artefacts are written whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fathom.artefacts import TRAINING_STATE, Kind
from fathom.errors import ArtefactError, OutputError
from fathom.files import new_folder, read_json, remove_folder, sha256_tree, write_bytes, write_json

NOTE = Kind("a note", "a test", frozenset({"text"}), head="note.json", own=r"more\.txt")


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


def write(target: Path, text: str) -> None:
    """A folder of the kind ``NOTE`` that holds the text."""
    with new_folder(target, NOTE) as folder:
        write_json(folder / "note.json", {"schema_version": 1, "text": text})


def read(target: Path) -> str:
    return str(json.loads((target / "note.json").read_bytes())["text"])


#: Writes the folder, and is killed as it makes the call that its second argument names.
KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from fathom import files
from fathom.artefacts import TRAINING_STATE, Kind

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "second rename":
    renames = iter([Path.rename, kill])
    Path.rename = lambda *paths: next(renames)(*paths)
else:
    files._fsync = kill
kind = Kind("a note", "a test", frozenset({"text"}), head="note.json")
with files.new_folder(Path(sys.argv[1]), kind) as folder:
    (folder / "note.json").write_text("{}")
"""


def kill_a_writer(target: Path, call: str) -> None:
    result = subprocess.run([sys.executable, "-c", KILLED, str(target), call], check=False)
    assert result.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    write(target, "old")
    with pytest.raises(RuntimeError), new_folder(target, NOTE) as folder:
        (folder / "note.json").write_text("new")
        raise RuntimeError
    assert read(target) == "old"
    assert names(tmp_path) == ["artefact"]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    write(target, "old")
    (target / "more.txt").write_text("old")
    write(target, "new")
    assert (read(target), names(target), names(tmp_path)) == ("new", ["note.json"], ["artefact"])


def test_what_a_killed_writer_left_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    write(target, "old")
    kill_a_writer(target, "sync")
    assert (len(names(tmp_path)), read(target)) == (2, "old")
    write(target, "new")
    assert (names(tmp_path), read(target)) == (["artefact"], "new")


def test_a_writer_killed_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    write(target, "old")
    kill_a_writer(target, "second rename")
    assert not target.exists()
    with pytest.raises(RuntimeError), new_folder(target, NOTE):
        assert read(target) == "old"
        raise RuntimeError
    assert (names(tmp_path), read(target)) == (["artefact"], "old")


def test_the_temporary_folder_of_a_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    with new_folder(target, NOTE) as first:
        write_json(first / "note.json", {"schema_version": 1, "text": "last"})
        write(target, "first")
        assert read(target) == "first"
    assert (names(tmp_path), read(target)) == (["artefact"], "last")


def test_a_folder_that_only_has_a_temporary_name_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / ".artefact.tmp-12345678"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    write(tmp_path / "artefact", "new")
    assert (mine / "thesis.txt").read_text() == "mine"


def test_what_appears_while_a_folder_is_written_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    with pytest.raises(OutputError, match="exists and is not a note"), new_folder(target, NOTE):
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
    assert (names(tmp_path), (target / "thesis.txt").read_text()) == (["artefact"], "mine")


def test_a_link_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OutputError, match="not a regular file"):
        write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "mine"


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
        ("[" * 100_000, "not a plan: it is nested too deeply"),
        ('{"schema_version": 1, "loss": NaN}', "not a plan: NaN is not a number that JSON has"),
        ('{"schema_version": 1, "schema_version": 1}', "not a plan: a key occurs twice"),
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


def test_a_folder_whose_removal_is_cut_short_is_still_known_or_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def state() -> Path:
        folder = tmp_path / ".checkpoint.training"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        known = {"schema_version": 1} | dict.fromkeys(TRAINING_STATE.keys, 0)
        (folder / "state.json").write_text(json.dumps(known))
        for name in ("model", "best", "optimizer"):
            (folder / f"{name}.safetensors").write_bytes(b"x")
        return folder

    original = os.unlink
    for most in range(4):
        folder, removed = state(), 0

        def unlink(*args: Any, most: int = most, **kwargs: Any) -> None:
            nonlocal removed
            if removed == most:
                raise Killed
            removed += 1
            original(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "unlink", unlink)
            remove_folder(folder, TRAINING_STATE)
        assert TRAINING_STATE.is_at(folder)
        assert TRAINING_STATE.foreign(folder) is None
    remove_folder(state(), TRAINING_STATE)
    assert not (tmp_path / ".checkpoint.training").exists()
