"""What a server's core was measured to spend: a JSON file that plans are made from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ArtefactError, ConfigError
from fathom.files import read_json, write_json
from fathom.runtime.cost import Line
from fathom.tools.capacity.simulation import Core

SCHEMA_VERSION = 2
KIND = "file of measured costs"
#: The length of a history that is remembered whole: only the search is left.
REMEMBERED = 0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Load(_Frozen):
    """One load that was measured: requests per engine run (1 where none was), and processor time per request."""

    batch: float = Field(ge=1)
    cpu_us: float = Field(gt=0)


class CellCost(_Frozen):
    """What a batch costs a core at one depth, with histories of one length (0: remembered ones).

    Microseconds of processor time of the whole server: ``fixed_us + requests * each_us``, by least squares through
    ``loads``. ``engine_share``: of that time, the engine's thread.
    """

    depth: int = Field(ge=1)
    history: int = Field(ge=0)
    fixed_us: float = Field(ge=0)
    each_us: float = Field(gt=0)
    engine_share: float = Field(gt=0, le=1)
    loads: tuple[Load, ...]


class MeasuredCosts(_Frozen):
    """Everything a plan takes from measurement.

    ``mix``: the share of each depth, as the server routed requests without a deadline. ``histories``: lengths of the
    histories that were asked with, as quantiles; ``histories_of``: where they came from. ``count_us``: an answer at
    depth 0; None where it is not served. ``choosing_us``: what a request that leaves its depth to the server takes
    more. ``spread``: standard deviation of the logarithm of a load's processor time around the lines. ``jitter``: the
    server's time for one request alone, by its mean, as quantiles. ``delays_us``: until a thread that wakes while
    another runs gets the core, as quantiles. ``stalls_per_s``: how often per second a busy core was taken away by what
    else the machine did, for one of ``stalls_us``, as quantiles. ``wire_us``: what a caller saw beside it. ``mixes``:
    whether a batch may have several depths. ``process_mb``: memory of the process at the end, ``cache_mb`` of it the
    prefix cache. ``event_bytes``: of an event in the server's own history store, in memory.
    """

    schema_version: int = SCHEMA_VERSION
    bundle: str
    bundle_version: str
    profile: str
    machine: str
    created: str
    mix: dict[int, float]
    histories: tuple[int, ...]
    histories_of: str
    cells: tuple[CellCost, ...] = Field(min_length=1)
    count_us: float | None
    choosing_us: float = Field(ge=0)
    spread: float = Field(ge=0)
    jitter: tuple[float, ...] = Field(min_length=1)
    delays_us: tuple[float, ...] = Field(min_length=1)
    stalls_per_s: float = Field(ge=0)
    stalls_us: tuple[float, ...] = Field(min_length=1)
    wire_us: float = Field(ge=0)
    mixes: bool
    process_mb: float
    cache_mb: float
    event_bytes: float

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read them; raises ArtefactError."""
        try:
            return cls.model_validate(read_json(path, kind=KIND, schema_version=SCHEMA_VERSION))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ArtefactError(f"{path}: not a {KIND}: {place}: {first['msg']}; measure again") from None

    def save(self, path: Path) -> None:
        """Write them, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))

    def check(self, path: Path, version: str, profile: str) -> None:
        """Raise ConfigError unless they were measured of this version of a bundle, as this profile."""
        if (self.bundle_version, self.profile) != (version, profile):
            raise ConfigError(
                f"{path}: was measured of version {self.bundle_version[:12]} as {self.profile},"
                f" not of version {version[:12]} as {profile}; add --measure"
            )

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that are served, ascending; 0 too."""
        return (*([] if self.count_us is None else [0]), *sorted({cell.depth for cell in self.cells}))

    def line(self, depth: int, length: int) -> Line:
        """A batch of histories of one length: between the lengths that were measured on a straight line."""
        cells = sorted((cell for cell in self.cells if cell.depth == depth), key=lambda cell: cell.history)
        if length != REMEMBERED:
            cells = [cell for cell in cells if cell.history != REMEMBERED]
        at = [cell.history for cell in cells]
        fixed_us = float(np.interp(length, at, [cell.fixed_us for cell in cells]))
        return Line(fixed_us / 1e6, float(np.interp(length, at, [cell.each_us for cell in cells])) / 1e6)

    def core(
        self, profile: DeviceProfile, buckets: Sequence[int], *, chooses: bool = False, slower: float = 1.0
    ) -> Core:
        """A core for the simulation, of histories in these length buckets.

        ``chooses``: whether the server chooses depths. ``slower``: factor of all costs.
        """
        cells = [(depth, length) for depth in self.depths if depth for length in buckets]
        measured = {cell: self.line(*cell) for cell in cells}
        lines = {cell: Line(slower * line.fixed_s, slower * line.each_s) for cell, line in measured.items()}
        around = {cell: self._around(*cell) for cell in cells}
        shallowest = min(cells)[0], max(buckets)
        count_s = around[shallowest] * lines[shallowest].each_s
        if self.count_us is not None:
            count_s = slower * self.count_us / 1e6
        return Core(
            lines,
            count_s,
            around,
            choosing_s=slower * self.choosing_us / 1e6 if chooses else 0.0,
            jitter=self.jitter,
            delays_s=[each / 1e6 for each in self.delays_us],
            stalls_per_s=self.stalls_per_s,
            stalls_s=[each / 1e6 for each in self.stalls_us],
            wire_s=self.wire_us / 1e6,
            max_batch=profile.max_batch,
            max_batch_tokens=profile.max_batch_tokens,
            mixes=self.mixes,
        )

    def _around(self, depth: int, length: int) -> float:
        cells = [cell for cell in self.cells if cell.depth == depth]
        return 1 - min(cells, key=lambda cell: abs(cell.history - length)).engine_share
