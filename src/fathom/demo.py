"""A server in a process of its own, asked for real users: what `fathom demo` and `make run` show."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fathom.client import Client, Recommendation
from fathom.errors import UnavailableError

TIERS = ("mobile", "edge", "cloud")
WARM_UP_CALLS = 5


@dataclass(frozen=True)
class DemoAnswer:
    """One live answer; ``round_trip_ms`` is measured by the client, ``history`` is the number of items sent."""

    tier: str
    history: int
    round_trip_ms: float
    answer: Recommendation


@contextmanager
def running_server(bundle: Path) -> Iterator[str]:
    """Serve a bundle on a free port; yields host:port, and lets the server drain at the end.

    Raises UnavailableError with the server's own words when it does not get ready.
    """
    # Nothing is reused, so that the times are those of an answer that is computed.
    options = ["--port", "0", "--reuse-mb", "0", "--log-level", "warning", "--json"]
    command = [sys.executable, "-m", "fathom", "serve", str(bundle), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        if not ready:
            raise UnavailableError(f"the server did not start: {process.stderr.read().strip()}")
        try:
            yield json.loads(ready)["address"]
        finally:
            process.terminate()


def ask(bundle: Path, dataset: Path, users: int) -> list[DemoAnswer]:
    """Live answers for a few users of a dataset, spread from the shortest history to the longest, under each tier."""
    from fathom.loadtests.traces import read_histories

    histories = sorted(read_histories(dataset), key=lambda history: len(history.items))
    chosen = [round((number + 0.5) * len(histories) / users) for number in range(users)]
    answers = []
    with running_server(bundle) as target, Client(target) as client:
        for user in chosen:
            history = histories[user]
            for tier in TIERS:
                for _ in range(WARM_UP_CALLS):
                    client.recommend(history.items, profile=tier, k=5)
                start = time.perf_counter()
                answer = client.recommend(history.items, timestamps=history.timestamps, profile=tier, k=5)
                took_ms = (time.perf_counter() - start) * 1000
                answers.append(DemoAnswer(tier, len(history.items), took_ms, answer))
    return answers
