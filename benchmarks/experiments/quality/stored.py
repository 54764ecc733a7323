"""Stored quality runs: ``results/quality/DATASET/ARM-seed-S.json``, one per arm and seed.

A run keeps the place of every test user's right item, so that any two runs on the same data can be compared user by
user later, from the stored files alone.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from fathom.benchmarks.record import RESULTS
from fathom.errors import ArtefactError
from fathom.training import metrics
from fathom.training.metrics import Floats

#: In the order of the page; a data set that is not here follows under its own name.
TITLES = {
    "ml-100k": "MovieLens-100K",
    "ml-1m": "MovieLens-1M",
    "retail": "Online Retail II",
    "beauty": "Amazon Beauty",
    "electronics": "Amazon Electronics",
}
CUTOFF = 10
MARKS = "0123456789a"  # the place of the right item, 0 where it is not among the first ten


def dataset_title(dataset: str) -> str:
    """The data set's name for a reader."""
    return TITLES.get(dataset, dataset)


def page_order(dataset: str) -> int:
    """Where the data set stands on the page."""
    return [*TITLES, dataset].index(dataset)


def stored_networks(folder: Path, benchmark: str) -> list[Mapping[str, Any]]:
    """The runs ``benchmark/DATASET-seed-S.json``, one per network, in the order of the page."""
    runs = [json.loads(path.read_bytes()) for path in (folder / benchmark).glob("*.json")]
    return sorted(runs, key=lambda run: (page_order(run["config"]["dataset"]), run["seed"]))


def network_title(run: Mapping[str, Any]) -> str:
    """The network of such a run for a reader."""
    return f"{dataset_title(run['config']['dataset'])}, seed {run['seed']}"


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


def path_of(dataset: str, arm: str, seed: int, folder: Path = RESULTS, *, study: str = "quality") -> Path:
    """Where a run is stored."""
    return folder / study / dataset / f"{arm}-seed-{seed}.json"


@dataclass(frozen=True)
class QualityRun:
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


def runs(folder: Path = RESULTS, *, study: str = "quality") -> Iterator[QualityRun]:
    """All stored runs of a study, sorted by path; raises ArtefactError for a file that is none."""
    for path in sorted((folder / study).glob("*/*-seed-*.json")):
        try:
            value = json.loads(path.read_bytes())
            yield QualityRun(path.parent.name, path.stem.rpartition("-seed-")[0], int(value["seed"]), value)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{path}: not a stored run ({error}); run it again") from None


@dataclass(frozen=True)
class Pooled(metrics.Interval):
    """A figure over users and seeds with the bounds of its 95 % interval, and how many seeds it comes from."""

    seeds: int


#: An arm and one or more of its systems, whose mean is meant: ("ladder", "depth 4").
Of = tuple[str, ...]


class Pool:
    """All runs of one data set, and figures of their NDCG@10 with 95 % intervals over users and seeds.

    An interval speaks about other users and other seeds, see ``margin``; with one seed, about other users. Two systems
    are compared user by user over the seeds that both have. A figure that no run gives is None. Raises ArtefactError
    for runs that cannot be compared.
    """

    def __init__(self, dataset: str, found: Iterable[QualityRun]) -> None:
        self.dataset = dataset
        self.runs = {(run.arm, run.seed): run for run in found}
        _check_comparable(dataset, self.runs.values())
        self._users = {(arm, name, s): run.ndcg(name) for (arm, s), run in self.runs.items() for name in run.systems}

    @property
    def arms(self) -> list[str]:
        """The arms that have runs."""
        return list(dict.fromkeys(arm for arm, _ in self.runs))

    def of(self, arm: str) -> list[QualityRun]:
        """The runs of an arm, by seed."""
        return [run for (name, _), run in sorted(self.runs.items()) if name == arm]

    def mean(self, system: Of) -> Pooled | None:
        """NDCG@10."""
        found = self._cells(system)
        return None if found is None else _pooled(found[0])

    def difference(self, ours: Of, theirs: Of) -> Pooled | None:
        """NDCG@10 of ours less that of theirs."""
        found = self._cells(ours, theirs)
        return None if found is None else _pooled(found[0] - found[1])

    def share(self, ours: Of, theirs: Of) -> Pooled | None:
        """NDCG@10 of ours divided by that of theirs; the interval by the delta method."""
        found = self._cells(ours, theirs)
        if found is None:
            return None
        share = found[0].mean() / found[1].mean()
        return _pooled(share + (found[0] - share * found[1]) / found[1].mean())

    def _cells(self, *wanted: Of) -> Floats | None:
        """NDCG@10 of each user under each seed that all systems have, (wanted, seeds, users); None without one."""
        systems = [(arm, name) for arm, *names in wanted for name in names]
        seeds = [s for s in sorted({s for _, s in self.runs}) if all((*each, s) in self._users for each in systems)]
        if not seeds:
            return None
        return np.array(
            [[np.mean([self._users[arm, name, s] for name in names], axis=0) for s in seeds] for arm, *names in wanted]
        )


def _pooled(cells: Floats) -> Pooled:
    value, half = float(cells.mean()), margin(cells)
    return Pooled(value, value - half, value + half, len(cells))


def margin(cells: Floats) -> float:
    """Half the 95 % interval of the mean over users and seeds, for cells (seeds, users).

    Users and seeds are crossed random effects: the mean squares of both and of what is left give the variance of the
    mean, and its degrees of freedom (Satterthwaite 1946). Resampling both together (Owen 2007) would count what is
    left three times.
    """
    seeds, users = cells.shape
    by_user, by_seed = cells.mean(0), cells.mean(1)
    rest = cells - by_user - by_seed[:, None] + cells.mean()
    user_square = seeds * float(by_user.var(ddof=1))
    parts = [(user_square, users - 1)]
    if seeds > 1:
        rest_square, rest_freedom = float((rest**2).sum()) / ((seeds - 1) * (users - 1)), (seeds - 1) * (users - 1)
        seed_square = users * float(by_seed.var(ddof=1))
        # An effect's mean square holds what is left too; one below it says that the effect is none.
        parts = [(max(user_square, rest_square), users - 1), (max(seed_square, rest_square), seeds - 1)]
        parts.append((-rest_square, rest_freedom))
    square = sum(part for part, _ in parts)
    if square <= 0:
        return 0.0
    freedom = square**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(student_t.ppf(0.5 + metrics.CONFIDENCE / 2, freedom)) * math.sqrt(square / cells.size)


def pools(folder: Path = RESULTS, *, study: str = "quality") -> list[Pool]:
    """The runs of each data set, in the order of the page; raises ArtefactError when none is stored."""
    found = [Pool(dataset, group) for dataset, group in groupby(runs(folder, study=study), key=lambda run: run.dataset)]
    if not found:
        raise ArtefactError(f"{folder}: no quality run is stored; `python -m fathom.benchmarks run {study}` makes one")
    return sorted(found, key=lambda pool: page_order(pool.dataset))


def _check_comparable(dataset: str, found: Iterable[QualityRun]) -> None:
    data, settings = set(), defaultdict(set)
    for run in found:
        data |= {(run.value["config"]["dataset"], len(system["places"])) for system in run.systems.values()}
        settings[run.arm].add(re.sub(r'"seed": \d+', "", json.dumps(run.value["config"], sort_keys=True)))
    if len(data) > 1:
        raise ArtefactError(f"{dataset}: some runs are on other data or users than others; run them again")
    for arm, different in settings.items():
        if len(different) > 1:
            raise ArtefactError(f"{dataset}: the seeds of {arm} were run with different settings; run them again")
