"""Recommendations for all users of a dataset or a table, written as one parquet file."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from fathom.artefacts import RECOMMENDATIONS, SCORE_PARTS, check_outputs, score_parts
from fathom.errors import ArtefactError, DataError
from fathom.files import new_file, read_json, remove_folder, write_json
from fathom.pieces import PieceRunner, one_after_the_other
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.session import Device
from fathom.tools.scoring.answers import NO_DEPTH, Piece, Scored, ScoreOptions, Work, depth_chooser, score_piece
from fathom.tools.scoring.histories import Users, read_users

SCHEMA_VERSION = 1
#: Told what is being done, in a line, and which share of it is done, None where that is unknown.
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Summary:
    """What was written: users, and how many by depth and by reason; those without an answer have no depth.

    ``resumed_users``: answered by an interrupted run before. ``unknown_items``: events left out, because the catalogue
    does not have their items. ``answering_s``: seconds without reading the users and joining the parts.
    """

    out: str
    bundle_version: str
    users: int
    resumed_users: int
    unknown_items: int
    depths: dict[str, int]
    reasons: dict[str, int]
    answering_s: float
    users_per_s: float


def score(
    bundle: Path,
    users: Path,
    out: Path,
    options: ScoreOptions,
    *,
    device: Device | Literal["auto"] = "auto",
    runner: PieceRunner = one_after_the_other,
    progress: Progress = lambda _, __: None,
    note: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Answer every user of ``users`` (as ``read_users`` has it) and write user_id, item_ids, scores, depth and reason.

    ``out`` appears whole or not at all; users keep their order. What is done of an interrupted run is kept beside it,
    and a run of the same bundle, input and options goes on from there; ``note`` is told where one has to start again.
    Raises ArtefactError, BundleError, ConfigError, DataError, OutputError, or UnavailableError where an engine or a
    process fails.
    """
    check_outputs((out, RECOMMENDATIONS), inputs=[bundle, users])
    opened = Bundle.open(bundle)
    depth_chooser(opened, options)
    catalogue, version = opened.catalogue, opened.manifest.version
    given = read_users(users, catalogue.index, lambda text: progress(text, None))
    if not given.ids:
        raise DataError(f"{users}: no user in it; there is nothing to score")
    kept = score_parts(out)
    _open(kept, _about(version, given, options), note)
    pieces = given.pieces()
    missing = [piece for piece in pieces if not _part(kept, piece.number).exists()]
    resumed = sum(len(piece.offsets) - 1 for piece in pieces) - sum(len(piece.offsets) - 1 for piece in missing)
    took_s = _answer(
        Work(bundle.resolve(), version, options, device),
        given,
        missing,
        pl.Series(catalogue.ids),
        kept,
        runner,
        progress,
    )
    progress("joining the parts", None)
    with new_file(out) as temporary:
        parts = [_part(kept, piece.number) for piece in pieces]
        pl.scan_parquet(parts).sink_parquet(temporary, metadata={"made_by": RECOMMENDATIONS.mark})
    remove_folder(kept, SCORE_PARTS)
    per_s = (len(given.ids) - resumed) / took_s if took_s else 0.0
    return Summary(
        str(out),
        version,
        len(given.ids),
        resumed,
        given.unknown_items,
        **_counts(out),
        answering_s=took_s,
        users_per_s=per_s,
    )


def _about(version: str, users: Users, options: ScoreOptions) -> dict[str, Any]:
    """What the parts of a run depend on."""
    about: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "bundle": version, "users": users.sha256}
    return about | {"options": asdict(options) | {"piece_size": users.piece_size}}


def _open(kept: Path, about: dict[str, Any], note: Callable[[str], None]) -> None:
    """Make the folder for parts, empty unless it holds parts of the same work."""
    head = kept / SCORE_PARTS.head
    if head.exists():
        try:
            before = read_json(head, kind="record of parts", schema_version=SCHEMA_VERSION)
        except ArtefactError:
            before = {}
        if before == about:
            return
        other = next((name for name in about if before.get(name) != about[name]), "bundle")
        note(f"{kept}: parts of an interrupted run with other {other}; starting again")
        remove_folder(kept, SCORE_PARTS)
    write_json(head, about)


def _part(kept: Path, number: int) -> Path:
    return kept / f"{number:06d}.parquet"


def _answer(
    work: Work,
    users: Users,
    missing: list[Piece],
    item_ids: pl.Series,
    kept: Path,
    runner: PieceRunner,
    progress: Progress,
) -> float:
    """Write the missing parts; returns the seconds that it took."""
    start_s, done, total = time.monotonic(), 0, sum(len(piece.offsets) - 1 for piece in missing)
    for piece, scored in runner(score_piece, work, missing) if missing else ():
        with new_file(_part(kept, piece.number)) as temporary:
            _table(users.ids[users.slice_of(piece.number)], scored, item_ids).write_parquet(temporary)
        done += len(piece.offsets) - 1
        rate = done / (time.monotonic() - start_s)
        left_s = round((total - done) / rate)
        progress(f"{done:,} of {total:,} users, {rate:,.0f}/s, {left_s // 60}:{left_s % 60:02d} min left", done / total)
    return time.monotonic() - start_s


def _table(users: Sequence[str], scored: Scored, item_ids: pl.Series) -> pl.DataFrame:
    """The rows of a piece's users."""
    rows = np.arange(len(users))
    answers = pl.DataFrame(
        {"row": np.repeat(rows, scored.lengths), "item_ids": item_ids.gather(scored.items), "scores": scored.scores}
    )
    lists = answers.group_by("row", maintain_order=True).agg("item_ids", "scores")
    table = pl.DataFrame({"row": rows, "user_id": users, "depth": scored.depths, "reason": scored.reasons})
    return table.join(lists, on="row", how="left", maintain_order="left").select(
        "user_id",
        pl.col("item_ids").fill_null([]).cast(pl.List(pl.String)),
        pl.col("scores").fill_null([]).cast(pl.List(pl.Float32)),
        pl.col("depth").cast(pl.Int32).replace(NO_DEPTH, None),
        "reason",
    )


def _counts(out: Path) -> dict[str, dict[str, int]]:
    """Users by depth and by reason."""
    table = pl.read_parquet(out, columns=["depth", "reason"])
    by_depth = table["depth"].drop_nulls().value_counts().sort("depth")
    by_reason = table["reason"].value_counts().sort("reason")
    return {"depths": {str(d): n for d, n in by_depth.iter_rows()}, "reasons": dict(by_reason.iter_rows())}
