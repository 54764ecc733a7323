"""Quality of a build's depths, plans and baselines, and how long its stages took, as one stored run.

    python -m fathom.benchmarks.quality build/ml-100k/bundle

Reads the artefacts that `fathom build` left beside the bundle and writes results/quality_NAME_seed_SEED.json.
"""

import argparse
from pathlib import Path
from typing import Any

from fathom.benchmarks.record import run, save_run
from fathom.files import read_json
from fathom.runtime.bundle import read_manifest
from fathom.training.checkpoint import Checkpoint


def collect(bundle: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the result of the stored run; raises ArtefactError when an artefact of the build is missing."""
    folder, manifest = bundle.parent, read_manifest(bundle)
    checkpoint = Checkpoint.load(folder / "healed" / manifest.strategy)
    ranking, comparison, evaluation, stages = (
        read_json(folder / f"{name}.json", kind=name, schema_version=1)
        for name in ("ranking", "comparison", "evaluation", "stages")
    )
    config = {
        "bundle": manifest.name,
        "bundle_version": manifest.version,
        "items": manifest.items,
        "training": checkpoint.config.train.model_dump(mode="json"),
    }
    result = {
        "evaluation": {key: value for key, value in evaluation.items() if key != "table"},
        "plans": comparison,
        "consensus": ranking["consensus"],
        "kendall_tau": ranking["kendall_tau"],
        "stage_seconds": {name: stage["seconds"] for name, stage in stages["stages"].items()},
    }
    return config, result


def main() -> None:
    """Collect, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    config, result = collect(parser.parse_args().bundle)
    for name, system in result["evaluation"]["systems"].items():
        figures = {metric: system["metrics"][metric]["value"] for metric in ("hr@10", "ndcg@10")}
        print(f"{name:<12}" + "".join(f"  {metric} {value:.4f}" for metric, value in figures.items()))
    seed = config["training"]["train"]["seed"]
    name = f"quality_{config['bundle']}_seed_{seed}".replace("-", "_")
    print(f"stored in {save_run(name, config=config, result=result, seed=seed)}")


if __name__ == "__main__":
    run(main)
