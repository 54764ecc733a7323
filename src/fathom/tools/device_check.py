"""Whether a bundle fits a device: it is served as the device's profile says, asked at every depth, and measured."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fathom.artefacts import BUNDLE, check_output, real
from fathom.client import Client, Query, Recommendation
from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError, FathomError, UnavailableError
from fathom.exporter.bundle.derive import rewrite
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import DeviceCheck, DeviceLatency
from fathom.serving.memory import peak_mb
from fathom.tools.doctor import machine
from fathom.tools.energy import Meter, Reading, find_meter

#: A process sets more memory aside than it ever uses: stacks of threads, buffers of libraries. The kernel's limit
#: counts that too, so it lies this far above the profile's and only ends what runs away; what was used decides.
SET_ASIDE_MB = 256
HISTORIES = (50, 200)
REQUESTS = 100
SEED = 0


class Checked(NamedTuple):
    """What was found, and depth and history -> millijoules of one request, where the device tells of energy."""

    check: DeviceCheck
    energy_mj: dict[tuple[int, int], float]
    energy_source: str | None


def check_device(path: Path, profile: DeviceProfile, profile_name: str) -> Checked:
    """Serve a bundle within a profile's memory limit, measure it, and note the result in the bundle's manifest.

    ``profile_name``: as `fathom serve --profile` takes it. At each depth of the profile, 0 too: single requests, then
    a batch as large as the profile allows, each with a history of its own. Linux only. Raises BundleError or
    ConfigError.
    """
    if not Path("/proc/self/status").exists():
        raise ConfigError("fathom profiles check BUNDLE needs Linux: it reads the peak memory from /proc")
    check_output(real(path), BUNDLE)
    with Bundle.open(path) as bundle:
        depths = [depth for depth in bundle.manifest.served_depths if depth in profile.depths]
        ids, longest = bundle.catalogue.ids, bundle.manifest.model.max_history
    if not any(depths):
        raise ConfigError(f"{path}: the bundle has an engine for none of the depths of profile {profile.name}")
    limit, peak, words = profile.memory_limit_mb, None, ""
    latency: tuple[DeviceLatency, ...] = ()
    meter, energy_mj = find_meter(), dict[tuple[int, int], float]()
    options = ("--profile", profile_name, "--force")
    try:
        with (
            running_server(path, *options, data_limit_mb=limit + SET_ASIDE_MB) as server,
            Client(server.address) as client,
        ):
            measured = tuple(
                _measure(client, depths, _histories(ids), longest, 2 * profile.max_batch, meter, energy_mj)
            )
            peak, latency = _peak_mb(server.pid), measured
    except UnavailableError as error:
        words = str(error)
    found = DeviceCheck(
        memory_limit_mb=limit,
        threads=profile.threads,
        peak_mb=peak,
        latency=latency,
        words=words,
        machine=machine(),
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    with Bundle.open(path) as bundle:
        rewrite(bundle, fits={**bundle.manifest.fits, profile.name: found})
    return Checked(found, energy_mj, meter.source if meter and energy_mj else None)


def _measure(
    client: Client,
    depths: list[int],
    histories: Iterator[list[str]],
    longest: int,
    batch: int,
    meter: Meter | None,
    energy_mj: dict[tuple[int, int], float],
) -> Iterator[DeviceLatency]:
    """Latency and energy of single requests by depth and length of the history; a batch follows at each depth."""
    for depth in depths:
        for length in sorted({min(length, longest) for length in HISTORIES}):
            alone = [next(histories)[:length] for _ in range(REQUESTS)]
            before = _reading(meter)
            answers = [client.recommend(items, depth=depth) for items in alone]
            if meter and before and (after := _reading(meter)):
                energy_mj[depth, length] = round(meter.between_mj(before, after) / REQUESTS, 3)
            yield _latency(length, answers)
        together = [Query(next(histories)[:longest], depth=depth) for _ in range(batch)]
        for result in client.recommend_many(together):
            if isinstance(result, FathomError):
                raise result


def _reading(meter: Meter | None) -> Reading | None:
    """None where it shows nothing any more: a battery that was taken out."""
    with suppress(OSError, ValueError):
        return meter.read() if meter else None
    return None


def _histories(ids: tuple[str, ...]) -> Iterator[list[str]]:
    """A new random history each time, as long as any model's."""
    rng = np.random.default_rng(SEED)
    while True:
        yield [ids[item] for item in rng.integers(len(ids), size=max(HISTORIES))]


def _latency(history: int, answers: list[Recommendation]) -> DeviceLatency:
    took_ms = [answer.timings.total_us / 1e3 for answer in answers]
    p50, p99 = np.quantile(took_ms, (0.5, 0.99)).round(3).tolist()
    return DeviceLatency(depth=answers[0].depth, history=history, p50_ms=p50, p99_ms=p99)


def _peak_mb(pid: int) -> float:
    found = peak_mb(pid)
    if found is None:
        raise ConfigError("the kernel does not report the peak memory of a process (VmHWM in /proc)")
    return found
