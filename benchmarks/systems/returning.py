"""A returning user with one new item: incremental inference, against computing the whole history again.

Histories of 200 items, batch 1, one thread, at every depth; both ways take turns. Also what remembering costs a user
who is new, and the memory that a remembered user takes.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.errors import ConfigError
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.incremental import CachedHistory
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine
from fathom.training.dataset import Dataset

USERS = 200
ROUNDS = 5
TOP = 10
BATCH = 8


def read_histories(bundle: Bundle, dataset: Dataset, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Input ids and seconds of the newest ``length`` items of users with so many."""
    place = {item: index + 1 for index, item in enumerate(bundle.catalogue.ids)}
    ids, seconds = [], []
    for user in np.flatnonzero(dataset.sequences.lengths >= length)[:USERS].tolist():
        ids.append([place[dataset.item_ids[item]] for item in dataset.sequences[user][-length:]])
        times = dataset.sequences.times(user)
        seconds.append(np.zeros(length) if times is None else times[-length:])
    if not ids:
        raise ConfigError(f"no user of the dataset has {length} items")
    return np.array(ids, np.int64), np.array(seconds, np.int64)


def row_of(engine: Engine, bundle: Bundle, ids: np.ndarray, seconds: np.ndarray, depth: int) -> dict[str, Any]:
    """Medians over users of the milliseconds of each way, in turns, and what they find."""
    length = ids.shape[1]
    grown = [CachedHistory(row[:-1], at[:-1], None) for row, at in zip(ids, seconds, strict=True)]
    kept = [engine.run_incremental([history], [depth])[1][0] for history in grown]
    new = [CachedHistory(row, at, None) for row, at in zip(ids, seconds, strict=True)]
    returning = [history._replace(state=rest) for history, rest in zip(new, kept, strict=True)]
    afresh_ms: list[float] = []
    resumed_ms: list[float] = []
    first_ms: list[float] = []
    same, error = 0, 0.0
    for number in range(ROUNDS):
        # One way after the other over all users, so that each finds its own weights in the cache, but no user's data.
        plain = [_timed(engine.run, ids[row : row + 1], seconds[row : row + 1], depth) for row in range(len(ids))]
        resumed = [_timed(engine.run_incremental, [history], [depth]) for history in returning]
        first = [_timed(engine.run_incremental, [history], [depth]) for history in new]
        for ways, found in ((afresh_ms, plain), (resumed_ms, resumed), (first_ms, first)):
            ways += [took_ms for took_ms, _ in found]
        if number == 0:
            for row, ((_, one), (_, (other, _))) in enumerate(zip(plain, resumed, strict=True)):
                error = max(error, float(np.abs(one - other).max()))
                same += bool(np.array_equal(_top(bundle, one[0], ids[row]), _top(bundle, other[0], ids[row])))
    plain_batch_ms, first_batch_ms = [], []
    for start in range(0, len(ids) - BATCH + 1, BATCH):
        rows = slice(start, start + BATCH)
        plain_batch_ms.append(_timed(engine.run, ids[rows], seconds[rows], depth)[0])
        first_batch_ms.append(_timed(engine.run_incremental, new[rows], [depth] * len(new[rows]))[0])
    return {
        "depth": depth,
        "users": len(ids),
        "history": length,
        "afresh_ms": round(median(afresh_ms), 3),
        "resumed_ms": round(median(resumed_ms), 3),
        "times_less": round(float(np.median(np.divide(afresh_ms, resumed_ms))), 2),
        "same_top_10": same,
        "max_abs_error": float(f"{error:.2g}"),
        "new_user_costs": round(float(np.median(np.divide(first_ms, afresh_ms))), 3),
        "new_users_in_batch_cost": round(float(np.median(np.divide(first_batch_ms, plain_batch_ms))), 3),
        "kept_kb": round(kept[0].nbytes / 1024, 1),
    }


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    found = work(*arguments)
    return (time.perf_counter() - begin) * 1e3, found


def _top(bundle: Bundle, user: np.ndarray, seen: np.ndarray) -> np.ndarray:
    scores = np.asarray(bundle.vectors) @ user
    scores[seen - 1] = -np.inf
    return np.argsort(-scores, kind="stable")[:TOP]


def measure(options: Namespace) -> Iterator[Run]:
    """Every depth."""
    bundle = Bundle.open(options.bundle)
    length = bundle.manifest.model.max_history
    ids, seconds = read_histories(bundle, Dataset.load(options.data), length)
    with open_engine(bundle, incremental=True) as engine:
        if not engine.incremental:
            raise ConfigError(f"{options.bundle}: it has no engines for incremental inference; export it again")
        rows = [row_of(engine, bundle, ids, seconds, depth) for depth in bundle.depths]
    config = {"bundle": bundle.manifest.name, "history": length, "threads": 1, "rounds": ROUNDS, "batch": BATCH}
    yield Run(config, {"rows": rows}, 0)


def render(run: StoredRun) -> str:
    """A row per depth."""
    config = run["config"]
    return paragraphs(
        "## A returning user with one new item",
        f"Bundle {config['bundle']}, {config['history'] - 1} items cached and one new, batch 1, one thread:"
        " the engine's time for the new item alone, and for the whole history. On the right what caching costs a user"
        f" who is new, alone and in a batch of {config['batch']}, times not caching.",
        table_of(
            run["result"]["rows"],
            "depth={depth} | whole ms={afresh_ms:.2f} | incremental ms={resumed_ms:.2f}"
            " | times less={times_less:.1f} | same top 10={same_top_10} of {users}"
            " | new user costs={new_user_costs:.2f} x | in a batch={new_users_in_batch_cost:.2f} x"
            " | cached KB={kept_kb:.0f}",
        ),
    )


BENCHMARK = Benchmark(
    __doc__, "2 min, the bundle's data", {"bundle": Path, "--data": Path}, measure, of_runs(render, "returning")
)
