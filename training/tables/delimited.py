"""Delimited text as rows of cells: every record of the file is a row, and every row that is damaged says why.

A quoted field may hold line ends (RFC 4180). A quote that does not close, or closes inside a field, costs the line
where it stands and nothing else: reading goes on at the next line.
"""

import codecs
import csv
import gzip
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from fathom.errors import ConfigError, DataError

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
SAMPLE_LINES = 50
STRAY_QUOTE = "a stray quote"

_MARKS = (  # byte-order marks; UTF-32's little-endian one begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")

Row = tuple[int, list[str], str | None]  # line, cells, why it cannot be used


@dataclass(frozen=True)
class Dialect:
    """How the cells of a line are told apart.

    numeric: columns (places) whose values begin with a digit; short: those whose values hold no rows of text.
    """

    delimiter: str = ","
    quoted: bool = True
    numeric: tuple[int, ...] = ()
    short: tuple[int, ...] = ()

    def reader(self, lines: "Sequence[str] | Iterator[str]") -> Iterator[list[str]]:
        """The records of some lines; csv.Error for a quote that does not close where a field ends."""
        if len(self.delimiter) > 1:
            return (text.split(self.delimiter) if (text := line.rstrip("\r\n")) else [] for line in lines)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(lines, delimiter=self.delimiter, quoting=quoting, strict=True)

    def first(self, lines: Sequence[str]) -> list[str]:
        """The cells of the first record, or of the first line where its quotes do not close."""
        try:
            return next(iter(self.reader(lines)), [])
        except csv.Error:
            return lines[0].rstrip("\r\n").split(self.delimiter)


def check_delimiter(text: str) -> str:
    r"""The delimiter that an option stands for (``\t``, ``tab``: a tab); raises ConfigError for an impossible one."""
    delimiter = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if not delimiter or any(c in '"\r\n\0' for c in delimiter):
        raise ConfigError(f"a delimiter must have a character or more, no quote and no line end, unlike {text[:20]!r}")
    return delimiter


def check_encoding(name: str) -> str:
    """The name of a text encoding; raises ConfigError for another."""
    try:
        codec = codecs.lookup(name)
        "".encode(name)  # refuses codecs that do not encode text
    except (LookupError, ValueError):
        raise ConfigError(
            f"unknown encoding {name[:40]!r}; known are utf-8, latin-1, cp1252, utf-16 and others"
        ) from None
    return codec.name


def open_bytes(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked where it is gzip, whatever its name says."""
    file = path.open("rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    file.close()
    return gzip.open(path, "rb")  # type: ignore[return-value]


def encoding_of(file: IO[bytes], given: str | None) -> str:
    """The encoding of a file that is not read yet: what its byte-order mark says, else the given one, else UTF-8."""
    start: bytes = file.peek(4)[:4]  # type: ignore[attr-defined]
    return next((name for mark, name in _MARKS if start.startswith(mark)), given or "utf-8")


def open_text(path: Path, encoding: str | None) -> tuple[IO[str], str]:
    """A file's text with its line ends as they are, and its encoding; undecodable bytes become surrogates."""
    file = open_bytes(path)
    encoding = encoding_of(file, encoding)
    errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=""), encoding.removesuffix("-sig")


def sample(path: Path, encoding: str | None) -> list[str]:
    """The first lines that are not blank; raises DataError for a file without any, or that is not text."""
    text, encoding = open_text(path, encoding)
    with text:
        lines = list(islice((line for line in text if line.strip()), SAMPLE_LINES))
    if not lines:
        raise DataError(f"{path}: the file is empty")
    if "\0" in lines[0]:
        raise DataError(f"{path}: not {encoding} text; if it is text, give its --encoding, such as utf-16-le")
    if _SURROGATE.search(lines[0]):
        raise DataError(f"{path}: not {encoding} text; give its --encoding, such as latin-1")
    return lines


def sniff(lines: Sequence[str], recognised: Callable[[list[str]], bool], candidates: Iterable[str] = DELIMITERS) -> str:
    """The delimiter of a file by its first lines: the one that makes columns with ``recognised`` names, then the one by
    which all lines are equally wide, then the one that makes most columns."""

    def merit(delimiter: str) -> tuple[bool, bool, int]:
        dialect = Dialect(delimiter)
        names = dialect.first(lines)
        even = all(len(dialect.first([line])) == len(names) for line in lines)
        return len(names) > 1 and recognised(names), len(names) > 1 and even, len(names)

    return max(candidates, key=merit)


def rows(
    path: Path, encoding: str | None, dialect: Dialect, width: int, header: bool, size: int
) -> Iterator[list[Row]]:
    """Blocks of a file's rows, after its header; blank lines are no rows."""
    text, encoding = open_text(path, encoding)
    with text:
        first, lines = 1, []
        more = True
        while more:
            new = list(islice(text, size))
            more = len(new) == size
            lines += new
            found, used = _block(lines, first, dialect, width, encoding, last=not more)
            if header and found:
                found, header = found[1:], False
            yield found
            first, lines = first + used, lines[used:]


def _block(
    lines: list[str], first: int, dialect: Dialect, width: int, encoding: str, last: bool
) -> tuple[list[Row], int]:
    """The rows of some lines, the first of which has number ``first``, and how many lines they take."""
    damaged = _damaged(lines, encoding)
    text = "".join(lines)
    if not damaged and '"' not in text:
        try:
            plain = list(dialect.reader(lines))
            return [(n, cells, None) for n, cells in enumerate(plain, first) if _is_row(cells)], len(lines)
        except csv.Error:
            pass  # a field of more than csv's limit; found below
    found: list[Row] = []
    at = 0
    for at, end, cells, problem in _records(lines, dialect, width, last):
        reason = next((damaged[n] for n in range(at, end) if n in damaged), problem)
        if reason is not None:
            cells = [lines[at].rstrip("\r\n")]
        if reason is not None or _is_row(cells):
            found.append((first + at, cells, reason))
        at = end
    return found, at if not last else len(lines)


def _is_row(cells: list[str]) -> bool:
    return len(cells) > 1 or bool(cells and cells[0].strip())


def _damaged(lines: list[str], encoding: str) -> dict[int, str]:
    """What is wrong with single lines before they are taken apart: bytes that are not text."""
    text = "".join(lines)
    found: dict[int, str] = {}
    try:
        if "\0" not in text and (text.isascii() or text.encode()):
            return found
    except UnicodeEncodeError:
        pass
    for number, line in enumerate(lines):
        if "\0" in line:
            found[number] = "a NUL byte"
        if _SURROGATE.search(line):
            found[number] = f"not {encoding}"
            lines[number] = _SURROGATE.sub("\ufffd", line)
    return found


def _records(
    lines: list[str], dialect: Dialect, width: int, last: bool
) -> Iterator[tuple[int, int, list[str], str | None]]:
    """First line, line after the last, cells and problem of each record, as far as the lines hold it whole."""
    at = 0
    while at < len(lines):
        begin = at
        reader = dialect.reader(map(lines.__getitem__, range(at, len(lines))))
        try:
            for cells in reader:
                end = begin + reader.line_num if isinstance(reader, _CSV_READER) else at + 1
                if end > at + 1 and _swallows_rows(cells, lines[at:end], dialect, width):
                    raise csv.Error(STRAY_QUOTE)
                yield at, end, cells, None
                at = end
        except csv.Error:
            at_end = begin + reader.line_num == len(lines)  # type: ignore[attr-defined]
            if at_end and not last:
                return  # its rest may be in the next block
            yield at, at + 1, [], STRAY_QUOTE if '"' in lines[at] else "a field that is too long"
            at += 1


def _swallows_rows(cells: list[str], lines: list[str], dialect: Dialect, width: int) -> bool:
    """Whether a quoted field swallows rows: most of the record's ``lines`` after its first are rows of their own.

    Text may have as many delimiters as a row by chance; hardly so in an id, with digits where the table has numbers, or
    in line after line. Of the last line only the cells before the closing quote are text, of the first those after the
    opening one.
    """
    if all(line.count(dialect.delimiter) != width - 1 for line in lines[1:]):
        return False

    def numbers(row: list[str], start: int = 0, end: int = width) -> list[str] | None:
        """What stands in the numeric columns from ``start`` to ``end``; None where the line is no row."""
        found = [row[place].strip(' "') for place in dialect.numeric if start <= place < min(end, len(row))]
        return found if len(row) == width and all(number[:1].isdigit() for number in found) else None

    first, *whole, last = (line.rstrip("\r\n").split(dialect.delimiter) for line in lines)
    if len(cells) != width:  # damaged in any case
        return True
    fields = [place for place, cell in enumerate(cells) if "\n" in cell or "\r" in cell]
    inside = fields[-1]
    rows = [found for row in whole if (found := numbers(row)) is not None]
    seen = len(rows) * (width - 1) + inside  # delimiters
    rows += [found for found in (numbers(last, end=inside),) if found is not None]
    proven = (
        any(rows) or numbers(first, start=inside + 1) or seen >= 6 or (set(fields) & set(dialect.short) and seen > 0)
    )
    return bool(proven) and 2 * len(rows) >= len(lines) - 1


_CSV_READER = type(csv.reader([]))
