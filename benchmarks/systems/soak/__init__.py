"""A server at half of its capacity for an hour: does it grow, does it slow down, does it fail.

Calls are of four kinds, a quarter each: a history, a user with one item more, a user_id after an append, a batch of
three. They come at random moments, at half the rate that a closed loop reaches (--load). The last minute is no harder
than the first: the server keeps GROWS events of a user, and a history that has grown by as many begins again. Per
minute: latency from the moment a request is due, resident memory (the median of a reading per second), threads, open
files; memory, threads and files also before the load and after it. With --workers 2 --reloads 50 --kills 20, bundles
are exchanged 50 times an hour and workers killed 20 times; memory, threads and files are then those of all processes
together. Writes results/soak.json, with reloads or kills results/soak-disturbed.json.

With --mixed, calls are of all kinds that there are (mixed.py): every method of the service, items that come, go and
change, users that are deleted, events that expire, experiments with shadows. In the middle third of the minutes
histories are of other items, so that a certificate's alarm is raised and a routing certified anew (every answer is
offered to feedback). Kills are of the newest worker, so that another lives as long as the server. The run is judged,
and written to results/soak-mixed.json.
"""

import asyncio
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from fathom.benchmarks.registry import Benchmark, Run, of_runs
from fathom.benchmarks.server import catalogue_ids, on_core, started
from fathom.benchmarks.systems.front import CLIENT_CORE, SERVER_CORE
from fathom.benchmarks.systems.soak import run as soaking
from fathom.benchmarks.systems.soak.disturber import Disturber, publish_version
from fathom.benchmarks.systems.soak.judgement import judge
from fathom.benchmarks.systems.soak.mixed import DAYS, EXPERIMENTS
from fathom.benchmarks.systems.soak.page import render
from fathom.benchmarks.systems.soak.traffic import GROWS, SEED
from fathom.errors import ConfigError
from fathom.runtime.manifest_file import read_manifest
from fathom.training.dataset import Dataset


def check(workers: int, kills: float, load: float = 0.5) -> None:
    """Raises ConfigError where nobody would replace a worker that was killed, or the load is no share."""
    if kills and workers < 2:
        raise ConfigError("--kills needs --workers 2 at least; nobody would start a single one again")
    if not 0 < load <= 1:
        raise ConfigError(f"--load is {load:g}; give a share of the capacity, above 0 and at most 1")


def server_options(folder: Path, workers: int, *, mixed: bool) -> Sequence[str]:
    """Of `fathom serve`; what it keeps is kept in the folder."""
    options = ["--history-max-events", str(GROWS), "--history", f"sqlite:{folder}/h.db", "--workers", str(workers)]
    if not mixed:
        return options
    (folder / "experiments.yaml").write_text(yaml.safe_dump(EXPERIMENTS))
    experiments = ("--experiments", f"{folder}/experiments.yaml", "--experiments-log", f"{folder}/log")
    drift = ("--feedback-share", "1", "--recertify", "auto")
    return [*options, "--history-days", str(DAYS), "--catalogue", f"sqlite:{folder}/items.db", *experiments, *drift]


def measure(options: Namespace) -> Iterator[Run]:
    """Minute by minute."""
    check(options.workers, options.kills, options.load)
    name = read_manifest(options.bundle).name
    dataset = Dataset.load(options.data)
    histories = [[dataset.item_ids[item] for item in sequence] for sequence in dataset.sequences]
    known = catalogue_ids(options.bundle) if options.mixed else []
    plan = soaking.Plan(options.minutes, options.load, options.reloads, options.kills)
    with tempfile.TemporaryDirectory() as text:
        folder, repository = Path(text), Path(text) / "repository"
        publish_version(options.bundle, repository, 1)
        serve = server_options(folder, options.workers, mixed=options.mixed)
        with on_core(SERVER_CORE), started(repository, *serve) as server, on_core(CLIENT_CORE):
            disturber = Disturber(server.pid, options.bundle, repository, kills_newest=options.mixed)
            result = asyncio.run(soaking.minute_by_minute(server, histories, plan, disturber, known))
    config = {key: getattr(options, key) for key in ("minutes", "workers", "load", "reloads", "kills", "mixed")}
    if options.mixed:
        result["checks"] = [each.to_json() for each in judge(config, result)]
    disturbed = "soak-disturbed" if plan.reloads or plan.kills else "soak"
    stored = "soak-mixed" if options.mixed else disturbed
    yield Run({"bundle": name, **config, "warm_up_s": soaking.WARM_UP_S}, result, SEED, stored)


BENCHMARK = Benchmark(
    __doc__,
    "62 min, the bundle's data, two cores",
    {
        "bundle": Path,
        "--data": Path,
        "--minutes": 60,
        "--workers": 1,
        "--load": 0.5,
        "--reloads": 0.0,
        "--kills": 0.0,
        "--mixed": False,
    },
    measure,
    of_runs(render, "soak", "soak-disturbed", "soak-mixed"),
)
