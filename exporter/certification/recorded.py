"""What a bundle answers, at every depth, to requests that a server has recorded (`fathom serve --record`).

Nobody knows what should have been answered, so there is no quality; how far answers agree can be told all the same.

No users are recorded, and one user's history comes again and again as it grows. So requests are grouped: a history
belongs to one that continues it, the whole of it or, where the engine no longer sees the oldest items, all but those.
Users whose histories happen to continue each other's are grouped too, and nothing in the data tells. Therefore whatever
is certified must hold for every request (all rows) and for the longest of each group (``in_order`` counts all others as
repeats).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fathom.errors import ArtefactError, ConfigError, DataError, brief
from fathom.exporter.certification.outcomes import Outcomes, measure_outcomes
from fathom.files import parse_json
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.manifest import content_version
from fathom.training.dataset import Contexts, Sequences
from fathom.training.splits import Cases

#: Items by which a history can have grown since the request before and still be seen to continue it, where the oldest
#: ones are cut off.
MOST_STEPS = 10

History = NDArray[np.int32]


class _Line(BaseModel):
    """A recorded request, as far as it is read: of which engines, and its history, oldest item first."""

    model_config = ConfigDict(extra="ignore", strict=True)

    schema_version: Literal[1]
    content: str
    items: Annotated[list[str], Field(min_length=1)]
    timestamps: list[Annotated[int, Field(ge=0, le=2**62)]] | None = None
    request_time: Annotated[int, Field(ge=0, le=2**62)] = 0
    context: dict[str, str] = {}


class _Request(NamedTuple):
    """A history: item indices (n,), and seconds (n,) where they were recorded, else zeros.

    ``asked``: the second of the request, 0 where that changes nothing or was not recorded. ``context``: the places of
    its values among those of the bundle's features, from 1; 0 where not known.
    """

    items: History
    timestamps: NDArray[np.int64]
    asked: int
    context: tuple[int, ...]


class Recording(NamedTuple):
    """Requests in the order of their files; ``others``: of other bundles or with items that this one does not have."""

    requests: list[_Request]
    others: int


def recorded_outcomes(
    bundle: Bundle,
    engine: Engine,
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcomes:
    """Ask every recorded request of every depth; one row per request, its ``quality`` NaN.

    ``users`` are groups, numbered, and ``digests`` are theirs; the longest history of a group comes before its others.
    Raises ConfigError for a folder without recordings, ArtefactError for a line that is no request, DataError where
    none is of this bundle.
    """
    requests, others = read_recording(bundle, folder)
    progress(f"{len(requests):,} recorded requests, {others:,} of other bundles or items left out")
    if not requests:
        raise DataError(f"{folder}: none of {others:,} recorded requests is of this bundle; record some with it")
    distinct: dict[object, int] = {}
    keys = [(each.items.tobytes(), each.timestamps.tobytes(), each.asked, each.context) for each in requests]
    rows = np.array([distinct.setdefault(key, len(distinct)) for key in keys])
    firsts = np.unique(rows, return_index=True)[1]
    asked = [requests[first] for first in firsts.tolist()]
    measured = measure_outcomes(bundle, engine, _cases(asked, _values_of(bundle)), progress=progress)
    groups = grouped([each.items for each in asked], bundle.manifest.model.max_history)
    lengths = np.array([len(each.items) for each in asked])
    measured = replace(
        measured, users=groups, digests=_digests(groups, asked), quality=np.full_like(measured.quality, np.nan)
    )
    return measured.select(rows[np.argsort(-lengths[rows], kind="stable")])


def read_recording(bundle: Bundle, folder: Path) -> Recording:
    """The recorded requests of a bundle, certified since or not; raises as ``recorded_outcomes``."""
    files = sorted(folder.glob("requests-*.jsonl"))
    if not files:
        raise ConfigError(f"{folder}: holds no recorded requests; record some with `fathom serve --record`")
    content, index = content_version(bundle.manifest), bundle.catalogue.index
    values = _values_of(bundle)
    places = {name: {value: place for place, value in enumerate(known, 1)} for name, known in values.items()}
    requests, others = [], 0
    for line in (line for file in files for line in _lines(file)):
        items = [index.get(each) for each in line.items] if line.content == content else [None]
        if None in items:
            others += 1
        else:
            times = line.timestamps or [0] * len(items)
            asked = 0 if bundle.request_time is None else line.request_time
            context = tuple(known.get(line.context.get(name, ""), 0) for name, known in places.items())
            requests.append(_Request(np.array(items, np.int32), np.array(times, np.int64), asked, context))
    return Recording(requests, others)


def _values_of(bundle: Bundle) -> Mapping[str, tuple[str, ...]]:
    """Feature of the context -> the values of it that change anything."""
    context = bundle.context
    return {} if context is None else {name: tuple(known) for name, known in context.values.items()}


def _lines(file: Path) -> Iterator[_Line]:
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            # Half a line is the last of its file: its writer was stopped.
            if raw.endswith(b"\n"):
                yield _read(raw, f"{file}:{number}")


def _read(raw: bytes, where: str) -> _Line:
    try:
        line = _Line.model_validate(parse_json(raw))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"])) or "content"
        raise ArtefactError(f"{where}: not a recorded request: {brief(key)}; remove the line") from None
    except ValueError as error:
        raise ArtefactError(f"{where}: not a recorded request: {brief(error)}; remove the line") from None
    if line.timestamps is not None and len(line.timestamps) != len(line.items):
        raise ArtefactError(f"{where}: as many timestamps as items are needed; remove the line")
    return line


def grouped(histories: Sequence[History], longest: int) -> NDArray[np.int64]:
    """A number for each history (n,), the same where one continues the other; ``longest``: items that are seen."""
    # In this order of bytes a history comes right before what continues it.
    keys = [each.astype(">i4").tobytes() for each in histories]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    group = list(range(len(keys)))

    def root(row: int) -> int:
        while group[row] != row:
            group[row] = group[group[row]]
            row = group[row]
        return row

    for before, row in pairwise(order):
        if keys[row].startswith(keys[before]):
            group[root(before)] = root(row)
    full = [row for row, each in enumerate(histories) if len(each) == longest]
    for steps in range(1, min(MOST_STEPS, longest // 2) + 1):
        ends = {keys[row][: -4 * steps]: row for row in full}
        for row in full:
            after = ends.get(keys[row][4 * steps :])
            if after is not None:
                group[root(row)] = root(after)
    return np.array([root(row) for row in range(len(keys))], np.int64)


def _digests(groups: NDArray[np.int64], requests: Sequence[_Request]) -> NDArray[np.void]:
    """What identifies each request's group: sha256 of the items of one of them, V32 (n,)."""
    found = [sha256(requests[group].items.astype("<i4").tobytes()).digest() for group in groups.tolist()]
    return np.array(found, dtype="V32")


def _cases(requests: Sequence[_Request], values: Mapping[str, tuple[str, ...]]) -> Cases:
    """Cases without an item that is known to follow; ``values``: of each feature of the context."""
    offsets = np.cumsum([0, *(len(each.items) for each in requests)])
    items = np.concatenate([each.items for each in requests])
    times = np.concatenate([each.timestamps for each in requests])
    nothing = np.full(len(requests), -1, np.int32)
    asked = np.array([each.asked for each in requests], np.int64)
    codes = np.array([each.context for each in requests], np.int32).reshape(len(requests), len(values))
    histories = Sequences(items, offsets, times, asked=asked, asked_contexts=Contexts(values, codes))
    return Cases(histories, nothing, np.arange(len(requests), dtype=np.int32))
