"""What the time of a request tells: NDCG@10 with the time since the newest event, and without it.

The network is the ladder of ``quality``, trained under build/quality unless it is there; every validation and test item
is asked for at its own time. Stored as request_time/DATASET/ladder-seed-S.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fathom.benchmarks.experiments.paired_depths import differences
from fathom.benchmarks.experiments.quality.arms import ARMS
from fathom.benchmarks.experiments.quality.stored import dataset_title, page_order
from fathom.benchmarks.experiments.quality.study import Study, open_dataset
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.record import RESULTS, load_run
from fathom.benchmarks.registry import Benchmark, Run
from fathom.training.evaluate import Part, evaluate_model
from fathom.training.model import ElasticModel
from fathom.training.request_time import RequestTime
from fathom.training.request_time_fit import fit_request_time

NAME, ARM = "request_time", "ladder"
COLUMNS = (
    "data set={title} | seed={seed} | kept={kept} | validation, mean of the depths={validation:+interval}"
    " | test: depth={system} | without={untimed:interval} | with={timed:interval} | added={added:+interval}"
)


def _measure(options: Namespace) -> Iterator[Run]:
    dataset = open_dataset(options.dataset, options.path)
    for seed in options.seeds:
        study = Study(options.dataset, dataset, seed, tuple(options.set), options.results)
        model, started = study.checkpoint(ARMS[ARM]).model, time.process_time()
        found = fit_request_time(model, study.config.train, study.split)
        seconds = round(time.process_time() - started, 1)
        parts: dict[str, Any] = {}
        if found is not None:
            parts = {part: _differences(study, model, found, part) for part in ("validation", "test")}
        config = {"dataset": dataset.sha256, "training": study.config.model_dump(mode="json")}
        result = {"kept": found is not None, "fit_processor_s": seconds, "parts": parts}
        yield Run(config, result, seed, f"{NAME}/{study.name}/{ARM}-seed-{seed}")


def _differences(study: Study, model: ElasticModel, found: RequestTime, part: Part) -> list[dict[str, Any]]:
    """NDCG@10 of every depth with and without the time of each request, and the mean over depths, as "all"."""
    report = evaluate_model(
        model, study.dataset, study.split, part=part, request_time=found, baselines=(), seed=study.seed
    )
    return differences(report, model.depths, "untimed", ("timed", "untimed"))


def _section(folder: Path = RESULTS) -> str:
    paths = sorted((folder / NAME).glob("*/*.json"), key=lambda path: (page_order(path.parent.name), path.name))
    if not paths:
        return ""
    about = (
        "## The time of a request\n",
        "What the time since the newest event adds to NDCG@10, where validation items say that it helps; each test item"
        " is asked for at its own time. Intervals are over users.",
    )
    rows = [row for path in paths for row in _rows(path.parent.name, load_run(path))]
    return paragraphs("\n".join(about), table_of(rows, COLUMNS))


def _rows(dataset: str, run: Any) -> list[dict[str, Any]]:
    parts, title = run["result"]["parts"], dataset_title(dataset)
    empty = dict.fromkeys(("validation", "timed", "untimed", "added"))
    head = {"title": title, "seed": run["seed"], "kept": "yes" if run["result"]["kept"] else "no", "system": ""} | empty
    if not parts:
        return [head]
    return [head | {"validation": parts["validation"][-1]["added"]} | row for row in parts["test"]]


BENCHMARK = Benchmark(
    __doc__,
    "1 to 10 min a seed, the networks of `quality`",
    {"dataset": str, "--seeds": (0,), "--path": None, "--set": (str,)},
    _measure,
    _section,
    folders=("request_time",),
)
