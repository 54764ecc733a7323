"""Canaries under load: how soon a worse one is rolled back, and what callers notice.

A server over two bundles gets requests at random moments. Each kind of canary is started, and ends when the server
rolls it back or after 30 s. Canaries are watched as docs/experiments.md says. Writes results/canary.json.
"""

import asyncio
import io
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import yaml

from fathom.benchmarks.load import open_loop
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import catalogue_ids, on_core, started
from fathom.client import AsyncClient
from fathom.errors import FathomError
from fathom.exporter.bundle.derive import derive_bundle
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import CERTIFICATE_FILE, VECTORS_FILE

SEED, RATE, SECONDS = 0, 100.0, 30.0
SESSIONS, HISTORY = 5_000, 100
SHARE, TIMEOUT_S, LOOK_EVERY_S = 0.2, 5.0, 0.1
CONTROL: Mapping[str, Any] = {"share": SHARE, "max_depth": 8}
#: What the canary's arm and the control's have of their own, and the limits that the canary is watched by.
KINDS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]] = {
    "the control's twin": ({}, {}, {"max_error_rate": 0.05, "min_agreement": 0.9, "max_slowdown": 3}),
    "a bundle that is not there": ({"bundle": "missing"}, {}, {"max_error_rate": 0.05}),
    "a bundle whose item vectors are mixed up": (
        {"bundle": "worse"},
        {},
        {"max_error_rate": None, "min_agreement": 0.8},
    ),
    "four times as deep": ({"max_depth": 16}, {"max_depth": 4}, {"max_error_rate": None, "max_slowdown": 1.3}),
}


def make_repository(bundle: Path, folder: Path) -> Path:
    """The bundle as ``shop``, and as ``worse`` with every item's vector given to another."""
    rng = np.random.default_rng(SEED)
    with Bundle.open(bundle) as opened:
        derive_bundle(opened, folder / "shop" / "1", drop={CERTIFICATE_FILE})
        vectors = np.load(bundle / VECTORS_FILE)
        mixed = io.BytesIO()
        np.save(mixed, vectors[rng.permutation(len(vectors))])
        derive_bundle(opened, folder / "worse" / "1", {VECTORS_FILE: mixed.getvalue()}, drop={CERTIFICATE_FILE})
    return folder


def experiments_of() -> dict[str, Any]:
    """The file: an experiment for each kind, each in a layer of its own, of which one runs at a time."""
    found = {}
    for number, (change, control, limits) in enumerate(KINDS.values()):
        canary = {"arm": "canary", "min_requests": 200, "min_minutes": 0, **limits}
        arms = {"control": {**CONTROL, **control}, "canary": {**CONTROL, **change}}
        found[f"kind-{number}"] = {
            "unit": "session",
            "arms": arms,
            "primary": {"outcome": "click"},
            "canary": {name: value for name, value in canary.items() if value is not None or name == "max_error_rate"},
        }
    return {"salt": "a-salt-of-benchmarks", "experiments": found}


async def watch(client: AsyncClient, ids: list[str], number: int, seconds: float) -> dict[str, Any]:
    """One kind of canary, from its start to its rollback, or for so long."""
    # Histories of its own: what the prefix cache has of another kind's would make all depths alike.
    name, ended, rng = f"kind-{number}", asyncio.Event(), np.random.default_rng((SEED, number))
    waited_ms: list[float] = []
    by_arm: dict[str, list[float]] = {"control": [], "canary": []}
    failed = 0
    await client.change_experiment(name, "start")
    begin = time.perf_counter()

    async def ask(_: int, due_s: float) -> None:
        nonlocal failed
        items = [ids[i] for i in rng.integers(0, len(ids), HISTORY)]
        try:
            session = f"s{rng.integers(SESSIONS)}"
            answer = await client.recommend(items, session_id=session, titles=False, timeout_s=TIMEOUT_S)
        except FathomError:
            failed += 1
            return
        waited_ms.append((time.perf_counter() - due_s) * 1e3)
        if (arm := answer.experiments.get(name)) is not None:
            by_arm[arm].append(waited_ms[-1])

    async def until_rolled_back() -> None:
        while time.perf_counter() - begin < seconds:
            await asyncio.sleep(LOOK_EVERY_S)
            (stands,) = [each for each in await client.experiments() if each.name == name]
            if stands.phase != "running":
                break
        ended.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(until_rolled_back())
        group.create_task(open_loop(ask, RATE, stop=ended, seed=SEED))
    took_s = time.perf_counter() - begin
    (stands,) = [each for each in await client.experiments() if each.name == name]
    if stands.phase == "running":
        await client.change_experiment(name, "stop")
    return {
        "requests": len(waited_ms) + failed,
        "failed": failed,
        "canary_requests": stands.arms["canary"].requests,
        "canary_answers": len(by_arm["canary"]),
        **{f"{arm}_p50_ms": round(median(took), 3) if took else None for arm, took in by_arm.items()},
        "rolled_back": stands.phase == "rolled back",
        "seconds": round(took_s, 1),
        "says": stands.reason or stands.canary,
        "p99_ms": round(quantiles(waited_ms, n=100)[98], 2) if len(waited_ms) > 1 else None,
    }


async def watch_all(address: str, ids: list[str], seconds: float) -> list[dict[str, Any]]:
    """Every kind, one after the other."""
    async with AsyncClient(address) as client:
        return [{"canary": kind, **await watch(client, ids, n, seconds)} for n, kind in enumerate(KINDS)]


def compare(bundle: Path, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """A row for each kind of canary."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        repository = make_repository(bundle, folder / "bundles")
        file = folder / "experiments.yaml"
        file.write_text(yaml.safe_dump(experiments_of()))
        logs = ("--experiments", str(file), "--experiments-log", str(folder / "logs"))
        options = ("--policy", "deepest", "--default-bundle", "shop", "--log-level", "critical", *logs)
        with on_core(0), started(repository, *options) as server, on_core(1):
            return asyncio.run(watch_all(server.address, catalogue_ids(bundle), seconds))


def section(run: StoredRun) -> str:
    """The stored run as a table."""
    rows = [
        {
            **row,
            "end": f"rolled back after {row['seconds']:.1f} s" if row["rolled_back"] else "kept",
            **{f"{arm}_ms": _ms(row[f"{arm}_p50_ms"]) for arm in ("control", "canary")},
        }
        for row in run["result"]["rows"]
    ]
    about = (
        "{rate:g} requests/s at random moments, of which {share:.0%} get the canary; at most {seconds:g} s each. A"
        " request whose canary cannot answer is answered without it."
    )
    columns = (
        "canary={canary} | end={end} | its requests={canary_requests:,} | all requests={requests:,} | failed={failed:,}"
        " | p50 of the control, ms={control_ms} | of the canary={canary_ms} | p99, ms={p99_ms:.1f}"
        " | the server says={says}"
    )
    return paragraphs("## Canaries under load", about.format(**run["config"]), table_of(rows, columns))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _measure(options: Namespace) -> Iterator[Run]:
    config = {"bundle": options.bundle.name, "rate": RATE, "share": SHARE, "history": HISTORY}
    config |= {"seconds": options.seconds}
    yield Run(config, {"rows": compare(options.bundle, options.seconds)}, SEED)


BENCHMARK = Benchmark(
    __doc__, "2 min, two cores", {"bundle": Path, "--seconds": SECONDS}, _measure, of_runs(section, "canary")
)
