"""Fathom and its peers in turns, each time in new processes on a core of their own; the client has another."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.server import StartedServer, on_core, started
from fathom.benchmarks.systems.front import CLIENT_CORE, DEPTHS, IN_FLIGHT, SERVER_CORE, WARM_UP_S, checked
from fathom.benchmarks.systems.peers.adapters import Adapter, Setting
from fathom.benchmarks.systems.peers.arms import CERTIFIED, RANDOM, Arm, fixed
from fathom.benchmarks.systems.peers.environments import Environment
from fathom.benchmarks.systems.peers.loads import Load, Offered, planned, row_of, run_all, swept
from fathom.benchmarks.systems.peers.protocols import GRPC, Protocol
from fathom.benchmarks.systems.routing_server import ServedCase
from fathom.errors import FathomError

FATHOM = "fathom"
#: Requests whose answers must have Fathom's items.
COMPARED = 50
#: More than any of them answers in a second, so that no history comes twice.
MOST_PER_S = 5_000
#: Share of a closed loop's time that a setting is tried for, and that one request at a time is sent for.
TRIED, ALONE = 0.25, 0.5

#: By depth and requests in flight.
Loops = Mapping[tuple[int, int], Sequence[Sequence[str]]]

Started = Callable[[], AbstractContextManager[StartedServer]]


@dataclass(frozen=True)
class Peer:
    """A peer that can run here, with its best setting."""

    adapter: Adapter
    environment: Environment
    setting: Setting

    @property
    def name(self) -> str:
        """Of the adapter."""
        return self.adapter.name


@dataclass
class Study:
    """What is measured with. ``cases``: real histories; ``quality``: whether their targets are known."""

    bundle: Path
    cases: Sequence[ServedCase]
    quality: bool
    seconds: float
    say: Callable[[str], None] = lambda _: None
    base: dict[int, float] = field(default_factory=dict)
    expected: dict[int, list[list[str]]] = field(default_factory=dict)

    def ask_fathom(self) -> None:
        """What Fathom does at each depth: ``base``, requests/s with 32 in flight, and ``expected``, its items."""
        with self.on_cores(partial(started, self.bundle)) as server:
            for depth in DEPTHS:
                self.say(f"base at depth {depth}")
                histories = self.shuffled(f"base {depth}")
                self.base[depth] = closed(server, GRPC, depth, histories, IN_FLIGHT, self.seconds)["requests_per_s"]
                self.expected[depth] = self.asked(server, GRPC, depth)

    def asked(self, server: StartedServer, protocol: Protocol, depth: int) -> list[list[str]]:
        """A server's items for these."""
        messages = [protocol.encode(case.items, depth) for case in self.cases[:COMPARED]]
        return [list(answer.items) for answer in protocol.ask(server, messages)]

    def for_loops(self, turn: int) -> Loops:
        """Of each closed loop of a turn its own histories, by its depth and how many are in flight."""
        return {(depth, many): self.shuffled(f"{turn} {depth} {many}") for depth in DEPTHS for many in (1, IN_FLIGHT)}

    def shuffled(self, seed: str) -> list[list[str]]:
        """Histories for a closed loop, each with its items in an order of its own, so that no cache helps."""
        rng = random.Random(seed)
        count = int(MOST_PER_S * self.seconds) + 1
        cases = (self.cases[number % len(self.cases)].items for number in range(count))
        return [rng.sample(items, len(items)) for items in cases]

    def offered(self, protocol: Protocol, depth: int | None) -> Offered:
        """The real histories in their own order, at a depth."""
        return Offered(self.cases, [protocol.encode(case.items, depth) for case in self.cases])

    @contextmanager
    def on_cores(self, start: Started) -> Any:
        """A server on its core, this program on the other."""
        with on_core(SERVER_CORE), start() as server, on_core(CLIENT_CORE):
            yield server


def closed(
    server: StartedServer,
    protocol: Protocol,
    depth: int,
    histories: Sequence[Sequence[str]],
    in_flight: int,
    seconds: float,
    name: str = FATHOM,
) -> dict[str, float]:
    """Requests per second, latency, and processor time of a request, with so many in flight.

    Raises FathomError where hardly any is answered.
    """
    messages = [protocol.encode(history, depth) for history in histories]
    warm_up = len(messages) // 5
    protocol.closed(server, messages[:warm_up], in_flight, min(WARM_UP_S, seconds))
    before_s = server.cpu_s()
    report = checked(protocol.closed(server, messages[warm_up:], in_flight, seconds), name)
    if not report.per_s():
        raise FathomError(f"{name}: no request was answered within {seconds:g} s")
    return {
        "requests_per_s": round(report.per_s(), 2),
        "p50_ms": round(report.quantile_ms("OK", 0.5) or 0.0, 3),
        "p99_ms": round(report.quantile_ms("OK", 0.99) or 0.0, 3),
        "failed": int(np.count_nonzero(report.statuses)),
        "cpu_us": round((server.cpu_s() - before_s) / len(report.due_s) * 1e6, 1),
    }


def prepared(study: Study, adapter: Adapter, environment: Environment, tried: list[dict[str, Any]]) -> Peer:
    """A peer whose answers are Fathom's, with the setting that answers most with 32 in flight, all depths alike.

    ``tried`` gets a row for each setting, where there are several. Raises FathomError where its items differ,
    UnavailableError where it does not answer.
    """
    histories, speeds = study.shuffled("tried"), []
    for setting in adapter.settings:
        study.say(f"{adapter.name}: {setting.words}")
        each: dict[str, float] = {}
        with study.on_cores(partial(adapter.start, environment, study.bundle, setting)) as server:
            for depth in DEPTHS:
                if study.asked(server, adapter.speaks, depth) != study.expected[depth]:
                    raise FathomError(f"{adapter.name}: at depth {depth} it answers other items than Fathom")
                if len(adapter.settings) > 1:
                    seconds = study.seconds * TRIED
                    found = closed(server, adapter.speaks, depth, histories, IN_FLIGHT, seconds, adapter.name)
                    each[str(depth)] = found["requests_per_s"]
        speeds.append(prod(each.values()))
        if each:
            tried.append({"peer": adapter.name, "setting": setting.words, "requests_per_s": each})
    return Peer(adapter, environment, adapter.settings[int(np.argmax(speeds))])


def one_peer(study: Study, peer: Peer, turn: int, histories: Loops) -> dict[str, Any]:
    """Everything that is measured of one peer in a turn."""
    protocol, rows = peer.adapter.speaks, {}
    start = partial(peer.adapter.start, peer.environment, study.bundle, peer.setting)
    with study.on_cores(start) as server:
        found = _at_rest(study, peer.name, server, protocol, histories)
        for depth in DEPTHS:
            own_per_s = found["closed"][str(depth)]["busy"]["requests_per_s"]
            loads = planned(depth, study.base, own_per_s, tells=protocol.tells)
            run = partial(_load, study, peer.name, server, protocol, study.offered(protocol, depth), turn)
            rows[fixed(depth)] = run_all(loads, run)
    return found | {"rows": rows}


def fathom_itself(study: Study, arms: Sequence[Arm], turn: int, histories: Loops) -> dict[str, Any]:
    """The same of Fathom: closed loops with its defaults, then every arm."""
    with study.on_cores(partial(started, study.bundle)) as server:
        found = _at_rest(study, FATHOM, server, GRPC, histories)
    rows: dict[str, list[dict[str, Any]]] = {}
    plain = [arm for arm in arms if not arm.options]
    # The mix of ``random`` is that of ``certified``.
    for arm in [arm for arm in arms if arm.options]:
        with study.on_cores(arm.started) as server:
            rows[arm.name] = _arm(study, arm, server, turn, rows)
    if plain:
        with study.on_cores(plain[0].started) as server:
            for arm in plain:
                rows[arm.name] = _arm(study, arm, server, turn, rows)
    return found | {"rows": rows}


def _at_rest(study: Study, name: str, server: StartedServer, protocol: Protocol, histories: Loops) -> dict[str, Any]:
    """How soon it was ready, closed loops at every depth, and its memory after them."""
    loops = {}
    for depth in DEPTHS:
        study.say(f"{name}: closed loops at depth {depth}")
        loops[str(depth)] = {
            key: closed(server, protocol, depth, histories[depth, in_flight], in_flight, study.seconds * share, name)
            for key, in_flight, share in (("busy", IN_FLIGHT, 1.0), ("alone", 1, ALONE))
        }
    return {"start_s": round(server.ready_s, 2), "closed": loops, "memory_mb": round(server.memory_mb(), 1)}


def _arm(
    study: Study, arm: Arm, server: StartedServer, turn: int, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    loads = planned(arm.depth, study.base, None, tells=True) if arm.depth in DEPTHS else swept(study.base)
    if arm.name != RANDOM:
        run = partial(_load, study, arm.name, server, GRPC, study.offered(GRPC, arm.depth), turn)
        return run_all(loads, run)
    mixes = {row["factor"]: row.get("depths", {}) for row in rows[CERTIFIED]}
    loads = [load for load in loads if mixes.get(load.factor)]

    def drawn(load: Load) -> dict[str, Any]:
        return _load(study, arm.name, server, GRPC, _mixed(study, mixes[load.factor], turn), turn, load)

    return run_all(loads, drawn)


def _mixed(study: Study, mix: Mapping[str, int], turn: int) -> Offered:
    """Real histories, the depth of each drawn at random from a mix of depths."""
    counts = Counter({int(depth): count for depth, count in mix.items()})
    depths = random.Random(turn).choices(list(counts), list(counts.values()), k=len(study.cases))
    messages = [GRPC.encode(case.items, depth) for case, depth in zip(study.cases, depths, strict=True)]
    return Offered(study.cases, messages)


def _load(
    study: Study, name: str, server: StartedServer, protocol: Protocol, offered: Offered, turn: int, load: Load
) -> dict[str, Any]:
    study.say(f"{name}: {load.per_s:,.0f} requests/s")
    seconds = load.lasts_s(study.seconds)
    report = protocol.open(server, offered.messages, load.per_s, seconds, load.deadline_ms, turn)
    return row_of(report, protocol, offered, load.deadline_ms, quality=study.quality)
