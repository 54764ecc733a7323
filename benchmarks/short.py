"""The short form of the benchmarks, `make bench`.

    python -m fathom.benchmarks.short BUNDLE --data DATASET --results FOLDER

Each benchmark runs with few turns in a process of its own, announced with the time it takes. One table follows, on the
terminal and in FOLDER/results.md; the published runs in results/ are left alone.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fathom.benchmarks.leaderboard import Row, board_table, leaderboard
from fathom.benchmarks.leaderboard_sources import lower, of_front, of_overload, of_peers
from fathom.benchmarks.markdown import paragraphs
from fathom.benchmarks.record import RESULTS, load_run, run
from fathom.benchmarks.registry import StoredRun
from fathom.errors import ConfigError, FathomError
from fathom.files import write_bytes
from fathom.runtime.bundle import Bundle

PAGE = "results.md"


class Short(NamedTuple):
    """A benchmark with few turns: its options, about how many seconds it takes, what the table shows of it.

    ``data``: whether it reads the data set.
    """

    name: str
    options: Sequence[str]
    seconds: int
    rows: Callable[[StoredRun], Iterable[Row]]
    data: bool = False


def of_parity(found: StoredRun) -> Iterator[Row]:
    """Engines against torch."""
    for row in found["result"]["rows"]:
        yield lower("Fathom", row["depth"], "largest error of a user vector, millionths", row["max_abs_error"] * 1e6)


def of_engine(found: StoredRun) -> Iterator[Row]:
    """One request inside the engine."""
    for row in found["result"]["rows"]:
        if row["history"] == 50:
            spread = row["p10_us"], row["p90_us"]
            yield lower("Fathom", row["depth"], "µs in the engine, history 50", row["median_us"], spread)


def of_selector(found: StoredRun) -> Iterator[Row]:
    """One decision."""
    for row in found["result"]["rows"]:
        measure = f"µs of a decision, history {row['history']}, {row['items']:,} items"
        yield lower("Fathom", None, measure, row["median_us"])


def of_start(found: StoredRun) -> Iterator[Row]:
    """A server's start."""
    median = found["result"]["median"]
    yield lower("Fathom", None, "seconds from start to ready", median["ready_s"])
    yield lower("Fathom", None, "MB resident after requests", median["served_mb"])


#: The one peer that needs no environment of its own, and two arms.
SHORT_PEERS = ("--seconds", "0.5", "--turns", "1", "--peers", "by-hand", "--arms", "depth-4,depth-16")
#: What is run, in order. Together ten minutes at most on two cores.
SHORT = (
    Short("parity", (), 60, of_parity),
    Short("engine_depth", ("--repetitions", "60"), 20, of_engine),
    Short("selector_latency", ("--decisions", "3000"), 30, of_selector),
    Short("server_start", ("--repetitions", "3"), 15, of_start),
    Short("front", ("--seconds", "2", "--turns", "2"), 90, of_front),
    Short("peers", SHORT_PEERS, 60, of_peers, data=True),
    Short("overload", ("--seconds", "2", "--turns", "1"), 120, of_overload, data=True),
)


def command_of(short: Short, bundle: Path, data: Path, results: Path) -> list[str]:
    """The command line that runs it."""
    command = [sys.executable, "-m", "fathom.benchmarks", "run", short.name, str(bundle), *short.options]
    return [*command, *(("--data", str(data)) if short.data else ()), "--results", str(results)]


def run_all(shorts: Sequence[Short], bundle: Path, data: Path, results: Path) -> list[str]:
    """Each in turn, and the names of those that failed, whose error is on the terminal."""
    failed = []
    minutes = sum(short.seconds for short in shorts) / 60
    print(f"{len(shorts)} benchmarks in short, about {minutes:.0f} minutes; stored in {results}", flush=True)
    for number, short in enumerate(shorts, start=1):
        print(f"{number}/{len(shorts)} {short.name}, about {short.seconds} s", flush=True)
        (results / f"{short.name}.json").unlink(missing_ok=True)
        # Its own page would hide the table at the end.
        ended = subprocess.run(command_of(short, bundle, data, results), stdout=subprocess.DEVNULL, check=False)
        if ended.returncode:
            failed.append(short.name)
    return failed


def page(shorts: Sequence[Short], results: Path) -> str:
    """One table of what is stored."""
    boards = []
    for short in shorts:
        if (results / f"{short.name}.json").exists():
            # Two benchmarks may measure the same with other histories.
            rows = short.rows(load_run(results / f"{short.name}.json"))
            boards += leaderboard(row._replace(measure=f"{short.name}: {row.measure}") for row in rows)
    return paragraphs(
        "# Benchmarks in short",
        "Few turns: orders of magnitude can be trusted, small differences cannot. Brackets hold the range over turns;"
        " for the engine, that of the middle 80 % of its runs. docs/benchmarks.md says how to measure more exactly.",
        board_table(boards),
    )


def main() -> None:
    """The command line; raises FathomError where the bundle cannot be opened or a benchmark failed."""
    parser = argparse.ArgumentParser(prog="python -m fathom.benchmarks.short", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    if options.results.resolve() == RESULTS.resolve():
        raise ConfigError(f"{RESULTS}: holds what is published; choose another folder")
    with Bundle.open(options.bundle):
        pass  # Else every benchmark would fail in turn.
    begin = time.monotonic()
    failed = run_all(SHORT, options.bundle, options.data, options.results)
    text = page(SHORT, options.results)
    write_bytes(options.results / PAGE, text.encode() + b"\n")
    print(f"\n{text}\n\n{(time.monotonic() - begin) / 60:.1f} minutes; the table is in {options.results / PAGE}")
    if failed:
        raise FathomError(f"{', '.join(failed)} failed; the errors are above")


if __name__ == "__main__":
    run(main)
