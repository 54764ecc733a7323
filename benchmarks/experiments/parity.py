"""Parity of a bundle's engines with torch at every history length, and of the top 10 over all test users.

    python -m fathom.benchmarks.experiments.parity build/ml-100k/bundle

Export checks about thirty lengths; this checks each one from 1 to the longest history. The checkpoint and the dataset
are those that `fathom build` left beside the bundle, unless --checkpoint and --data say otherwise. Writes
``results/parity.json``.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.record import run, save_run
from fathom.errors import ArtefactError
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.parity import MAX_ABS_ERROR, MIN_TOP10_AGREEMENT, TIE, check_parity, measure_parity
from fathom.runtime.bundle import Bundle
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.splits import split


def section(run: Mapping[str, Any]) -> str:
    """The run as docs/results.md tells it."""
    low, high = run["config"]["history_lengths"]
    columns = {
        "depth": "{depth}",
        "largest error of the user vector": "{max_abs_error:.1e}",
        "identical top 10": "{identical_share:.2%}",
        "users": "{users}",
    }
    return paragraphs(f"## Engines against torch, history {low} to {high}", table_of(run["result"]["rows"], columns))


def main(arguments: list[str] | None = None) -> Path:
    """Measure, print a table, store the run, and raise ParityError where an engine disagrees; returns the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="default: healed/STRATEGY beside the bundle")
    parser.add_argument("--data", type=Path, help="default: dataset beside the bundle")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for the stored run")
    chosen = parser.parse_args(arguments)
    dataset = Dataset.load(chosen.data or chosen.bundle.parent / "dataset")
    with Bundle.open(chosen.bundle) as bundle:
        manifest = bundle.manifest
        path = chosen.checkpoint or chosen.bundle.parent / "healed" / manifest.strategy
        checkpoint = Checkpoint.load(path)
        if manifest.source.checkpoint != checkpoint.sha256:
            raise ArtefactError(f"{chosen.bundle}: was exported from another checkpoint than {path}")
        files = {name: bundle.read(name) for depth in bundle.depths for name in bundle.segments(depth)}
    histories = split(dataset, checkpoint.config.split).test.histories
    parity = measure_parity(checkpoint.model, EngineSet.of(checkpoint.model, files), histories, every_length=True)
    print(f"{'depth':>6} {'max error':>10} {'same top 10':>12} {'but for ties':>13} {'users':>7} {'histories':>10}")
    rows = []
    for depth, found in sorted(parity.items()):
        identical = found.identical / found.users
        print(
            f"{depth:>6} {found.max_abs_error:>10.2e} {identical:>12.3%} {found.top10_agreement:>13.3%}"
            f" {found.users:>7} {found.histories:>10}"
        )
        shares = {"identical_share": identical, "agreed_share": found.top10_agreement}
        rows.append({"depth": depth, **asdict(found), **shares})
    config = {
        "bundle": manifest.name,
        "bundle_version": manifest.version,
        "model": manifest.model.model_dump(mode="json"),
        "history_lengths": [1, manifest.model.max_history],
        "tie": TIE,
        "limits": {"max_abs_error": MAX_ABS_ERROR, "top10_agreement": MIN_TOP10_AGREEMENT},
    }
    path = save_run("parity", config=config, result={"rows": rows}, folder=chosen.results)
    check_parity(parity)
    return path


if __name__ == "__main__":
    run(main)
