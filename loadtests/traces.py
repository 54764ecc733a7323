"""Arrival traces: which request is sent when. A trace is a JSONL file, so any language can make or replay one.

    python -m fathom.loadtests.traces build/ml-100k/dataset --out trace.jsonl --kind bursty --rate 200 --duration 30

The first line describes the trace; each further line is one request: ``at_s`` (seconds after the start, never
falling), ``items``, and optionally ``timestamps``, ``k``, ``profile``, ``depth``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import typer
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fathom.artefacts import TRACE, check_outputs, expect
from fathom.errors import ConfigError, DataError, FathomError, MissingExtraError
from fathom.files import write_bytes

SCHEMA_VERSION = 1
MAX_REQUESTS = 1_000_000
# A Markov-modulated process: bursts of 5 times the calm rate, one second in five on average.
BURST_FACTOR, CALM_S, BURST_S = 5.0, 2.0, 0.5

Kind = Literal["poisson", "bursty"]


@dataclass(frozen=True)
class UserHistory:
    """One user's items, oldest first; ``timestamps`` in seconds since 1970, empty when unknown."""

    items: tuple[str, ...]
    timestamps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Arrival:
    """One request and the moment at which it should be sent."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    at_s: Annotated[float, Field(ge=0)]
    items: tuple[str, ...]
    timestamps: tuple[Annotated[int, Field(ge=-(2**63), lt=2**63)], ...] = ()
    k: Annotated[int, Field(ge=0, lt=2**32)] = 10
    profile: str = ""
    depth: Annotated[int, Field(ge=0, lt=2**32)] | None = None


_ARRIVAL = TypeAdapter(Arrival)


@dataclass(frozen=True)
class Trace:
    """Arrivals in the order of their time, and how they were made."""

    arrivals: tuple[Arrival, ...]
    duration_s: float
    made: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the trace whole or not at all."""
        header = {"schema_version": SCHEMA_VERSION, "duration_s": self.duration_s, **self.made}
        lines = [json.dumps(header).encode()]
        lines += [_ARRIVAL.dump_json(each, exclude_defaults=True) for each in self.arrivals]
        write_bytes(path, b"".join(line + b"\n" for line in lines))

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Read a trace; raises DataError with ``file:line`` of the first mistake."""
        expect(path, TRACE)
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        header = _header(path, lines[0] if lines else b"")
        arrivals = tuple(_arrival(path, number, line) for number, line in enumerate(lines[1:], start=2))
        for number, (before, after) in enumerate(pairwise(arrivals), start=3):
            if after.at_s < before.at_s:
                raise DataError(f"{path}:{number}: at_s falls from {before.at_s} to {after.at_s}; sort the trace")
        made = {key: value for key, value in header.items() if key not in ("schema_version", "duration_s")}
        return cls(arrivals, float(header["duration_s"]), made)


def poisson_times(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Arrival times (seconds, ascending) of a Poisson process: memoryless users, independent of the server."""
    count = rng.poisson(rate_per_s * duration_s)
    return np.sort(rng.uniform(0, duration_s, count))


def bursty_times(
    rate_per_s: float,
    duration_s: float,
    rng: np.random.Generator,
    *,
    factor: float = BURST_FACTOR,
    calm_s: float = CALM_S,
    burst_s: float = BURST_S,
) -> np.ndarray:
    """Arrival times of a two-state Markov-modulated Poisson process with a mean of ``rate_per_s`` in the long run.

    Calm and burst last exponential times with means ``calm_s`` and ``burst_s``; the burst's rate is ``factor`` times
    the calm one.
    """
    calm_rate = rate_per_s * (calm_s + burst_s) / (calm_s + factor * burst_s)
    times, now, burst = [], 0.0, bool(rng.random() < burst_s / (calm_s + burst_s))
    while now < duration_s:
        length = min(rng.exponential(burst_s if burst else calm_s), duration_s - now)
        times.append(now + poisson_times(calm_rate * (factor if burst else 1.0), length, rng))
        now += length
        burst = not burst
    return np.concatenate(times)


def make_trace(
    histories: Sequence[UserHistory],
    *,
    kind: Kind = "poisson",
    rate_per_s: float,
    duration_s: float,
    seed: int = 0,
    k: int = 10,
    profiles: Sequence[str] = ("",),
    depth: int | None = None,
    longest: int = 200,
) -> Trace:
    """A trace whose requests are random moments in random users' histories; equal arguments make equal traces.

    Each request holds a user's first 1..n items (at most the newest ``longest`` of them) and one of ``profiles``.
    Raises ConfigError for impossible rates and durations, or more than a million requests.
    """
    if not histories:
        raise ConfigError("a trace needs at least one history")
    if not (rate_per_s > 0 and duration_s > 0) or rate_per_s * duration_s > MAX_REQUESTS:
        raise ConfigError(
            f"{rate_per_s:g} requests/s for {duration_s:g} s: both must be positive, and at most {MAX_REQUESTS} in all"
        )
    rng = np.random.default_rng(seed)
    times = {"poisson": poisson_times, "bursty": bursty_times}[kind](rate_per_s, duration_s, rng)
    arrivals = []
    for at_s in times.tolist():
        history = histories[int(rng.integers(len(histories)))]
        end = int(rng.integers(1, len(history.items) + 1))
        start = max(0, end - longest)
        profile = profiles[int(rng.integers(len(profiles)))]
        arrivals.append(
            Arrival(round(at_s, 6), history.items[start:end], history.timestamps[start:end], k, profile, depth)
        )
    made = {"kind": kind, "rate_per_s": rate_per_s, "seed": seed, "longest": longest, "users": len(histories)}
    return Trace(tuple(arrivals), duration_s, made)


def read_histories(path: Path, *, users: int = 2_000, seed: int = 0) -> list[UserHistory]:
    """Histories of up to ``users`` random users of a dataset folder, or of all requests of a trace file.

    Raises DataError when ``path`` is neither, MissingExtraError when a dataset is read without polars.
    """
    if path.is_file():
        return [UserHistory(each.items, each.timestamps) for each in Trace.load(path).arrivals]
    if not (path / "interactions.parquet").is_file():
        raise DataError(f"{path}: neither a trace nor a dataset folder; `fathom data prepare` makes one")
    try:
        import polars as pl
    except ImportError:
        raise MissingExtraError("polars", "train") from None
    ids = pl.read_parquet(path / "items.parquet", columns=["id"])["id"].to_list()
    events = pl.scan_parquet(path / "interactions.parquet")
    everyone = events.select("user").unique().sort("user").collect()["user"]
    chosen = everyone.sample(min(users, len(everyone)), seed=seed)
    columns = [name for name in ("item", "timestamp") if name in events.collect_schema().names()]
    grouped = events.filter(pl.col("user").is_in(chosen.implode())).group_by("user", maintain_order=True).agg(columns)
    rows = grouped.sort("user").collect().iter_rows(named=True)
    return [UserHistory(tuple(ids[i] for i in row["item"]), tuple(row.get("timestamp", ()))) for row in rows]


def _header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("duration_s"), int | float):
        raise DataError(
            f"{path}:1: not a trace: its first line must be JSON with schema_version and duration_s;"
            " `fathom data prepare` makes a dataset of a table"
        )
    if value.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{path}:1: a trace of schema_version {value.get('schema_version')}, not {SCHEMA_VERSION}")
    return value


def _arrival(path: Path, number: int, line: bytes) -> Arrival:
    try:
        return _ARRIVAL.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}:{number}: not a request of a trace: {where or 'line'}: {first['msg']}") from None


def main(
    histories: Annotated[Path, typer.Argument(help="dataset folder, or another trace")],
    out: Annotated[Path, typer.Option(help="the trace to write")],
    kind: Annotated[str, typer.Option(help="poisson or bursty")] = "poisson",
    rate: Annotated[float, typer.Option(help="mean requests per second")] = 50.0,
    duration: Annotated[float, typer.Option(help="seconds")] = 30.0,
    seed: Annotated[int, typer.Option()] = 0,
    k: Annotated[int, typer.Option(help="items per answer")] = 10,
    profile: Annotated[list[str] | None, typer.Option(help="profiles to mix; repeat the option")] = None,
    depth: Annotated[int | None, typer.Option(help="ask for this depth")] = None,
) -> None:
    """Make an arrival trace over real histories."""
    try:
        if kind not in ("poisson", "bursty"):
            raise ConfigError(f"--kind {kind}: there are poisson and bursty")
        check_outputs((out, TRACE), inputs=[histories])
        trace = make_trace(
            read_histories(histories, seed=seed),
            kind="poisson" if kind == "poisson" else "bursty",
            rate_per_s=rate,
            duration_s=duration,
            seed=seed,
            k=k,
            profiles=profile or [""],
            depth=depth,
        )
        trace.save(out)
    except FathomError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{out}: {len(trace.arrivals)} requests in {duration:g} s")


if __name__ == "__main__":
    typer.run(main)
