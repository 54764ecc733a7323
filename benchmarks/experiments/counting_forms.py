"""What else depth 0 could be: its parts alone, EASE with all its weights, and a heuristic that is not trained.

Every form is counted on everything before the test items; the mix is tuned on validation items as ``fathom export``
does. Stored as counting_forms/DATASET/forms-seed-0.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from fathom.benchmarks.experiments.quality.stored import Pool, dataset_title, pools, summary
from fathom.benchmarks.experiments.quality.study import Study, open_dataset
from fathom.benchmarks.experiments.transition_graph import VARIANTS, transition_graph
from fathom.benchmarks.markdown import interval, paragraphs, table
from fathom.benchmarks.record import RESULTS
from fathom.benchmarks.registry import Benchmark, Run
from fathom.show import Activity
from fathom.training.baselines import EASE_MAX_ITEMS, Scorer, ease
from fathom.training.counting import EASE_REGULARISATION, WINDOWS, CountingSettings, count, tune, tuning_cases
from fathom.training.dataset import Dataset
from fathom.training.evaluate import evaluate, named
from fathom.training.splits import Split
from fathom.training.text import title_vectors

NAME, ARM, TUNED = "counting_forms", "forms", "as tuned"
EASE_DECAY = 0.95
NEIGHBOURS = 64


def _measure(options: Namespace) -> Iterator[Run]:
    dataset = open_dataset(options.dataset, options.path)
    cut = Study(options.dataset, dataset, 0).split
    with Activity(f"{options.dataset}: depth 0") as activity:
        settings = tune(cut.train, tuning_cases(cut), dataset.n_items, activity.update)
        scorers = [named(name, scorer) for name, scorer in _forms(dataset, cut, settings)]
        report = evaluate(cut.test, scorers, n_items=dataset.n_items)
    systems = {name: summary(places) for name, places in report.places.items()}
    config = {"dataset": dataset.sha256, "split": cut.name, "settings": asdict(settings)}
    yield Run(config, {"systems": systems}, 0, f"{NAME}/{options.dataset}/{ARM}-seed-0")


def _forms(dataset: Dataset, cut: Split, settings: CountingSettings) -> Iterator[tuple[str, Scorer]]:
    known, n_items = cut.until_test, dataset.n_items
    yield TUNED, count(known, n_items, settings).scores
    yield "transitions alone", count(known, n_items, replace(settings, ease=0.0)).scores
    if n_items <= EASE_MAX_ITEMS:
        alone = replace(settings, ease=1.0, decay=EASE_DECAY, window=WINDOWS[EASE_DECAY], neighbours=NEIGHBOURS)
        yield f"EASE alone, {NEIGHBOURS} weights an item", count(known, n_items, alone).scores
        yield "EASE alone, all weights", ease(known, n_items, regularisation=EASE_REGULARISATION, decay=EASE_DECAY)
    if any(dataset.titles):
        titles = title_vectors(dataset.titles)
        for name, budgets in VARIANTS.items():
            yield f"{name} (arXiv 2605.07125)", transition_graph(known, n_items, titles, budgets)


def _section(folder: Path = RESULTS) -> str:
    if not (folder / NAME).exists():
        return ""
    found = pools(folder, study=NAME)
    about = "## What else depth 0 could be\n\nThe counting exit and other forms of counting; seen items are left out."
    return paragraphs(about, *(paragraphs(f"{dataset_title(pool.dataset)}:", _table(pool)) for pool in found))


def _table(pool: Pool) -> str:
    systems = pool.of(ARM)[0].systems
    rows = []
    for system in systems:
        less = pool.difference((ARM, system), (ARM, TUNED)) if system != TUNED else None
        rows.append([system, interval(pool.mean((ARM, system))), interval(less, signed=True)])
    return table(["depth 0", "NDCG@10", f"less {TUNED}"], rows)


BENCHMARK = Benchmark(
    __doc__, "1 to 10 min, the data", {"dataset": str, "--path": None}, _measure, _section, folders=("counting_forms",)
)
