"""One data set and one seed: makes the checkpoints that arms need, each once, and measures them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.experiments.quality.arms import ARMS, Arm
from fathom.benchmarks.experiments.quality.cold import by_group, cold_groups
from fathom.benchmarks.experiments.quality.peers import Peer, score_peer
from fathom.benchmarks.experiments.quality.stored import path_of, summary, unpack
from fathom.benchmarks.record import RESULTS, load_run
from fathom.errors import ArtefactError, ConfigError
from fathom.exporter.planning.heal import heal
from fathom.exporter.planning.plan import DepthPlan
from fathom.importance.adapter import rank_checkpoint
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.statistics import order_by
from fathom.show import Activity
from fathom.training.baselines import BASELINES
from fathom.training.checkpoint import Checkpoint
from fathom.training.choosing import choose, statistics
from fathom.training.counting import fit_counting
from fathom.training.data import prepare
from fathom.training.dataset import Dataset
from fathom.training.evaluate import evaluate, evaluate_model, named
from fathom.training.model import ElasticModel
from fathom.training.presets import TrainConfig, apply_settings, preset
from fathom.training.scorer import depth_name
from fathom.training.sources import PrepareOptions, default_options
from fathom.training.splits import Split, split
from fathom.training.train import fit

WORK = Path("build/quality")
PEER_NAMES: dict[Peer, str] = {"sasrec": "SASRec", "esasrec": "eSASRec", "hstu": "HSTU"}


@dataclass(frozen=True)
class StudyDataset:
    """A data set: what ``fathom data prepare`` needs to know, the preset, and what differs from it."""

    source: str
    preset: str
    settings: tuple[str, ...] = ()
    options: Callable[[PrepareOptions], PrepareOptions] = lambda options: options


def _amazon(options: PrepareOptions) -> PrepareOptions:
    return replace(options, position_column="position")


DATASETS = {
    "ml-100k": StudyDataset("ml-100k", "ml-100k"),
    "ml-1m": StudyDataset("ml-1m", "ml-1m"),
    "retail": StudyDataset("online-retail-ii", "retail", ("train.split=temporal",)),
    "beauty": StudyDataset("parquet", "beauty", options=_amazon),
    "electronics": StudyDataset("parquet", "beauty", options=_amazon),
}


def open_dataset(name: str, path: Path | None) -> Dataset:
    """The prepared data set, prepared now from ``path`` unless it is there; ml-100k needs no path."""
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    folder, source = WORK / name / "dataset", DATASETS[name]
    if not folder.exists():
        options = source.options(replace(default_options(source.source), path=path, name=name))
        with Activity(f"prepare {name}") as activity:
            prepare(source.source, folder, options=options, progress=activity.update)
    return Dataset.load(folder)


@dataclass(frozen=True)
class Study:
    """The arms of one data set and seed; ``settings`` change the preset for all, ``results`` holds the stored runs."""

    name: str
    dataset: Dataset
    seed: int
    settings: tuple[str, ...] = ()
    results: Path = RESULTS

    @property
    def folder(self) -> Path:
        """Where the checkpoints lie."""
        return WORK / self.name / f"seed-{self.seed}"

    @cached_property
    def config(self) -> TrainConfig:
        """The recipe of the ladder."""
        source = DATASETS[self.name]
        return apply_settings(preset(source.preset), (*source.settings, *self.settings, f"train.seed={self.seed}"))

    @cached_property
    def split(self) -> Split:
        """How the data set is cut."""
        return split(self.dataset, self.config.train.split)

    def checkpoint(self, arm: Arm) -> Checkpoint:
        """The arm's checkpoint, made now unless it is there; raises ArtefactError when it is another one."""
        path, config = self.folder / arm.name, self.config_of(arm)
        if path.exists():
            made = Checkpoint.load(path)
            if made.config.train != config or made.config.dataset != self.dataset.sha256:
                raise ArtefactError(f"{path}: made with other settings or data; remove it to make it again")
            return made
        if arm.start is None:
            with Activity(f"{self.name}, seed {self.seed}: {arm.name}") as activity:
                return fit(config, self.dataset, out=path, progress=activity.training)
        start, plan = self.checkpoint(ARMS[arm.start]), self.plan(arm)
        if not arm.heals:
            model = start.model.with_paths(plan.paths, plan.strategy)
            changed = start.config.model_copy(update={"model": model.config})
            return replace(start, model=model, config=changed, metrics={"training": [], "seconds": 0.0}).save(path)
        with Activity(f"{self.name}, seed {self.seed}: {arm.name}") as activity:
            return heal(start, plan, self.dataset, out=path, config=config, progress=activity.training)

    def config_of(self, arm: Arm) -> TrainConfig:
        """The recipe of an arm; ``chosen`` follows from the data but for the split, so that all are judged alike."""
        if arm.group != "chosen":
            return arm.change(self.config)
        judged_alike = f"train.split={self.config.train.split}"
        found = choose(statistics(self.dataset)).config
        return apply_settings(found, (judged_alike, *self.settings, f"train.seed={self.seed}"))

    def plan(self, arm: Arm) -> DepthPlan:
        """The arm's plan, from the ranking of the arm that it starts from."""
        layers, depths = self.config.model.layers, self.config.model.depths
        if arm.start is None or arm.strategy == "prefix":
            order = list(range(layers))
        elif arm.order == "random":
            order = np.random.default_rng([self.seed, layers]).permutation(layers).tolist()
        else:
            ranking = self.ranking(arm.start)
            consensus = arm.order == "consensus"
            order = order_by(ranking.consensus_scores if consensus else ranking.methods[arm.order].scores)
        return DepthPlan.from_order(order, arm.strategy, depths)

    def ranking(self, arm: str) -> LayerRanking:
        """The layers of an arm, ranked by every method."""
        path = self.folder / f"{arm}.ranking.json"
        if not path.exists():
            with Activity(f"{self.name}, seed {self.seed}: ranking {arm}"):
                rank_checkpoint(self.checkpoint(ARMS[arm]), self.dataset, seed=self.seed).save(path)
        return LayerRanking.load(path)

    def measure(self, arm: Arm) -> dict[str, Any]:
        """What is stored of an arm: the depths that it is about on the test items, and how training went."""
        checkpoint = self.checkpoint(arm)
        model = checkpoint.model.with_paths(
            {depth: checkpoint.model.config.paths[depth] for depth in arm.read}, checkpoint.model.config.strategy
        )
        test, validation = (
            evaluate_model(model, self.dataset, self.split, part=part, baselines=(), seed=self.seed)
            for part in ("test", "validation")
        )
        systems = {
            depth_name(depth): summary(test.places[depth_name(depth)], seed=self.seed)
            | {"validation_ndcg@10": validation.systems[depth_name(depth)].metrics["ndcg@10"].value}
            | {"layers": list(model.config.paths[depth]), "parameters": parameters(model, depth)}
            for depth in arm.read
        }
        result = {"systems": systems, "hours": round(checkpoint.metrics["seconds"] / 3600, 6)}
        result["training"] = checkpoint.metrics["training"]
        return result | ({"cold": self.cold(systems)} if arm.group == "text" else {})

    def cold(self, systems: Mapping[str, Any]) -> dict[str, Any]:
        """The deepest exit beside the ladder's, by how often the right item was seen in training."""
        ladder = load_run(path_of(self.name, "ladder", self.seed, self.results))
        deepest = depth_name(self.config.model.depths[-1])
        places = {
            name: unpack(found[deepest]["places"])
            for name, found in (("ladder", ladder["result"]["systems"]), ("text", systems))
        }
        return by_group(places, cold_groups(self.split, self.dataset.n_items), reference="ladder")

    def with_counting(self, arm: Arm, baselines: Sequence[str]) -> dict[str, Any]:
        """An arm with a counting exit, stored whole: depth 0, every depth as it is served and alone, and baselines."""
        model, started = self.checkpoint(arm).model, time.monotonic()
        counting = fit_counting(model, self.split, self.dataset.n_items)
        test = evaluate_model(model, self.dataset, self.split, counting=counting, baselines=baselines, seed=self.seed)
        depths = [depth_name(depth) for depth in model.depths]
        alone = {f"{name} alone": test.places.get(f"{name} alone", test.places[name]) for name in depths}
        return {
            "systems": {name: summary(found, seed=self.seed) for name, found in (test.places | alone).items()},
            "hours": round((time.monotonic() - started) / 3600, 6),
            "counting": {"settings": asdict(counting.tables.settings), "weights": counting.weights},
        }

    def ask_peer(self, peer: Peer, epochs: int) -> dict[str, Any]:
        """What is stored of a peer: its lists for the same test users, judged alike, and how it was trained."""
        found = score_peer(self.split, peer, seed=self.seed, epochs=epochs)
        systems = {PEER_NAMES[peer]: summary(found.pop("places"), seed=self.seed)}
        return {"systems": systems, "hours": round(found.pop("seconds") / 3600, 4), "peer": found}

    def count(self, *, largest: int = 6_000) -> dict[str, Any]:
        """What is stored of the counting baselines; EASE is left out beyond ``largest`` items: it takes minutes."""
        started = time.monotonic()
        names = [name for name in BASELINES if name != "EASE" or self.dataset.n_items <= largest]
        scorers = [named(name, BASELINES[name](self.split.until_test, self.dataset.n_items)) for name in names]
        report = evaluate(self.split.test, scorers, n_items=self.dataset.n_items, seed=self.seed)
        systems = {name: summary(report.places[name], seed=self.seed) for name in names}
        return {"systems": systems, "hours": round((time.monotonic() - started) / 3600, 6)}


def parameters(model: ElasticModel, depth: int) -> Mapping[str, int]:
    """What a depth has to hold: its own layers and exit, and the item embeddings."""
    layers = (model.block(layer) for layer in model.config.paths[depth])
    return {
        "layers": sum(p.numel() for block in layers for p in block.parameters()),
        "exit": sum(p.numel() for p in model.exits[str(depth)].parameters()),
        "items": model.embedding.weight.numel(),
    }
