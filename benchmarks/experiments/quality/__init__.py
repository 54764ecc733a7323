"""Quality per depth: arms of training, planning and healing, beside counting baselines and other recommenders.

What is trained is an arm of ``arms.py``, stored as quality/DATASET/ARM-seed-S, or below depths for the group ``time``.
A run that is stored with the same settings is left alone; one that was interrupted goes on where it was. Checkpoints
lie in build/quality. A data set that cannot be downloaded is read once from --path.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fathom.benchmarks.experiments.quality.arms import ARMS, chosen
from fathom.benchmarks.experiments.quality.peers import PEERS
from fathom.benchmarks.experiments.quality.stored import path_of, pools
from fathom.benchmarks.experiments.quality.study import Study, open_dataset
from fathom.benchmarks.experiments.quality.tables import quality_sections
from fathom.benchmarks.markdown import paragraphs
from fathom.benchmarks.record import RESULTS, load_run
from fathom.benchmarks.registry import Benchmark, Run

BASELINES, RECTOOLS = "baselines", "peers"
PEER_EPOCHS = 100
DEPTHS_STUDY = "depths"

Planned = tuple[str, dict[str, Any], Callable[[], Mapping[str, Any]]]
"""The name of an arm, its config, and what measures it."""


def _measure(options: Namespace) -> Iterator[Run]:
    chosen([name for name in options.arms if name not in (BASELINES, RECTOOLS)])
    dataset = open_dataset(options.dataset, options.path)
    for seed in options.seeds:
        study = Study(options.dataset, dataset, seed, tuple(options.set), options.results)
        for arm, config, measure in _planned(study, options.arms):
            kept = DEPTHS_STUDY if arm in ARMS and ARMS[arm].group == "time" else "quality"
            path = path_of(study.name, arm, seed, options.results, study=kept)
            config = {"dataset": dataset.sha256, **config}
            if not path.exists() or load_run(path)["config"] != config:
                yield Run(config, measure(), seed, f"{kept}/{study.name}/{path.stem}")


def _planned(study: Study, names: Sequence[str]) -> Iterator[Planned]:
    split = study.config.train.split
    if BASELINES in names:
        yield BASELINES, {"split": split}, study.count
    for arm in chosen([name for name in names if name not in (BASELINES, RECTOOLS)]):
        training = study.config_of(arm).model_dump(mode="json")
        healed = {"start": arm.start, "strategy": arm.strategy, "order": arm.order, "training": training}
        yield arm.name, healed, partial(study.measure, arm)
    for peer in PEERS if RECTOOLS in names else ():
        yield f"rectools-{peer}", {"split": split, "epochs": PEER_EPOCHS}, partial(study.ask_peer, peer, PEER_EPOCHS)


def _section(folder: Path = RESULTS) -> str:
    if not (folder / "quality").exists():
        return ""
    engine = folder / "engine_depth.json"
    depths = pools(folder, study=DEPTHS_STUDY) if (folder / DEPTHS_STUDY).exists() else []
    return paragraphs(*quality_sections(pools(folder), load_run(engine) if engine.exists() else None, depths))


BENCHMARK = Benchmark(
    __doc__,
    "10 min to hours an arm and seed, the data",
    {"dataset": str, "--seeds": (0,), "--arms": (BASELINES, "main"), "--path": None, "--set": (str,)},
    _measure,
    _section,
    folders=("quality", "depths"),
)
