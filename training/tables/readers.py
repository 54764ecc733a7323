"""Tables of any size, read batch by batch: parquet, CSV and its relatives, JSON lines, xlsx.

Every reader yields polars frames with the columns

    row       i64     line number (text) or row number (parquet, xlsx), from 1, headers included
    problem   str     why the row could not be read at all, else null
    content   str     what the unreadable row says, shortened, else null

and one column per wanted field: strings from text formats, native types from parquet.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from fathom.artefacts import is_utf8
from fathom.errors import DataError, optional
from fathom.training.tables import delimited, json_lines
from fathom.training.tables.columns import listed
from fathom.training.tables.context import PREFIX

Layout = Literal["parquet", "csv", "jsonl", "xlsx"]

BATCH_ROWS = 500_000
PARQUET_BATCH_ROWS = 1_000_000
BLOCK_BYTES = 32 << 20
CONTENT_CHARS = 120

_SUFFIXES: dict[Layout, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv", ".tab", ".psv", ".inter", ".item"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "xlsx": (".xlsx",),
}
_LAYOUTS = {suffix: layout for layout, suffixes in _SUFFIXES.items() for suffix in suffixes}


@dataclass(frozen=True)
class Table:
    """One file and the columns wanted from it.

    columns: our field -> the file's column; names: the columns of a file without a header line;
    encoding: where no byte-order mark says it (None: UTF-8); quoted: whether csv fields may stand in quotes.
    """

    path: Path
    layout: Layout
    columns: Mapping[str, str]
    names: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str | None = None
    quoted: bool = True


def layout_of(path: Path) -> Layout:
    """The layout that a file's suffix stands for (``.gz`` set aside); raises DataError for an unknown one."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    layout = _LAYOUTS.get(suffixes[-1]) if suffixes else None
    if layout is None:
        raise DataError(
            f"{path}: unknown format; known endings: {', '.join(_LAYOUTS)} (text may be .gz); or name the format, as"
            f" in: fathom data prepare csv --path {path.name}"
        )
    return layout


def column_names(path: Path, layout: Layout, *, delimiter: str = ",", encoding: str | None = None) -> tuple[str, ...]:
    """The names of a file's columns; of JSON, the keys of all its objects.

    Raises DataError for a file that is missing, cannot be read or is not of its format.
    """
    with _one_line(path):
        if layout == "parquet":
            return tuple(_scan_parquet(path).collect_schema().names())
        if layout == "xlsx":
            return tuple(next((cells for _, cells, _ in _sheet_rows(path)), []))
        if layout == "jsonl":
            return json_lines.keys(path, encoding, BLOCK_BYTES)
        cells = delimited.Dialect(delimiter).first(delimited.sample(path, encoding))
        return tuple(name.strip().encode(errors="replace").decode() for name in cells)


def delimiter_of(
    path: Path, encoding: str | None, recognised: Callable[[list[str]], bool], *, also: str | None = None
) -> str:
    """The delimiter of a text file, by its first lines: a usual one or ``also``; ``recognised``: whether names are what
    is looked for.
    """
    with _one_line(path):
        return delimited.sniff(delimited.sample(path, encoding), recognised, [*delimited.DELIMITERS, also or ","])


def read(table: Table) -> Iterator[pl.DataFrame]:
    """Batches of a table, in the file's order, a bounded number of rows each.

    Raises DataError for a missing file or column and for a file that is not of its format at all.
    """
    readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "xlsx": _read_xlsx, "csv": _read_csv}
    with _one_line(table.path):
        yield from readers[table.layout](table)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What the system says of a file that cannot be read, as a DataError."""
    if not is_utf8(path):
        raise DataError(f"{path}: the name is not UTF-8; rename it")
    if not path.is_file():
        raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read to its end ({shorten(str(error))})") from None


def shorten(content: str) -> str:
    """One printable line of at most CONTENT_CHARS characters."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in content[: CONTENT_CHARS + 1])
    return printable if len(printable) <= CONTENT_CHARS else printable[: CONTENT_CHARS - 1] + "…"


def _need_columns(table: Table, found: Iterable[str]) -> None:
    found = list(found)
    missing = [name for name in table.columns.values() if name not in found]
    if missing:
        raise DataError(f"{table.path}: no column {missing[0]!r}; it has: {listed(found)}")


# parquet


def _scan_parquet(path: Path) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
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
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise DataError(f"{table.path}: damaged parquet file ({shorten(str(error))})") from None
        if batch.is_empty():
            return
        yield _numbered(batch, pl.int_range(start + 1, start + batch.height + 1, eager=True))
        start += batch.height


def _numbered(batch: pl.DataFrame, rows: pl.Series | list[int]) -> pl.DataFrame:
    empty = pl.lit(None, dtype=pl.String)
    return batch.with_columns(pl.Series("row", rows, dtype=pl.Int64), empty.alias("problem"), empty.alias("content"))


# CSV, GroupLens' .dat and .data, xlsx: rows of cells

Row = tuple[int, list[str], str | None]  # row number, cells, problem


def _read_csv(table: Table) -> Iterator[pl.DataFrame]:
    names = table.names or column_names(table.path, "csv", delimiter=table.delimiter, encoding=table.encoding)
    _need_columns(table, names)
    places = _places(table, names)
    numeric = tuple(places[n] for n in ("timestamp", "position", "rating") if n in places)
    short = tuple(places[n] for n in ("user", "item", "id") if n in places)
    dialect = delimited.Dialect(table.delimiter, table.quoted, numeric, (*numeric, *short))
    for rows in delimited.rows(table.path, table.encoding, dialect, len(names), not table.names, BATCH_ROWS):
        if rows:
            frame = _cells_frame(rows, places, len(names))
            yield frame if table.names else _without_headers(frame, table)


def _read_xlsx(table: Table) -> Iterator[pl.DataFrame]:
    rows = _sheet_rows(table.path)
    names = next((cells for _, cells, _ in rows), [])
    _need_columns(table, names)
    while chunk := list(islice(rows, BATCH_ROWS)):
        yield _without_headers(_cells_frame(chunk, _places(table, names), len(names)), table)


def _places(table: Table, names: Sequence[str]) -> dict[str, int]:
    return {name: names.index(column) for name, column in table.columns.items()}


def _cells_frame(rows: list[Row], wanted: Mapping[str, int], width: int) -> pl.DataFrame:
    problems = [problem or _width_problem(cells, width) for _, cells, problem in rows]
    columns: dict[str, list[str | None]]
    if any(problems):
        usable = [None if problem else cells for (_, cells, _), problem in zip(rows, problems, strict=True)]
        columns = {name: [None if cells is None else cells[n] for cells in usable] for name, n in wanted.items()}
    else:
        columns = {name: [cells[place] for _, cells, _ in rows] for name, place in wanted.items()}
    contents = [
        shorten(",".join(cells)) if problem else None for (_, cells, _), problem in zip(rows, problems, strict=True)
    ]
    return pl.DataFrame(columns, schema=dict.fromkeys(wanted, pl.String)).with_columns(
        pl.Series("row", [row for row, _, _ in rows], dtype=pl.Int64),
        pl.Series("problem", problems, dtype=pl.String),
        pl.Series("content", contents, dtype=pl.String),
    )


def _without_headers(frame: pl.DataFrame, table: Table) -> pl.DataFrame:
    """Files that were put one behind the other repeat their header: it is no row of data."""
    again = pl.all_horizontal(pl.col(name) == column for name, column in table.columns.items())
    return frame.with_columns(pl.when(again).then(pl.lit("the header again")).otherwise("problem").alias("problem"))


def _width_problem(cells: list[str], width: int) -> str | None:
    return None if len(cells) == width else f"{len(cells)} columns instead of {width}"


def _sheet_rows(path: Path) -> Iterator[Row]:
    """The header, then the rows of all sheets, each of which must begin with the same header."""
    openpyxl = optional("openpyxl", "train")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, openpyxl.utils.exceptions.InvalidFileException):
        raise DataError(f"{path}: not an xlsx file") from None
    number, header = 0, None
    for sheet in book.worksheets:
        first = True
        for values in sheet.iter_rows(values_only=True):
            number += 1
            cells = _trimmed([_cell_text(value) for value in values])
            if not cells:
                continue
            if first and header is not None and cells != header:
                raise DataError(
                    f"{path}: sheet {shorten(sheet.title)!r} has other columns than the first; save one sheet as csv"
                )
            if not first or header is None:
                yield number, [*cells, *[""] * (len(header or []) - len(cells))], None
            header, first = header or cells, False
    book.close()


def _trimmed(cells: list[str]) -> list[str]:
    """Without the empty cells at the end, which a sheet has or has not by chance."""
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _cell_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


# JSON lines


def _read_jsonl(table: Table) -> Iterator[pl.DataFrame]:
    schema = dict.fromkeys(table.columns.values(), pl.String)
    names = {column: name for name, column in table.columns.items()}
    for lines in json_lines.numbered_lines(table.path, table.encoding, BLOCK_BYTES):
        frames = []
        for frame, those, problem in json_lines.parse(lines, schema) if lines else ():
            content = shorten(those[0][1].decode(errors="replace").strip()) if problem else None
            numbered = _numbered(frame, [row for row, _ in those])
            frames.append(
                numbered.with_columns(
                    pl.lit(problem, dtype=pl.String).alias("problem"), pl.lit(content, dtype=pl.String).alias("content")
                )
            )
        if frames:
            yield _without_nested(pl.concat(frames).rename(names))


def _without_nested(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists and objects are no ids, nor features of a context: polars has made text of them."""
    for name in [name for name in frame.columns if name in ("user", "item", "id") or name.startswith(PREFIX)]:
        nested = (
            pl.col(name).str.contains(r'^(\{("|\}$)|\[(["\[{\d-]|\]$|true|false|null))') & pl.col("problem").is_null()
        )
        frame = frame.with_columns(
            pl.when(nested).then(pl.lit(f"{name} is a list or an object")).otherwise("problem").alias("problem"),
            pl.when(nested)
            .then(pl.lit(f"{name}: ") + pl.col(name).str.slice(0, 80))
            .otherwise("content")
            .alias("content"),
        )
    return frame
