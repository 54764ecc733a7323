"""The sections of docs/results.md about routing and its certificate, from the stored runs, and their picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fathom.benchmarks.experiments.drawing import BLUE, GREY, INK, STYLE
from fathom.benchmarks.experiments.quality.tables import TITLES
from fathom.benchmarks.markdown import decimal, table

PICTURE = "routing-areas"
SERVABLE = ("length", "rule", "learned", "cascade")
COMPARED = (*SERVABLE, "boosted")
WHAT = {
    "length": "length alone",
    "rule": "complexity rule",
    "learned": "learned",
    "cascade": "cascade",
    "boosted": "boosted trees (reference)",
    "hindsight": "hindsight (unreachable)",
}

Run = Mapping[str, Any]


def load_routed(folder: Path) -> list[Run]:
    """All stored networks, in the order of the page."""
    runs = [json.loads(path.read_bytes()) for path in sorted((folder / "routing").glob("*.json"))]
    order = [*TITLES]
    return sorted(runs, key=lambda run: (order.index(run["config"]["dataset"]), run["seed"]))


def routing_sections(folder: Path) -> list[str]:
    """All of it; a part that was not measured is left out."""
    runs = load_routed(folder)
    parts = [_policies(runs), _needs_more(runs), _certified(runs)] if runs else []
    parts += [_kept_word(run)] if (run := _stored(folder, "certificate")) else []
    paths = sorted((folder / "routing_server").glob("*.json"), reverse=True)
    parts += [_server([json.loads(path.read_bytes()) for path in paths])] if paths else []
    parts += [_feedback(run)] if (run := _stored(folder, "feedback")) else []
    return parts


def areas_figure(runs: Sequence[Run]) -> Figure:
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
            panel.set_title(f"{TITLES[run['config']['dataset']]}, seed {run['seed']}", loc="left", fontsize=9)
        for panel in panels[len(runs) :]:
            panel.set_visible(False)
        figure.supxlabel("mean NDCG@10 above the hull of static depths, in thousandths", fontsize=9, color=GREY)
        return figure


def _policies(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        report = run["result"]["report"]
        areas = {each["name"]: each for each in report["policies"]}
        gap = report["static"][-1][1] - report["static"][0][1]
        rows.append(
            [_name(run), decimal(gap, signed=True), f"{report['explained']:+.4f}"]
            + [_thousandths(areas[name]) for name in (*COMPARED, "hindsight")]
        )
    servable = [(run, each) for run in runs for each in run["result"]["report"]["policies"] if each["name"] in SERVABLE]
    above = [f"{WHAT[each['name']]} ({_name(run)})" for run, each in servable if each["low"] > 0]
    verdict = (
        f"Of {len(servable)} servable policies, those above the hull with their whole interval: {len(above)}"
        f"{': ' if above else ''}{', '.join(above)}; by chance alone {0.025 * len(servable):.1f}. Where static depths"
        " differ, which request needs more depth can hardly be told from the request; so the certificate mixes depths."
    )
    head = ["network", "NDCG@10, deepest less shallowest", "R² of the loss, cross-fitted", *WHAT.values()]
    about = (
        "Area: mean NDCG@10 above the convex hull of the static depths (random mixing reaches every point of the hull),"
        " over the hull's range of measured cost, in thousandths, with a 95 % interval over users. Learned on"
        " validation items, judged on test items."
    )
    picture = f"![What knowing the request is worth](figures/{PICTURE}.svg)"
    return "\n\n".join(["## Routing against random mixing", verdict, about, table(head, rows), picture])


def _needs_more(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for tier, each in run["result"]["needs_more"].items():
            figures = [f"{each[key]:.1%}" for key in ("share", "accuracy_threshold", "accuracy_best_threshold")]
            aucs = [f"{each[key]:.3f}" for key in ("auc_complexity", "auc_learned")]
            rows.append(
                [
                    _name(run),
                    tier,
                    f"{each['shallow']} / {each['deep']}",
                    *figures,
                    f"{each['accuracy_constant']:.1%}",
                    *aucs,
                ]
            )
    head = ["network", "profile", "shallow / deep", "need more", "accuracy of the rule", "of the best threshold"]
    head += ["of a constant", "AUC of complexity", "AUC, learned"]
    about = (
        "A request needs more when the deep depth answers it better than the shallow one. An accuracy says little"
        " beside that of a constant."
    )
    return "\n\n".join(["### Does complexity tell which requests need more?", about, table(head, rows)])


def _certified(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for claim in run["result"]["claims"]:
            said = [_name(run), f"{claim['eps']:.0%}", claim["policy"], f"{claim['users']:,}"]
            if claim["routing"] is None:
                needed = f"about {claim['needed']:,} users needed" if claim["needed"] else "too much is lost"
                rows.append([*said, f"not certified: {needed}", "", ""])
            else:
                rows.append([*said, claim["routing"], f"{claim['kept']:.1%}", f"{claim['saved']:.1%}"])
    head = ["network", "eps", "family", "users", "certified routing", "quality kept", "compute saved"]
    about = (
        "The cheapest routing whose NDCG@10 is shown to be at least (1 - eps) of the deepest depth's, wrong with"
        " probability at most 5 %. Kept: estimate. Saved: by the measured cost of a request alone, by its length."
    )
    return "\n\n".join(["### What is certified", about, table(head, rows)])


def _kept_word(run: Run) -> str:
    rows = [
        [f"{r['eps']:.0%}", f"{r['changed']:.0%}", f"{r['users']:,}", f"{r['wrong']:.1%}", f"{r['power']:.1%}"]
        for r in run["result"]["rows"]
    ]
    head = ["eps", "users answered differently", "users", "certified at a loss of exactly eps", "certified at no loss"]
    about = (
        f"{run['config']['replications']:,} simulated replications each, delta {run['config']['delta']:.0%}: the first"
        " share must stay below delta, the second is the power."
    )
    return "\n\n".join(["### Does the certificate keep its word?", about, table(head, rows)])


def _server(runs: Sequence[Run]) -> str:
    """The largest eps first."""
    parts = [
        "### Through the server",
        "CPU time of the server's process per request, gRPC included, against a server that answers everything at the"
        " deepest depth; alternating rounds over the same requests.",
    ]
    for run in runs:
        config, compute, load = run["config"], run["result"]["compute"], run["result"]["load"]
        parts += [
            f"{config['bundle']}, certified at eps {config['eps']:.0%}: {config['routing']}.",
            table(
                ["concurrency", "CPU ms, deepest", "CPU ms, certified", "saved", "NDCG@10, deepest", "certified"],
                [_saved(row) for row in compute],
            ),
            f"Poisson arrivals at {load['offered_per_s']:,.0f} requests/s, twice what the deepest depth answers"
            f" ({load['capacity_per_s']:,.0f}/s), each wanted within {config['deadline_ms']:.0f} ms:",
            table(
                ["server", "in time", "answered", "NDCG@10 of those in time", "of all requests", "depths"],
                [_loaded(name, arm) for name, arm in load["arms"].items()],
            ),
        ]
    return "\n\n".join(parts)


def _saved(row: Run) -> list[str]:
    return [
        str(row["concurrency"]),
        *(f"{row['cpu_ms'][name]:.2f}" for name in ("deepest", "certified")),
        "{:.1%} [{:.1%}, {:.1%}]".format(*(row["saved"][key] for key in ("value", "low", "high"))),
        *(decimal(row["ndcg"][name]) for name in ("deepest", "certified")),
    ]


def _loaded(name: str, arm: Run) -> list[str]:
    return [
        name,
        *(f"{arm[key]:.1%}" for key in ("in_time", "answered")),
        *(decimal(arm[key] or 0.0) for key in ("ndcg_in_time", "ndcg_of_all")),
        ", ".join(f"{depth}: {share:.0%}" for depth, share in arm["depths"].items()),
    ]


def _feedback(run: Run) -> str:
    config, result = run["config"], run["result"]
    rows = []
    for name in ("no drift", "drift"):
        row = result[name]
        values = row["median_values_until_alarm"]
        shares = [f"{row['mean_agreement']:.3f}", f"{row['alarms']} of {row['replications']}"]
        rows.append([name, *shares, "" if values is None else f"{values:,.0f}"])
    about = (
        f"{config['bundle']}: {config['routing']}. Values as the server's feedback sees them, {config['values']:,} in a"
        f" stream, until the e-process passes 1/{config['alpha']}; expected: at least {result['expected']:.3f}. Drift:"
        " the popularity of all items shuffled."
    )
    head = ["stream", "mean agreement", "alarms", "values until the alarm, median"]
    return "\n\n".join(["### Does feedback notice drift?", about, table(head, rows)])


def _name(run: Run) -> str:
    return f"{TITLES[run['config']['dataset']]}, seed {run['seed']}"


def _thousandths(area: Run) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(1e3 * area[key] for key in ("area", "low", "high")))


def _stored(folder: Path, name: str) -> Run | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_bytes()) if path.exists() else None
