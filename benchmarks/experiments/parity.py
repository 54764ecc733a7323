"""Parity of a bundle's engines with torch at every history length, and of the top 10 over all test users.

Export checks about thirty lengths; this checks each one from 1 to the longest history. The checkpoint and the dataset
are those that `fathom build` left beside the bundle, unless --checkpoint and --data say otherwise.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.errors import ArtefactError
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.parity import MAX_ABS_ERROR, MIN_TOP10_AGREEMENT, TIE, check_parity, measure_parity
from fathom.runtime.bundle import Bundle
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.splits import split


def _section(run: StoredRun) -> str:
    low, high = run["config"]["history_lengths"]
    return paragraphs(
        f"## Engines against torch, history {low} to {high}",
        table_of(
            run["result"]["rows"],
            "depth={depth} | largest error of the user vector={max_abs_error:.1e}"
            " | identical top 10={identical_share:.2%} | users={users}",
        ),
    )


def _measure(options: Namespace) -> Iterator[Run]:
    """Gives the run, and raises ParityError where an engine disagrees."""
    dataset = Dataset.load(options.data or options.bundle.parent / "dataset")
    with Bundle.open(options.bundle) as bundle:
        manifest = bundle.manifest
        path = options.checkpoint or options.bundle.parent / "healed" / manifest.strategy
        checkpoint = Checkpoint.load(path)
        if manifest.source.checkpoint != checkpoint.sha256:
            raise ArtefactError(f"{options.bundle}: was exported from another checkpoint than {path}")
        files = {name: bundle.read(name) for depth in bundle.depths for name in bundle.segments(depth)}
    histories = split(dataset, checkpoint.config.split).test.histories
    parity = measure_parity(checkpoint.model, EngineSet.of(checkpoint.model, files), histories, every_length=True)
    rows = [
        {
            "depth": depth,
            **asdict(found),
            "identical_share": found.identical / found.users,
            "agreed_share": found.top10_agreement,
        }
        for depth, found in sorted(parity.items())
    ]
    config = {
        "bundle": manifest.name,
        "bundle_version": manifest.version,
        "model": manifest.model.model_dump(mode="json"),
        "history_lengths": [1, manifest.model.max_history],
        "tie": TIE,
        "limits": {"max_abs_error": MAX_ABS_ERROR, "top10_agreement": MIN_TOP10_AGREEMENT},
    }
    yield Run(config, {"rows": rows})
    check_parity(parity)


BENCHMARK = Benchmark(
    __doc__,
    "1 min, the bundle's checkpoint and data",
    {"bundle": Path, "--checkpoint": None, "--data": None},
    _measure,
    of_runs(_section, "parity"),
)
