"""What the context of a request tells: NDCG@10 with the features that its data have, and without.

The network is the ladder of ``quality``, trained under build/quality unless it is there; every validation and test item
is asked for at its own time and in its own context. The same events are prepared once more, with the features, which
a network does not see. Stored as context/DATASET/ladder-seed-S.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.experiments.paired_depths import differences
from fathom.benchmarks.experiments.quality.arms import ARMS
from fathom.benchmarks.experiments.quality.stored import dataset_title, page_order
from fathom.benchmarks.experiments.quality.study import DATASETS, WORK, Study, open_dataset
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.record import RESULTS, load_run
from fathom.benchmarks.registry import Benchmark, Run
from fathom.errors import ConfigError
from fathom.show import Activity
from fathom.training.context import Context
from fathom.training.context_fit import fit_context
from fathom.training.data import prepare
from fathom.training.dataset import Dataset
from fathom.training.evaluate import Part, evaluate_model
from fathom.training.model import ElasticModel
from fathom.training.request_time import RequestTime
from fathom.training.request_time_fit import fit_request_time
from fathom.training.sources import default_options
from fathom.training.splits import Split, split

NAME, ARM = "context", "ladder"
COLUMNS = (
    "data set={title} | features={features} | seed={seed} | kept={kept}"
    " | validation, mean of the depths={validation:+interval} | test: depth={system} | without={plain:interval}"
    " | with={told:interval} | added={added:+interval}"
)


def _measure(options: Namespace) -> Iterator[Run]:
    dataset = open_dataset(options.dataset, options.path)
    told = _with_features(options.dataset, dataset, options.path, tuple(options.features))
    for seed in options.seeds:
        study = Study(options.dataset, dataset, seed, tuple(options.set), options.results)
        model, settings = study.checkpoint(ARMS[ARM]).model, study.config.train
        cut = split(told, settings.split)
        timed, started = fit_request_time(model, settings, cut), time.process_time()
        found = fit_context(model, settings, cut, timed)
        seconds = round(time.process_time() - started, 1)
        parts: dict[str, Any] = {}
        if found is not None:
            parts = {part: _differences(model, told, cut, timed, found, part) for part in ("validation", "test")}
        config = {"dataset": told.sha256, "training": study.config.model_dump(mode="json")}
        values = {} if found is None else found.values
        features = {name: len(values.get(name, ())) for name in told.meta["context"]}
        result = {"kept": found is not None, "values": features, "fit_processor_s": seconds, "parts": parts}
        yield Run(config, result, seed, f"{NAME}/{study.name}/{ARM}-seed-{seed}")


def _with_features(name: str, dataset: Dataset, path: Path | None, features: tuple[str, ...]) -> Dataset:
    """The same events with features of their context, prepared now from ``path``; ConfigError where others come out."""
    source = DATASETS[name]
    options = replace(default_options(source.source), path=path, name=name, context=features)
    with Activity(f"prepare {name} with {', '.join(features)}") as activity:
        made = prepare(source.source, WORK / name / "told", options=source.options(options), progress=activity.update)
    if not np.array_equal(made.sequences.items, dataset.sequences.items):
        raise ConfigError(f"{path}: not the events of {WORK / name / 'dataset'}; give the file that was made from")
    return made


def _differences(
    model: ElasticModel, told: Dataset, cut: Split, timed: RequestTime | None, found: Context, part: Part
) -> list[dict[str, Any]]:
    """NDCG@10 of every depth with and without the context of each request, and the mean over depths, as "all"."""
    report = evaluate_model(model, told, cut, part=part, request_time=timed, context=found, baselines=())
    return differences(report, model.depths, "without context", ("told", "plain"))


def _section(folder: Path = RESULTS) -> str:
    paths = sorted((folder / NAME).glob("*/*.json"), key=lambda path: (page_order(path.parent.name), path.name))
    if not paths:
        return ""
    about = (
        "## The context of a request\n",
        "What the features of a request's context add to NDCG@10, where validation items say that they help; each test"
        " item is asked for in its own context. Intervals are over users.",
    )
    rows = [row for path in paths for row in _rows(path.parent.name, load_run(path))]
    return paragraphs("\n".join(about), table_of(rows, COLUMNS))


def _rows(dataset: str, run: Any) -> list[dict[str, Any]]:
    result = run["result"]
    head = {"title": dataset_title(dataset), "seed": run["seed"], "kept": "yes" if result["kept"] else "no"}
    head |= {"features": ", ".join(result["values"]), "system": ""}
    if not result["parts"]:
        return [head | dict.fromkeys(("validation", "told", "plain", "added"))]
    return [head | {"validation": result["parts"]["validation"][-1]["added"]} | row for row in result["parts"]["test"]]


BENCHMARK = Benchmark(
    __doc__,
    "1 to 10 min a seed, the networks of `quality`",
    {"dataset": str, "--features": (str,), "--seeds": (0,), "--path": None, "--set": (str,)},
    _measure,
    _section,
    folders=("context",),
)
