"""What each family of routings saves where the same is promised, measured through real servers.

For each NAME=BUNDLE:DATASET and each promise, every family is tested as `fathom certify` tests it, and a server follows
what it certified. CPU seconds of the server's process per request, gRPC included, against a server that answers
everything at the deepest depth; alternating rounds over the same requests, the data set's test histories. Where
nothing was certified the deepest depth answers, so nothing is saved. Stored as ``saving/NAME-seed-S``, S the seed that
the bundles were trained with.
"""

import asyncio
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fathom.benchmarks.experiments.agreement import network
from fathom.benchmarks.experiments.quality.stored import dataset_title, network_title, stored_networks
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun
from fathom.benchmarks.server import StartedServer, on_core, started
from fathom.benchmarks.systems.front import CLIENT_CORE, SERVER_CORE
from fathom.benchmarks.systems.routing_server import REQUESTS, ServedCase, measure_compute, read_cases
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.certification.certify import CertificationData, certify, measure_bundle, write_certificate
from fathom.exporter.certification.families import FAMILIES
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import CERTIFICATE_FILE
from fathom.selector.certificate import Certificate, Kind
from fathom.show import Activity
from fathom.training.dataset import Dataset

DELTA = 0.05
PROMISES: tuple[tuple[Kind, float], ...] = (
    ("agreement", 0.1),
    ("agreement", 0.05),
    ("quality", 0.05),
    ("quality", 0.01),
)
ROUNDS = 8
CONCURRENCY = 8
DEEPEST = "deepest"
OPTIONS = ("--feedback-share", "0", "--reuse-mb", "0")


def study(
    bundle: Bundle, measured: CertificationData, cases: Sequence[ServedCase], rounds: int
) -> list[dict[str, Any]]:
    """A row for each promise and family."""
    rows = []
    for kind, eps in PROMISES:
        tested = {
            family: certify(
                bundle,
                measured,
                eps=eps,
                delta=DELTA,
                family=family,
                depth_sets=[bundle.manifest.served_depths],
                kind=kind,
            )
            for family in FAMILIES
        }
        saved = _saved(bundle, {family: each for family, each in tested.items() if each.certified}, cases, rounds)
        for family, each in tested.items():
            (claim,) = each.claims
            words = None if claim.routing is None else claim.routing.words
            figures = {name: getattr(claim, name) for name in ("users", "kept", "under", "saved")}
            rows.append(
                {"kind": kind, "eps": eps, "family": family, "routing": words, **figures, "cpu": saved.get(family)}
            )
    return rows


def _saved(
    bundle: Bundle, certificates: Mapping[str, Certificate], cases: Sequence[ServedCase], rounds: int
) -> dict[str, dict[str, float]]:
    """By family, what a server saves that follows its certificate."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: dict[str, StartedServer] = {}
        with on_core(SERVER_CORE):
            for name, certificate in certificates.items():
                derive_bundle(bundle, folder / name, drop={CERTIFICATE_FILE})
                with Bundle.open(folder / name) as copy:
                    write_certificate(copy, certificate)
                servers[name] = stack.enter_context(started(folder / name, "--policy", "certified", *OPTIONS))
            if not servers:
                return {}
            servers[DEEPEST] = stack.enter_context(started(bundle.path, "--policy", DEEPEST, *OPTIONS))
        with on_core(CLIENT_CORE):
            (row,) = asyncio.run(measure_compute(servers, cases, rounds, (CONCURRENCY,)))
    found: dict[str, dict[str, float]] = row["saved"]
    return found


def section(folder: Path) -> str:
    """All stored runs, "" without any."""
    runs = stored_networks(folder, "saving")
    rows = [
        {
            "network": network_title(run),
            "promise": f"{1 - rows[0]['eps']:.0%} of {'the top 10' if rows[0]['kind'] == 'agreement' else 'NDCG@10'}",
            **{each["family"]: _cell(each) for each in rows},
        }
        for run in runs
        for rows in _by_promise(run)
    ]
    about = (
        "CPU time of the server's process per request, gRPC included, saved against a server that answers everything at"
        f" the deepest depth, {CONCURRENCY} requests in flight, where each family is certified to keep the same (delta"
        " 5 %); 95 % intervals over rounds. Mixtures are certified by all test users, what is learned by those whom it"
        " was not learned from."
    )
    tested = dict.fromkeys(each["family"] for run in runs for each in run["result"]["rows"])
    columns = "network={network} | certified to keep={promise}" + "".join(f" | {name}={{{name}}}" for name in tested)
    return paragraphs("### Saved at an equal promise", about, table_of(rows, columns)) if runs else ""


def fact(folder: Path) -> list[str]:
    """What a learned choice and the mixture save at the first promise, for each network that was measured."""
    runs = stored_networks(folder, "saving")
    if not runs:
        return []
    said = []
    for run in runs:
        saved = {each["family"]: each["cpu"] for each in _by_promise(run)[0]}
        learned, mixture = (_gain(saved[family]) for family in ("learned", "mixture"))
        said.append(f"{dataset_title(run['config']['dataset'])} {learned} and {mixture}")
    kind, eps = PROMISES[0]
    assert kind == "agreement"
    return [
        f"CPU of a server saved where {1 - eps:.0%} of depth 16's top 10 is certified, {CONCURRENCY} requests in"
        f" flight, by a learned choice and by mixing at random: {', '.join(said)}"
    ]


def _gain(cpu: Mapping[str, float] | None) -> str:
    """A share that is surely above 0, or "nothing"."""
    return f"{cpu['value']:.0%}" if cpu and cpu["low"] > 0 else "nothing"


def _by_promise(run: StoredRun) -> list[list[dict[str, Any]]]:
    rows = run["result"]["rows"]
    return [[each for each in rows if (each["kind"], each["eps"]) == promise] for promise in PROMISES]


def _cell(row: Mapping[str, Any]) -> str:
    return "{value:.1%} [{low:.1%}, {high:.1%}]".format(**row["cpu"]) if row["cpu"] else "nothing certified"


def _measure(options: Namespace) -> Iterator[Run]:
    for name, path, data in [network(text) for text in options.networks]:
        dataset = Dataset.load(data)
        with Bundle.open(path) as bundle:
            with Activity(f"{name}: ask every depth") as activity:
                measured = measure_bundle(bundle, dataset, progress=activity.update)
            rows = study(bundle, measured, read_cases(bundle, dataset), options.rounds)
            version = bundle.manifest.version
        config = {"dataset": name, "bundle_version": version, "rounds": options.rounds, "requests_per_round": REQUESTS}
        yield Run(
            config | {"delta": DELTA, "concurrency": CONCURRENCY},
            {"rows": rows},
            options.seed,
            f"saving/{name}-seed-{options.seed}",
        )


BENCHMARK = Benchmark(
    __doc__,
    "15 min a network, its bundle and data, two cores",
    {"networks": (str,), "--seed": 0, "--rounds": ROUNDS},
    _measure,
    section,
    folders=("saving",),
)
