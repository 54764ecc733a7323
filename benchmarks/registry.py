"""All benchmarks, in the order of docs/results.md: modules whose ``BENCHMARK`` measures, and shows what is stored."""

import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fathom.benchmarks.record import RESULTS, load_run
from fathom.errors import ConfigError

#: Below fathom.benchmarks; the last part is the benchmark's name.
MODULES = (
    "experiments.quality",
    "experiments.counting_quality",
    "experiments.counting_forms",
    "experiments.request_time",
    "experiments.context",
    "experiments.cold_items",
    "experiments.importance",
    "experiments.agreement",
    "experiments.own_models",
    "experiments.routing",
    "experiments.certificate",
    "experiments.bandit",
    "experiments.ab_tests",
    "systems.routing_server",
    "systems.saving",
    "systems.feedback",
    "systems.drift",
    "experiments.training_throughput",
    "experiments.parity",
    "systems.engine_depth",
    "systems.selector_latency",
    "systems.counting",
    "systems.reasons",
    "systems.rules",
    "systems.front",
    "systems.security",
    "systems.peers",
    "systems.triton",
    "systems.client",
    "systems.server_start",
    "systems.image",
    "systems.returning",
    "systems.score",
    "systems.capacity",
    "systems.overload",
    "systems.batch_bomb",
    "systems.fairness",
    "systems.canary",
    "systems.workers",
    "systems.ray_serve",
    "systems.drain",
    "systems.stages",
    "systems.scaling",
    "systems.limits",
    "systems.reload",
    "systems.catalogue",
    "systems.history",
    "systems.soak",
    "experiments.precision",
    "systems.memory",
    "systems.four_models",
    "systems.reviews",
    "experiments.qlora",
    "experiments.mixed_precision",
    "experiments.efficiency",
    "systems.literature_shapes",
    "systems.retrieval",
    "systems.item_index",
    "systems.gpu",
)

StoredRun = Mapping[str, Any]


class Run(NamedTuple):
    """One run to be stored: plain JSON values, with units in their names; ``name``: other than the benchmark's own."""

    config: Mapping[str, Any]
    result: Mapping[str, Any]
    seed: int | None = None
    name: str = ""


@dataclass(frozen=True)
class Benchmark:
    """``measure`` gives runs, one by one; ``section`` shows what is stored in a folder, "" where that is nothing.

    ``about``: the module's docstring, which says in its first line what is measured.
    ``cost``: how long it takes, and what it needs besides a bundle. ``arguments``: of the command line, each with its
    type where it must be given, else with its default (None: a path that may be left out; False: a flag); several
    values in a tuple.
    ``folders``: of runs that are stored in folders.
    """

    about: str
    cost: str
    arguments: Mapping[str, Any]
    measure: Callable[[Namespace], Iterable[Run]]
    section: Callable[[Path], str]
    folders: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What is measured, in one line."""
        return self.about.partition("\n")[0].removesuffix(".")

    @property
    def stored(self) -> tuple[str, ...]:
        """The files and folders of its runs, below the folder of the results; a folder ends in "/"."""
        files = self.section.stored if isinstance(self.section, SectionOfRuns) else ()
        return (*(f"{name}.json" for name in files), *(f"{name}/" for name in self.folders))


def add_arguments(parser: ArgumentParser, benchmark: Benchmark) -> None:
    """Those of a benchmark, and the folder of its results."""
    for name, given in benchmark.arguments.items():
        if given is False:
            parser.add_argument(name, action="store_true")
            continue
        several = isinstance(given, tuple)
        (one, *_) = given if several else (given,)
        kind = Path if one is None else one if isinstance(one, type) else type(one)
        details: dict[str, Any] = {"nargs": "+"} if several else {}
        if name.startswith("-"):
            details |= {"required": True} if given is one is kind else {"default": () if one is kind else given}
        if several and one is kind:
            # Nothing by default, so an option that is repeated adds to what was given.
            details |= {"action": "extend", "default": []}
        parser.add_argument(name, type=kind, **details)
    parser.add_argument("--results", type=Path, default=RESULTS)


def names() -> dict[str, str]:
    """Name -> module, in order."""
    return {module.rpartition(".")[2]: f"fathom.benchmarks.{module}" for module in MODULES}


def load(name: str) -> Benchmark:
    """A benchmark by its name; raises ConfigError for one that does not exist."""
    known = names()
    if name not in known:
        raise ConfigError(f"no benchmark is called {name}; there are {', '.join(known)}")
    found: Benchmark = importlib.import_module(known[name]).BENCHMARK
    return found


@dataclass(frozen=True)
class SectionOfRuns:
    """A section of those of some runs that are stored, each rendered by itself."""

    render: Callable[[StoredRun], str]
    stored: tuple[str, ...]

    def __call__(self, folder: Path = RESULTS) -> str:
        """As Markdown, "" where none is stored."""
        paths = [folder / f"{name}.json" for name in self.stored]
        return "\n\n".join(self.render(load_run(path)) for path in paths if path.exists())


def of_runs(render: Callable[[StoredRun], str], *stored: str) -> SectionOfRuns:
    """The section of the runs with these names."""
    return SectionOfRuns(render, stored)
