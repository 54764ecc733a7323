"""Reads the files of a bundle's folder: regular files that the manifest lists, each checked as it is read.

What is checked is what is used: the bytes whose length and sha256 were compared are those that are returned. Nothing is
followed out of the folder, and nothing is opened that could make the reader wait.
"""

import math
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleEditedError, BundleError, BundleMissingFileError, BundleTruncatedError, brief
from fathom.files import parse_json, sha256_bytes
from fathom.runtime.external_data import refuse_external_data
from fathom.runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry

REBUILD = "export or copy the bundle again"

_PLAIN = re.compile(r"(?!\.{1,2}(/|$))[A-Za-z0-9_.+-]{1,128}(/(?!\.{1,2}(/|$))[A-Za-z0-9_.+-]{1,128}){0,7}")
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def read_regular(file: Path, most: int) -> bytes:
    """The bytes of a regular file of at most so many; anything else is refused before a byte is read.

    Raises BundleMissingFileError or BundleError.
    """
    try:
        _check_kind(file, os.lstat(file).st_mode)
        handle = os.open(file, _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleMissingFileError(f"{file}: missing; {REBUILD}") from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from None
    with os.fdopen(handle, "rb", buffering=0) as opened:
        # Once more, of what was opened: the name may be another file's by now.
        status = os.fstat(handle)
        _check_kind(file, status.st_mode)
        if status.st_size > most:
            raise BundleTruncatedError(f"{file}: {status.st_size} bytes, at most {most} are possible; {REBUILD}")
        try:
            return opened.readall()
        except MemoryError:
            raise BundleError(f"{file}: reading it takes more memory than there is; {REBUILD}") from None
        except OSError as error:
            raise BundleError(f"{file}: cannot be read: {error.strerror}") from None


def check_unread(root: Path, name: str, entry: FileEntry) -> None:
    """Raise as ``read_listed`` for what can be told without reading the file."""
    check_listed(root, name)
    file = root / name
    try:
        status = os.lstat(file)
    except OSError:
        raise BundleMissingFileError(f"{file}: missing; {REBUILD}") from None
    _check_kind(file, status.st_mode)
    if status.st_size != entry.bytes:
        raise BundleTruncatedError(f"{file}: {status.st_size} bytes where the manifest says {entry.bytes}; {REBUILD}")


def _check_kind(file: Path, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise BundleError(f"{file}: a link; a bundle holds files only: replace it by the file itself")
    if not stat.S_ISREG(mode):
        raise BundleError(f"{file}: a {_kind(mode)} where a file is needed; {REBUILD}")


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "device")


def read_listed(root: Path, name: str, entry: FileEntry, *, verify: bool = True) -> bytes:
    """One file that the manifest lists; ``verify=False`` leaves out its sha256. Raises as ``Bundle.open`` does."""
    check_unread(root, name, entry)
    file = root / name
    data = read_regular(file, entry.bytes)
    if len(data) != entry.bytes:
        raise BundleTruncatedError(f"{file}: {len(data)} bytes where the manifest says {entry.bytes}; {REBUILD}")
    if verify and sha256_bytes(data) != entry.sha256:
        raise BundleEditedError(f"{file}: its sha256 differs from the manifest; {REBUILD}")
    if name.endswith((".onnx", ".ort")):
        refuse_external_data(data, file)
    return data


def check_listed(root: Path, name: str) -> None:
    """Raise BundleError for a name that is no plain path below the folder."""
    if not _PLAIN.fullmatch(name) or name in (MANIFEST_NAME, SIGNATURE_NAME):
        raise BundleError(f"{root}: the manifest lists '{brief(name)}', no plain path inside the bundle; do not use it")


def check_nothing_else(root: Path, names: Collection[str]) -> None:
    """Raise BundleError for anything in a bundle's folder but these files, the manifest and its signature.

    What lies under a listed name is for ``read_listed`` to judge.
    """
    known = {*names, MANIFEST_NAME, SIGNATURE_NAME}
    folders = {"/".join(name.split("/")[:end]) for name in names for end in range(1, name.count("/") + 1)}
    ahead = [""]
    while ahead:
        folder = ahead.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode) and name in folders:
                        ahead.append(name)
                    elif name not in known:
                        what = f"{_kind(mode)} '{brief(name)}'"
                        raise BundleError(f"{root}: holds the {what}, which its manifest does not list; remove it")
                    elif name == SIGNATURE_NAME:
                        _check_kind(root / name, mode)
        except OSError as error:
            raise BundleError(f"{root / folder}: cannot be read: {error.strerror}") from None


def as_array(file: Path, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of a .npy file as numpy writes it, of exactly this type and shape; read-only, and not copied."""
    end = 10 + int.from_bytes(data[8:10], "little")
    if not data.startswith(b"\x93NUMPY\x01\x00") or end % 64:
        what = "an archive (npz)" if data.startswith(b"PK") else "not an array that numpy has written"
        raise BundleError(f"{file}: {what}; {REBUILD}")
    descr = np.lib.format.dtype_to_descr(dtype)
    needed = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    found = data[10:end].decode("ascii", "replace").strip()
    if found != needed:
        raise BundleError(f"{file}: {brief(found, 120)} where {dtype} {shape} is needed; {REBUILD}")
    size = math.prod(shape) * dtype.itemsize
    if len(data) - end != size:
        raise BundleError(f"{file}: {len(data) - end} bytes of values where {size} are needed; {REBUILD}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


def as_object(file: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in a file; raises BundleError."""
    try:
        value = parse_json(data)
    except ValueError as error:
        raise BundleError(f"{file}: not JSON: {brief(error)}; {REBUILD}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{file}: not a JSON object; {REBUILD}")
    return value
