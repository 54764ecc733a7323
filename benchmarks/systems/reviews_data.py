"""Reviews in the form of Amazon Reviews 2023, made up: as many users, items and rows as asked for, and known faults.

What is like the real ones (Electronics: 43.9 million rows, 18.3 million users, 1.6 million items): 2.4 rows a user,
most of whom have one; popularity that falls with the rank; ids of 28 and 10 characters; rows of one user scattered over
the file; days as times, several rows of a user on one of them; copies of rows. What is not: users have no taste, so
quality cannot be measured on them, and texts are short.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fathom.errors import ConfigError

Form = Literal["jsonl", "csv", "parquet"]
FORMS: tuple[Form, ...] = get_args(Form)

#: Exponent of the number of rows of a user: 2.4 on average, as in Electronics.
ACTIVITY, MOST_ROWS = 2.35, 1_000
ITEMS_PER_ROW = 1.6 / 43.9
#: Popularity falls with the rank + this, so that the first items do not take all.
FLAT_RANKS = 50
#: Of all rows: copies of another one; and those of each fault.
COPIES, FAULTY = 0.01, 0.0005
DAYS, DAY_MS, FIRST_DAY = 9_000, 86_400_000, 10_500
CHUNK = 500_000
_LETTERS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", dtype=np.uint8)
_TEXT = "it works as described and I would buy this again for my desk the cable is short but the sound is good"
Numbers = NDArray[np.uint64]


@dataclass(frozen=True)
class Written:
    """A written file: its rows and users, how many rows are copies of another one, and how many have which fault.

    ``faults``: as meta.json names them.
    """

    path: Path
    rows: int
    users: int
    copies: int
    faults: dict[str, int]


def write_reviews(path: Path, rows: int, form: Form, seed: int) -> Written:
    """Write ``path`` with so many rows and, beside it, the items' ``meta_...``; the same bytes for the same seed.

    Raises ConfigError for too few rows, and for an unknown form.
    """
    if form not in FORMS or rows < 1_000:
        raise ConfigError(f"reviews: {rows} rows as {form}; at least 1,000, as {', '.join(FORMS)}")
    rng = np.random.default_rng(seed)
    copies, faulty = int(rows * COPIES), int(rows * FAULTY)
    broken = faulty if form == "jsonl" else 0
    users = _owners(rows - copies - broken, rng)
    popular = np.cumsum(1 / (np.arange(max(10, int(rows * ITEMS_PER_ROW))) + FLAT_RANKS))
    chunks = _chunks(users, popular, copies, faulty, rng)
    faults = dict.fromkeys((f"missing {name}" for name in _BLANKED), faulty)
    if form == "parquet":
        _write_parquet(path, chunks)
    else:
        with path.open("wb") as file:
            for number, chunk in enumerate(chunks):
                if form == "csv":
                    chunk.select(_RATING_ONLY).write_csv(file, include_header=number == 0)
                else:
                    chunk.write_ndjson(file)
            file.write(b'{"rating": 5.0, "title": "cut off\n' * broken)
    _write_items(path.with_name(f"meta_{path.name}"), len(popular), form)
    faults |= {"invalid JSON": broken} if broken else {}
    return Written(path, rows, int(users.max()) + 1, copies, faults)


#: What is left out of faulty rows: our name of the column, and the release's.
_BLANKED = {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"}
#: The columns of the releases without texts.
_RATING_ONLY = ("user_id", "parent_asin", "rating", "timestamp")


def _owners(rows: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """The user of each row, int32 (rows,), in no order; the number of rows of a user follows a power law."""
    counts: list[NDArray[np.int64]] = []
    left = rows
    while left > 0:
        drawn = np.minimum(rng.zipf(ACTIVITY, max(1_000, left // 4)), MOST_ROWS)
        counts.append(drawn[np.cumsum(drawn) <= left])
        left -= int(counts[-1].sum())
        if len(counts[-1]) < len(drawn):
            counts.append(np.array([left]) if left else np.array([], dtype=np.int64))
            break
    each = np.concatenate(counts)
    owners = np.repeat(np.arange(len(each), dtype=np.int32), each)
    rng.shuffle(owners)
    return owners


def _chunks(
    users: NDArray[np.int32], popular: NDArray[np.float64], copies: int, faulty: int, rng: np.random.Generator
) -> Iterator[pl.DataFrame]:
    """All rows but the broken ones; faulty rows have no copy, and a copy is in its original's chunk."""
    texts = [" ".join(rng.choice(_TEXT.split(), int(n))) for n in rng.integers(5, 30, 1_000)]
    starts = range(0, len(users), CHUNK)
    for number, start in enumerate(starts):
        here, share = users[start : start + CHUNK], [_part(n, number, len(starts)) for n in (copies, faulty)]
        frame = _rows(here, popular, texts, rng)
        which = rng.permutation(len(here))
        frame, taken = _with_faults(frame, which, share[1])
        copied = frame[rng.choice(which[taken:], share[0])]
        yield pl.concat([frame, copied])[rng.permutation(len(frame) + len(copied))]


def _part(total: int, number: int, of: int) -> int:
    return total * (number + 1) // of - total * number // of


def _with_faults(frame: pl.DataFrame, which: NDArray[np.int64], faulty: int) -> tuple[pl.DataFrame, int]:
    """With ``faulty`` rows of each fault, at the first of these places; how many of the places that took."""
    taken = 0
    for name in _BLANKED.values():
        here = np.zeros(len(frame), dtype=np.bool_)
        here[which[taken : taken + faulty]] = True
        frame = frame.with_columns(pl.when(pl.lit(pl.Series(~here))).then(pl.col(name)).alias(name))
        taken += faulty
    return frame, taken


def _rows(
    users: NDArray[np.int32], popular: NDArray[np.float64], texts: list[str], rng: np.random.Generator
) -> pl.DataFrame:
    """Rows of these users, as the release has them."""
    n = len(users)
    items = np.searchsorted(popular, rng.random(n) * popular[-1]).astype(np.uint64)
    # One of three days of the user's, most often the first.
    days = _mixed(users.astype(np.uint64) * np.uint64(3) + np.minimum(rng.geometric(0.6, n) - 1, 2).astype(np.uint64))
    asin = _ids(items, 10, b"B0")
    return pl.DataFrame(
        {
            "rating": rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], n, p=[0.11, 0.05, 0.07, 0.14, 0.63]),
            "title": pl.Series(texts).str.slice(0, 30).gather(rng.integers(0, len(texts), n)),
            "text": pl.Series(texts).gather(rng.integers(0, len(texts), n)),
            "asin": asin,
            "parent_asin": asin,
            "user_id": _ids(users.astype(np.uint64), 28, b"AE"),
            "timestamp": (days % np.uint64(DAYS)).astype(np.int64) * DAY_MS + FIRST_DAY * DAY_MS,
            "helpful_vote": rng.geometric(0.5, n) - 1,
            "verified_purchase": rng.random(n) < 0.9,
        }
    )


def _mixed(numbers: Numbers) -> Numbers:
    """Other numbers for these, one to one (the finalizer of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _ids(numbers: Numbers, size: int, start: bytes) -> pl.Series:
    """Ids of ``size`` characters that look drawn at random, another one for each number below 2**40."""
    letters = np.empty((len(numbers), size), dtype=np.uint8)
    letters[:, : len(start)] = np.frombuffer(start, dtype=np.uint8)
    # Times an odd number is one to one; eight letters hold these 40 bits.
    bits, left = numbers * np.uint64(0x9E3779B97F4A7C15 | 1), 8
    for place in range(len(start), size):
        if left == 0:
            numbers = _mixed(numbers)
            bits, left = numbers, 12
        letters[:, place] = _LETTERS[bits & np.uint64(31)]
        bits, left = bits >> np.uint64(5), left - 1
    return pl.Series(letters.view(f"S{size}").ravel().astype(str))


def _write_parquet(path: Path, chunks: Iterator[pl.DataFrame]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".chunks-") as folder:
        for number, chunk in enumerate(chunks):
            chunk.write_parquet(Path(folder) / f"{number:06}.parquet")
        pl.scan_parquet(Path(folder) / "*.parquet").sink_parquet(path)


def _write_items(path: Path, items: int, form: Form) -> None:
    """Title and categories of each item."""
    numbers = np.arange(items, dtype=np.uint64)
    kinds = pl.Series("kind", [["Electronics", "Audio"], ["Electronics", "Cables"], ["Computers"], []])
    table = pl.DataFrame(
        {
            "parent_asin": _ids(numbers, 10, b"B0"),
            "title": pl.select(pl.format("Article {} of the catalogue", pl.Series(numbers))).to_series(),
            "categories": kinds.gather(numbers % np.uint64(4)),
        }
    )
    if form == "jsonl":
        table.write_ndjson(path)
    elif form == "parquet":
        table.write_parquet(path)
    else:
        table.with_columns(pl.col("categories").list.join("|")).write_csv(path)
