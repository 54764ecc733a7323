"""What the counting exit gives, and what its part in the scores of the deeper exits adds, on the test items.

The network is the ladder of ``quality``, trained under build/quality unless it is there. The counting exit is tuned on
validation items; baselines count the same events. Stored as counting_quality/DATASET/ladder-seed-S.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from fathom.benchmarks.experiments.quality.arms import ARMS, DEPTHS
from fathom.benchmarks.experiments.quality.stored import Pool, dataset_title, path_of, pools
from fathom.benchmarks.experiments.quality.study import Study, open_dataset
from fathom.benchmarks.markdown import decimal, interval, paragraphs, table
from fathom.benchmarks.record import RESULTS, load_run
from fathom.benchmarks.registry import Benchmark, Run
from fathom.training.baselines import BASELINES

NAME, ARM = "counting_quality", "ladder"
#: Catalogues above it are not counted by EASE, which takes minutes there.
LARGEST_EASE = 6_000
DEPTH_0, SYSTEMS = "depth 0", tuple(f"depth {depth}" for depth in DEPTHS)


def _measure(options: Namespace) -> Iterator[Run]:
    dataset = open_dataset(options.dataset, options.path)
    baselines = [name for name in BASELINES if name != "EASE" or dataset.n_items <= LARGEST_EASE]
    for seed in options.seeds:
        study = Study(options.dataset, dataset, seed, tuple(options.set), options.results)
        config = {"dataset": dataset.sha256, "training": study.config.model_dump(mode="json")}
        path = path_of(study.name, ARM, seed, options.results, study=NAME)
        if not path.exists() or load_run(path)["config"] != config:
            yield Run(config, study.with_counting(ARMS[ARM], baselines), seed, f"{NAME}/{study.name}/{path.stem}")


def _section(folder: Path = RESULTS) -> str:
    if not (folder / NAME).exists():
        return ""
    found = pools(folder, study=NAME)
    facts = "\n".join(f"- {fact}." for fact in counting_exit_facts(found))
    about = (
        "## The counting exit\n",
        "Depth 0 runs no layer; its part in the score of the deeper exits is chosen on validation items and may be 0."
        " Depths are compared as they are served.",
    )
    return paragraphs("\n".join(about), facts, *(paragraphs(f"{_title(pool)}:", _table(pool)) for pool in found))


def counting_exit_summary(folder: Path = RESULTS) -> list[str]:
    """What the best depth of each data set gives as served, and of the network alone, in a line; none without runs."""
    parts = []
    for pool in pools(folder, study=NAME) if (folder / NAME).exists() else ():
        served, alone = _best(pool, (DEPTH_0, *SYSTEMS)), _best(pool, tuple(f"{system} alone" for system in SYSTEMS))
        if served and alone:
            values = [_value(pool, system) for system in (served, DEPTH_0, alone)]
            beside = f"{values[1]} at depth 0, {values[2]} without counting"
            parts.append(f"{_title(pool)} {values[0]} at {served} ({beside})")
    return [f"NDCG@10 as served, with the counting exit: {'; '.join(parts)}"] if parts else []


def counting_exit_facts(found: Sequence[Pool]) -> list[str]:
    """Of each data set: the best depth as served against the best baseline and against the network alone."""
    lines = []
    for pool in found:
        served, baseline = _best(pool, (DEPTH_0, *SYSTEMS)), _best(pool, tuple(BASELINES))
        alone = _best(pool, tuple(f"{system} alone" for system in SYSTEMS))
        if served and baseline and alone:
            more = [interval(pool.difference((ARM, served), (ARM, other)), signed=True) for other in (baseline, alone)]
            lines.append(
                f"**{_title(pool)}**: NDCG@10 of {served} as served is {_value(pool, served)}; less {baseline}"
                f" ({_value(pool, baseline)}): {more[0]}; less {alone} ({_value(pool, alone)}): {more[1]}"
            )
    return lines


def _best(pool: Pool, systems: Sequence[str]) -> str | None:
    """The system with the highest NDCG@10, None where none was measured."""
    means = {system: mean.value for system in systems if (mean := pool.mean((ARM, system))) is not None}
    return max(means, key=means.__getitem__) if means else None


def _value(pool: Pool, system: str) -> str:
    mean = pool.mean((ARM, system))
    return "" if mean is None else decimal(mean.value)


def _title(pool: Pool) -> str:
    return dataset_title(pool.dataset)


def _table(pool: Pool) -> str:
    best = _best(pool, tuple(BASELINES))
    rows = []
    for system in (DEPTH_0, *SYSTEMS, *BASELINES):
        served = pool.mean((ARM, system))
        if served is None:
            continue
        alone = pool.mean((ARM, f"{system} alone"))
        more = pool.difference((ARM, system), (ARM, f"{system} alone")) if alone else None
        less = pool.difference((ARM, system), (ARM, best)) if best and best != system else None
        deeper = pool.difference((ARM, system), (ARM, SYSTEMS[0])) if system in SYSTEMS[1:] else None
        cells = [interval(alone), interval(served), *(interval(each, signed=True) for each in (more, less, deeper))]
        rows.append([system, _weights(pool, system), *cells, str(served.seeds)])
    head = ["NDCG@10", "counting weighs", "network alone", "as served", "added", f"less {best}"]
    head += [f"less {SYSTEMS[0]}", "seeds"]
    return table(head, rows)


def _weights(pool: Pool, system: str) -> str:
    """What counting weighs beside a depth, of every seed."""
    chosen = (run.value["result"]["counting"]["weights"].get(system.removeprefix("depth ")) for run in pool.of(ARM))
    return ", ".join(f"{weight:g}" for weight in sorted({weight for weight in chosen if weight is not None}))


BENCHMARK = Benchmark(
    __doc__,
    "10 min to an hour a seed, the data",
    {"dataset": str, "--seeds": (0,), "--path": None, "--set": (str,)},
    _measure,
    _section,
    folders=("counting_quality",),
)
