"""Which kinds of files and folders Fathom writes, how each is recognised, and what an output path may replace.

An output path that exists is replaced only by an artefact of the kind that is already there, and only when Fathom wrote
all of it. ``check_output`` decides that for every command, before any work, and ``fathom.files.new_folder`` again
before a folder is replaced.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from fathom.errors import ArtefactError, OutputError

#: A larger file is none of our JSON files, and is not read to find that out.
MAX_JSON_BYTES = 64 << 20
#: Temporary names are a little longer, and filesystems end at 255.
MAX_NAME_BYTES = 200
#: The mark of a picture, page or table stands this near to its beginning or its end.
MARK_BYTES = 4096


@dataclass(frozen=True)
class Kind:
    """One kind of artefact: a file, or a folder with ``head``, the JSON file in it that says what the folder is.

    name: with its article, for messages. made_by: the command that writes it. keys: keys that the JSON has beside
    schema_version. own: regular expression of the other files that Fathom writes into the folder; ``listed``: the
    head's ``files`` names them. first_line: only the first line of the file is that JSON. mark: written into pictures,
    pages and tables, which are recognised by it. parts: files that are added to a folder, whatever else is in it.
    beside: what else is written with it, and where.
    """

    name: str
    made_by: str
    keys: frozenset[str] = frozenset()
    head: str = ""
    own: str = ""
    listed: bool = False
    first_line: bool = False
    mark: str = ""
    parts: dict[str, "Kind"] = field(default_factory=dict, hash=False)
    beside: "tuple[Callable[[Path], Path], Kind] | None" = None

    @property
    def is_folder(self) -> bool:
        """Whether the artefact is a folder."""
        return bool(self.head or self.parts)

    def is_at(self, path: Path) -> bool:
        """Whether an artefact of this kind, whole or not, is at ``path``."""
        if self.mark:
            return path.is_file() and any(self.mark.encode() in part for part in (_beginning(path), _end(path)))
        value = _read_json(path / self.head if self.head else path, first_line=self.first_line)
        return bool(self.keys) and "schema_version" in value and self.keys <= value.keys()

    def foreign(self, folder: Path) -> str | None:
        """The first name in a folder of this kind that Fathom did not write, if there is one."""
        own = {self.head}
        if self.listed:
            listed = _read_json(folder / self.head).get("files")
            base = PurePosixPath(self.head).parent
            own |= {str(base / name) for name in listed} if isinstance(listed, dict) else set()
        for name, what in _walk(folder):
            # A killed writer leaves a file under its temporary name.
            meant = re.sub(r"(^|/)\.([^/]+)\.tmp-\w{8}$", r"\1\2", name)
            if what == "file" and (meant in own or re.fullmatch(self.own, meant)):
                continue
            if what == "empty folder" and any(each.startswith(f"{name}/") for each in own):
                continue
            return name
        return None


def training_state(checkpoint: Path) -> Path:
    """Where an interrupted training is kept until its checkpoint is written."""
    return checkpoint.with_name(f".{checkpoint.name}.training")


def lattice_shards(lattice: Path) -> Path:
    """Where the shards of a lattice are kept until it is whole."""
    return lattice.with_name(f".{lattice.name}.shards")


def score_parts(recommendations: Path) -> Path:
    """Where the parts of recommendations are kept until they are whole."""
    return recommendations.with_name(f".{recommendations.name}.parts")


def load_plot(report: Path) -> Path:
    """Where the plot of a load test's report is written."""
    return report.with_suffix(".png")


def _json_file(name: str, made_by: str, *keys: str) -> Kind:
    return Kind(name, made_by, frozenset(keys))


def _folder(name: str, made_by: str, head: str, own: str, keys: str) -> Kind:
    return Kind(name, made_by, frozenset(keys.split()), head=head, own=own)


DATASET = _folder(
    "a dataset", "fathom data prepare", "meta.json", r"(interactions|items|users)\.parquet", "counts sha256"
)
TRAINING_STATE = _folder(
    "the state of an interrupted training",
    "fathom train",
    "state.json",
    r"(model|best|optimizer)\.safetensors",
    "fingerprint stage epoch best_score",
)
_OF_A_CHECKPOINT = r"model\.safetensors|items\.parquet|metrics\.json"
CHECKPOINT = replace(
    _folder("a checkpoint", "fathom train", "config.json", _OF_A_CHECKPOINT, "model train dataset split"),
    beside=(training_state, TRAINING_STATE),
)
BUNDLE = replace(
    _folder("a bundle", "fathom export", "manifest.json", r"manifest\.sig", "version depths files source"), listed=True
)
TRITON = Kind(
    "a Triton model repository",
    "fathom bundle convert --to triton",
    BUNDLE.keys,
    head="fathom/1/bundle/manifest.json",
    own=r"fathom/config\.pbtxt|fathom/1/(model\.py|profile\.json|segments\.json|bundle/manifest\.sig)"
    r"|fathom-depth-\d+/(config\.pbtxt|1/model\.(onnx|py))|fathom[^/]*/1/__pycache__/[^/]+\.pyc",
    listed=True,
)
COMPRESSED = replace(
    _folder("a compressed model", "fathom compress", "compression.json", "", "layers kept left_out files"), listed=True
)
#: Never recognised, and so never replaced.
KEY = Kind("a key", "fathom bundle keygen")
LATTICE_SHARDS = _folder(
    "the shards of an interrupted lattice", "fathom rank --lattice", "about.json", r"\d+-\d+", "layers subsets"
)
LATTICE = replace(
    _folder("a lattice", "fathom rank --lattice", "lattice.json", r"(masks|losses|places)\.npy", "layers executed"),
    beside=(lattice_shards, LATTICE_SHARDS),
)
RANKING = _json_file("a layer ranking", "fathom rank", "layers", "methods", "kendall_tau", "consensus")
PLAN = _json_file("a plan", "fathom plan", "strategy", "layers", "paths")
PLANS = Kind("a folder of plans", "fathom build", PLAN.keys, head="prefix.json", own=r"(nested|permuted-prefix)\.json")
EVALUATION = _json_file("an evaluation", "fathom evaluate", "protocol", "cases", "reference", "systems")
COMPARISON = _json_file("a comparison of plans", "fathom build", "winner", "evidence")
STAMPS = _json_file("a record of build stages", "fathom build", "stages")
RUN = _json_file("a stored run of a benchmark", "python -m fathom.benchmarks run NAME", "command", "machine", "result")
LOAD_PLOT = Kind("a plot of a load test", "fathom loadtest", mark="Fathom load test plot")
LOAD_REPORT = Kind(
    "a load test's report",
    "fathom loadtest",
    frozenset({"offered_per_s", "statuses", "latency_all"}),
    beside=(load_plot, LOAD_PLOT),
)
CAPACITY_COSTS = _json_file(
    "a file of measured costs", "fathom capacity --measure", "bundle_version", "cells", "mix", "process_mb"
)
DEVICE_REPORT = _json_file(
    "a device report", "fathom profiles check --report", "device_profile", "peak_mb", "figures", "versions"
)
MERGED_PROFILE = Kind("a profile", "fathom profiles merge", mark="# Device profile, written by fathom profiles merge.")
TRACE = Kind("an arrival trace", "python -m fathom.loadtests.traces", frozenset({"duration_s"}), first_line=True)
RANKING_PLOT = Kind("a plot of a ranking", "fathom rank --plot", mark="Fathom layer ranking plot")
RANKING_PAGE = Kind("a page of a ranking", "fathom rank --page", mark="Fathom layer ranking page")
LATTICE_PLOT = Kind("a plot of a lattice", "fathom rank --lattice-plot", mark="Fathom lattice plot")
LEADERBOARD_PAGE = Kind("a page of the best runs", "fathom leaderboard --page", mark="Fathom leaderboard page")
TIMING_CACHE = Kind("a timing cache", "fathom bundle convert --timing-cache", mark="Fathom timing cache")
#: JSON and CSV both say "Fathom runs".
RUNS_EXPORT = Kind("a file of runs", "fathom runs export", mark="Fathom runs")
RUNS_BOARD = _folder(
    "a folder of runs for TensorBoard",
    "fathom runs tensorboard",
    "runs.json",
    r"run-\d+/events\.out\.tfevents\..+",
    "kind runs",
)
ROUTING_PLOT = Kind("a plot of routings", "fathom certify --report", mark="Fathom routing plot")
ROUTING_PAGE = Kind("a page of routings", "fathom certify --report", mark="Fathom routing page")
ROUTING_REPORT = _json_file("a routing report", "fathom certify --report", "static", "hull", "policies")
REPORT_FOLDER = Kind(
    "a report folder",
    "fathom certify --report",
    parts={"routing.json": ROUTING_REPORT, "routing.png": ROUTING_PLOT, "routing.html": ROUTING_PAGE},
)
SCORE_PARTS = _folder(
    "the parts of interrupted recommendations", "fathom score", "about.json", r"\d+\.parquet", "bundle users options"
)
RECOMMENDATIONS = Kind(
    "recommendations", "fathom score", mark="Fathom recommendations", beside=(score_parts, SCORE_PARTS)
)

EXPERIMENT_LOG = _folder(
    "an experiment's log",
    "fathom serve",
    "experiment.json",
    r"(exposures|outcomes)-\w+-\d+\.parquet",
    "name experiment",
)

#: Folders that are artefacts as a whole: nothing else may be written into them.
WHOLE = (DATASET, CHECKPOINT, BUNDLE, TRITON, LATTICE, COMPRESSED, EXPERIMENT_LOG)
_FOLDERS = (*WHOLE, TRAINING_STATE, LATTICE_SHARDS, SCORE_PARTS, PLANS, RUNS_BOARD)
_FILES = (
    RANKING,
    PLAN,
    EVALUATION,
    COMPARISON,
    STAMPS,
    LOAD_REPORT,
    ROUTING_REPORT,
    RUN,
    TRACE,
    CAPACITY_COSTS,
    DEVICE_REPORT,
)
_MARKED = (
    *(RANKING_PLOT, RANKING_PAGE, LATTICE_PLOT, LOAD_PLOT, ROUTING_PLOT, ROUTING_PAGE, RECOMMENDATIONS),
    *(LEADERBOARD_PAGE, RUNS_EXPORT, MERGED_PROFILE, TIMING_CACHE),
)
KINDS = (*_FOLDERS, *_FILES, *_MARKED)

Output = tuple[Path | None, Kind]


def check_outputs(*outputs: Output, inputs: Sequence[Path | None] = ()) -> None:
    """``check_output`` for everything that a command writes; a path of None is not written.

    Raises OutputError also where one output would overwrite another.
    """
    given = [(path, kind) for path, kind in outputs if path is not None]
    for path, kind in given:
        check_output(path, kind, inputs=inputs)
    paths = [path for path, _ in given] + [kind.beside[0](path) for path, kind in given if kind.beside]
    for one, other in combinations(paths, 2):
        if _contains(one, other) or _contains(other, one):
            raise OutputError(f"{other}: two outputs of this command are in one place; give each a path of its own")


def check_output(path: Path, kind: Kind, *, inputs: Sequence[Path | None] = ()) -> None:
    """Raise OutputError, in one line, unless an artefact of this kind may be written to ``path``.

    Free paths and empty folders may be written. What exists otherwise has to be an artefact of the same kind in which
    every file is Fathom's own. Links, special files, the current and the home directory, the command's ``inputs``, and
    folders that hold any of these are refused, as is a place inside another artefact.
    """
    try:
        _check_place(path, [each for each in inputs if each is not None])
        _check_existing(path, kind)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; choose another output") from None
    if kind.beside:
        place, other = kind.beside
        check_output(place(path), other, inputs=inputs)


def is_utf8(path: Path) -> bool:
    """Whether the path can be written as text: reports and bundles name files."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_place(path: Path, inputs: Sequence[Path]) -> None:
    if path.name in ("", ".."):
        raise OutputError(f"{path}: names no output; give it a name of its own, as build/ml-100k/bundle")
    if not is_utf8(path):
        raise OutputError(f"{path}: the name is not UTF-8; choose another output")
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        raise OutputError(f"{path.name[:40]}...: a name of more than {MAX_NAME_BYTES} bytes; choose a shorter one")
    if path.is_symlink():
        raise OutputError(f"{path}: is a link, and no output replaces one; give the place that it points to")
    for used in inputs:
        if used.exists() and _contains(path, used):
            raise OutputError(f"{path}: is or holds the input {used}; choose another output")
    for taken, what in ((Path.cwd(), "current"), (_home(), "home")):
        if _contains(path, taken):
            raise OutputError(f"{path}: is or holds the {what} directory; give the output a folder of its own")
    parent = path.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"{path}: {parent} is not a folder; choose another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: {parent} may not be written to; choose another output")
    for folder in real(path).parents:
        if (inside := next((each for each in WHOLE if each.is_at(folder)), None)) is not None:
            raise OutputError(f"{path}: lies inside {inside.name}, {folder}; choose a place outside it")


def _home() -> Path:
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where a user has none


def _check_existing(path: Path, kind: Kind) -> None:
    if not path.exists() or (kind.is_folder and path.is_dir() and not any(path.iterdir())):
        return
    if not (path.is_dir() or path.is_file()):
        raise OutputError(f"{path}: is a special file; choose another output")
    if kind.parts and path.is_dir():
        for name, part in kind.parts.items():
            check_output(path / name, part)
        return
    if path.is_dir() != kind.is_folder or not kind.is_at(path):
        found = identify(path)
        raise OutputError(
            f"{path}: exists and is {f'{found.name}, ' if found else ''}not {kind.name};"
            " move it away or choose another output"
        )
    if kind.is_folder and (foreign := kind.foreign(path)) is not None:
        raise OutputError(f"{path}: holds {foreign}, which Fathom did not write; move it away or choose another output")


def expect(path: Path, kind: Kind) -> None:
    """Raise ArtefactError, in one line, where no artefact of this kind is at ``path``.

    A damaged artefact passes: its reader says what is wrong with it.
    """
    try:
        if kind.head and os.path.lexists(path / kind.head):
            return
        found = identify(path)
        if not kind.head and path.is_file() and (found is kind or (found is None and _may_be(kind, path))):
            return
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from None
    words = f"is {found.name}, not {kind.name}" if found else f"no {kind.name.partition(' ')[2]} here"
    raise ArtefactError(f"{path}: {words}; `{kind.made_by}` makes one")


def _may_be(kind: Kind, path: Path) -> bool:
    """Whether a file may be a damaged one of this kind, of which its reader knows more: JSON, or lines of it."""
    return kind.first_line or _beginning(path).lstrip()[:1] in (b"{", b"[", b"")


def identify(path: Path) -> Kind | None:
    """The kind of artefact at ``path``, None where it is none of ours."""
    return next((kind for kind in KINDS if kind.is_at(path)), None)


def real(path: Path) -> Path:
    """The place that a path leads to; as far as it leads where links run in a circle, as ``Path.resolve`` may not."""
    return Path(os.path.realpath(path))


def _contains(folder: Path, path: Path) -> bool:
    """Whether ``path`` is ``folder`` or lies in it, by whatever names."""
    folder, path = real(folder), real(path)
    same = folder.exists() and path.exists() and folder.samefile(path)
    return same or path.is_relative_to(folder)


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """What is below a folder, as (path in it, "file", "empty folder" or, for links and special files, "other")."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        for path in (Path(root, name) for name in (*folders, *files)):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                yield name, "other"
            elif path.is_file():
                yield name, "file"
            elif not any(path.iterdir()):
                yield name, "empty folder"


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MARK_BYTES)


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MARK_BYTES))
        return file.read()


def _read_json(path: Path, *, first_line: bool = False) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none."""
    try:
        if not path.is_file() or (not first_line and path.stat().st_size > MAX_JSON_BYTES):
            return {}
        with path.open("rb") as file:
            value = json.loads(file.readline(MAX_JSON_BYTES) if first_line else file.read(MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
