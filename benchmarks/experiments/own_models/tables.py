"""The section of docs/results.md about models that are not Fathom's, from ``results/own_models/*.json``."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from fathom.benchmarks.markdown import decimal, interval, paragraphs, percent, table
from fathom.benchmarks.record import load_run
from fathom.benchmarks.registry import StoredRun
from fathom.importance.choice import Graded, choose_methods
from fathom.importance.registry import DEFAULT
from fathom.importance.statistics import kendall_tau
from fathom.importance.transfer import transferred
from fathom.training.metrics import Interval

#: Passes of all samples through all layers.
BUDGETS = (20, 200)
FOUND = ("model", "task", "modality", "blocks", "layers", "subsets", "methods", "best method", "consensus", "min")
COMPRESSED = (
    *("model", "metric", "ratio", "layers", "faster", "weights, MB", "plan", "plan, healed"),
    *("last, tuned", "last, healed", "random", "random, healed", "ONNX differs by"),
)

#: A block without which the perplexity is less than so many times as high may go alone.
HARMLESS = 1.05
#: Arms of healing, and what the page calls them.
HEALED = {
    "plan healed": "plan",
    "plan layerwise": "plan, by its layers too",
    "plan lora": "plan, by adapters",
    "chosen healed": "plan chosen after healing",
}

#: Published for leaving out layers by importance, never measured by what published it: ratio -> share of quality kept.
CLAIMED = {1.35: 0.873, 1.8: 0.846, 2.5: 0.783}


def stored_models(folder: Path, order: Sequence[str]) -> list[StoredRun]:
    """Those of these models that are stored."""
    return [load_run(path) for name in order if (path := folder / "own_models" / f"{name}.json").exists()]


def own_models_section(folder: Path, order: Sequence[str]) -> str:
    """All of the section, "" without runs."""
    stored = stored_models(folder, order)
    if not stored:
        return ""
    claims = ", ".join(f"{ratio:g}x {share:.1%}" for ratio, share in CLAIMED.items())
    return paragraphs(
        "### Layers of models that are not Fathom's",
        "Real models as they are or tuned, and small ones trained in minutes. Blocks: found, and counted by a person;"
        " layers: those that can be left out. Tau: Kendall's, of a method's scores with the Shapley values of the"
        " lattice (all subsets of layers, or those on the way through random orders), 95 % interval over samples.",
        table(FOUND, [_found(run) for run in stored]),
        "\n".join(f"- `{_name(run)}`: {run['config']['about']}" for run in stored),
        "Methods over all these models. Applies: to how many; the others are refused with a reason, which is stored."
        " Methods that run where none is named have a star.",
        table(("method", "applies", "mean tau", "lowest tau", "median s"), list(_methods(stored))),
        "Which methods to run, chosen without the model that is ranked: those with which the consensus came closest to"
        " the truth on the others, within the time of so many passes of the samples through all layers.",
        table(("methods", "models", "mean tau", "lowest tau"), list(_choices(stored))),
        "What is known without a look at the model's answers: transfer takes the importance of other models' layers by"
        " how deep they lie; zero_shot looks at the weights alone. Mean tau, and in how many models it is above 0.",
        table(("known from", "models", "mean tau", "lowest tau", "above 0"), list(_transfers(stored))),
        _modalities(stored),
        _perplexities(stored),
        "With fewer layers, at a ratio of the layers' parameters of at least 1.35, 1.8 and 2.5: quality kept in percent"
        " of the whole model's, on samples that nothing else has seen, with 95 % intervals, paired over samples. Plan:"
        " the layers that Fathom chooses. Last: the first layers stay; tuned: only the head and the last three layers"
        " learn. Random: the mean of the draws. Healed: by the whole model, equally long. Faster: a batch in torch."
        f" Published, and never measured by what published it: {claims}.",
        table(COMPRESSED, [row for run in stored for row in _compressed(run)]),
        _in_words(stored),
        _healed_otherwise(stored),
        _widths(stored),
    )


def graded(run: StoredRun) -> Graded:
    """A model as the choice of methods sees it."""
    result = run["result"]
    methods = result["methods"]
    return Graded(
        truth=result["shapley_values"],
        scores={name: method["scores"] for name, method in methods.items()},
        seconds={name: method["seconds"] for name, method in methods.items()},
        forward_seconds=result["seconds"]["forward"],
        stages=any("changes its shape" in reason for reason in result["left_out"].values()),
    )


def _choices(stored: Sequence[StoredRun]) -> Iterable[list[str]]:
    """Mean tau of the consensus of methods that are chosen without the model that is ranked."""
    models = [graded(run) for run in stored]
    networks = Graded.load()
    rows: dict[str, list[float]] = {}

    def add(name: str, model: Graded, methods: Sequence[str]) -> None:
        ran = [method for method in methods if method in model.scores]
        rows.setdefault(name, []).append(model.tau(ran) if ran else 0.0)

    for number, model in enumerate(models):
        others = [other for place, other in enumerate(models) if place != number and other.stages == model.stages]
        add("the four that run where none is named", model, DEFAULT)
        add("all that apply", model, list(model.scores))
        for budget in BUDGETS:
            seconds = budget * model.forward_seconds
            for name, known in (("other models", others), ("Fathom's own networks", networks)):
                if known:
                    chosen = choose_methods(known, model.scores, model.forward_seconds, seconds)
                    add(f"chosen by {name}, {budget} passes", model, chosen)
    for name, taus in rows.items():
        yield [name, str(len(taus)), f"{fmean(taus):+.2f}", f"{min(taus):+.2f}"]


def _transfers(stored: Sequence[StoredRun]) -> Iterable[list[str]]:
    """How well other models, and the weights alone, say what a model's layers matter."""
    truths = [run["result"]["shapley_values"] for run in stored]
    kinds = [run["config"]["modality"] for run in stored]
    networks = [model.truth for model in Graded.load()]
    rows: dict[str, list[float]] = {}

    def add(name: str, scores: Sequence[float], number: int) -> None:
        rows.setdefault(name, []).append(kendall_tau(scores, truths[number]))

    for number, run in enumerate(stored):
        layers = len(truths[number])
        others = [truth for other, truth in enumerate(truths) if other != number]
        alike = [truth for other, truth in enumerate(truths) if other != number and kinds[other] == kinds[number]]
        for name, known in (
            ("all other models", others),
            ("other models of its modality", alike),
            ("Fathom's own networks", networks),
        ):
            if known:
                add(name, transferred(known, layers).tolist(), number)
        add("the rule that earlier layers matter more", [-float(layer) for layer in range(layers)], number)
        for method in ("zero_shot", "meta_learning"):
            if method in run["result"]["methods"]:
                add(method, run["result"]["methods"][method]["scores"], number)
    for name, taus in sorted(rows.items(), key=lambda row: -fmean(row[1])):
        above = f"{sum(tau > 0 for tau in taus)} of {len(taus)}"
        yield [name, str(len(taus)), f"{fmean(taus):+.2f}", f"{min(taus):+.2f}", above]


def _perplexities(stored: Sequence[StoredRun]) -> str:
    """What each block of a language model does to its perplexity."""
    said = []
    for run in stored:
        if run["config"]["task"] == "generation" and "ablation" in run["result"]["methods"]:
            rises = run["result"]["methods"]["ablation"]["scores"]
            times = ", ".join(f"{math.exp(rise):.2f}" for rise in rises)
            harmless = sum(rise < math.log(HARMLESS) for rise in rises)
            said.append(
                f"- `{_name(run)}`: {times}. {harmless} of {len(rises)} blocks cost less than {HARMLESS - 1:.0%}, each"
                " left out alone; together they cost more, see the ratios below."
            )
    start = (
        "How many times the perplexity is without one block, from the first to the last, on the samples of the ranking:"
    )
    return "\n".join([start, "", *said]) if said else ""


def _modalities(stored: Sequence[StoredRun]) -> str:
    """What each modality is to the models that have several."""
    rows = []
    for run in stored:
        found = run["result"].get("modalities")
        for name, rise in found["rise"].items() if found else ():
            (both,) = found["interaction"].values()
            shares = found["cross_attention"] if name == next(iter(found["rise"])) else None
            rows.append(
                [
                    _name(run),
                    name,
                    interval(Interval(**rise), signed=True),
                    interval(Interval(**both), signed=True),
                    " ".join(decimal(change) for change in found["by_layer"][name]),
                    " ".join(decimal(share) for share in shares) if shares else "",
                ]
            )
    about = (
        "Models of several modalities, where one modality is that of another sample: the rise of the loss, and by how"
        " much each layer's state changes, relative to its norm. Both: the rise with both less both rises; above 0 each"
        " makes up for the other, below 0 neither is of use alone. Cross: the share of cross-attention in what each"
        " layer's attention gives."
    )
    head = ("model", "modality", "loss rises by", "both", "state changes by, per layer", "cross, per layer")
    return paragraphs(about, table(head, rows)) if rows else ""


def _name(run: StoredRun) -> str:
    return str(run["config"]["subject"])


def _found(run: StoredRun) -> list[str]:
    config, result = run["config"], run["result"]
    methods, found = result["methods"], result["found"]
    best = max(methods, key=lambda name: methods[name]["tau"]["value"])
    minutes = sum(result["seconds"].values()) / 60
    return [
        _name(run),
        config["task"].replace("_", " "),
        config["modality"],
        f"{found['blocks']} of {found['counted']}",
        str(len(found["layers"])),
        f"{result['subsets']:,}",
        str(len(methods)),
        f"{best} {_tau(methods[best]['tau'])}",
        _tau(result["consensus"]),
        f"{minutes:.1f}",
    ]


def _tau(value: dict[str, float]) -> str:
    return f"{value['value']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"


def _methods(stored: Sequence[StoredRun]) -> Iterable[list[str]]:
    taus: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    for run in stored:
        for name, method in run["result"]["methods"].items():
            taus.setdefault(name, []).append(method["tau"]["value"])
            spent.setdefault(name, []).append(method["seconds"])
    for name in sorted(taus, key=lambda name: -fmean(taus[name])):
        star = " *" if name in DEFAULT else ""
        lowest = f"{min(taus[name]):+.2f}"
        yield [f"{name}{star}", str(len(taus[name])), f"{fmean(taus[name]):+.2f}", lowest, f"{median(spent[name]):.1f}"]


def _compressed(run: StoredRun) -> Iterable[list[str]]:
    for row in run["result"]["ratios"]:
        start = [_name(run), run["config"]["metric"], f"{row['ratio']:g}"]
        if "refused" in row:
            yield [*start, row["refused"], *[""] * 9]
            continue
        onnx = row["onnx"]
        yield [
            *start,
            f"{row['layers']} of {len(run['result']['found']['layers'])}",
            f"{row['faster']:.2f}x",
            f"{row['weights_mb']:.1f}",
            *(_kept(row["arms"][arm]) for arm in ("plan", "plan healed", "last tuned", "last healed")),
            *(f"{100 * _random(row, healed=healed):.1f}" for healed in (False, True)),
            f"{onnx['difference']:.0e}" if "difference" in onnx else "refused",
        ]


def _healed_otherwise(stored: Sequence[StoredRun]) -> str:
    """Ways of healing side by side, for the runs that have them, with the mean over these."""
    rows, kept = [], []
    for run in stored:
        for row in run["result"]["ratios"]:
            arms = row.get("arms", {})
            if "chosen healed" in arms:
                shown = [_kept(arms[arm]) if "kept" in arms[arm] else "refused" for arm in HEALED]
                rows.append([_name(run), f"{row['ratio']:g}", *shown, f"{100 * _random(row, healed=True):.1f}"])
                if all("kept" in arms[arm] for arm in HEALED):
                    values = [arms[arm]["kept"]["value"] for arm in HEALED]
                    kept.append([*values, _random(row, healed=True)])
    if not kept:
        return ""
    means = [f"{100 * fmean(column):.1f}" for column in zip(*kept, strict=True)]
    about = (
        "Ways of healing, equally long, quality kept in percent. By its layers too: the states that layers leave are"
        " imitated with a weight of 1. By adapters: LoRA of rank 8 at ten times the rate. Chosen after healing: of"
        " three plans, the one with the least loss once healed."
    )
    head = ("model", "ratio", *HEALED.values(), "random layers")
    return paragraphs(about, table(head, [*rows, [f"mean of {len(kept)} rows", "", *means]]))


def _kept(arm: Mapping[str, Any]) -> str:
    return percent(Interval(**arm["kept"]))


def _random(row: Mapping[str, Any], *, healed: bool) -> float:
    """The mean share that the random choices keep."""
    arms = (arm for name, arm in row["arms"].items() if name.startswith("random") and name.endswith("healed") == healed)
    return fmean(arm["kept"]["value"] for arm in arms)


def _widths(stored: Sequence[StoredRun]) -> str:
    """Fewer layers beside narrower ones, as sentences."""
    said = []
    for run in stored:
        for row in run["result"]["ratios"]:
            if row.get("width"):
                kept = {arm: _kept(row["arms"][arm]) for arm in ("plan healed", "width healed", "width")}
                said.append(
                    f"- `{_name(run)}` at {row['ratio']:g}x: fewer layers, healed, keep {kept['plan healed']} % and are"
                    f" {row['faster']:.2f} times as fast; narrower ones with {row['width']['parameters']:,} parameters"
                    f" (fewer layers: {row['parameters']:,}) keep {kept['width healed']} %, {kept['width']} % without"
                    f" healing, and are {row['width']['faster']:.2f} times as fast."
                )
    start = "Beside Torch-Pruning, which makes all layers narrower until the whole model has as few parameters:"
    return "\n".join([start, "", *said]) if said else ""


def _in_words(stored: Sequence[StoredRun]) -> str:
    """The mean over models at each ratio."""
    said = []
    for ratio in CLAIMED:
        rows = [row for run in stored for row in run["result"]["ratios"] if row["ratio"] == ratio and "arms" in row]
        if rows:
            kept = {arm: fmean(row["arms"][arm]["kept"]["value"] for row in rows) for arm in ("plan", "plan healed")}
            kept["last tuned"] = fmean(row["arms"]["last tuned"]["kept"]["value"] for row in rows)
            kept["random healed"] = fmean(_random(row, healed=True) for row in rows)
            shares = ", ".join(f"{name} {share:.1%}" for name, share in kept.items())
            said.append(f"at {ratio:g}x ({len(rows)} models) {shares}")
    return f"The mean over the models: {'; '.join(said)}." if said else ""
