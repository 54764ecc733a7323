"""Whatever is done to a bundle, it is refused in one line, or no answer under its version changes.

An attacker who also recomputes lengths, hashes and the version gets a bundle of another version, without the old one's
certificate for what runs otherwise, and never one that a server with ``--trust`` opens.
"""

import json
import os
import random
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from fathom.errors import BundleError, ConfigError, FathomError
from fathom.exporter.bundle.report import depth_rows, evidence_rows, fact_rows, quality_rows
from fathom.exporter.bundle.sign import make_keys, sign_bundle
from fathom.files import sha256_bytes
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.manifest import (
    MANIFEST_NAME,
    NEIGHBOURS_FILE,
    OFFSETS_FILE,
    RECENT_FILE,
    SIGNATURE_NAME,
    WEIGHTS_FILE,
    depth_digests,
    version_of,
)
from fathom.runtime.manifest_file import read_manifest
from fathom.runtime.signature import Trust
from fathom.serving.repository import Repository, state_of

LONGEST_LINE = 300
LONGEST_S = 5
MANIFEST_EDITS, FILE_EDITS, SPECIAL_FILES = 1_000, 1_000, 300
HISTORY = np.array([[3, 1, 4, 1, 5]])

#: What a number, a text or anything else is replaced by.
HOSTILE: list[Any] = [
    *(0, -1, 1, 2, 3, 16, 17, 33, 1e-300, 1e308, -0.0, 10**18, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf")),
    *(
        None,
        True,
        False,
        "",
        "x",
        "x" * 5_000,
        "0",
        "-1",
        "../../etc/passwd",
        "/dev/zero",
        "a\nb",
        "\x1b[31m",
        "\ud800",
    ),
    *(
        "engines/depth-04.onnx",
        "items/vectors.npy",
        MANIFEST_NAME,
        "prefix",
        "nested",
        "fp16",
        "int8",
        "ort",
        "é" * 300,
    ),
    *([], [[]], ["x"], [0, 0], list(range(40)), {}, {"x": 1}, {"4": {}}, [None] * 1_000),
]


@contextmanager
def at_most_s(limit: float) -> Iterator[None]:
    """Raise where a block takes longer, even inside a call that waits."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise TimeoutError(f"longer than {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Original:
    """A signed and certified bundle, and what is true of it."""

    def __init__(self, path: Path, key: Path, public: Path) -> None:
        sign_bundle(path, key)
        self.path = path
        trust = Trust.load([public])
        assert trust is not None
        self.trust = trust
        self.value: dict[str, Any] = json.loads((path / MANIFEST_NAME).read_bytes())
        with Bundle.open(path, trust=trust) as bundle:
            assert bundle.certificate is not None
            self.manifest = bundle.manifest
            self.answers = answers(bundle)
        self.digests = depth_digests(self.manifest)


@pytest.fixture(scope="module")
def original(certified_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("h")
    make_keys(folder / "key", folder / "key.pub")
    return Original(Path(shutil.copytree(certified_bundle, folder / "bundle")), folder / "key", folder / "key.pub")


def answers(bundle: Bundle) -> dict[int, bytes]:
    """The user vector of one history at every depth, at depth 0 its best items; shows what a person is shown."""
    manifest = bundle.manifest
    for rows in (fact_rows, depth_rows, evidence_rows, quality_rows):
        "".join(map(str, rows(manifest))).encode()
    with open_engine(bundle, device="cpu", incremental=True) as engine:
        found = {depth: engine.run(HISTORY, None, depth).tobytes() for depth in bundle.depths}
    if bundle.counting is not None:
        items, scores = bundle.counting.best(HISTORY[0] - 1, 10, ItemFilter())
        found[0] = items.tobytes() + scores.tobytes()
    return found


def judge(path: Path, original: Original, *, sealed: bool) -> bool:
    """Whether the bundle opens; asserts everything that must be true of what was done to it.

    ``sealed``: lengths, hashes and version were recomputed.
    """
    with at_most_s(LONGEST_S):
        checks = verify(path)
    assert all(len(check.detail) < LONGEST_LINE and check.detail.isprintable() for check in checks), checks
    try:
        with at_most_s(LONGEST_S), Bundle.open(path) as bundle:
            found = answers(bundle)
    except (BundleError, ConfigError) as error:
        text = str(error)
        assert len(text) < LONGEST_LINE, text
        assert text.isprintable(), text
        return False
    assert all(check.ok for check in checks)
    if bundle.manifest.version == original.manifest.version:
        created = {"created": original.manifest.created}
        assert bundle.manifest.model_copy(update=created) == original.manifest
        assert found == original.answers
    else:
        assert sealed
        with pytest.raises(BundleError):
            Bundle.open(path, trust=original.trust)
        if bundle.certificate is not None:
            assert depth_digests(bundle.manifest).items() <= original.digests.items()
    return True


# Edits of a JSON value, each at a random place.


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))


def edited(value: Any, rng: random.Random) -> Any:
    """A copy with one thing replaced, removed, added, renamed, exchanged or repeated."""
    value = json.loads(json.dumps(value))
    known = list(places(value))
    *above, key = rng.choice(known)
    home = value
    for each in above:
        home = home[each]
    match rng.randrange(6):
        case 0 | 1:
            home[key] = rng.choice(HOSTILE)
        case 2:
            del home[key]
        case 3:
            *other, last = rng.choice([each for each in known if len(each) == len(above) + 1])
            there = value
            for each in other:
                there = there[each]
            home[key], there[last] = there[last], home[key]
        case 4 if isinstance(home, dict):
            home[rng.choice([" ", "x", "04", "4 ", "1", "32", "items/new.npy", "x" * 500, str(key).upper()])] = home[
                key
            ]
        case 4:
            home.append(home[key])
        case _:
            if isinstance(home[key], (int, float)):
                home[key] = home[key] * rng.choice([-1, 2, 0.5, 1e6, 10**12]) + rng.choice([0, 1, 1e-9])
            else:
                home[key] = [home[key]] if rng.random() < 0.5 else str(home[key])
    return value


def seal(value: Any) -> None:
    """Let a manifest have the version that follows from it, where one does."""
    with suppress(Exception):
        value["version"] = version_of(value)


def test_a_thousand_edits_of_the_manifest(original: Original, tmp_path: Path) -> None:
    rng, opened = random.Random(0), 0
    path = Path(shutil.copytree(original.path, tmp_path / "bundle"))
    for number in range(MANIFEST_EDITS):
        sealed = number % 2 == 0
        if number % 10 == 9:
            sealed, data = False, damaged((original.path / MANIFEST_NAME).read_bytes(), rng)
        else:
            value = edited(original.value, rng)
            if sealed:
                seal(value)
            data = json.dumps(value).encode()
        (path / MANIFEST_NAME).write_bytes(data)
        opened += judge(path, original, sealed=sealed)
        with pytest.raises(BundleError):
            read_manifest(path, original.trust)
    assert 0 < opened < MANIFEST_EDITS / 2


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut off, repeated, moved or put in."""
    place, size = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 8, 64, 500])
    match rng.randrange(6):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + rng.randbytes(size) + data[place:]
        case 2:
            return data[:place] + data[place + size :]
        case 3:
            return data[:place] + data[place : place + size] * 2 + data[place + size :]
        case 4:
            return data[:place] + bytes(size) + data[place + size :]
        case _:
            return data[:place] + rng.randbytes(size) + data[place + size :]


def changed_file(name: str, data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Another content for a file of a bundle."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice([b"", b"\x00", b"PK\x03\x04", b"[" * 100_000, b'{"a":1e999}', b"null", *others])
    if name.endswith(".json") and kind < 8:
        return json.dumps(edited(json.loads(data), rng)).encode()
    if name.endswith(".npy") and kind < 8:
        return array_file(data, rng)
    return damaged(data, rng)


def array_file(data: bytes, rng: random.Random) -> bytes:
    header, values = bytearray(data[:128]), bytearray(data[128:])
    spots = {
        0: lambda: header.__setitem__(slice(8, 10), rng.choice([b"\xff\xff", b"\x00\x00", b"\x36\x00"])),
        1: lambda: header.__setitem__(slice(6, 8), rng.choice([b"\x02\x00", b"\x03\x00", b"\x09\x09"])),
        2: lambda: header.__setitem__(
            slice(10, 128), rng.choice([b"(" * 117 + b"\n", b"{" * 118, b" " * 118, b"__import__('os')".ljust(118)])
        ),
        3: lambda: header.__setitem__(slice(10, 127), header[10:127].replace(b"False", b"True ")),
        4: lambda: header.__setitem__(slice(10, 127), header[10:127].replace(b"(50", b"(99")),
        5: lambda: header.__setitem__(slice(10, 127), header[10:127].replace(b"<", b">").replace(b"|", b">")),
    }
    if (kind := rng.randrange(10)) in spots:
        spots[kind]()
    else:
        place = 4 * rng.randrange(len(values) // 4)
        special = np.array(rng.choice([np.nan, np.inf, -np.inf, 1e38, -1, 0]), "<f4").tobytes()
        values[place : place + 4] = special
    return bytes(header + values)


def test_a_thousand_files_that_the_manifest_agrees_with(original: Original, tmp_path: Path) -> None:
    rng, opened = random.Random(1), 0
    path = Path(shutil.copytree(original.path, tmp_path / "bundle"))
    contents = {name: (path / name).read_bytes() for name in original.value["files"]}
    for number in range(FILE_EDITS):
        name = rng.choice(list(contents))
        data = changed_file(name, contents[name], rng, list(contents.values()))
        value = json.loads(json.dumps(original.value))
        value["files"][name] = {"bytes": len(data), "sha256": sha256_bytes(data)}
        sealed = number % 2 == 0
        if sealed:
            seal(value)
        (path / name).write_bytes(data)
        (path / MANIFEST_NAME).write_text(json.dumps(value))
        opened += judge(path, original, sealed=sealed)
        (path / name).write_bytes(contents[name])
    assert 0 < opened < FILE_EDITS / 2


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        (OFFSETS_FILE, 0, 1, "does not ascend from 0"),
        (OFFSETS_FILE, 1, 7, "does not ascend from 0"),
        (OFFSETS_FILE, -1, 151, "counting/neighbours.npy"),
        (NEIGHBOURS_FILE, 0, -1, "an item that is not in the catalogue"),
        (NEIGHBOURS_FILE, -1, 50, "an item that is not in the catalogue"),
        *[(WEIGHTS_FILE, 3, value, "no number above 0") for value in (0, -1, np.nan, np.inf)],
        *[(RECENT_FILE, 3, value, "a share outside of 0 to 1") for value in (-0.1, 1.1, np.nan)],
    ],
)
def test_a_counting_exit_that_cannot_be_is_refused(
    name: str,
    place: int,
    value: float,
    words: str,
    synthetic_bundle: Path,
    reseal: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    path = Path(shutil.copytree(synthetic_bundle, tmp_path / "bundle"))
    array = np.load(path / name)
    array[place] = value
    np.save(path / name, array)
    reseal(path)
    with pytest.raises(BundleError, match=words) as refused:
        Bundle.open(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": {"4": 0.5}}, "its counting exit does not have a weight for each depth"),
        ({"window": 21}, "its counting exit looks at more items than max_history"),
    ],
)
def test_a_counting_exit_that_contradicts_the_model_is_refused(
    synthetic_bundle: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = Path(shutil.copytree(synthetic_bundle, tmp_path / "bundle"))
    value = json.loads((path / MANIFEST_NAME).read_bytes())
    value["counting"] |= change
    seal(value)
    (path / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(BundleError, match=words):
        Bundle.open(path)


# Special files: each maker puts something at a path where a file or nothing was.


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def listening(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # a socket's path may have a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name[:100])
    finally:
        os.chdir(here)
        os.close(here)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")


def deep(path: Path) -> None:
    path.joinpath(*["a"] * 40).mkdir(parents=True)


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


MAKERS: list[Callable[[Path], Any]] = [
    os.mkfifo,
    listening,
    device,
    deep,
    archive,
    lambda path: path.symlink_to(path.name),
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to("nowhere"),
    lambda path: path.symlink_to("."),
    lambda path: path.symlink_to(".."),
    lambda path: path.symlink_to("/"),
    lambda path: path.mkdir(),
    lambda path: path.mkdir(0o000),
    lambda path: path.touch(),
    lambda path: path.touch(0o000),
    lambda path: sparse(path, 1 << 30),
    lambda path: sparse(path, 1 << 42),
    lambda path: path.write_bytes(b"x"),
]
#: Where nothing was.
NEW = [
    *(
        "x",
        ".hidden",
        "manifest.json~",
        "MANIFEST.JSON",
        ".manifest.json.tmp-1",
        "engines/depth-20.onnx",
        "items/x.npy",
    ),
    *("a\nb", "x" * 250, "é", "\udcff", "engines/x", "selector/..x", " ", "manifest.sig~", "plans"),
]


def special_cases(original: Original) -> list[tuple[str, Callable[[Path], Any]]]:
    rng = random.Random(2)
    listed = [*original.value["files"], MANIFEST_NAME, SIGNATURE_NAME, "items", "engines"]
    pairs = [(name, maker) for name in [*listed, *NEW] for maker in MAKERS]
    return rng.sample(pairs, SPECIAL_FILES)


def test_three_hundred_special_files(original: Original, tmp_path: Path) -> None:
    for number, (name, maker) in enumerate(special_cases(original)):
        root = tmp_path / f"{number}"
        path = Path(shutil.copytree(original.path, root / "shop" / "1"))
        remove(path / name)
        maker(path / name)
        # A signature is nobody's business until a server is given keys: then it is looked at.
        trusted = name == SIGNATURE_NAME
        opened = judge(path, original, sealed=False)
        assert opened <= (trusted and (path / name).is_file() and not (path / name).is_symlink()), (name, number)
        with at_most_s(LONGEST_S), pytest.raises(BundleError) as caught:
            Bundle.open(path, trust=original.trust)
        assert len(str(caught.value)) < LONGEST_LINE
        with at_most_s(LONGEST_S):
            for look in (Repository(root).find, Repository(path).find, lambda path=path: state_of(path)):
                with suppress(FathomError):
                    look()
        shutil.rmtree(root)
