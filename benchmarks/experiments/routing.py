"""Is knowing the request worth anything? Every policy against static depths, and what can be certified.

For each data set and seed the network ``ladder`` of the benchmark ``quality`` (trained now unless it lies in
build/quality) is exported, asked at every depth through its engines, and certified with every family of routings.
What policies learn is how far the depths' answers agree (see the benchmark ``agreement``), from other users than those
whose test items judge them; beside them stands a reference, boosted trees over all features. Bundles lie in
build/routing. Stored as ``routing/DATASET-seed-S``.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fathom.benchmarks.experiments.agreement import boosted
from fathom.benchmarks.experiments.drawing import BLUE, GREY, INK, STYLE
from fathom.benchmarks.experiments.quality.arms import ARMS
from fathom.benchmarks.experiments.quality.stored import dataset_title, network_title, stored_networks
from fathom.benchmarks.experiments.quality.study import Study, open_dataset
from fathom.benchmarks.markdown import paragraphs, table, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun
from fathom.exporter.bundle.export import export
from fathom.exporter.certification.certify import CertificationData, certify, measure_bundle
from fathom.exporter.certification.families import FAMILIES
from fathom.exporter.certification.routing_report import judge, judges, make_report
from fathom.runtime.bundle import Bundle
from fathom.show import Activity
from fathom.training.dataset import Dataset

WORK = Path("build/routing")
EPSILONS = (0.05, 0.01)
DELTA = 0.05
PICTURE = "routing-areas"
SERVABLE = ("length", "learned")
COMPARED = (*SERVABLE, "boosted")
WHAT = {
    "length": "length alone",
    "learned": "learned",
    "boosted": "boosted trees (reference)",
    "hindsight": "hindsight (unreachable)",
}


def opened(name: str, seed: int, dataset: Dataset) -> Bundle:
    """The network's bundle, exported unless it lies there from the same checkpoint."""
    checkpoint = Study(name, dataset, seed).checkpoint(ARMS["ladder"])
    path = WORK / f"{name}-seed-{seed}" / "bundle"
    if not path.exists() or Bundle.open(path).manifest.source.checkpoint != checkpoint.sha256:
        with Activity(f"{name} seed {seed}: export") as activity:
            export(checkpoint, dataset, path, name=name, progress=activity.update)
    return Bundle.open(path)


def study(name: str, seed: int) -> dict[str, Any]:
    """All figures of one network."""
    dataset = open_dataset(name, None)
    bundle = opened(name, seed, dataset)
    with Activity(f"{name} seed {seed}: ask every depth") as activity:
        measured = measure_bundle(bundle, dataset, progress=activity.update)
    report, test, costs = make_report(name, measured, seed=seed), judges(measured), measured.costs
    reference = judge([boosted(measured.learning, test, costs)], test.quality, test, costs, seed=seed)[0]
    return {
        "report": {**report.as_dict(), "policies": [asdict(each) for each in (*report.policies, reference)]},
        "agreement": [round(float(value), 6) for value in measured.test.agreement.mean(0)],
        "claims": [_claim(bundle, measured, eps, family) for eps in EPSILONS for family in FAMILIES],
    }


def _claim(bundle: Bundle, measured: CertificationData, eps: float, family: Any) -> dict[str, Any]:
    certificate = certify(
        bundle, measured, eps=eps, delta=DELTA, family=family, depth_sets=[bundle.manifest.served_depths]
    )
    claim = certificate.claims[0]
    words = None if claim.routing is None else claim.routing.words
    figures = {name: getattr(claim, name) for name in ("policy", "users", "kept", "saved", "agreement", "needed")}
    return {"eps": eps, "delta": DELTA, "routing": words, **figures, "buckets": [asdict(b) for b in claim.buckets]}


def load_routed(folder: Path) -> list[StoredRun]:
    """All stored networks, in the order of the page."""
    return stored_networks(folder, "routing")


def section(folder: Path) -> str:
    """The stored runs as docs/results.md tells them, "" without any."""
    runs = load_routed(folder)
    return paragraphs(_policies(runs), _certified(runs)) if runs else ""


def areas_figure(runs: Sequence[StoredRun]) -> Figure:
    """Each policy's area above the hull, as a share of what separates the deepest depth from the shallowest."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1.2 + 0.55 * len(COMPARED) * ((len(runs) + 2) // 3)), layout="constrained")
        columns = min(3, len(runs))
        panels = figure.subplots((len(runs) + columns - 1) // columns, columns, squeeze=False, sharey=True).ravel()
        for panel, run in zip(panels, runs, strict=False):
            areas = {each["name"]: each for each in run["result"]["report"]["policies"]}
            for place, name in enumerate(reversed(COMPARED)):
                each = areas[name]
                panel.plot([1e3 * each["low"], 1e3 * each["high"]], [place, place], color=BLUE, linewidth=2)
                panel.plot(1e3 * each["area"], place, "o", color=BLUE, markersize=5)
            panel.axvline(0, color=INK, linewidth=0.8)
            panel.set_yticks(range(len(COMPARED)), [WHAT[name] for name in reversed(COMPARED)])
            panel.set_ylim(-0.6, len(COMPARED) - 0.4)
            panel.set_title(network_title(run), loc="left", fontsize=9)
        for panel in panels[len(runs) :]:
            panel.set_visible(False)
        figure.supxlabel("mean NDCG@10 above the hull of static depths, in thousandths", fontsize=9, color=GREY)
        return figure


def _policies(runs: Sequence[StoredRun]) -> str:
    rows = []
    for each in runs:
        report = each["result"]["report"]
        areas = {policy["name"]: _thousandths(policy) for policy in report["policies"]}
        rows.append(
            {"network": network_title(each), "gap": report["static"][-1][1] - report["static"][0][1], **report, **areas}
        )
    columns = "network={network} | NDCG@10, deepest less shallowest={gap:+decimal}"
    columns += "".join(f" | {what}={{{name}}}" for name, what in WHAT.items())
    servable = [(run, each) for run in runs for each in run["result"]["report"]["policies"] if each["name"] in SERVABLE]
    above = [f"{WHAT[each['name']]} ({network_title(run)})" for run, each in servable if each["low"] > 0]
    verdict = (
        f"Of {len(servable)} servable policies, those above the hull with their whole interval: {len(above)}"
        f"{': ' if above else ''}{', '.join(above)}; by chance alone {0.025 * len(servable):.1f}. Where static depths"
        " differ, which request needs more depth can hardly be told from the request; so the certificate mixes depths."
    )
    about = (
        "Area: mean NDCG@10 above the convex hull of the static depths (random mixing reaches every point of the hull),"
        " over the hull's range of measured cost, in thousandths, with a 95 % interval over users. Judged on test"
        " items, of which nothing was learned."
    )
    picture = f"![What knowing the request is worth](figures/{PICTURE}.svg)"
    return paragraphs("## Routing against random mixing", verdict, about, table_of(rows, columns), picture)


def _thousandths(area: StoredRun) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(1e3 * area[key] for key in ("area", "low", "high")))


def _certified(runs: Sequence[StoredRun]) -> str:
    seeds = Counter(run["config"]["dataset"] for run in runs)
    rows = []
    for run in (run for run in runs if seeds[run["config"]["dataset"]] == 1):
        for claim in run["result"]["claims"]:
            needed = f"about {claim['needed']:,} users needed" if claim["needed"] else "too much is lost"
            routing = claim["routing"] or f"not certified: {needed}"
            figures = {key: f"{claim[key]:.1%}" if claim["routing"] else "" for key in ("kept", "saved")}
            rows.append({**claim, "network": network_title(run), "certified": routing, **figures})
    about = (
        "The cheapest routing whose NDCG@10 is shown to be at least (1 - eps) of the deepest depth's, wrong with"
        " probability at most 5 %. Kept: estimate. Saved: by the measured cost of a request alone, by its length."
    )
    columns = (
        "network={network} | eps={eps:.0%} | family={policy} | users={users:,} | certified routing={certified}"
        " | quality kept={kept} | compute saved={saved}"
    )
    several = [row for name, count in seeds.items() if count > 1 for row in _spread(name, runs)]
    over_seeds = (
        "Over networks that were trained from several seeds: in how many anything is certified, and what is saved and"
        " kept there, the median and from the least to the most; a network in which nothing is certified saves nothing."
    )
    head = ["", "eps", "family", "certified in", "compute saved", "quality kept"]
    return paragraphs(
        "### What is certified",
        about,
        table_of(rows, columns) if rows else "",
        *((over_seeds, table(head, several)) if several else ()),
    )


def _spread(name: str, runs: Sequence[StoredRun]) -> Iterator[list[str]]:
    """A row for each eps and family of a data set."""
    claims = [claim for run in runs if run["config"]["dataset"] == name for claim in run["result"]["claims"]]
    for eps, family in dict.fromkeys((claim["eps"], claim["policy"]) for claim in claims):
        own = [claim for claim in claims if (claim["eps"], claim["policy"]) == (eps, family)]
        certified = [claim for claim in own if claim["routing"] is not None]
        saved = [claim["saved"] if claim["routing"] is not None else 0.0 for claim in own]
        kept = _range([claim["kept"] for claim in certified]) if certified else ""
        counted = f"{len(certified)} of {len(own)}"
        yield [dataset_title(name), f"{eps:.0%}", family, counted, _range(saved), kept]


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.1%} [{min(values):.1%}, {max(values):.1%}]"


def _measure(options: Namespace) -> Iterator[Run]:
    for name, seed in product(options.datasets, options.seeds):
        config = {"dataset": name, "epsilons": EPSILONS, "delta": DELTA}
        yield Run(config, study(name, seed), seed, f"routing/{name}-seed-{seed}")


BENCHMARK = Benchmark(
    __doc__,
    "10 min a seed, the networks of `quality`",
    {"datasets": (str,), "--seeds": (0,)},
    _measure,
    section,
    folders=("routing",),
)
