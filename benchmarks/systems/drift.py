"""A stream of live requests that changes and stays changed: alarm, fallback, and certified again.

For NAME=BUNDLE:DATASET a mixture is certified on agreement, and a real server follows it that may certify itself again.
It is asked test histories, one after the other; from some request on their items are shuffled (item i is replaced by
item p(i), for one random permutation p), so that the depths agree less than when it was certified, and it stays so.
Every answered request is offered to feedback; a server that does this for one in a hundred takes a hundred times as
many requests to each event.
"""

import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from fathom.benchmarks.experiments.agreement import network
from fathom.benchmarks.experiments.quality.stored import dataset_title
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import started
from fathom.benchmarks.systems.feedback import shuffled
from fathom.client import BundleInfo, Client
from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.certification.certify import certify, measure_bundle, write_certificate
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import CERTIFICATE_FILE
from fathom.show import Activity
from fathom.training.dataset import Dataset
from fathom.training.splits import split

SEED = 0
EPS, DELTA = 0.1, 0.05
#: Requests as certified, and after the server has certified itself again.
BEFORE, AFTER = 2_000, 1_000
#: Requests between two looks at what the server says of itself.
EACH = 50
#: Answers of a phase that are compared with the deepest depth's.
COMPARED = 300
OPTIONS = ("--policy", "certified", "--feedback-share", "1", "--recertify", "auto")


class Stream:
    """Asks requests one after the other until the server says something of itself."""

    def __init__(self, client: Client, requests: Iterator[Sequence[str]], deepest: int) -> None:
        self._client, self._requests, self._deepest = client, requests, deepest

    def phase(self, name: str, most: int, ended: Callable[[BundleInfo], bool] = lambda _: False) -> dict[str, Any]:
        """At most so many requests, until this holds of what the server says; and what was answered."""
        depths: Counter[int] = Counter()
        shares: list[float] = []
        count = 0
        while count < most and (block := list(islice(self._requests, min(EACH, most - count)))):
            for items in block:
                answer = self._client.recommend(items)
                depths[answer.depth] += 1
                if len(shares) < COMPARED:
                    shares.append(self._shared(items, [item.id for item in answer.items]))
            count += len(block)
            if ended(self._client.bundle()):
                break
        info = self._client.bundle()
        return {
            "phase": name,
            "requests": count,
            "depths": {str(depth): round(number / count, 4) for depth, number in sorted(depths.items())},
            "agreement": round(float(np.mean(shares)), 4) if shares else None,
            "alarm": info.alarm,
            "recertified": info.recertified,
            "policy": info.policy,
            "drifted": list(info.drifted),
        }

    def _shared(self, items: Sequence[str], given: Sequence[str]) -> float:
        best = [item.id for item in self._client.recommend(items, depth=self._deepest).items]
        return len({*given} & {*best}) / len(best)


def study(bundle: Bundle, dataset: Dataset) -> dict[str, Any]:
    """Each phase of the stream, in order. Raises ConfigError where nothing can be certified."""
    with Activity("certify") as activity:
        measured = measure_bundle(bundle, dataset, progress=activity.update)
        depths = bundle.manifest.served_depths
        certificate = certify(bundle, measured, eps=EPS, delta=DELTA, depth_sets=[depths], kind="agreement")
    (claim,) = certificate.claims
    if claim.routing is None or claim.agreement is None:
        raise ConfigError(f"{bundle.path}: nothing is certified that routes a request below the deepest depth")
    assert bundle.manifest.source.split is not None
    cases = split(dataset, bundle.manifest.source.split).test
    cases = cases.select(np.random.default_rng(SEED).permutation(len(cases)))
    changed = shuffled(cases.select(np.arange(BEFORE, len(cases))), bundle.manifest.items, SEED)
    histories = chain(cases.select(np.arange(BEFORE)).histories, changed.histories)
    ids, longest = dataset.item_ids, bundle.manifest.model.max_history
    requests = ([ids[item] for item in history[-longest:].tolist()] for history in histories)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        derive_bundle(bundle, Path(folder) / "bundle", drop={CERTIFICATE_FILE})
        with Bundle.open(Path(folder) / "bundle") as copy:
            write_certificate(copy, certificate)
        server = stack.enter_context(started(Path(folder) / "bundle", *OPTIONS))
        stream = Stream(stack.enter_context(Client(server.address)), requests, bundle.depths[-1])
        phases = [
            stream.phase("as certified", BEFORE),
            stream.phase("changed", len(changed), lambda info: info.alarm),
            stream.phase("after the alarm", len(changed), lambda info: info.recertified > 0),
            stream.phase("certified again", AFTER),
        ]
    return {"routing": claim.routing.words, "expected": claim.agreement, "phases": phases}


def _measure(options: Namespace) -> Iterator[Run]:
    for name, path, data in [network(text) for text in options.networks]:
        with Bundle.open(path) as bundle:
            config = {"dataset": name, "bundle_version": bundle.manifest.version, "eps": EPS, "delta": DELTA}
            result = study(bundle, Dataset.load(data))
        yield Run(config | {"before": BEFORE, "options": OPTIONS}, result, SEED)


def render(run: StoredRun) -> str:
    """A row for each phase."""
    config, result = run["config"], run["result"]
    rows = [
        {**each, "depths": ", ".join(f"{depth}: {share:.0%}" for depth, share in each["depths"].items())}
        for each in result["phases"]
    ]
    about = (
        f"{dataset_title(config['dataset'])}, certified to share {1 - config['eps']:.0%} of the deepest depth's top 10:"
        f" {result['routing']}. One request after the other to a real server that may certify itself again; after"
        f" {config['before']:,} of them all items are shuffled, and stay so. Every answer is offered to feedback (by"
        " default one in a hundred). Agreement: of the first answers of each phase with the deepest depth's."
    )
    columns = "phase={phase} | requests={requests:,} | depths={depths} | agreement={agreement:.3f}"
    return paragraphs(
        "### A stream that changes for good", about, table_of(rows, columns + " | then the server={policy}")
    )


BENCHMARK = Benchmark(
    __doc__, "5 min, a network's bundle and data", {"networks": (str,)}, _measure, of_runs(render, "drift")
)
