"""Histories of users: what kill -9 loses, what an append and a read cost.

A process appends 10,000 events, 50 at a time, and prints each number when the append has returned; it is killed at a
random moment, and every event that was acknowledged must be in the file.
"""

import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.systems import appender
from fathom.errors import FathomError
from fathom.serving.history.contract import HistoryStore, Retention, StoredEvent
from fathom.serving.history.open import open_history

EVENTS = 10_000
AT_ONCE = 50
USERS = 7
SEED = 0
READS = 2_000
HISTORY = 200


def _open(setting: str) -> HistoryStore:
    store = open_history(setting, Retention(EVENTS))
    assert store is not None
    return store


def kill(setting: str, after: int) -> dict[str, int]:
    """Kill an appender once it has acknowledged so many events; counts what it acknowledged and what of it is lost."""
    command = [sys.executable, "-m", appender.__name__, setting, *map(str, (EVENTS, AT_ONCE, USERS))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        promised = {int(next(process.stdout)) for _ in range(after)}
        process.send_signal(signal.SIGKILL)
        promised |= {int(line) for line in process.stdout if line.endswith("\n")}
    if len(promised) == EVENTS:
        raise FathomError("the appender was faster than the kill; nothing is shown")

    async def kept() -> set[int]:
        store = _open(setting)
        found = {event.timestamp for user in range(USERS) for event in await store.read(f"user-{user}")}
        await store.close()
        return found

    return {"acknowledged": len(promised), "lost": len(promised - asyncio.run(kept()))}


async def cost(setting: str) -> dict[str, float]:
    """Appends per second, one after the other and many at once; microseconds to read 200 events."""
    store = _open(setting)
    history = [StoredEvent(f"e{number}", f"item-{number}", number) for number in range(HISTORY)]
    await store.append("reader", history)
    alone: list[float] = []
    for number in range(READS // 4):
        begin = time.perf_counter()
        await store.append("alone", [StoredEvent(f"e{number}", "item", number)])
        alone.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    await asyncio.gather(*(store.append(f"user-{number}", history[:1]) for number in range(READS)))
    together = READS / (time.perf_counter() - begin)
    reads: list[float] = []
    for _ in range(READS):
        begin = time.perf_counter()
        await store.read("reader")
        reads.append(time.perf_counter() - begin)
    await store.close()
    return {
        "append_ms": round(median(alone) * 1e3, 3),
        "appends_together_per_s": round(together),
        "read_us": round(median(reads) * 1e6, 1),
    }


def measure(options: Namespace) -> Iterator[Run]:
    """Kills, then costs."""
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        kills = [
            kill(f"sqlite:{Path(folder) / f'{number}.db'}", rng.randrange(1, EVENTS * 9 // 10))
            for number in range(options.repetitions)
        ]
        result: dict[str, Any] = {
            "kills": kills,
            "acknowledged": sum(each["acknowledged"] for each in kills),
            "lost": sum(each["lost"] for each in kills),
            "sqlite": asyncio.run(cost(f"sqlite:{Path(folder) / 'cost.db'}")),
            "memory": asyncio.run(cost("memory")),
        }
    config = {"events": EVENTS, "at_once": AT_ONCE, "repetitions": options.repetitions, "history": HISTORY}
    yield Run(config, result, SEED)


def render(run: StoredRun) -> str:
    """What was lost, and a row per store."""
    result = run["result"]
    return paragraphs(
        "## Histories of users",
        f"kill -9 of a process that appends, {len(result['kills'])} times at random moments: of"
        f" {result['acknowledged']:,} acknowledged events {result['lost']} were lost.",
        table_of(
            [{"store": name, **result[name]} for name in ("sqlite", "memory")],
            "store={store} | append alone ms={append_ms:.2f} | appends together/s={appends_together_per_s:,}"
            f" | read {run['config']['history']} events µs={{read_us:.0f}}",
        ),
    )


BENCHMARK = Benchmark(__doc__, "2 min, no bundle", {"--repetitions": 20}, measure, of_runs(render, "history"))
