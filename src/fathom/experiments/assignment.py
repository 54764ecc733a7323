"""Which arm a unit gets: by keyed hashes, so the same everywhere, without a table of who has what.

A layer is the unit interval. Every experiment has a slice of it, in the order of the file, as large as what its arms
reserve; a hash of (layer, unit) picks the slice. A second hash, of (experiment, unit), picks the arm within it, so that
successive experiments on one slice mix its units anew. Each arm has a part of the slice to itself, of which it uses as
much as its share: a share that grows takes units only from those without an arm.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fathom.experiments.config import Experiment, Experiments, Unit

#: Bits of a hash that a float of 64 bits holds.
_BITS = 53


@dataclass(frozen=True)
class Assignment:
    """An arm of an experiment. ``propensity``: the probability that a unit of this layer gets it."""

    experiment: str
    layer: str
    arm: str
    propensity: float
    unit_hash: str


class Assigner:
    """Assigns units by one file of experiments."""

    def __init__(self, file: Experiments) -> None:
        self._key = hashlib.blake2b(file.salt.encode()).digest()
        self._layers = {name: tuple(experiments.items()) for name, experiments in file.layers().items()}
        self._shadows = {name: each for name, each in file.experiments.items() if each.shadows}

    def assign(self, units: Mapping[Unit, str]) -> tuple[Assignment, ...]:
        """The arms of a request, at most one per layer; ``units``: what is known of "user", "session" and "request"."""
        found = []
        for layer, experiments in self._layers.items():
            unit = units.get(experiments[0][1].unit)
            if not unit:
                continue
            at = self._point(f"layer/{layer}", unit)
            for name, experiment in experiments:
                if at < experiment.reserved:
                    if arm := self._arm(name, experiment, unit):
                        share = experiment.arms[arm].share
                        found.append(Assignment(name, layer, arm, share, self.unit_hash(unit)))
                    break
                at -= experiment.reserved
        return tuple(found)

    def _arm(self, name: str, experiment: Experiment, unit: str) -> str | None:
        """The arm of a unit within an experiment's slice, None where it is in the part that an arm does not use yet."""
        at = self._point(f"arm/{name}/{experiment.salt or ''}", unit) * experiment.reserved
        for arm, given in experiment.arms.items():
            if at < given.reserved:
                return arm if at < given.share else None
            at -= given.reserved
        return None

    def shadows(self, units: Mapping[Unit, str]) -> tuple[tuple[str, str], ...]:
        """(experiment, shadow) for every shadow that is to get a copy of this request."""
        return tuple(
            (name, shadow)
            for name, experiment in self._shadows.items()
            if (unit := units.get(experiment.unit))
            for shadow, given in experiment.shadows.items()
            if self._point(f"shadow/{name}/{shadow}", unit) < given.share
        )

    def unit_hash(self, unit: str) -> str:
        """What logs call a unit: 128 bits that cannot be turned back without the salt."""
        return self._digest("unit", unit)[:16].hex()

    def _point(self, what: str, unit: str) -> float:
        """A number in [0, 1), uniform over units and independent for every ``what``."""
        return (int.from_bytes(self._digest(what, unit)[:8], "big") >> (64 - _BITS)) / (1 << _BITS)

    def _digest(self, what: str, unit: str) -> bytes:
        # Hashed apart, so that no unit can be spelt to look like another one of another purpose.
        head = hashlib.blake2b(what.encode(), key=self._key, digest_size=16).digest()
        return hashlib.blake2b(head + unit.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()
