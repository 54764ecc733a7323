"""Every importance method against the truth: the quality of all subsets of layers of the networks of `quality`.

For each data set and seed: the whole lattice of the network ``ladder``, all methods on the same users, their grades,
and the time of all of it. Meta-learning is graded as trained on the other data sets only, and left out where they are
fewer than two networks. Then what Fathom ships is learned from all of them: the file of meta-learning, and that of
``fathom rank --methods auto``. Lattices lie in build/importance and are measured once; interrupted ones go on where
they were. Stored as ``importance/DATASET-seed-S``.
"""

import json
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.benchmarks.experiments.importance_tables import graded, importance_section, load_measured
from fathom.benchmarks.experiments.quality.study import WORK as NETWORKS
from fathom.benchmarks.registry import Benchmark, Run
from fathom.files import write_json
from fathom.importance import choice
from fathom.importance.adapter import ElasticLayers, Histories, measure_checkpoint, validation_users
from fathom.importance.distribution import in_one_thread
from fathom.importance.interface import run_skipping
from fathom.importance.lattice.lattice import METRICS, Lattice, Masks, judge_subsets
from fathom.importance.lattice.values import best_chain, best_subsets, interactions, layers_of, shapley_values, sizes
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.methods import meta_learning
from fathom.importance.rank import rank_layers
from fathom.importance.registry import ALL, load_methods
from fathom.importance.statistics import Floats, bootstrap_interval
from fathom.pieces import over_processes
from fathom.show import Activity
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset

WORK = Path("build/importance")
#: Subsets that are evaluated one by one, to compare.
SAMPLE = 200
#: Layers that are both kept and left out in the walk that they are compared with.
WALKED = 9
META = "meta_learning"

Network = tuple[ElasticLayers, list[Histories]]


@dataclass(frozen=True)
class StudiedNetwork:
    """One network of the quality study and the users on which its layers are ranked."""

    dataset: str
    seed: int
    users: int

    @property
    def name(self) -> str:
        return f"{self.dataset}-seed-{self.seed}"

    @property
    def work(self) -> Path:
        return WORK / self.name

    def load(self) -> tuple[Checkpoint, Dataset]:
        folder = NETWORKS / self.dataset
        return Checkpoint.load(folder / f"seed-{self.seed}" / "ladder"), Dataset.load(folder / "dataset")

    def network(self) -> Network:
        return validation_users(*self.load(), users=self.users, seed=self.seed)


def measure(case: StudiedNetwork, workers: int) -> Lattice:
    """The lattice of a case; the seconds that all attempts took together are kept beside it."""
    checkpoint, dataset = case.load()
    clock, started = case.work / "seconds.json", time.monotonic()
    before = json.loads(clock.read_bytes()) if clock.exists() else 0.0
    done = (case.work / "lattice").exists()
    try:
        with Activity(f"{case.name}: lattice") as activity:
            return measure_checkpoint(
                checkpoint,
                dataset,
                case.work / "lattice",
                users=case.users,
                seed=case.seed,
                runner=over_processes(workers),
                progress=activity.lattice,
            )
    finally:
        if not done:
            write_json(clock, before + time.monotonic() - started)


def truth(lattice: Lattice, depths: Sequence[int]) -> dict[str, Any]:
    """What is stored of a lattice, by metric; best, mean, median and worst of all subsets of each size, from none."""
    size = sizes(lattice.layers)
    found = {}
    for metric in METRICS:
        mean = lattice.mean(metric)
        values = shapley_values(lattice.utilities(metric).astype(np.float64))
        low, high = bootstrap_interval(values, seed=0)
        best = best_subsets(mean)
        of_size = [mean[size == count] for count in range(lattice.layers + 1)]
        found[metric] = {
            "shapley": {"value": _list(values.mean(0)), "low": _list(low), "high": _list(high)},
            "sum_error": abs(float(values.mean(0).sum() - (mean[-1] - mean[0]))),
            "interactions": [_list(row) for row in interactions(mean)],
            "best": [_number(mean[mask]) for mask in best],
            "mean": [_number(values.mean()) for values in of_size],
            "median": [_number(np.median(values)) for values in of_size],
            "worst": [_number(values.min()) for values in of_size],
            "prefix": [_number(mean[(1 << count) - 1]) for count in range(lattice.layers + 1)],
            "best_subsets": [layers_of(mask) for mask in best],
            "chain": [layers_of(mask) for mask in best_chain(mean, depths, keep=[0])],
        }
    return found


def one_by_one(network: Network, lattice: Lattice) -> dict[str, Any]:
    """Evaluate some subsets alone: how far they are from the lattice's values, and how much longer one takes.

    Compared with a walk over all subsets that agree about their first layers, on the same batch right after; the whole
    lattice shares more.
    """
    model, batches = network
    random = np.random.default_rng(0)
    masks = random.choice(len(lattice.masks), min(SAMPLE, len(lattice.masks)), replace=False)
    decided = max(0, lattice.layers - WALKED)
    first = sum(1 << layer for layer in model.layers[:decided])
    walked = lattice.masks[(lattice.masks & first) == (random.integers(len(lattice.masks)) & first)]
    losses, places, alone_s, walk_s = [], [], 0.0, 0.0
    for batch in batches:
        started = time.monotonic()
        alone = [in_one_thread(_directly, (model, batch), int(mask)) for mask in masks]
        between = time.monotonic()
        in_one_thread(_walk, (model, batch), walked)
        alone_s += between - started
        walk_s += time.monotonic() - between
        loss, place = zip(*alone, strict=True)
        losses.append(np.stack(loss, 1))
        places.append(np.stack(place, 1))
    alone_ms, walk_ms = alone_s / len(masks) * 1e3, walk_s / len(walked) * 1e3
    return {
        "subsets": len(masks),
        "largest_difference": float(np.abs(np.concatenate(losses) - lattice.losses[:, masks]).max()),
        "other_places": int((np.concatenate(places) != lattice.places[:, masks]).sum()),
        "ms_alone": round(alone_ms, 2),
        "ms_in_the_lattice": round(walk_ms, 2),
        "ratio": round(alone_ms / walk_ms, 1),
    }


def _directly(work: tuple[ElasticLayers, Histories], mask: int) -> tuple[Floats, Floats]:
    model, batch = work
    skipped = [layer for layer in model.layers if not mask >> layer & 1]
    with torch.no_grad():
        loss, place = model.judge(batch, run_skipping(model, batch, skipped))
    return loss.double().numpy(), place.double().numpy()


def _walk(work: tuple[ElasticLayers, Histories], masks: Masks) -> None:
    judge_subsets(*work, masks)


def rank(case: StudiedNetwork, lattice: Lattice, workers: int) -> LayerRanking:
    """All methods on the users of a case; meta-learning as trained on the other data sets, if there are any."""
    model, batches = case.network()
    methods = load_methods([ALL])
    methods[META] = meta_learning.MetaLearning(case.work / "meta_learning.json")
    with Activity(f"{case.name}: all methods") as activity:
        return rank_layers(
            model,
            batches,
            methods,
            seed=case.seed,
            lattice=lattice,
            skip_inapplicable=True,
            runner=over_processes(workers),
            progress=activity.ranking,
        )


def examples(cases: Sequence[StudiedNetwork], lattices: Mapping[str, Lattice]) -> dict[str, tuple[Floats, Floats]]:
    """What meta-learning learns from: the features and the exact values of each network's layers."""
    found = {}
    for case in cases:
        model, batches = case.network()
        generator = torch.Generator().manual_seed(case.seed)
        values = shapley_values(lattices[case.name].mean("loss"))
        found[case.name] = meta_learning.features(model, batches, generator), values
    return found


def _number(value: float) -> float:
    return float(f"{value:.6g}")


def _list(values: Floats) -> list[float]:
    return [_number(value) for value in values]


def _result(case: StudiedNetwork, lattice: Lattice, workers: int) -> dict[str, Any]:
    network = case.network()
    started = time.monotonic()
    ranking = rank(case, lattice, workers)
    methods_seconds = time.monotonic() - started
    ranking.save(case.work / "ranking.json")
    return {
        "seconds": {
            "lattice": round(float(json.loads((case.work / "seconds.json").read_bytes()))),
            "methods": round(methods_seconds),
            "forward": round(choice.forward_seconds(*network), 4),
        },
        "one_by_one": one_by_one(network, lattice),
        "truth": truth(lattice, case.load()[0].model.depths),
        "ranking": json.loads((case.work / "ranking.json").read_bytes()),
    }


def _measure(options: Namespace) -> Iterator[Run]:
    users = list(zip(options.seeds, chain(options.users, repeat(options.users[-1])), strict=False))
    cases = [StudiedNetwork(name, seed, count) for name in options.datasets for seed, count in users]
    lattices = {case.name: measure(case, options.workers) for case in cases}
    known = examples(cases, lattices)
    grades = []
    for case in cases:
        others = {other.name: known[other.name] for other in cases if other.dataset != case.dataset}
        if len(others) > 1:
            write_json(case.work / "meta_learning.json", meta_learning.train_on(list(others.values()), list(others)))
        result = _result(case, lattices[case.name], options.workers)
        grades.append(asdict(graded(result)))
        config = {"dataset": case.dataset, "users": case.users, "workers": options.workers}
        yield Run(config, result, case.seed, f"importance/{case.name}")
    write_json(meta_learning.TRAINED, meta_learning.train_on(list(known.values()), list(known)))
    write_json(choice.GRADED, {"models": grades})


BENCHMARK = Benchmark(
    __doc__,
    "hours a seed, the networks of `quality`",
    {"datasets": (str,), "--seeds": (0,), "--users": (256,), "--workers": 2},
    _measure,
    lambda folder: importance_section(load_measured(folder)),
    folders=("importance",),
)
