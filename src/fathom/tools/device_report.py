"""What a device was measured to do, as a file that can be shared, and profiles made of such files."""

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fathom import DISTRIBUTION
from fathom.artefacts import MERGED_PROFILE
from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError
from fathom.files import read_json, write_bytes, write_json
from fathom.runtime.manifest import Count, DeviceCheck, Line, Manifest, NotNegative
from fathom.selector.schema import AnyDepth
from fathom.tools.doctor import installed

SCHEMA_VERSION: Literal[1] = 1
#: What a run takes of the memory differs from run to run.
MEMORY_ROOM = 1.1
_VERSIONS = (DISTRIBUTION, "onnxruntime", "numpy", "grpcio", "protobuf")
_Text = Annotated[str, Field(max_length=1000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_Frozen):
    """Of one request alone with so many items: milliseconds inside the server, and millijoules of the whole device."""

    depth: AnyDepth
    history: Count
    p50_ms: NotNegative
    p99_ms: NotNegative
    energy_mj: NotNegative | None


class DeviceReport(_Frozen):
    """``peak_mb``: most resident memory of the server's process; None: it did not run. ``energy_source``: what told."""

    schema_version: Literal[1] = SCHEMA_VERSION
    device_profile: Line
    tier: Line
    bundle: Line
    bundle_version: Line
    precision: Line
    item_precision: Line
    items: Count
    machine: Line
    threads: Count
    memory_limit_mb: Count
    latency_budget_ms: NotNegative
    peak_mb: NotNegative | None
    figures: tuple[Figure, ...]
    energy_source: _Text | None
    words: _Text
    versions: dict[str, str]
    created: Line

    @property
    def on(self) -> str:
        """What was measured, for people."""
        return f"{self.machine}, bundle {self.bundle} {self.bundle_version}, {self.created[:10]}"


def write_report(
    path: Path,
    profile: DeviceProfile,
    manifest: Manifest,
    found: DeviceCheck,
    energy_mj: Mapping[tuple[int, int], float],
    energy_source: str | None,
) -> None:
    """Write what a check has found; ``energy_mj``: depth and history -> of one request."""
    figures = tuple(
        Figure(**each.model_dump(), energy_mj=energy_mj.get((each.depth, each.history))) for each in found.latency
    )
    report = DeviceReport(
        device_profile=profile.name,
        tier=profile.tier,
        bundle=manifest.name,
        bundle_version=manifest.version,
        precision=manifest.precision,
        item_precision=manifest.item_precision,
        items=manifest.items,
        machine=found.machine,
        threads=found.threads,
        memory_limit_mb=found.memory_limit_mb,
        latency_budget_ms=profile.latency_budget_ms,
        peak_mb=found.peak_mb,
        figures=figures,
        energy_source=energy_source,
        words=found.words,
        versions=_versions(),
        created=found.created,
    )
    write_json(path, report.model_dump(mode="json"))


def read_report(path: Path) -> DeviceReport:
    """A report that `fathom profiles check --report` wrote; raises ArtefactError or ConfigError for anything else."""
    value = read_json(path, kind="device report", schema_version=SCHEMA_VERSION)
    try:
        return DeviceReport.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: not a device report: {where}: {first['msg']}; write it again") from None


def merge(profile: DeviceProfile, reports: Sequence[DeviceReport], *, name: str) -> DeviceProfile:
    """The profile under another name, with the limits that the reports have measured.

    ``memory_limit_mb``: the largest peak and a tenth more; ``latency_budget_ms``: the largest p99 of any depth; both
    rounded up. Raises ConfigError for a report of another profile, or one without a measurement.
    """
    for report in reports:
        if report.device_profile != profile.name:
            raise ConfigError(f"a report is of profile {report.device_profile}, not of {profile.name}; leave it out")
        if report.peak_mb is None or not report.figures:
            raise ConfigError(f"a report of {report.created} has measured nothing: {report.words}; leave it out")
    largest = max(reports, key=lambda report: report.peak_mb or 0.0)
    slowest, on = max(
        ((figure, report.on) for report in reports for figure in report.figures), key=lambda pair: pair[0].p99_ms
    )
    limit_mb = math.ceil(round((largest.peak_mb or 0.0) * MEMORY_ROOM, 3))
    values = profile.model_dump(mode="json") | {
        "name": name,
        "memory_limit_mb": limit_mb,
        "latency_budget_ms": float(max(1, math.ceil(slowest.p99_ms))),
        "measured": dict(profile.measured)
        | {"memory_limit_mb": largest.on, "latency_budget_ms": f"depth {slowest.depth}, {on}"},
    }
    try:
        return DeviceProfile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]} would be {first['input']}: {first['msg']}") from None


def write_profile(path: Path, profile: DeviceProfile) -> None:
    """Write a profile as the YAML that ``load_profile`` reads."""
    values = profile.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    # The mark by which it is recognised, so that it may be replaced.
    write_bytes(path, f"{MERGED_PROFILE.mark}\n\n{text}".encode())


def _versions() -> dict[str, str]:
    found: dict[str, Any] = {name: installed(name) for name in _VERSIONS}
    known = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), "system": platform.platform(terse=True)} | known
