"""The energy that a device says it takes: its counters where it has them, else its power, again and again.

Counters are those of Linux's powercap (RAPL: the packages of a processor) and of hwmon (energyN_input); power that of
hwmon (powerN_input) and of batteries (power_now). All of them tell of the whole device or package, not of one process:
what it takes when it rests is part of it.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
#: In this order: the first that can be read is used. Microjoules, then microwatts.
_COUNTERS = (
    ("class/powercap", "intel-rapl:?/energy_uj", "max_energy_range_uj"),
    ("class/hwmon", "hwmon*/energy*_input", ""),
)
_POWERS = (("class/hwmon", "hwmon*/power*_input"), ("class/power_supply", "*/power_now"))


@dataclass(frozen=True)
class Meter:
    """``files``: summed up. ``counts``: counters in uJ, else power in uW. ``wraps_uj``: where each begins anew."""

    source: str
    files: tuple[Path, ...]
    counts: bool
    wraps_uj: tuple[int, ...] = ()

    def read(self) -> "Reading":
        """What it shows now; raises OSError or ValueError where it no longer does."""
        return Reading(time.monotonic(), tuple(int(file.read_text()) for file in self.files))

    def between_mj(self, before: "Reading", after: "Reading") -> float:
        """Millijoules from one reading to another; of power, its mean of both times the time."""
        if not self.counts:
            mean_uw = (sum(before.values) + sum(after.values)) / 2
            return mean_uw * (after.at_s - before.at_s) / 1e3
        went = (b - a for a, b in zip(before.values, after.values, strict=True))
        wraps = self.wraps_uj or (0,) * len(self.files)
        return sum(each if each >= 0 else each + wrap for each, wrap in zip(went, wraps, strict=True)) / 1e3


@dataclass(frozen=True)
class Reading:
    """When it was made, in seconds, and what each file said."""

    at_s: float
    values: tuple[int, ...]


def find_meter(sys: Path = SYS) -> Meter | None:
    """The device's meter; None where it has none, or does not show it to this user."""
    for folder, pattern, largest in _COUNTERS:
        files = _readable(sys / folder, pattern)
        if files:
            wraps = tuple(int((file.parent / largest).read_text()) for file in files) if largest else ()
            return Meter(f"{folder}: {', '.join(_short(file) for file in files)}", files, True, wraps)
    for folder, pattern in _POWERS:
        files = _readable(sys / folder, pattern)
        if files:
            return Meter(f"{folder}: {', '.join(_short(file) for file in files)}", files, False)
    return None


def _readable(folder: Path, pattern: str) -> tuple[Path, ...]:
    found = []
    for file in sorted(folder.glob(pattern)):
        with suppress(OSError, ValueError):
            int(file.read_text())
            found.append(file)
    return tuple(found)


def _short(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
