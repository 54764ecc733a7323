"""Which methods to run in a given time: those whose consensus came closest to the truth where the truth is known.

``graded.json`` beside this module holds, for each of Fathom's own networks whose lattice was measured, the exact
Shapley values of its layers and every method's scores and seconds; ``python -m fathom.benchmarks run importance``
writes it. ``graded_models.json`` holds the same of other models, and ``run own_models`` writes that.
"""

import json
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Self

import torch

from fathom.errors import ConfigError
from fathom.importance.distribution import in_one_thread
from fathom.importance.interface import Batch, LayeredModel, hidden_states
from fathom.importance.statistics import borda, kendall_tau, ranks_of

GRADED, GRADED_MODELS = (Path(__file__).with_name(name) for name in ("graded.json", "graded_models.json"))


@dataclass(frozen=True)
class Graded:
    """A model whose layers' worth is known.

    truth: exact Shapley values (layers,); scores: method -> (layers,); seconds: method -> of measuring those on one
    core; forward_seconds: of one pass of the same users through all layers on that core; stages: whether the hidden
    state changes its shape on the way, so that many methods do not apply.
    """

    truth: Sequence[float]
    scores: dict[str, Sequence[float]]
    seconds: dict[str, float]
    forward_seconds: float
    stages: bool = False

    @classmethod
    def load(cls, path: Path = GRADED) -> list[Self]:
        """All models of a file; raises ConfigError where there is none."""
        if not path.exists():
            raise ConfigError("no grades of importance methods are stored here; name the methods to run")
        return [cls(**model) for model in json.loads(path.read_bytes())["models"]]

    def tau(self, methods: Sequence[str]) -> float:
        """Kendall's tau of the truth and the consensus (Borda) of some methods."""
        return kendall_tau(borda([ranks_of(self.scores[name]) for name in methods]), self.truth)


def forward_seconds(model: LayeredModel, batches: Sequence[Batch]) -> float:
    """Seconds of one pass of all batches through all layers on one core: the best of three."""
    return min(in_one_thread(_timed_pass, model, batches) for _ in range(3))


def _timed_pass(model: LayeredModel, batches: Sequence[Batch]) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            hidden_states(model, batch)
    return time.perf_counter() - started


def expected_seconds(models: Sequence[Graded], forward_seconds: float) -> dict[str, float]:
    """What each method would take where one pass through all layers takes ``forward_seconds``: the median of models."""
    names = set.intersection(*(set(model.scores) for model in models))
    return {
        name: median(model.seconds[name] / model.forward_seconds for model in models) * forward_seconds
        for name in sorted(names)
    }


def choose_methods(
    models: Sequence[Graded], available: Collection[str], forward_seconds: float, budget_seconds: float
) -> list[str]:
    """The methods to run within a budget: the one with the best grade, then whatever raises the consensus's grade most.

    A grade is the mean of ``Graded.tau`` over the models. Raises ConfigError where no method fits.
    """
    seconds = {name: cost for name, cost in expected_seconds(models, forward_seconds).items() if name in available}
    if not seconds:
        raise ConfigError("none of these importance methods has been graded; leave out the budget")

    def grade(names: Sequence[str]) -> float:
        return fmean(model.tau(names) for model in models)

    chosen: list[str] = []
    best, left = -math.inf, budget_seconds
    while fitting := [name for name in seconds if name not in chosen and seconds[name] <= left]:
        grades = {name: grade([*chosen, name]) for name in fitting}
        added = max(fitting, key=lambda name: (grades[name], -seconds[name]))
        if grades[added] <= best:
            break
        chosen.append(added)
        best, left = grades[added], left - seconds[added]
    if not chosen:
        cheapest = min(seconds, key=lambda name: seconds[name])
        raise ConfigError(
            f"no importance method fits into {budget_seconds:g} s; the cheapest, {cheapest},"
            f" takes about {seconds[cheapest]:.2g} s here"
        )
    return chosen
