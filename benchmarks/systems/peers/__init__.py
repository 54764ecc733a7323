"""Fathom beside other servers with the same engines: fixed depths, and ways to choose them, under growing load.

Peers: bare grpc.aio, mosec, LitServe, BentoML, Ray Serve, MLServer, and Triton with the repository that Fathom writes
and with one written by hand; each in an environment of its own below build/peers, which is made where it is missing
(--peers a,b: only these). All must give the same items before anything is timed. They take turns, each time in new
processes on a core of its own; the client has another. Closed loops: requests/s with 32 in flight, latency with one,
processor time, memory, start. Open loops over growing loads: answers within 10, 25 and 50 ms, and quality-goodput,
NDCG@10 of what was answered within 25 ms with every request counted. --arms: ways in which Fathom chooses depths.
Without --data only speed, with random histories. Writes results/peers.json, with --name NAME results/NAME.json.

TorchServe is not among them: it needs Java, and is no longer maintained.
"""

import random
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fathom.benchmarks.registry import Benchmark, Run, of_runs
from fathom.benchmarks.systems.front import IN_FLIGHT
from fathom.benchmarks.systems.peers.adapters import Adapter, chosen
from fathom.benchmarks.systems.peers.arms import Arms
from fathom.benchmarks.systems.peers.environments import environment
from fathom.benchmarks.systems.peers.loads import WITHIN_MS
from fathom.benchmarks.systems.peers.tables import render
from fathom.benchmarks.systems.peers.turns import FATHOM, Peer, Study, fathom_itself, one_peer, prepared
from fathom.benchmarks.systems.routing_server import ServedCase, read_cases
from fathom.errors import FathomError, UnavailableError
from fathom.runtime.bundle import Bundle
from fathom.show import Activity
from fathom.training.dataset import Dataset

SECONDS, TURNS = 2.0, 2
#: Made-up histories, where there are no data.
MADE_UP = 500
WIDE = "peers-wide"


def made_up(bundle: Bundle) -> list[ServedCase]:
    """Random histories as long as the model takes, each item once."""
    rng, ids = random.Random(0), bundle.catalogue.ids
    length = min(len(ids) // 2, bundle.manifest.model.max_history)
    return [ServedCase(rng.sample(ids, length), "") for _ in range(MADE_UP)]


def ready(study: Study, adapters: Sequence[Adapter], tried: list[dict[str, Any]]) -> tuple[list[Peer], list[str]]:
    """The peers that can run here, and why others are left out; ``tried`` gets what their settings gave."""
    peers, left_out = [], []
    for adapter in adapters:
        study.say(f"{adapter.name}: its environment")
        try:
            there = environment(adapter.environment, adapter.requires)
            peers.append(prepared(study, adapter, there, tried))
        except UnavailableError as error:
            left_out.append(f"{adapter.name} ({error})")
    return peers, left_out


def compare(study: Study, adapters: Sequence[Adapter], arms: Arms, turns: int) -> tuple[dict[str, Any], list[str]]:
    """All in turns, and what is left out: also a peer that has failed in one of them."""
    study.ask_fathom()
    tried: list[dict[str, Any]] = []
    peers, left_out = ready(study, adapters, tried)
    taken: list[dict[str, Any]] = []
    for turn in range(turns):
        loops, found = study.for_loops(turn), {}
        sides: list[Peer | None] = [None, *peers]
        for peer in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            if peer is None:
                found[FATHOM] = fathom_itself(study, arms.all, turn, loops)
                continue
            try:
                found[peer.name] = one_peer(study, peer, turn, loops)
            except FathomError as error:
                left_out.append(f"{peer.name} ({error})")
                peers.remove(peer)
        taken.append(found)
    names = [FATHOM, *(peer.name for peer in peers)]
    base = {str(depth): per_s for depth, per_s in study.base.items()}
    each = [{name: found[name] for name in names} for found in taken]
    return {"base_per_s": base, "settings": tried, "turns": each}, left_out


def measure(options: Namespace) -> Iterator[Run]:
    """All sides in turns."""
    adapters = chosen(options.peers)
    with Bundle.open(options.bundle) as bundle:
        dataset = None if options.data is None else Dataset.load(options.data)
        cases = made_up(bundle) if dataset is None else read_cases(bundle, dataset)
        name, width, depths = bundle.manifest.name, bundle.manifest.model.width, bundle.depths
    with Arms(options.bundle, depths, options.arms) as arms, Activity("peers") as activity:
        study = Study(options.bundle, cases, dataset is not None, options.seconds, activity.update)
        study.say("arms")
        arms.prepare(dataset)
        result, left_out = compare(study, adapters, arms, options.turns)
        left_out += arms.left_out
    config = {
        "bundle": name,
        "width": width,
        "quality": dataset is not None,
        "mean_history": round(sum(len(case.items) for case in cases) / len(cases), 1),
        "in_flight": IN_FLIGHT,
        "within_ms": WITHIN_MS,
        "seconds": options.seconds,
        "turns": options.turns,
        "left_out": left_out,
    }
    yield Run(config, result, 0, options.name)


BENCHMARK = Benchmark(
    __doc__,
    "16 min with all peers, the bundle's data, two cores; their environments once 10 min and 3 GB more",
    {
        "bundle": Path,
        "--data": None,
        "--peers": "all",
        "--arms": "all",
        "--seconds": SECONDS,
        "--turns": TURNS,
        "--name": "peers",
    },
    measure,
    of_runs(render, "peers", WIDE),
)
