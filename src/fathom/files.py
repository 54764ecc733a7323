"""Artefacts are written whole or not at all: a temporary name, fsync, rename; nothing else is ever replaced."""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fathom.artefacts import Kind, check_output
from fathom.errors import ArtefactError, OutputError


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(path: Path) -> str:
    """Hex sha256 over the names and contents of every file below a folder, or of one file."""
    if path.is_file():
        return sha256_file(path)
    lines = [f"{f.relative_to(path).as_posix()} {sha256_file(f)}" for f in sorted(path.rglob("*")) if f.is_file()]
    return sha256_bytes("\n".join(lines).encode())


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file that becomes ``path`` when the block ends well, and vanishes when it does not.

    Creates its folder. Raises OutputError for a link or a special file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputError(f"{path}: not a regular file, so it is not replaced; choose another output")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _fsync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; creates its folder. Raises OutputError for a link or a special file."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all; NaN and infinity are refused (ValueError)."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


@contextmanager
def new_folder(path: Path, kind: Kind) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    An existing ``path`` stays as it was until then, and is replaced as a whole. Raises OutputError, at the beginning
    and once more before anything is replaced, where ``check_output`` refuses it. What a killed process left behind
    (``.NAME.tmp-*``) is never read by anyone; the next writer of the same name removes it, and puts back an old folder
    whose writer was killed between moving it away and putting the new one in its place.
    """
    check_output(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in [each for each in path.parent.iterdir() if each.name.startswith(f".{path.name}.tmp-")]:
        _clear_left(left, path)
    place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.tmp-"))
    try:
        with locked(place):
            (place / _WRITER).touch()
            new = place / _NEW
            new.mkdir()
            new.chmod(0o755)
            yield new
            for file in new.rglob("*"):
                _fsync(file)
            with locked(path.parent):  # other writers of the same name wait
                check_output(path, kind)
                if path.exists():
                    path.rename(place / _OLD)
                new.rename(path)
                _fsync(path.parent)
    finally:
        _clear(place, path)


#: In a temporary folder: the note that a writer made it, the folder that it writes, and the one that this replaces.
_WRITER, _NEW, _OLD = "fathom-writer", "new", "old"


def _clear_left(place: Path, path: Path) -> None:
    """Clear what a killed writer of ``path`` left, and nothing that a writer at work or anybody else has made."""
    if not place.is_symlink() and {each.name for each in place.glob("*")} - {_NEW, _OLD} == {_WRITER}:
        with suppress(OSError), locked(place, wait=False):
            _clear(place, path)


def _clear(place: Path, path: Path) -> None:
    """Remove a writer's temporary folder; an old folder that was moved there and not replaced goes back."""
    if (place / _OLD).exists() and (place / _NEW).exists():
        if os.path.lexists(path):
            return  # Whoever made it did so meanwhile, and two folders cannot have one name: both stay.
        (place / _OLD).rename(path)
    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process; without ``wait``, raise OSError when it cannot be had."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not wait:
                raise
            # Some network filesystems have no such locks: a writer goes on without, and nobody clears its folder.
        yield
    finally:
        os.close(handle)


def remove_folder(path: Path, kind: Kind) -> None:
    """Remove a folder of this kind; what Fathom did not write stays, and so does the folder around it.

    The file that the kind is known by goes last: what a killed process leaves is still an artefact, or an empty folder.
    """
    if path.is_symlink() or not kind.is_at(path) or kind.foreign(path) is not None:
        return
    head = path / kind.head
    for each in sorted(path.rglob("*"), reverse=True):  # what is in a folder before the folder
        if each.is_dir() and not head.is_relative_to(each):
            each.rmdir()
        elif not each.is_dir() and each != head:
            each.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def parse_json(data: bytes) -> Any:
    """JSON as its standard has it; raises ValueError, in one line, for anything that only some readers would accept.

    That is what is not UTF-8, NaN and infinity, a key that occurs twice, half a surrogate pair, and what is nested
    too deeply or has numbers too long to be read.
    """
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number that JSON has")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def read_json(path: Path, *, kind: str, schema_version: int) -> dict[str, Any]:
    """Read one of our JSON artefacts and check its ``schema_version``.

    Raises ArtefactError, in one line, when the file is missing, is not JSON, or is of another version.
    """
    try:
        if path.exists() and not path.is_file():
            raise ArtefactError(f"{path}: not a {kind}: it is not a regular file")
        value = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactError(f"{path}: no {kind} here") from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ArtefactError(f"{path}: not a {kind}: {error}") from None
    found = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(found, int):
        raise ArtefactError(f"{path}: not a {kind}: it has no schema_version")
    if found != schema_version:
        age, advice = ("newer", "upgrade Fathom") if found > schema_version else ("older", "build it again")
        raise ArtefactError(f"{path}: this {kind} has schema_version {found}, {age} than {schema_version}; {advice}")
    return dict(value)
