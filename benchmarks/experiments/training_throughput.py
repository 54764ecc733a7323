"""Training speed against the straightforward eager fp32 loop of the same model, and against this machine's peak.

Each side (``training_side.py`` says what they are) is a process of its own, in turns; a figure is the median over
turns. Speed counts events, not padding. The peak is that of a large fp32 matrix product. The achieved share counts the
arithmetic of the plain formulas on those batches, so that computing a score twice does not count.
Run it on an otherwise idle machine.
"""

import json
import subprocess
import sys
import time
from argparse import Namespace
from statistics import median
from typing import Any

import torch

from fathom.benchmarks.experiments import training_side
from fathom.benchmarks.experiments.training_side import SIDES
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs

MATRIX = 2048


def peak_gflops(repetitions: int = 20) -> float:
    """The best of some fp32 products of 2048 x 2048 matrices."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    best = float("inf")
    for _ in range(repetitions):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX**3 / best / 1e9


def measure_side(side: str, preset: str, dataset: str, steps: int) -> list[dict[str, Any]]:
    """A row for each stage, measured in a process of its own."""
    command = [sys.executable, "-m", training_side.__name__, side, preset, dataset, str(steps)]
    rows: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return rows


def compare(preset: str, dataset: str, turns: int, steps: int, peak: float) -> list[dict[str, Any]]:
    """All sides in turns: a row for each stage."""
    found = [{side: measure_side(side, preset, dataset, steps) for side in SIDES} for _ in range(turns)]
    rows = []
    for index, first in enumerate(found[0]["same batches"]):
        speeds = {side: median(turn[side][index]["events_per_s"] for turn in found) for side in SIDES}
        ours = speeds["fathom"]
        achieved = ours * first["flop_per_event"] / 1e9
        rows.append(
            {
                "preset": preset,
                "stage": first["stage"],
                "events_per_s": {side: round(speed) for side, speed in speeds.items()},
                "ratio": round(ours / speeds["straightforward"], 2),
                "ratio_same_batches": round(ours / speeds["same batches"], 2),
                "achieved_gflops": round(achieved, 1),
                "share_of_peak": round(achieved / peak, 3),
                "losses": {side: round(found[0][side][index]["loss"], 4) for side in SIDES},
            }
        )
    return rows


def _section(run: StoredRun) -> str:
    peak = run["result"]["peak_gflops"]
    return paragraphs(
        "## Training speed against the straightforward loop of the same model",
        table_of(
            run["result"]["rows"],
            "preset={preset} | stage={stage} | straightforward, events/s={events_per_s[straightforward]:,}"
            " | on Fathom's batches={events_per_s[same batches]:,} | Fathom={events_per_s[fathom]:,}"
            " | ratio={ratio} | ratio, same batches={ratio_same_batches} | GFLOP/s={achieved_gflops}"
            " | share of the peak={share_of_peak}",
        ),
        f"The peak is that of a large fp32 matrix product on the same machine: {peak} GFLOP/s.",
    )


def _measure(options: Namespace) -> list[Run]:
    peak, rows = peak_gflops(), []
    for each in options.of:
        preset, _, dataset = each.partition("=")
        rows += compare(preset, dataset, options.turns, options.steps, peak)
    config = {"turns": options.turns, "steps": options.steps, "threads": torch.get_num_threads(), "matrix": MATRIX}
    return [Run(config, {"peak_gflops": round(peak), "rows": rows}, 0)]


BENCHMARK = Benchmark(
    __doc__,
    "15 min, a data set and an idle machine",
    {"of": (str,), "--turns": 5, "--steps": 20},
    _measure,
    of_runs(_section, "training_throughput"),
)
