"""What a new item's title is worth: items that were held out of training are added, and asked for.

A share of the items, drawn by seed, is taken out of the data with all its events; a model is trained on what is left,
exported, and the items are added to its catalogue with their titles. The cases are the test events of the whole data
set, with everything before them as the history. On those whose item is new: HR@10 and NDCG@10 among all items and among
the new ones, beside vectors at random, the most popular items (counted with the new ones), and a model trained with
them; without the addition both are 0. On the others: what the addition costs. At the deepest exit, with counting as it
is served. Checkpoints and bundles lie under build/cold_items and build/quality unless they are made. Stored as
cold_items/DATASET/seed-S.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fathom.benchmarks.experiments.quality.arms import ARMS
from fathom.benchmarks.experiments.quality.stored import dataset_title, pack, unpack
from fathom.benchmarks.experiments.quality.study import Study, open_dataset
from fathom.benchmarks.markdown import interval, paragraphs, table
from fathom.benchmarks.record import RESULTS, load_run
from fathom.benchmarks.registry import Benchmark, Run
from fathom.errors import ArtefactError
from fathom.exporter.bundle.export import export
from fathom.files import sha256_bytes
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import Encoder, ItemRecord, LiveCatalogue
from fathom.runtime.retriever import FlatRetriever
from fathom.runtime.runner import BatchItem, Runner
from fathom.show import Activity
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.metrics import Floats, hr, ndcg, paired_difference
from fathom.training.metrics import interval as mean_of
from fathom.training.splits import Cases
from fathom.training.train import fit

NAME, SHARE, K, BATCH = "cold_items", 0.05, 10, 64
WORK = Path("build") / NAME
ADDED, RANDOM, POPULAR, RETRAINED = "added", "random vectors", "popularity", "trained with them"
#: The lists that are compared, and what a reader calls them.
ALL, AMONG, KNOWN = "all items", "new items alone", "known items"


def held_out(dataset: Dataset, seed: int, share: float = SHARE) -> NDArray[np.int64]:
    """The items that a seed takes out, ascending."""
    drawn = np.random.default_rng([seed, dataset.n_items]).permutation(dataset.n_items)
    return np.sort(drawn[: round(share * dataset.n_items)])


def without(dataset: Dataset, held: NDArray[np.int64]) -> Dataset:
    """The data set as it would be if these items did not exist; users stay, some perhaps with fewer events."""
    kept = np.ones(dataset.n_items, dtype=np.bool_)
    kept[held] = False
    events = dataset.sequences.keep(kept[dataset.sequences.items])
    renumbered = replace(events, items=(np.cumsum(kept) - 1)[events.items].astype(np.int32))
    items = np.flatnonzero(kept).tolist()
    return replace(
        dataset,
        sequences=renumbered,
        item_ids=tuple(dataset.item_ids[item] for item in items),
        titles=tuple(dataset.titles[item] for item in items),
        categories=tuple(dataset.categories[item] for item in items),
        sha256=sha256_bytes(f"{dataset.sha256} without {held.tolist()}".encode()),
    )


class RandomVectors:
    """Places every item anywhere."""

    def __init__(self, width: int, seed: int) -> None:
        self._rng, self._width = np.random.default_rng(seed), width

    def encode(self, titles: Sequence[str], _categories: Sequence[Sequence[str]], /) -> NDArray[np.float32]:
        """Unit vectors, float32 (n, width)."""
        vectors = self._rng.normal(size=(len(titles), self._width)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


class Server:
    """A bundle's answers at its deepest exit, after items of ``dataset`` were added."""

    def __init__(self, path: Path, dataset: Dataset, new: Sequence[int] = (), encoder: Encoder | None = None) -> None:
        bundle = Bundle.open(path)
        self.catalogue = LiveCatalogue(bundle, encoder=encoder)
        records = [ItemRecord(dataset.item_ids[i], dataset.titles[i], dataset.categories[i]) for i in new]
        self.left_out = self._add(bundle, records, encoder)
        growing = replace(bundle, vectors=self.catalogue.vectors)
        retriever = FlatRetriever(self.catalogue.vectors)
        self._longest = bundle.manifest.model.max_history
        self._runner = Runner(bundle, self.catalogue, open_engine(growing), retriever)
        self._depth = bundle.depths[-1]
        found = [self.catalogue.find(name) for name in dataset.item_ids]
        #: Of every item of the data set, -1 where the catalogue does not have it.
        self.index = np.array([-1 if item is None else item for item in found])

    def _add(self, bundle: Bundle, records: Sequence[ItemRecord], encoder: Encoder | None) -> int:
        """Add those that the text places; returns how many it does not."""
        if not records:
            return 0
        encoder = encoder or bundle.text_encoder
        if encoder is None:
            raise ArtefactError(f"{bundle.path}: has no text encoder; its titles say nothing of its items")
        vectors = encoder.encode([each.title for each in records], [each.categories for each in records])
        placed = [record for record, vector in zip(records, vectors, strict=True) if vector.any()]
        self.catalogue.apply(self.catalogue.prepare(placed), version=1)
        return len(records) - len(placed)

    def places(self, cases: Cases, among: NDArray[np.int64] | None = None) -> Floats:
        """Where each target stands in its list of ten, from 1, infinity beyond; ``among``: the only items in lists."""
        allow = None if among is None else self.index[among][self.index[among] >= 0]
        found = np.full(len(cases), np.inf)
        order = np.argsort(cases.histories.lengths, kind="stable")
        for low in range(0, len(order), BATCH):
            rows, works = [], []
            for row in order[low : low + BATCH].tolist():
                history = self.index[cases.histories[row]]
                if len(known := history[history >= 0]):
                    times = cases.histories.times(row)
                    seconds = None if times is None else times[history >= 0][-self._longest :]
                    keep = ItemFilter(exclude=known, allow=allow)
                    works.append(BatchItem(known[-self._longest :] + 1, seconds, K, keep))
                    rows.append(row)
            for row, result in zip(
                rows, self._runner.run([self._depth] * len(works), works) if works else (), strict=True
            ):
                if isinstance(result, Exception):
                    raise result
                place = np.flatnonzero(result.indices == self.index[cases.targets[row]])
                found[row] = place[0] + 1 if place.size else np.inf
        return found


@dataclass(frozen=True)
class _Experiment:
    """One seed: both models as bundles, the items, and the cases whose target is among them or not."""

    study: Study

    @cached_property
    def held(self) -> NDArray[np.int64]:
        return held_out(self.study.dataset, self.study.seed)

    @cached_property
    def reduced(self) -> Dataset:
        return without(self.study.dataset, self.held)

    @cached_property
    def cases(self) -> tuple[Cases, Cases]:
        """Test cases whose target is new, and the others: those of users whose last event the training left out."""
        test = self.study.split.test
        new = np.isin(test.targets, self.held)
        others = ~new & (self.reduced.sequences.lengths[test.users] >= 3)
        return test.select(np.flatnonzero(new)), test.select(np.flatnonzero(others))

    def bundle(self, name: str, dataset: Dataset, checkpoint: Checkpoint) -> Path:
        """A checkpoint's bundle, made now unless it is there."""
        path = WORK / self.study.name / f"seed-{self.study.seed}" / name
        if not path.exists():
            with Activity(f"{self.study.name}, seed {self.study.seed}: exporting {name}") as activity:
                export(checkpoint, dataset, path, name=self.study.name, progress=activity.update)
        return path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Trained without the items, made now unless it is there."""
        path = WORK / self.study.name / f"seed-{self.study.seed}" / "checkpoint"
        if not path.exists():
            with Activity(f"{self.study.name}, seed {self.study.seed}: training without new items") as activity:
                return fit(self.study.config, self.reduced, out=path, progress=activity.training)
        made = Checkpoint.load(path)
        if made.config.train != self.study.config or made.config.dataset != self.reduced.sha256:
            raise ArtefactError(f"{path}: made with other settings or data; remove it to make it again")
        return made

    def popular(self, cases: Cases, among: NDArray[np.int64] | None = None) -> Floats:
        """Places of the targets among the most popular items that the user has not seen."""
        dataset = self.study.dataset
        counts = np.bincount(self.study.split.until_test.items, minlength=dataset.n_items)
        items = np.arange(dataset.n_items) if among is None else among
        order = items[np.argsort(-counts[items], kind="stable")]
        found = np.full(len(cases), np.inf)
        for row in range(len(cases)):
            seen = cases.histories[row]
            first = order[: K + len(seen)]
            place = np.flatnonzero(first[~np.isin(first, seen)][:K] == cases.targets[row])
            found[row] = place[0] + 1 if place.size else np.inf
        return found

    def run(self) -> dict[str, Any]:
        """Everything that is stored."""
        dataset, held = self.study.dataset, self.held
        bundle = self.bundle("without", self.reduced, self.checkpoint)
        whole = self.bundle("with", dataset, self.study.checkpoint(ARMS["ladder"]))
        new, others = self.cases
        width = self.study.config.model.width
        added = Server(bundle, dataset, held.tolist())
        servers = {
            ADDED: added,
            RANDOM: Server(bundle, dataset, held.tolist(), RandomVectors(width, self.study.seed)),
            RETRAINED: Server(whole, dataset),
        }
        systems: dict[str, dict[str, Floats]] = {
            ALL: {name: server.places(new) for name, server in servers.items()} | {POPULAR: self.popular(new)},
            AMONG: {name: server.places(new, held) for name, server in servers.items()}
            | {POPULAR: self.popular(new, held)},
            KNOWN: {
                "not added": Server(bundle, dataset).places(others),
                **{name: server.places(others) for name, server in servers.items()},
            },
        }
        return {
            "items": dataset.n_items,
            "new_items": len(held),
            "not_placed": added.left_out,
            "cases": {ALL: len(new), AMONG: len(new), KNOWN: len(others)},
            "places": {part: {name: pack(each) for name, each in found.items()} for part, found in systems.items()},
        }


def _measure(options: Namespace) -> Iterator[Run]:
    dataset = open_dataset(options.dataset, options.path)
    for seed in options.seeds:
        study = Study(options.dataset, dataset, seed, tuple(options.set), options.results)
        config = {"dataset": dataset.sha256, "training": study.config.model_dump(mode="json"), "share": SHARE}
        yield Run(config, _Experiment(study).run(), seed, f"{NAME}/{options.dataset}/seed-{seed}")


def _section(folder: Path = RESULTS) -> str:
    paths = sorted((folder / NAME).glob("*/seed-*.json"))
    if not paths:
        return ""
    about = (
        "## New items by their titles\n\nItems that were held out of training are added with their titles. New items "
        "are asked for among all items and among themselves; known ones show what the addition costs. Differences are "
        "to the added items, for known items to no addition, paired over users."
    )
    return paragraphs(about, *(_table(path) for path in paths))


def _table(path: Path) -> str:
    run = load_run(path)
    result: Mapping[str, Any] = run["result"]
    title = dataset_title(path.parent.name)
    head = f"{title}, seed {run['seed']}: {result['new_items']:,} of {result['items']:,} items are new:"
    rows = []
    for part, systems in result["places"].items():
        places = {name: unpack(marks) for name, marks in systems.items()}
        reference = "not added" if part == KNOWN else ADDED
        for name, each in places.items():
            gain = ndcg(each, K)
            difference = None if name == reference else paired_difference(gain, ndcg(places[reference], K))
            cells = [interval(mean_of(hr(each, K))), interval(mean_of(gain)), interval(difference, signed=True)]
            rows.append([part, name, f"{len(each):,}", *cells])
    return paragraphs(head, table(["lists of", "system", "cases", "HR@10", "NDCG@10", "difference"], rows))


BENCHMARK = Benchmark(
    __doc__,
    "half an hour to an hour a seed, the data with titles",
    {"dataset": str, "--seeds": (0,), "--path": None, "--set": (str,)},
    _measure,
    _section,
    folders=("cold_items",),
)
