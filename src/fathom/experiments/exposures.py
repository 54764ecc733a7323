"""The log of an experiment: a folder with its definition, who was shown what, and what came of it.

    experiment.json                      the definition, with schema_version
    exposures-WRITER-NUMBER.parquet      one row for each answered request of the experiment
    outcomes-WRITER-NUMBER.parquet       one row for each reported outcome, joined by request_id

Every part is written whole or not at all. Writing and reading need polars (extra `train`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from fathom.artefacts import EXPERIMENT_LOG, check_output, expect
from fathom.errors import ArtefactError, ConfigError, optional
from fathom.experiments.config import Experiment, as_stored, from_stored
from fathom.files import new_file, read_json, write_json

SCHEMA_VERSION = 1
ROWS_PER_PART = 10_000
_VERSION_KEY = "fathom_schema_version"


@dataclass(frozen=True)
class Exposure:
    """One answered request. ``time_s``: seconds since 1970. ``unit``: its salted hash, never the id itself.

    ``propensity``: the probability that a unit of the layer gets this arm. ``items``: the ids that were shown, in
    order. ``covariate``: what was known of the unit before the experiment, such as its clicks in the weeks before.
    ``agreement``: with the control's answer, where both were computed.
    """

    time_s: float
    experiment: str
    layer: str
    arm: str
    propensity: float
    unit: str
    request_id: str
    bundle: str
    version: str
    depth: int | None
    items: Sequence[str]
    latency_ms: float | None = None
    error: bool = False
    agreement: float | None = None
    covariate: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a caller reported of a request: ``kind`` such as click or purchase, and how much, such as 1 or a price."""

    time_s: float
    request_id: str
    kind: str
    value: float = 1.0
    item: str = ""


@dataclass(frozen=True)
class Log:
    """What a folder holds; both tables are polars frames with one column per field of their rows."""

    name: str
    experiment: Experiment
    exposures: Any
    outcomes: Any


def _schema(row: type) -> dict[str, Any]:
    """polars types of a table's columns."""
    pl = optional("polars", "train")
    types = {float: pl.Float64, int: pl.Int32, bool: pl.Boolean, str: pl.String, Sequence[str]: pl.List(pl.String)}
    hints = get_type_hints(row)
    return {name: types[get_args(hint)[0] if isinstance(hint, UnionType) else hint] for name, hint in hints.items()}


class LogWriter:
    """Collects rows of one experiment and writes them as parts; a part that cannot be written loses no row.

    ``expose`` and ``report`` only note; ``flush`` writes, and may run in a thread of its own, one at a time. ``writer``
    names this process among those that write into the folder: letters, digits and underscores. Raises MissingExtraError
    without polars, OutputError where the folder is none of ours, ArtefactError where it holds another experiment.
    """

    def __init__(self, folder: Path, name: str, experiment: Experiment, *, writer: str = "0") -> None:
        if not writer.replace("_", "").isalnum() or not writer.isascii():
            raise ConfigError(f"writer {writer!r}: give letters, digits and underscores")
        optional("polars", "train")
        self.folder = folder
        self._name = name
        self._writer = writer
        self._rows: dict[str, list[Exposure | Outcome]] = {"exposures": [], "outcomes": []}
        check_output(folder, EXPERIMENT_LOG)
        head = folder / EXPERIMENT_LOG.head
        if head.exists() and (found := read_definition(folder)[0]) != name:
            raise ArtefactError(f"{folder}: holds the log of experiment {found}, not {name}; choose another folder")
        self.define(experiment)

    def define(self, experiment: Experiment) -> None:
        """Write down the definition, which replaces an earlier one: a report judges by what was last asked for."""
        about = {"schema_version": SCHEMA_VERSION, "name": self._name, "experiment": as_stored(experiment)}
        write_json(self.folder / EXPERIMENT_LOG.head, about)

    def expose(self, row: Exposure) -> None:
        """Note an answered request."""
        self._rows["exposures"].append(row)

    def report(self, row: Outcome) -> None:
        """Note an outcome."""
        self._rows["outcomes"].append(row)

    @property
    def is_due(self) -> bool:
        """Whether there are enough rows for a part."""
        return max(map(len, self._rows.values())) >= ROWS_PER_PART

    def flush(self) -> None:
        """Write what is waiting; raises OSError, and keeps it, where that fails."""
        for kind, waiting in self._rows.items():
            if rows := waiting[:]:
                self._write(kind, rows)
                # What was noted meanwhile stays.
                del waiting[: len(rows)]

    def _write(self, kind: str, rows: Sequence[Exposure | Outcome]) -> None:
        pl = optional("polars", "train")
        table = pl.DataFrame([vars(row) for row in rows], schema=_schema(type(rows[0])))
        parts = self.folder.glob(f"{kind}-{self._writer}-*.parquet")
        number = 1 + max((int(part.stem.rpartition("-")[2]) for part in parts), default=-1)
        with new_file(self.folder / f"{kind}-{self._writer}-{number:06d}.parquet") as temporary:
            table.write_parquet(temporary, metadata={_VERSION_KEY: str(SCHEMA_VERSION)})


def read_definition(folder: Path) -> tuple[str, Experiment]:
    """Name and definition of a log's experiment; raises ArtefactError."""
    expect(folder, EXPERIMENT_LOG)
    head = folder / EXPERIMENT_LOG.head
    about = read_json(head, kind="experiment's log", schema_version=SCHEMA_VERSION)
    name, stored = about.get("name"), about.get("experiment")
    if not isinstance(name, str) or not isinstance(stored, Mapping):
        raise ArtefactError(f"{head}: not an experiment's log: it names no experiment")
    try:
        return name, from_stored(stored)
    except ValueError as error:
        raise ArtefactError(f"{head}: not an experiment's log: {error}") from None


def read_log(folder: Path) -> Log:
    """Read a log, each request once; raises ArtefactError for what is damaged or of another version."""
    name, experiment = read_definition(folder)
    # A request that was retried is logged again; its first answer counts, and each outcome of its kind and item.
    exposures = _read(folder, "exposures", Exposure).sort("time_s", "request_id", maintain_order=True)
    outcomes = _read(folder, "outcomes", Outcome).sort("time_s", maintain_order=True)
    return Log(
        name,
        experiment,
        exposures.unique("request_id", keep="first", maintain_order=True),
        outcomes.unique(["request_id", "kind", "item"], keep="first", maintain_order=True),
    )


def _read(folder: Path, kind: str, row: type) -> Any:
    """All parts of one kind as one table."""
    pl = optional("polars", "train")
    schema = _schema(row)
    tables = [pl.DataFrame(schema=schema)]
    for part in sorted(folder.glob(f"{kind}-*.parquet")):
        try:
            version = pl.read_parquet_metadata(part).get(_VERSION_KEY)
            if version != str(SCHEMA_VERSION):
                raise ArtefactError(f"{part}: has schema_version {version}, not {SCHEMA_VERSION}; upgrade Fathom")
            tables.append(pl.read_parquet(part).select(list(schema)).cast(schema))
        except (pl.exceptions.PolarsError, OSError) as error:
            line = str(error).partition("\n")[0]
            raise ArtefactError(f"{part}: cannot be read: {line}; move it away") from None
    return pl.concat(tables)


def with_outcomes(log: Log) -> Any:
    """Exposures with a column ``outcome_KIND`` for each kind of outcome: its total for that request, 0 without any.

    What an off-policy estimator needs: what was shown, with which propensity, and what came of it.
    """
    pl = optional("polars", "train")
    table = log.exposures
    for kind in sorted(log.outcomes["kind"].unique()):
        totals = log.outcomes.filter(pl.col("kind") == kind).group_by("request_id")
        column = f"outcome_{kind}"
        table = table.join(totals.agg(pl.col("value").sum().alias(column)), on="request_id", how="left")
        table = table.with_columns(pl.col(column).fill_null(0.0))
    return table
