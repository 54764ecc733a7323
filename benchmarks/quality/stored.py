"""Stored quality runs: ``results/quality/DATASET/ARM-seed-S.json``, one per arm and seed.

A run keeps the place of every test user's right item, so that any two runs on the same data can be compared user by
user later, from the stored files alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.record import RESULTS
from fathom.errors import ArtefactError
from fathom.training import metrics
from fathom.training.metrics import Floats

CUTOFF = 10
MARKS = "0123456789a"  # the place of the right item, 0 where it is not among the first ten


def pack(places: Floats) -> str:
    """One mark per user: where the right item stands among the first ten. places: float64 (users,), from 1."""
    return "".join(MARKS[int(place)] if place <= CUTOFF else "0" for place in places)


def unpack(marks: str) -> Floats:
    """The places that ``pack`` took, infinity beyond the tenth. float64 (users,)."""
    places = np.array([MARKS.index(mark) for mark in marks], dtype=np.float64)
    return np.where(places == 0, np.inf, places)


def summary(places: Floats, *, seed: int = 0) -> dict[str, Any]:
    """What a run stores of one system: HR@10 and NDCG@10 with 95 % intervals over users, and the places."""
    figures = {"hr@10": metrics.hr(places, CUTOFF), "ndcg@10": metrics.ndcg(places, CUTOFF)}
    return {
        **{name: metrics.interval(values, seed=seed).as_dict() for name, values in figures.items()},
        "places": pack(places),
    }


def path_of(dataset: str, arm: str, seed: int, folder: Path = RESULTS) -> Path:
    """Where a run is stored."""
    return folder / "quality" / dataset / f"{arm}-seed-{seed}.json"


@dataclass(frozen=True)
class Run:
    """One stored run."""

    dataset: str
    arm: str
    seed: int
    value: Mapping[str, Any]

    @property
    def systems(self) -> Mapping[str, Any]:
        """What ``summary`` made, by system: "depth 4"... or a baseline's name."""
        found: Mapping[str, Any] = self.value["result"]["systems"]
        return found

    def ndcg(self, system: str) -> Floats:
        """NDCG@10 of every test user, float64 (users,)."""
        return metrics.ndcg(unpack(self.systems[system]["places"]), CUTOFF)


def runs(folder: Path = RESULTS) -> Iterator[Run]:
    """All stored runs, sorted by path; raises ArtefactError for a file that is none."""
    for path in sorted((folder / "quality").glob("*/*-seed-*.json")):
        try:
            value = json.loads(path.read_bytes())
            yield Run(path.parent.name, path.stem.rpartition("-seed-")[0], int(value["seed"]), value)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{path}: not a stored run ({error}); run it again") from None


def pooled(ours: Mapping[int, Floats], theirs: Mapping[int, Floats], *, seed: int = 0) -> metrics.Interval:
    """The mean difference over the seeds that both have, with a 95 % interval over users and seeds.

    Values are per user, float64 (users,), by seed. Users and seeds are resampled together (two-way bootstrap, Owen
    2007), so the interval speaks about other users and other seeds; with one seed it is that over users.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ArtefactError("no seed was run for both arms; run them first")
    differences = np.stack([ours[s] - theirs[s] for s in seeds], axis=1)
    means = metrics.bootstrap_means(differences, seed=seed)
    drawn = np.random.default_rng(seed).integers(len(seeds), size=(len(means), len(seeds)))
    return metrics.percentile(float(differences.mean()), np.take_along_axis(means, drawn, axis=1).mean(1))
