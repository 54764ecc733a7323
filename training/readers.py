"""Tables of any size, read batch by batch: parquet, CSV and its relatives, JSON lines, xlsx.

Every reader yields polars frames with the columns

    row       i64     line number (text) or row number (parquet, xlsx), from 1, headers included
    problem   str     why the row could not be read at all, else null
    content   str     what the unreadable row says, shortened, else null

and one column per wanted field: strings from text formats, native types from parquet.
"""

import csv
import gzip
import importlib
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl

from fathom.errors import DataError, MissingExtraError

Layout = Literal["parquet", "csv", "jsonl", "xlsx"]

BATCH_ROWS = 500_000
PARQUET_BATCH_ROWS = 4_000_000
BLOCK_BYTES = 32 << 20
CONTENT_CHARS = 120

_SUFFIXES: dict[str, Layout] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".xlsx": "xlsx",
}


@dataclass(frozen=True)
class Table:
    """One file and the columns wanted from it.

    columns: our field -> the file's column; names: the columns of a file without a header line;
    quoted: whether csv fields may stand in quotes; types: fields that are not plain values in JSON (lists).
    """

    path: Path
    layout: Layout
    columns: Mapping[str, str]
    names: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf-8"
    quoted: bool = True
    types: Mapping[str, Any] = field(default_factory=dict)


def layout_of(path: Path) -> Layout:
    """The layout that a file's suffix stands for (``.gz`` set aside); raises DataError for an unknown one."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    layout = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if layout is None:
        raise DataError(f"{path}: unknown format; known endings: {', '.join(_SUFFIXES)} (text may be .gz)")
    return layout


def column_names(path: Path, layout: Layout, *, delimiter: str = ",") -> tuple[str, ...]:
    """The names of a file's columns; of JSON lines, the keys of the first object."""
    _must_exist(path)
    if layout == "parquet":
        return tuple(_scan_parquet(path).collect_schema().names())
    if layout == "xlsx":
        return tuple(cell or "" for cell in next((cells for _, cells, _ in _sheet_rows(path)), []))
    with _open(path) as file:
        first = next((line for line in file if line.strip()), b"")
    if layout == "jsonl":
        try:
            return tuple(pl.read_ndjson(io.BytesIO(first)).columns)
        except pl.exceptions.PolarsError:
            return ()
    text = first.decode("utf-8-sig", errors="replace")
    return tuple(name.strip() for name in next(csv.reader([text], delimiter=delimiter), []))


def read(table: Table) -> Iterator[pl.DataFrame]:
    """Batches of a table, in the file's order, a bounded number of rows each.

    Raises DataError for a missing file or column and for a file that is not of its format at all.
    """
    _must_exist(table.path)
    readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "xlsx": _read_xlsx, "csv": _read_csv}
    try:
        yield from readers[table.layout](table)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{table.path}: cannot be read to its end ({shorten(str(error))})") from None


def shorten(content: str) -> str:
    """One printable line of at most CONTENT_CHARS characters."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in content[: CONTENT_CHARS + 1])
    return printable if len(printable) <= CONTENT_CHARS else printable[: CONTENT_CHARS - 1] + "…"


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _need_columns(table: Table, found: Iterable[str]) -> None:
    found = list(found)
    missing = [name for name in table.columns.values() if name not in found]
    if missing:
        raise DataError(f"{table.path}: no column {missing[0]!r}; it has: {', '.join(found) or 'none'}")


# parquet


def _scan_parquet(path: Path) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({shorten(str(error))})") from None
    return frame


def _read_parquet(table: Table) -> Iterator[pl.DataFrame]:
    frame = _scan_parquet(table.path)
    _need_columns(table, frame.collect_schema().names())
    wanted = frame.select(pl.col(column).alias(name) for name, column in table.columns.items())
    start = 0
    while True:
        try:
            batch = wanted.slice(start, PARQUET_BATCH_ROWS).collect()
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{table.path}: damaged parquet file ({shorten(str(error))})") from None
        if batch.is_empty():
            return
        yield _numbered(batch, pl.int_range(start + 1, start + batch.height + 1, eager=True))
        start += batch.height


def _numbered(batch: pl.DataFrame, rows: pl.Series | list[int]) -> pl.DataFrame:
    empty = pl.lit(None, dtype=pl.String)
    return batch.with_columns(pl.Series("row", rows, dtype=pl.Int64), empty.alias("problem"), empty.alias("content"))


# CSV, GroupLens' .dat and .data, xlsx: rows of cells

Row = tuple[int, list[str | None], str | None]  # row number, cells, problem


def _read_csv(table: Table) -> Iterator[pl.DataFrame]:
    return _read_cells(table, _text_rows(table))


def _read_xlsx(table: Table) -> Iterator[pl.DataFrame]:
    return _read_cells(table, _sheet_rows(table.path))


def _read_cells(table: Table, rows: Iterator[Row]) -> Iterator[pl.DataFrame]:
    names = list(table.names) or next(([cell or "" for cell in cells] for _, cells, _ in rows if cells), [])
    names = [name.strip() for name in names]
    _need_columns(table, names)
    wanted = {name: names.index(column) for name, column in table.columns.items()}
    while chunk := list(islice(rows, BATCH_ROWS)):
        yield _cells_frame(chunk, wanted, len(names))


def _cells_frame(chunk: list[Row], wanted: Mapping[str, int], width: int) -> pl.DataFrame:
    problems = [problem or _width_problem(cells, width) for _, cells, problem in chunk]
    empty: list[str | None] = [None] * width
    usable = [empty if problem else cells for (_, cells, _), problem in zip(chunk, problems, strict=True)]
    frame = pl.DataFrame(
        {name: [cells[index] for cells in usable] for name, index in wanted.items()},
        schema=dict.fromkeys(wanted, pl.String),
    )
    contents = [
        shorten(",".join(cell or "" for cell in cells)) if problem else None
        for (_, cells, _), problem in zip(chunk, problems, strict=True)
    ]
    return frame.with_columns(
        pl.Series("row", [row for row, _, _ in chunk], dtype=pl.Int64),
        pl.Series("problem", problems, dtype=pl.String),
        pl.Series("content", contents, dtype=pl.String),
    )


def _width_problem(cells: list[str | None], width: int) -> str | None:
    return None if len(cells) == width else f"{len(cells)} columns instead of {width}"


def _text_rows(table: Table) -> Iterator[Row]:
    """Rows of delimited text; empty lines are no rows, a quoted field may hold line ends."""
    undecodable: set[int] = set()
    with _open(table.path) as file:
        lines = _decoded(file, table.encoding, undecodable)
        rows = _csv_rows(lines, table) if len(table.delimiter) == 1 else _split_rows(lines, table.delimiter)
        for start, end, cells, problem in rows:
            if undecodable and not undecodable.isdisjoint(range(start, end + 1)):
                problem = f"not {table.encoding}"
            if cells or problem:
                yield start, cells, problem


def _split_rows(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, int, list[str | None], str | None]]:
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        yield number, number, [*text.split(delimiter)] if text else [], None


def _csv_rows(lines: Iterator[str], table: Table) -> Iterator[tuple[int, int, list[str | None], str | None]]:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if table.quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=table.delimiter, quoting=quoting)
    end = 0
    while True:
        start = end + 1
        try:
            cells, problem = [*next(reader)], None
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = [], f"unreadable ({error})"
        end = reader.line_num
        yield start, end, [*cells], problem


def _decoded(file: IO[bytes], encoding: str, undecodable: set[int]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            undecodable.add(number)
            text = line.decode(encoding, errors="replace")
        yield text.removeprefix("\ufeff") if number == 1 else text


def _sheet_rows(path: Path) -> Iterator[Row]:
    try:
        openpyxl: Any = importlib.import_module("openpyxl")
    except ImportError:
        raise MissingExtraError("openpyxl", "train") from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, openpyxl.utils.exceptions.InvalidFileException):
        raise DataError(f"{path}: not an xlsx file") from None
    number, header = 0, None
    for sheet in book.worksheets:
        for values in sheet.iter_rows(values_only=True):
            number += 1
            cells = [_cell_text(value) for value in values]
            if header is None:
                header = cells
            elif cells == header:
                continue  # every sheet of a workbook repeats the header
            if any(cells):
                yield number, cells, None
    book.close()


def _cell_text(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None if value is None else str(value)


# JSON lines


def _read_jsonl(table: Table) -> Iterator[pl.DataFrame]:
    schema = {column: table.types.get(name, pl.String) for name, column in table.columns.items()}
    names = {column: name for name, column in table.columns.items()}
    row = 1
    with _open(table.path) as file:
        for lines in _blocks(file):
            numbered = [(row + index, line) for index, line in enumerate(lines) if line.strip()]
            row += len(lines)
            if numbered:
                frames = list(_parse_json(numbered, schema))
                yield pl.concat(frames).rename(names)


def _blocks(file: IO[bytes]) -> Iterator[list[bytes]]:
    rest = b""
    while block := file.read(BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        yield lines
    if rest:
        yield [rest]


def _parse_json(lines: list[tuple[int, bytes]], schema: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """Parse many lines at once; halve them until each line that polars refuses stands alone."""
    try:
        frame = pl.read_ndjson(io.BytesIO(b"\n".join(line for _, line in lines)), schema=schema)
        if frame.height == len(lines):
            yield _numbered(frame, [row for row, _ in lines])
            return
    except pl.exceptions.PolarsError:
        pass  # somewhere in these lines; found below
    if len(lines) > 1:
        middle = len(lines) // 2
        yield from _parse_json(lines[:middle], schema)
        yield from _parse_json(lines[middle:], schema)
        return
    row, line = lines[0]
    text = line.decode("utf-8", errors="replace")
    frame = _numbered(pl.DataFrame({column: [None] for column in schema}, schema=schema), [row])
    yield frame.with_columns(
        pl.lit("not UTF-8" if "\ufffd" in text else "invalid JSON").alias("problem"),
        pl.lit(shorten(text.strip())).alias("content"),
    )
