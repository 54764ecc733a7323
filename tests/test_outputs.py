"""No command deletes or changes what Fathom did not write: it is refused before any work."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fathom import artefacts
from fathom.artefacts import KINDS, REPORT_FOLDER, WHOLE, Kind, check_output, identify
from fathom.cli import app
from fathom.errors import OutputError

PROGRAM = typer.main.get_command(app)
#: (command, the parameter that says where to write): what it writes, and the rest of the command line.
WRITES: dict[tuple[str, str], tuple[Kind, str]] = {
    ("data prepare", "out"): (artefacts.DATASET, "{read} --out {out}"),
    ("train", "out"): (artefacts.CHECKPOINT, "{read} --out {out}"),
    ("evaluate", "out"): (artefacts.EVALUATION, "{read} --data {read} --out {out}"),
    ("rank", "out"): (artefacts.RANKING, "{read} --data {read} --out {out}"),
    ("rank", "plot"): (artefacts.RANKING_PLOT, "{read} --data {read} --out {new} --plot {out}"),
    ("rank", "page"): (artefacts.RANKING_PAGE, "{read} --data {read} --out {new} --page {out}"),
    ("rank", "lattice"): (artefacts.LATTICE, "{read} --data {read} --out {new} --lattice {out}"),
    ("rank", "lattice_plot"): (
        artefacts.LATTICE_PLOT,
        "{read} --data {read} --out {new} --lattice {new2} --lattice-plot {out}",
    ),
    ("compress", "out"): (artefacts.COMPRESSED, "{read} --task classification --data {read} --out {out}"),
    ("plan", "out"): (artefacts.PLAN, "{read} --out {out}"),
    ("heal", "out"): (artefacts.CHECKPOINT, "{read} {read} --data {read} --out {out}"),
    ("export", "out"): (artefacts.BUNDLE, "{read} --data {read} --out {out}"),
    ("certify", "bundle"): (artefacts.BUNDLE, "{out} --data {read}"),
    ("certify", "report"): (REPORT_FOLDER, "{bundle} --data {read} --report {out}"),
    ("build", "out"): (artefacts.BUNDLE, "{read} --out {out}"),
    ("score", "out"): (artefacts.RECOMMENDATIONS, "{read} --users {read} --out {out}"),
    ("bundle slice", "out"): (artefacts.BUNDLE, "{read} --profile cloud --out {out}"),
    **{
        ("bundle convert", f"out {form}"): (kind, "{read} --checkpoint {read} --to " + form + " --out {out}")
        for form, kind in {
            **dict.fromkeys(("ort", "cuda", "executorch", "tensorrt", "tensorrt-rtx"), artefacts.BUNDLE),
            "triton": artefacts.TRITON,
        }.items()
    },
    ("bundle convert", "timing_cache"): (
        artefacts.TIMING_CACHE,
        "{read} --to tensorrt --out {new} --timing-cache {out}",
    ),
    ("bundle index", "out"): (artefacts.BUNDLE, "{read} --data {read} --out {out}"),
    ("bundle keygen", "private"): (artefacts.KEY, "{out} {new}"),
    ("bundle keygen", "public"): (artefacts.KEY, "{new} {out}"),
    ("bundle sign", "bundle"): (artefacts.BUNDLE, "{out} --key {read}"),
    ("profiles check", "path"): (artefacts.BUNDLE, "{out} cloud"),
    ("profiles check", "report"): (artefacts.DEVICE_REPORT, "{bundle} cloud --report {out}"),
    ("profiles merge", "out"): (artefacts.MERGED_PROFILE, "cloud {read} --out {out}"),
    ("runs export", "out"): (artefacts.RUNS_EXPORT, "--file {read} --out {out}"),
    ("runs tensorboard", "out"): (artefacts.RUNS_BOARD, "--file {read} --out {out}"),
    ("leaderboard", "page"): (artefacts.LEADERBOARD_PAGE, "--task recommendation --file {read} --page {out}"),
    ("capacity", "costs"): (artefacts.CAPACITY_COSTS, "{read} --measure --costs {out}"),
    ("loadtest", "out"): (artefacts.LOAD_REPORT, "--trace {read} --out {out}"),
}
TLS = {"ca", "cert", "key"}
READS = {
    "data prepare": {"path", "items_path"},
    "train": {"dataset", "config_file"},
    "evaluate": {"checkpoint", "data"},
    "rank": {"checkpoint", "data"},
    "stability": {"rankings"},
    "compress": {"data"},
    "plan": {"ranking", "lattice"},
    **{name: {"file"} for name in ("runs list", "runs show", "runs compare", "runs export")},
    **{name: {"file"} for name in ("runs tensorboard", "leaderboard")},
    "heal": {"checkpoint", "plan", "data"},
    "export": {"checkpoint", "data", "plan", "ranking", "reference"},
    "certify": {"data", "from_log"},
    "build": {"path", "items_path", "config_file"},
    "score": {"bundle", "users"},
    "serve": {"bundle", "config", "trust"},
    # Adds a line to it, and keeps all else.
    "key": {"add"},
    "demo": {"bundle", "data"},
    "capacity": {"bundle", "data"},
    "loadtest": {"trace", *TLS},
    "console": TLS,
    "recommend": TLS,
    "reload": TLS,
    "history import": {"dataset"},
    "items import": {"file", *TLS},
    "items list": TLS,
    "items remove": TLS,
    "experiments report": {"folder"},
    **{f"experiments {name}": TLS for name in ("status", "start", "stop", "promote")},
    "profiles merge": {"reports"},
    "bundle inspect": {"bundle"},
    "bundle quality": {"bundle"},
    "bundle verify": {"bundle", "trust"},
    "bundle sign": {"key"},
    "bundle slice": {"bundle"},
    "bundle index": {"bundle", "data"},
    "bundle convert": {"bundle", "checkpoint"},
}
STATES = ("foreign folder", "file", "link", "link to its own kind", "pipe", "another kind", "mixed", "linked", "hollow")
FOLDER_STATES = ("mixed", "linked", "hollow")


def make(kind: Kind, path: Path) -> Path:
    """The least that is recognised as an artefact of this kind."""
    value = {"schema_version": 1, **{key: {} for key in kind.keys}}
    file = path / kind.head
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'\x89PNG <meta name="generator" content="{kind.mark}">' if kind.mark else json.dumps(value))
    return path


def put(state: str, kind: Kind, path: Path) -> None:
    """Something at an output path that no command may touch."""
    match state:
        case "foreign folder":
            (path / "deep").mkdir(parents=True)
            (path / "deep" / "thesis.txt").write_text("mine")
        case "file":
            path.write_text("user_id,item_id\na,b\n")
        case "link":
            put("foreign folder", kind, path.with_name("target"))
            path.symlink_to("target")
        case "link to its own kind":
            make(kind, path.with_name("target"))
            path.symlink_to("target")
        case "pipe":
            os.mkfifo(path)
        case "mixed":
            (make(kind, path) / "notes.txt").write_text("mine")
        case "linked":
            path.with_name("precious").write_text("mine")
            (make(kind, path) / "items.parquet").symlink_to(path.with_name("precious"))
        case "hollow":
            (make(kind, path) / "mine").mkdir()


def snapshot(folder: Path) -> dict[str, object]:
    """Every name below a folder, and what it is."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        content: object = "special"
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = path.read_bytes()
        elif path.is_dir():
            content = "folder"
        found[str(path.relative_to(folder))] = content
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an input, and a bundle beside it."""
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "read.csv").write_text("user_id,item_id\na,b\n")
    make(artefacts.BUNDLE, tmp_path / "bundle")
    return tmp_path


def refused(command: str, line: str, place: Path, out: Path) -> str:
    """Run a command that must refuse ``out`` and leave everything as it was; returns its words."""
    names = {"read": place / "inputs" / "read.csv", "new": place / "new", "new2": place / "new2"}
    arguments = [part.format(out=out, bundle=place / "bundle", **names) for part in line.split()]
    before = snapshot(place)
    with pytest.raises(OutputError) as caught:
        PROGRAM.main([*command.split(), *arguments], standalone_mode=False)
    assert snapshot(place) == before
    words = str(caught.value)
    assert "\n" not in words
    assert len(words.replace(str(place), "")) < 200
    return words


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("written", WRITES, ids=" ".join)
def test_what_is_not_the_commands_own_is_never_replaced(written: tuple[str, str], state: str, place: Path) -> None:
    kind, line = WRITES[written]
    out = place / "out"
    if kind is REPORT_FOLDER:
        if state in ("foreign folder", "another kind", *FOLDER_STATES):
            out.mkdir()
            (out / "routing.html").write_text("my own page")
        elif state == "link to its own kind":
            put("link", kind, out)
        else:
            put(state, kind, out)
        refused(written[0], line, place, out)
    elif state == "another kind":
        other = artefacts.PLAN if kind is not artefacts.PLAN else artefacts.RANKING
        make(other, out)
        assert f"exists and is {other.name}, not {kind.name}" in refused(written[0], line, place, out)
    elif state == "link to its own kind" and kind is artefacts.BUNDLE and line.startswith("{out}"):
        pytest.skip("a bundle that is changed in place may be reached through a link, which stays")
    elif state not in FOLDER_STATES:
        put(state, kind, out)
        refused(written[0], line, place, out)
    elif kind.is_folder:
        put(state, kind, out)
        assert "which Fathom did not write" in refused(written[0], line, place, out)


def test_no_kind_is_taken_for_another(tmp_path: Path) -> None:
    kinds = [kind for kind in KINDS if kind is not artefacts.TRITON]  # which holds what a bundle holds
    for kind in kinds:
        out = make(kind, tmp_path / kind.name)
        assert identify(out) is kind
        check_output(out, kind)
        for other in kinds:
            if other is not kind:
                with pytest.raises(OutputError, match=f"exists and is {kind.name}, not {other.name}"):
                    check_output(out, other)


@pytest.mark.parametrize("written", WRITES, ids=" ".join)
def test_no_command_writes_over_its_input_or_the_folders_around_it(
    written: tuple[str, str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, line = WRITES[written]
    monkeypatch.chdir(place / "inputs")
    home = place / "home"
    monkeypatch.setenv("HOME", str(home))
    make(kind, home) if kind.head else home.mkdir()
    if kind.head:  # even where all of them are of the command's own kind
        make(kind, place / "inputs")
    outs = [Path(), Path(".."), Path("../inputs"), Path("/"), home, place]
    for out in outs + ([place / "inputs" / "read.csv"] if "{read}" in line else []):
        refused(written[0], line, place, out)


@pytest.mark.parametrize("written", WRITES, ids=" ".join)
def test_nothing_is_written_into_another_artefact_or_below_a_file(written: tuple[str, str], place: Path) -> None:
    _, line = WRITES[written]
    for kind in WHOLE:
        make(kind, place / kind.name)
        assert "lies inside" in refused(written[0], line, place, place / kind.name / "more" / "out")
    assert "more than 200 bytes" in refused(written[0], line, place, place / ("o" * 201))
    assert "is not a folder" in refused(written[0], line, place, place / "inputs" / "read.csv" / "out")


def test_every_command_with_a_path_is_known_here() -> None:
    found = {
        (name, parameter.name)
        for name, command in _commands(PROGRAM)
        for parameter in command.get_params(typer.Context(command))
        if "Path" in str(parameter.type_descriptor.annotation)
    }
    written = {(command, parameter.split()[0]) for command, parameter in WRITES}
    assert found == written | {(command, name) for command, names in READS.items() for name in names}


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command
