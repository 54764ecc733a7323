"""A server in its own process that answers requests of real users: `fathom demo` and `make run`."""

import time
from dataclasses import dataclass
from pathlib import Path

from fathom.client import Client, Recommendation
from fathom.local import running_server
from fathom.runtime.manifest_file import read_manifest

TIERS = ("mobile", "edge", "cloud")
WARM_UP_CALLS = 5


@dataclass(frozen=True)
class DemoAnswer:
    """One live answer; ``round_trip_ms`` is measured by the client, ``history`` is the number of items sent."""

    tier: str
    history: int
    round_trip_ms: float
    answer: Recommendation


def ask(bundle: Path, dataset: Path, users: int) -> list[DemoAnswer]:
    """Live answers for a few users of a dataset, spread from the shortest history to the longest, under each tier."""
    from fathom.loadtests.traces import read_histories

    read_manifest(bundle)
    histories = sorted(read_histories(dataset), key=lambda history: len(history.items))
    chosen = [round((number + 0.5) * len(histories) / users) for number in range(users)]
    answers = []
    # Nothing is reused, so that the times are those of answers that are computed.
    with running_server(bundle, "--reuse-mb", "0") as server, Client(server.address) as client:
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
