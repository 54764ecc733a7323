"""Runs quality experiments and stores each as results/quality/DATASET/ARM-seed-S.json.

    python -m fathom.benchmarks.experiments.quality ml-100k --seeds 0 1 2 --arms main alone plans

A run that is stored with the same settings is left alone; one that was interrupted goes on where it was. Checkpoints
lie in build/quality. A data set that cannot be downloaded is read once from --path.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fathom.benchmarks.experiments.quality.arms import ARMS, GROUPS, chosen
from fathom.benchmarks.experiments.quality.peers import PEERS
from fathom.benchmarks.experiments.quality.stored import path_of
from fathom.benchmarks.experiments.quality.study import DATASETS, Study, open_dataset
from fathom.benchmarks.record import run, save_run
from fathom.files import read_json

BASELINES, RECTOOLS = "baselines", "peers"
PEER_EPOCHS = 100


def keep(study: Study, arm: str, config: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
    """Measure and store one run, unless it is stored with the same config; prints one line."""
    path = path_of(study.name, arm, study.seed)
    config = {"dataset": study.dataset.sha256, **config}
    if not path.exists() or read_json(path, kind="stored run", schema_version=1)["config"] != config:
        result = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_run(path.stem, config=config, result=result, seed=study.seed, folder=path.parent)
    systems = read_json(path, kind="stored run", schema_version=1)["result"]["systems"]
    figures = (f"{name} {each['hr@10']['value']:.4f}/{each['ndcg@10']['value']:.4f}" for name, each in systems.items())
    print(f"{study.name} seed {study.seed} {arm:<24} {'  '.join(figures)}", flush=True)


def main() -> None:
    """Run the chosen arms, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"arms: {', '.join(ARMS)}"
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    groups = ", ".join((BASELINES, *GROUPS, RECTOOLS))
    parser.add_argument("--arms", nargs="+", default=[BASELINES, "main"], help=f"arms, or groups of them: {groups}")
    parser.add_argument("--path", type=Path, help="the data set's file or folder")
    parser.add_argument("--set", action="append", default=[], help="change a setting for all arms: train.epochs=3")
    arguments = parser.parse_args()
    arms = chosen([name for name in arguments.arms if name not in (BASELINES, RECTOOLS)])
    dataset = open_dataset(arguments.dataset, arguments.path)
    for seed in arguments.seeds:
        study = Study(arguments.dataset, dataset, seed, tuple(arguments.set))
        if BASELINES in arguments.arms:
            keep(study, BASELINES, {"split": study.config.train.split}, study.count)
        for arm in arms:
            training = arm.change(study.config).model_dump(mode="json")
            config = {"start": arm.start, "strategy": arm.strategy, "order": arm.order, "training": training}
            keep(study, arm.name, config, partial(study.measure, arm))
        for peer in PEERS if RECTOOLS in arguments.arms else ():
            asked = {"split": study.config.train.split, "epochs": PEER_EPOCHS}
            keep(study, f"rectools-{peer}", asked, partial(study.ask_peer, peer, PEER_EPOCHS))


if __name__ == "__main__":
    run(main)
