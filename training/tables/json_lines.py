"""JSON lines, and JSON arrays of objects, as one object per line."""

import io
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import polars as pl

from fathom.errors import DataError
from fathom.training.tables.delimited import encoding_of, open_bytes, open_text

Line = tuple[int, bytes]  # number from 1, text in UTF-8

NO_NUMBER = "NaN or Infinity, which JSON does not have"
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def numbered_lines(path: Path, encoding: str | None, size: int) -> Iterator[list[Line]]:
    """Blocks of the lines that are not blank, or of an array's elements; about ``size`` bytes each."""
    elements = _array(path, encoding)
    if elements is not None:
        yield [(number, json.dumps(element).encode()) for number, element in enumerate(elements, 1)]
        return
    number = 1
    with _open_utf8(path, encoding) as file:
        for lines in _blocks(file, size):
            yield [(n, line) for n, line in enumerate(lines, number) if line.strip()]
            number += len(lines)


def keys(path: Path, encoding: str | None, size: int) -> tuple[str, ...]:
    """The keys of all objects, in the order in which they turn up; raises DataError for a file without any."""
    found: dict[str, None] = {}
    for lines in numbered_lines(path, encoding, size):
        for _, line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue  # counted when the rows are read
            if isinstance(value, dict):
                found.update(dict.fromkeys(value))
    if not found:
        raise DataError(f"{path}: no JSON object in it; one object per line is wanted, or one array of objects")
    return tuple(key.encode(errors="replace").decode() for key in found)  # half a surrogate pair is no name


def parse(lines: list[Line], schema: dict[str, Any]) -> Iterator[tuple[pl.DataFrame, list[Line], str | None]]:
    """The frame of some lines, those lines, and what is wrong with them if they cannot be read.

    Many lines are parsed at once. Where that fails, those that Python refuses too are parsed alone, and what is left
    between them is halved until each line that polars refuses stands alone.
    """
    broken = {n for n, line in lines if _ESCAPED_SURROGATE.search(line) and not _is_text(line)}
    if not broken or len(lines) == 1:
        try:
            if broken:
                raise pl.exceptions.ComputeError("half a surrogate pair")
            frame = pl.read_ndjson(io.BytesIO(b"\n".join(line for _, line in lines)), schema=schema)
            if frame.height == len(lines):
                yield frame, lines, None
                return
        except pl.exceptions.PolarsError:
            pass  # somewhere in these lines
    if len(lines) > 1:
        for part in _parts(lines):
            yield from parse(part, schema)
        return
    nothing = pl.DataFrame({column: [None] for column in schema}, schema=schema)
    yield nothing, lines, "not text (half a surrogate pair)" if broken else _problem(lines[0][1])


def _parts(lines: list[Line]) -> Iterator[list[Line]]:
    """Two lines or more in parts, in order: around those that are no JSON objects, else in halves."""
    cuts = {0, len(lines)}
    for place, (_, line) in enumerate(lines):
        if not _is_object(line):
            cuts |= {place, place + 1}
    if len(cuts) == 2:
        cuts.add(len(lines) // 2)
    for start, end in pairwise(sorted(cuts)):
        yield lines[start:end]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _problem(line: bytes) -> str:
    try:
        line.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    try:
        value = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return str(error) if str(error) == NO_NUMBER else "invalid JSON"
    return "JSON that cannot be read" if isinstance(value, dict) else "not a JSON object"


def _refuse(_: str) -> None:
    raise ValueError(NO_NUMBER)


def _is_text(line: bytes) -> bool:
    try:
        json.dumps(json.loads(line), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except (ValueError, RecursionError):
        pass  # another fault, found by the parser
    return True


def _open_utf8(path: Path, encoding: str | None) -> IO[bytes]:
    with open_bytes(path) as file:
        name = encoding_of(file, encoding)
    if name in ("utf-8", "utf-8-sig"):
        file = open_bytes(path)
        file.read(3 if name == "utf-8-sig" else 0)
        return file
    text, _ = open_text(path, encoding)
    with text:
        return io.BytesIO(text.read().encode(errors="replace"))


def _blocks(file: IO[bytes], size: int) -> Iterator[list[bytes]]:
    rest = b""
    while block := file.read(size):
        if block.endswith(b"\r"):
            block += file.read(1)  # a line end is not to be cut in half
        *lines, rest = (rest + block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        yield lines
    if rest:
        yield [rest]


def _array(path: Path, encoding: str | None) -> list[Any] | None:
    """The elements of a file that is one JSON array; None where it is not."""
    with _open_utf8(path, encoding) as file:
        first = next((line.strip() for line in file if line.strip()), b"")
        if not first.startswith(b"["):
            return None
    with _open_utf8(path, encoding) as file:
        try:
            value = json.loads(file.read())
        except UnicodeDecodeError:
            raise DataError(f"{path}: not UTF-8; give its --encoding, such as latin-1") from None
        except (ValueError, RecursionError) as error:
            try:
                json.loads(first)
            except (ValueError, RecursionError):
                raise DataError(f"{path}: neither JSON lines nor one JSON array ({error})") from None
            return None  # its first line is an array: a bad row
    return value if isinstance(value, list) else None
