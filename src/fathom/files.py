"""Artefacts are written whole or not at all: a temporary name, fsync, rename."""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fathom.errors import ArtefactError


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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all; NaN and infinity are refused (ValueError)."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    An existing ``path`` stays as it was until then, and is replaced as a whole. What a killed process left
    behind (``.NAME.tmp-*``) is never read by anyone and is removed by the next writer of the same name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.tmp-"))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _fsync(file)
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.tmp-"))
            path.rename(old / "old")
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def parse_json(data: bytes) -> Any:
    """JSON as its standard has it; raises ValueError, in one line, for anything that only some readers would accept.

    That is what is not UTF-8, NaN and infinity, a key that occurs twice, half a surrogate pair, and what is nested
    too deeply or has numbers too long to be read.
    """
    text = data.decode()
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(value, ensure_ascii=False).encode()
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
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no {kind} here") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path}: not a {kind}: {error}") from None
    found = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(found, int):
        raise ArtefactError(f"{path}: not a {kind}: it has no schema_version")
    if found > schema_version:
        raise ArtefactError(
            f"{path}: this {kind} has schema_version {found}, newer than {schema_version}; upgrade Fathom"
        )
    if found < schema_version:
        raise ArtefactError(
            f"{path}: this {kind} has schema_version {found}, older than {schema_version}; build it again"
        )
    return dict(value)
