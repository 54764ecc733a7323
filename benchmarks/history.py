"""Histories of users: what kill -9 loses, what an append and a read cost.

    python -m fathom.benchmarks.history [--repetitions 20]

A process appends 10,000 events, 50 at a time, and prints each number when the append has returned; it is killed at a
random moment, and every event that was acknowledged must be in the file. Writes results/history.json.
"""

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from fathom.benchmarks.record import run, save_run
from fathom.errors import FathomError
from fathom.serving.history.contract import HistoryStore, Retention, StoredEvent
from fathom.serving.history.open import open_history

EVENTS = 10_000
AT_ONCE = 50
USERS = 7
SEED = 0
READS = 2_000
HISTORY = 200

APPENDER = f"""
import asyncio, sys
from fathom.serving.history.contract import StoredEvent, Retention
from fathom.serving.history.open import open_history

async def main():
    store = open_history(sys.argv[1], Retention({EVENTS}))
    async def append(number):
        await store.append(f"user-{{number % {USERS}}}", [StoredEvent(f"e{{number}}", "item", number)])
        print(number, flush=True)
    for first in range(0, {EVENTS}, {AT_ONCE}):
        await asyncio.gather(*(append(first + each) for each in range({AT_ONCE})))

asyncio.run(main())
"""


def _open(setting: str) -> HistoryStore:
    store = open_history(setting, Retention(EVENTS))
    assert store is not None
    return store


def kill(setting: str, after: int) -> dict[str, int]:
    """Kill an appender once it has acknowledged so many events; counts what it acknowledged and what of it is lost."""
    with subprocess.Popen([sys.executable, "-c", APPENDER, setting], stdout=subprocess.PIPE, text=True) as process:
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


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    chosen = parser.parse_args()
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        kills = []
        for number in range(chosen.repetitions):
            kills.append(kill(f"sqlite:{Path(folder) / f'{number}.db'}", rng.randrange(1, EVENTS * 9 // 10)))
            print(kills[-1], flush=True)
        result: dict[str, Any] = {
            "kills": kills,
            "acknowledged": sum(each["acknowledged"] for each in kills),
            "lost": sum(each["lost"] for each in kills),
            "sqlite": asyncio.run(cost(f"sqlite:{Path(folder) / 'cost.db'}")),
            "memory": asyncio.run(cost("memory")),
        }
    print({name: value for name, value in result.items() if name != "kills"})
    config = {"events": EVENTS, "at_once": AT_ONCE, "repetitions": chosen.repetitions, "history": HISTORY}
    print(f"stored in {save_run('history', config=config, result=result, seed=SEED)}")


if __name__ == "__main__":
    run(main)
