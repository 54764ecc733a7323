"""Tens of millions of reviews: time and peak memory of `fathom data prepare`, what became of each row, and training.

The reviews are made up (``reviews_data.py``), in the form of Amazon Reviews 2023 and as many as asked for; the files go
when the run ends. As JSON lines 43.9 million rows take 14 GB of disk. Training is not run to its end: an epoch is
estimated from the steps that were measured.
"""

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.systems import reviews_side
from fathom.benchmarks.systems.reviews_data import Form, Written, write_reviews

ROWS = 43_900_000
STEPS = 40


def accounted(meta: Mapping[str, Any], written: Written) -> dict[str, Any]:
    """What became of the rows by meta.json: events that are left, and rows that are not, by reason.

    ``unaccounted``: rows that are in none of these; ``faults_as_written``: whether the malformed rows are those that
    were written.
    """
    malformed = {name: rows for name, rows in meta["interactions"]["malformed"].items() if name != "rows"}
    left_out = malformed | meta["interactions"]["filtered"] | meta["filters"]["removed"]
    unaccounted = written.rows - meta["counts"]["events"] - sum(left_out.values())
    return {
        "kept": meta["counts"],
        "left_out": left_out,
        "unaccounted": unaccounted,
        "faults_as_written": malformed == written.faults,
    }


def measure(options: Namespace) -> Iterator[Run]:
    """Write, prepare, and train some steps, each of the last two in a process of its own."""
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="reviews-") as name:
        folder = Path(name)
        started = time.perf_counter()
        written = write_reviews(
            folder / f"Reviews.{options.form}", options.rows, cast(Form, options.form), options.seed
        )
        wrote_s = round(time.perf_counter() - started, 1)
        prepared = _side("prepare", str(written.path), str(folder / "dataset"))
        size = written.path.stat().st_size
        written.path.unlink()  # room for what comes
        trained = _side("train", str(folder / "dataset"), str(options.steps))
    config = {"rows": options.rows, "form": options.form, "bytes": size, "wrote_s": wrote_s, "steps": options.steps}
    rows = accounted(prepared.pop("meta"), written)
    yield Run(config, {"prepare": prepared, "rows": rows, "training": trained}, options.seed)


def _side(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", reviews_side.__name__, *arguments]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def render(run: StoredRun) -> str:
    """Memory and time, the rows by what became of them, and the epochs."""
    config, result = run["config"], run["result"]
    prepared, rows, training = result["prepare"], result["rows"], result["training"]
    kept = rows["kept"]
    became = [{"what": f"kept, of {kept['users']:,} users and {kept['items']:,} items", "rows": kept["events"]}]
    became += [{"what": name, "rows": count} for name, count in rows["left_out"].items()]
    became.append({"what": "unaccounted", "rows": rows["unaccounted"]})
    return paragraphs(
        "## Tens of millions of reviews",
        f"{config['rows']:,} made-up rows in the form of Amazon Reviews 2023 ({config['form']},"
        f" {config['bytes'] / 1e9:.1f} GB): `fathom data prepare amazon-reviews-2023` took"
        f" {prepared['seconds']:,.0f} s and at most {prepared['peak_mb'] / 1000:.2f} GB. What became of them:",
        table_of(became, "rows={rows:,} | what={what}"),
        f"Training on what is left, with the settings that the data chooses ({training['device']}, at most"
        f" {training['peak_mb'] / 1000:.2f} GB). An epoch is estimated from the steps that were measured:",
        table_of(
            training["stages"],
            "stage={stage} | steps measured={steps_measured} | s a step={step_s:.2f}"
            " | steps an epoch={steps_an_epoch:,} | estimated hours an epoch={estimated_hours_an_epoch:.2f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "an hour, no bundle; 15 GB of disk",
    {"--rows": ROWS, "--form": "jsonl", "--steps": STEPS, "--seed": 0, "--folder": Path("build")},
    measure,
    of_runs(render, "reviews"),
)
