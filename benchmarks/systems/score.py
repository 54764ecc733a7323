"""All users of a dataset at once: `fathom score`, against a server that is asked for each of them.

The server answers in a closed loop, with and without its prefix cache. Per core means per second of processor time: for
`fathom score` of one process while it answers, for the server of its process from the first request to the last.
"""

import asyncio
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from fathom.benchmarks.load import closed_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import started
from fathom.client import AsyncClient, Recommendation
from fathom.pieces import Piece, Result, Shared, one_after_the_other
from fathom.tools.scoring.answers import ScoreOptions
from fathom.tools.scoring.score import score
from fathom.training.dataset import Dataset

CALLERS = 32
ROUNDS = 3
#: As if there were no deadline.
TIMEOUT_S = 600.0
SERVERS = {"server": (), "server without prefix cache": ("--reuse-mb", "0")}


class _Timed:
    """The runner of this process, with the processor time of a whole run, in seconds."""

    cpu_s = 0.0

    def __call__(
        self, function: Callable[[Shared, Piece], Result], shared: Shared, pieces: Sequence[Piece]
    ) -> Iterator[tuple[Piece, Result]]:
        begin_s = time.process_time()
        yield from one_after_the_other(function, shared, pieces)
        self.cpu_s = time.process_time() - begin_s


def scored(bundle: Path, data: Path, options: ScoreOptions) -> tuple[dict[str, Any], pl.DataFrame]:
    """Rates of one process, and what it writes; a first run, which opens the bundle, does not count."""
    with tempfile.TemporaryDirectory() as folder:
        out, runner, rates = Path(folder) / "recs.parquet", _Timed(), []
        for _ in range(ROUNDS + 1):
            summary = score(bundle, data, out, options, runner=runner)
            rates.append((summary.users_per_s, summary.users / runner.cpu_s))
        return _row("fathom score", rates[1:]), pl.read_parquet(out)


async def asked(
    bundle: Path, dataset: Dataset, options: ScoreOptions, name: str
) -> tuple[dict[str, Any], list[Recommendation]]:
    """Rates of a server that has answered nobody yet, in every round, and its answers."""
    flags, rates, answers = (*SERVERS[name], "--profile", options.profile, "--feedback-share", "0"), [], {}
    for _ in range(ROUNDS):
        with started(bundle, *flags) as server:
            async with AsyncClient(server.address) as client:

                async def ask(user: int, client: AsyncClient = client) -> None:
                    items = [dataset.item_ids[item] for item in dataset.sequences[user]]
                    times = dataset.sequences.times(user)
                    seconds = None if times is None else times.tolist()
                    answers[user] = await client.recommend(items, timestamps=seconds, k=options.k, timeout_s=TIMEOUT_S)

                before_s = server.cpu_s()
                per_s = await closed_loop(ask, CALLERS, dataset.n_users)
                rates.append((per_s, dataset.n_users / (server.cpu_s() - before_s)))
    return _row(name, rates), [answers[user] for user in range(dataset.n_users)]


def _row(name: str, rates: Sequence[tuple[float, float]]) -> dict[str, Any]:
    wall, cpu = zip(*rates, strict=True)
    return {"by": name, "users_per_s": round(median(wall), 1), "users_per_core_s": round(median(cpu), 1)}


def compared(table: pl.DataFrame, answers: Sequence[Recommendation]) -> dict[str, Any]:
    """How many users got the same items in the same order and the same depth, and the largest difference of a score."""
    same, error = 0, 0.0
    for row, answer in zip(table.iter_rows(named=True), answers, strict=True):
        items = [item.id for item in answer.items]
        if row["item_ids"] == items and row["depth"] == answer.depth:
            same += 1
            differences = np.subtract(row["scores"], [item.score for item in answer.items])
            error = max(error, float(np.abs(differences).max(initial=0)))
    return {"same_lists": same, "max_score_difference": float(f"{error:.2g}")}


def measure(options: Namespace) -> Iterator[Run]:
    """One process of `fathom score`, then each server."""
    wanted, dataset = ScoreOptions(profile=options.profile), Dataset.load(options.data)
    row, table = scored(options.bundle, options.data, wanted)
    rows = [row]
    for name in SERVERS:
        row, answers = asyncio.run(asked(options.bundle, dataset, wanted, name))
        rows.append(row | compared(table, answers))
    config = {"dataset": dataset.meta["name"], "users": dataset.n_users, "callers": CALLERS, "rounds": ROUNDS}
    yield Run(config | {"profile": wanted.profile, "k": wanted.k}, {"rows": rows})


def render(run: StoredRun) -> str:
    """A row for `fathom score` and for each server."""
    config, (first, *servers) = run["config"], run["result"]["rows"]
    rows = [first | {"same": "", "times": "1.00"}]
    for row in servers:
        same = f"{row['same_lists']:,} of {config['users']:,}"
        rows.append(row | {"same": same, "times": f"{row['users_per_core_s'] / first['users_per_core_s']:.2f}"})
    return paragraphs(
        "## All users at once",
        f"The {config['users']:,} users of {config['dataset']}, profile {config['profile']}, {config['k']} items each:"
        f" `fathom score` with one process, and a server with {config['callers']} callers. Per core: per second of"
        " processor time of that process. The same lists: as `fathom score` has written them, with the depth.",
        table_of(
            rows,
            "answered by={by} | users/s={users_per_s:,.0f} | users/s per core={users_per_core_s:,.0f}"
            " | times `fathom score`={times} | same lists={same}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__,
    "2 min, the bundle's data",
    {"bundle": Path, "--data": Path, "--profile": "cloud"},
    measure,
    of_runs(render, "score"),
)
