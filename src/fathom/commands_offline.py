"""Commands that need the extra `train`: from a data set to a bundle. Each imports what it uses when it runs."""

import importlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.table_options import prepare_options, reads_tables
from fathom.errors import ConfigError, DataError, MissingExtraError
from fathom.show import Activity

if TYPE_CHECKING:
    from fathom.exporter.engines.precision import Bits
    from fathom.importance.lattice.lattice import Lattice
    from fathom.importance.layer_ranking import LayerRanking
    from fathom.selector.certificate import Certificate
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.presets import TrainConfig

DEFAULT_PRESET = "ml-100k"
#: More methods than these have too many pairs to print.
MANY_METHODS = 6
SOURCE_PRESETS = {"ml-1m": "ml-1m", "amazon-reviews-2023": "beauty", "online-retail-ii": "retail"}

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Data = Annotated[Path, typer.Option("--data", help="Dataset folder, made by `fathom data prepare`.")]
Out = Annotated[Path, typer.Option(help="What to write; replaced only if it is what this command wrote.")]
Preset = Annotated[str | None, typer.Option(help="Settings to start from: ml-100k, ml-1m, beauty, retail, tiny.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: train.epochs=3. Repeatable; train --show-settings lists all."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.")]

data_app = typer.Typer(help="Data sets.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(data_app, name="data")
    for command in (train, evaluate, rank, stability, plan, heal, export, certify, build):
        app.command()(command)


def _need_training() -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("polars") is None:
        raise MissingExtraError("torch", "train")
    importlib.import_module("fathom.training")  # before anything else loads torch: it sets OpenMP's waiting


def _config(preset_name: str, settings: list[str] | None, seed: int | None) -> "TrainConfig":
    from fathom.training.presets import apply_settings, preset

    config = apply_settings(preset(preset_name), settings or [])
    return config if seed is None else apply_settings(config, [f"train.seed={seed}"])


@data_app.command("prepare")
@reads_tables
def data_prepare(
    source: Annotated[str, typer.Argument(help="ml-100k, ml-1m, amazon-reviews-2023, online-retail-ii, or a file.")],
    out: Out,
    given: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Make a dataset folder from interactions.

    Example: fathom data prepare ml-100k --out build/ml-100k/dataset

    Example: fathom data prepare clicks.csv --timestamp-column clicked --k-core 5 --out build/clicks/dataset
    """
    _need_training()
    from fathom.training.data import prepare
    from fathom.training.sources import files_read

    options = prepare_options(source, given)
    check_outputs((out, artefacts.DATASET), inputs=files_read(source, options))
    with Activity(f"prepare {source}") as activity:
        dataset = prepare(source, out, options=options, progress=activity.update)
    if as_json:
        show.as_json(dataset.meta)
    else:
        show.facts(str(out), show.dataset_facts(dataset.meta))


def train(
    dataset: Annotated[Path | None, typer.Argument(help="Dataset folder; not needed for --show-settings.")] = None,
    out: Annotated[Path | None, typer.Option(help="The checkpoint; replaced only if it is one.")] = None,
    preset: Preset = None,
    settings: Settings = None,
    seed: Seed = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print every setting that --set can change, and train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train one elastic network with an exit at each depth; an interrupted run goes on where it was.

    Example: fathom train build/ml-100k/dataset --out build/ml-100k/checkpoint --set train.epochs=10

    Example: fathom train --show-settings --preset ml-1m
    """
    _need_training()
    from fathom.training import settings_page
    from fathom.training.dataset import Dataset
    from fathom.training.train import fit

    config = _config(preset or DEFAULT_PRESET, settings, seed)
    if show_settings:
        if as_json:
            show.as_json(settings_page.as_dict(config))
        else:
            show.table(f"Settings, from the preset {preset or DEFAULT_PRESET}", settings_page.rows(config))
        return
    if dataset is None or out is None:
        raise ConfigError("fathom train needs a dataset folder and --out; fathom train --help has an example")
    check_outputs((out, artefacts.CHECKPOINT), inputs=[dataset])
    with Activity("train") as activity:
        checkpoint = fit(config, Dataset.load(dataset), out=out, progress=activity.training)
    if as_json:
        show.as_json(dict(checkpoint.metrics))
    else:
        _show_training(checkpoint.metrics)


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    data: Data,
    part: Annotated[Literal["test", "validation"], typer.Option(help="Which held-out items.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Quality of every depth and of the baselines: full ranking, seen items left out, 95 % intervals over users.

    Example: fathom evaluate build/ml-100k/checkpoint --data build/ml-100k/dataset
    """
    _need_training()
    from fathom.exporter.planning.heal import check_dataset
    from fathom.files import write_json
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.dataset import Dataset
    from fathom.training.evaluate import evaluate_model
    from fathom.training.splits import split

    check_outputs((out, artefacts.EVALUATION), inputs=[checkpoint, data])
    loaded, dataset = Checkpoint.load(checkpoint), Dataset.load(data)
    check_dataset(loaded, dataset)
    with Activity("evaluate") as activity:
        cut = split(dataset, loaded.config.split)
        report = evaluate_model(loaded.model, dataset, cut, part=part, progress=activity.update)
    if out:
        write_json(out, report.as_dict())
    if as_json:
        show.as_json(report.as_dict())
    else:
        show.table(f"Quality on the {part} items ({report.cases:,} users)", report.table())


def rank(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    data: Data,
    out: Out,
    methods: Annotated[
        str,
        typer.Option(
            help="Names with commas between them; all; or auto: the best within --budget. Default: fisher, gradient,"
            " ablation, block_influence.",
            show_default=False,
        ),
    ] = "fisher,gradient,ablation,block_influence",
    budget: Annotated[
        str | None, typer.Option(help="Of --methods, run what predicts best within this time, as 60s or 5m; auto: 60s.")
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Users to measure on.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the users and of sampled labels.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Also draw the ranking as PNG.")] = None,
    page: Annotated[Path | None, typer.Option(help="Also write ranking and lattice as one HTML page.")] = None,
    lattice: Annotated[Path | None, typer.Option(help="Folder for every subset's quality; grades the methods.")] = None,
    lattice_orders: Annotated[int, typer.Option(min=0, help="Sample so many orders; 0: every subset.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Ray cluster that shares it: its address, or auto.")] = None,
    lattice_plot: Annotated[
        Path | None, typer.Option(help="Also draw the lattice as PNG: every subset, each choice.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much each layer matters, by several methods, and what they agree on.

    Example: fathom rank build/ml-100k/checkpoint --data build/ml-100k/dataset --out ranking.json --plot ranking.png

    Example: fathom rank CHECKPOINT --data DATASET --out ranking.json --lattice lattice --workers 2 --page ranking.html
    """
    _need_training()
    from fathom.importance.adapter import measure_checkpoint, rank_checkpoint
    from fathom.importance.distribution import over_processes, over_ray
    from fathom.importance.report.lattice_plot import plot_lattice
    from fathom.importance.report.page import write_page
    from fathom.importance.report.plot import plot_ranking
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.dataset import Dataset

    if lattice_plot and (lattice is None or lattice_orders):
        raise ConfigError(
            "--lattice-plot draws every subset of layers: give --lattice FOLDER, without --lattice-orders"
        )
    check_outputs(
        (out, artefacts.RANKING),
        (plot, artefacts.RANKING_PLOT),
        (page, artefacts.RANKING_PAGE),
        (lattice, artefacts.LATTICE),
        (lattice_plot, artefacts.LATTICE_PLOT),
        inputs=[checkpoint, data],
    )
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if names == ["auto"]:
        names, budget = ["all"], budget or "60s"
    budget_seconds = None if budget is None else _seconds(budget)
    loaded, dataset, truth = Checkpoint.load(checkpoint), Dataset.load(data), None
    runner = over_ray(ray) if ray else over_processes(workers)
    if lattice is not None:
        with Activity("measure the lattice") as activity:
            truth = measure_checkpoint(
                loaded,
                dataset,
                lattice,
                users=users,
                seed=seed,
                orders=lattice_orders,
                runner=runner,
                progress=activity.lattice,
            )
    with Activity("rank the layers") as activity:
        ranking = rank_checkpoint(
            loaded,
            dataset,
            names,
            budget_seconds=budget_seconds,
            users=users,
            seed=seed,
            lattice=truth,
            runner=runner,
            progress=activity.ranking,
        )
    ranking.save(out)
    if plot:
        plot_ranking(ranking, plot)
    if page:
        write_page(ranking, page, lattice=truth, depths=loaded.model.depths)
    if lattice_plot and truth is not None:
        plot_lattice(truth, ranking, loaded.model.depths, lattice_plot)
    if as_json:
        show.as_json(_read(out))
    else:
        show_ranking(out)


def stability(
    rankings: Annotated[list[Path], typer.Argument(help="Two ranking.json or more.")], as_json: AsJson = False
) -> None:
    """How alike rankings are, of several training seeds, draws of users or data sets: by method and by consensus.

    Example: fathom stability seed-0/ranking.json seed-1/ranking.json seed-2/ranking.json
    """
    from fathom.importance.layer_ranking import LayerRanking
    from fathom.importance.stability import compare_rankings
    from fathom.importance.statistics import quarter

    found = compare_rankings({str(path): LayerRanking.load(path) for path in rankings})
    if as_json:
        show.as_json(found.as_dict())
        return
    rows = [["method", "mean tau", "lowest tau", f"top {quarter(found.layers)} shared"]]
    named = dict(sorted(found.methods.items(), key=lambda item: -item[1].mean))
    named |= {"consensus (Borda)": found.consensus} | ({"consensus (Kemeny)": found.kemeny} if found.kemeny else {})
    for name, alike in named.items():
        rows.append([name, f"{alike.mean:+.2f}", f"{alike.lowest:+.2f}", f"{alike.overlap:.0%}"])
    show.table(f"How alike {found.rankings} rankings of {found.layers} layers are: Kendall's tau over all pairs", rows)
    if found.only_in_some:
        show.facts("", [("not in every ranking", ", ".join(found.only_in_some))])


def _seconds(budget: str) -> float:
    """60s, 5m, or a number of seconds."""
    number, unit = (budget[:-1], budget[-1]) if budget[-1:] in ("s", "m") else (budget, "s")
    try:
        seconds = float(number) * (60 if unit == "m" else 1)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"--budget {budget}: a time above 0, as 60s or 5m")
    return seconds


def show_ranking(path: Path) -> None:
    """Print a LayerRanking: rank of each layer by each method, consensus, tiers, agreement, grades."""
    from fathom.importance.layer_ranking import LayerRanking

    ranking = LayerRanking.load(path)
    layers = range(ranking.layers)
    rows = [["layer", *map(str, layers), "stability"]]
    ranked = [(name, method.ranks, method.stability) for name, method in ranking.methods.items()]
    places = tuple(ranking.consensus_order.index(layer) + 1 for layer in layers)
    for name, ranks, stable in [*ranked, ("consensus", places, ranking.consensus_stability)]:
        rows.append([name, *map(str, ranks), "" if stable is None else f"{stable:.2f}"])
    show.table(f"Layer importance, rank 1 = matters most ({ranking.users:,} users)", rows)
    facts = []
    for tier, shares in ranking.tiers.items():
        those = [f"{layer} ({shares[layer]:.2f})" for layer in ranking.consensus_order if ranking.tier(layer) == tier]
        facts.append((tier, ", ".join(those)))
    if ranking.kemeny_order:
        facts.append(("Kemeny order", " ".join(map(str, ranking.kemeny_order))))
    left_out = [("left out", f"{name}: {reason}") for name, reason in ranking.left_out.items()]
    show.facts("", [*facts, ("Kendall tau", _agreement(ranking)), *left_out])
    if ranking.grades:
        show_grades(ranking)


def _agreement(ranking: "LayerRanking") -> str:
    """Kendall's tau of each pair of methods, or of each method with all others where there are many."""
    names = list(ranking.methods)
    if len(names) <= MANY_METHODS:
        pairs = [(a, b) for number, a in enumerate(names) for b in names[number + 1 :]]
        taus = [f"{a} and {b} {ranking.kendall_tau[a][b]:+.2f}" for a, b in pairs]
        return ", ".join(taus) or "one method only"
    means = {a: fmean(ranking.kendall_tau[a][b] for b in names if b != a) for a in names}
    return "mean with the others: " + ", ".join(f"{name} {mean:+.2f}" for name, mean in means.items())


def show_grades(ranking: "LayerRanking") -> None:
    """Print each method's grade against the lattice, the best first."""
    losses, gains = ranking.grades["loss"], ranking.grades["ndcg@10"]
    is_whole = all(grade.regret for grade in losses.values())
    regrets = ["regret of log p", "regret of NDCG@10"] if is_whole else []
    rows = [["method", "tau with the Shapley values", *regrets]]
    for name, grade in sorted(losses.items(), key=lambda item: -item[1].tau):
        lost = [f"{fmean(each[name].regret.values()):.4f}" for each in (losses, gains) if is_whole]
        rows.append([name, f"{grade.tau:+.2f} [{grade.low:+.2f}, {grade.high:+.2f}]", *lost])
    explained = "; regret: the mean over the sizes of subsets" if is_whole else ""
    show.table(f"Grades against {ranking.graded_against}{explained}", rows)


def plan(
    ranking: Annotated[Path, typer.Argument(help="ranking.json, made by `fathom rank`.")],
    out: Annotated[Path | None, typer.Option(help="The plan to write; --compare writes none.")] = None,
    strategy: Annotated[
        str, typer.Option(help="prefix, nested, permuted-prefix, greedy or lattice.")
    ] = "permuted-prefix",
    depths: Annotated[str, typer.Option(help="Depths with commas between them.")] = "4,8,12,16",
    compare: Annotated[
        bool, typer.Option("--compare", help="Print what a lattice predicts for each strategy.")
    ] = False,
    lattice: Annotated[
        Path | None, typer.Option(help="Every subset's quality, for --strategy lattice and --compare.")
    ] = None,
    metric: Annotated[
        Literal["loss", "ndcg@10"],
        typer.Option(help="What the lattice plan is the best by; loss is log p, less noisy."),
    ] = "loss",
    as_json: AsJson = False,
) -> None:
    """Turn a ranking into a DepthPlan, which layers each depth executes in which order; or compare the strategies.

    Example: fathom plan ranking.json --strategy nested --depths 4,8,12,16 --out plan.json

    Example: fathom plan ranking.json --strategy lattice --lattice lattice --out plan.json

    Example: fathom plan ranking.json --compare --lattice lattice
    """
    _need_training()
    from fathom.exporter.bundle.report import format_layers
    from fathom.exporter.planning.plan import DepthPlan
    from fathom.files import sha256_file
    from fathom.importance.layer_ranking import LayerRanking

    try:
        wanted = tuple(int(depth) for depth in depths.split(","))
    except ValueError:
        raise ConfigError(f"--depths {depths}: whole numbers with commas between them, as 4,8,12,16") from None
    if compare:
        _compare_plans(ranking, lattice, out, wanted, metric, as_json=as_json)
        return
    if out is None:
        raise ConfigError("--out is missing: say where to write the plan, as --out plan.json")
    if lattice is not None and strategy != "lattice":
        raise ConfigError(f"the {strategy} plan reads no lattice; use --strategy lattice or --compare with --lattice")
    check_outputs((out, artefacts.PLAN), inputs=[ranking, lattice])
    loaded = LayerRanking.load(ranking)
    truth = None if lattice is None else _load_lattice(lattice)
    made = DepthPlan.make(loaded, strategy, wanted, lattice=truth, metric=metric, ranking_sha256=sha256_file(ranking))
    made.save(out)
    if as_json:
        show.as_json(_read(out))
    else:
        rows = [["depth", "layers in order"], *([str(d), format_layers(path)] for d, path in made.paths.items())]
        show.table(f"{made.strategy} plan", rows)


def _compare_plans(
    ranking: Path, lattice: Path | None, out: Path | None, depths: tuple[int, ...], metric: str, *, as_json: bool
) -> None:
    from fathom.exporter.planning.predict import TITLES, predict
    from fathom.importance.layer_ranking import LayerRanking

    if out is not None:
        raise ConfigError("--compare writes no plan: leave out --out, or leave out --compare")
    if lattice is None:
        raise ConfigError(
            "--compare needs --lattice FOLDER, every subset's quality; `fathom rank --lattice FOLDER` measures it"
        )
    found = predict(LayerRanking.load(ranking), _load_lattice(lattice), depths, metric=metric)
    if as_json:
        show.as_json({"metric": metric, **found.as_dict()})
        return
    for name, title in TITLES.items():
        show.table(f"{title} that the lattice predicts", found.rows(name))
    notes = [
        ("measured", f"on {found.users:,} users, before healing, all read at the deepest exit"),
        ("second line", "the difference to prefix over the same users, 95 % bootstrap interval"),
        ("lattice, best", f"chosen on these very users, which flatters their figures; lattice by {TITLES[metric]}"),
        (
            "best",
            "the best subset of each size with layer 0, by each metric: a bound and no plan, for they need not nest",
        ),
    ]
    show.facts("", [*notes, *found.left_out.items()])


def _load_lattice(folder: Path) -> "Lattice":
    from fathom.importance.lattice.lattice import Lattice

    return Lattice.load(folder)


def heal(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    plan: Annotated[Path, typer.Argument(help="plan.json, made by `fathom plan`.")],
    data: Data,
    out: Out,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Train a checkpoint on in a plan's order, so that layers learn to work beside their new neighbours.

    Example: fathom heal CHECKPOINT plan.json --data DATASET --out HEALED --set train.heal_epochs=3
    """
    _need_training()
    from fathom.exporter.planning.heal import heal as run
    from fathom.exporter.planning.plan import DepthPlan
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.dataset import Dataset
    from fathom.training.presets import apply_settings

    check_outputs((out, artefacts.CHECKPOINT), inputs=[checkpoint, plan, data])
    loaded = Checkpoint.load(checkpoint)
    config = apply_settings(loaded.config.train, settings or [])
    with Activity("heal") as activity:
        healed = run(
            loaded, DepthPlan.load(plan), Dataset.load(data), out=out, config=config, progress=activity.training
        )
    if as_json:
        show.as_json(dict(healed.metrics))
    else:
        _show_training(healed.metrics)


def _show_training(metrics: Mapping[str, Any]) -> None:
    evaluated = [epoch for epoch in metrics["training"] if epoch["validation_ndcg@10"]]
    depths = list(dict.fromkeys(depth for epoch in evaluated for depth in epoch["validation_ndcg@10"]))
    rows = [["stage", "epoch", "loss", *(f"NDCG@10 depth {depth}" for depth in depths)]]
    for epoch in evaluated:
        found = [epoch["validation_ndcg@10"].get(depth) for depth in depths]
        values = ["" if value is None else f"{value:.4f}" for value in found]
        rows.append([epoch["stage"], str(epoch["epoch"]), f"{epoch['loss']:.3f}", *values])
    show.table("Validation while training", rows)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder; healed, where a plan is given.")],
    data: Data,
    out: Out,
    plan: Annotated[Path | None, typer.Argument(help="Refuse a checkpoint that was not healed for this plan.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: the data set's.")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int4", "mixed"] | None,
        typer.Option(help="Of the engines. Default: the profile's, else fp32."),
    ] = None,
    item_precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Of the item vectors: half or a quarter of their memory.")
    ] = "fp32",
    profile: Annotated[str | None, typer.Option(help="Take precision and allowed loss from a profile or tier.")] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of NDCG@10 it may cost. Default: the profile's, else 0.01."),
    ] = None,
    ranking: Annotated[Path | None, typer.Option(help="For mixed: the more important a layer, the more bits.")] = None,
    budget_mb: Annotated[
        float | None, typer.Option(min=0, help="For mixed: what all layers' weights may take.")
    ] = None,
    every_length: Annotated[
        bool, typer.Option("--every-length", help="Check parity with torch at every history length.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a bundle: early-exit engines checked against torch, item index, selector, manifest.

    In fewer bits than fp32, the quality is measured too, and an export that loses too much is refused.

    Example: fathom export build/ml-100k/healed/prefix --data build/ml-100k/dataset --out small --precision int8
    """
    _need_training()
    from fathom.commands_online import show_bundle
    from fathom.edge_profiles.profile import load_profile
    from fathom.exporter.bundle.export import export as run
    from fathom.exporter.engines.reduced_quality import MAX_LOSS
    from fathom.exporter.planning.plan import DepthPlan
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.dataset import Dataset

    check_outputs((out, artefacts.BUNDLE), inputs=[checkpoint, data, plan, ranking])
    dataset, loaded = Dataset.load(data), Checkpoint.load(checkpoint)
    device = load_profile(profile) if profile else None
    chosen = precision or (device.precision if device else "fp32")
    bits = _mixed_bits(loaded, ranking, budget_mb) if chosen == "mixed" else None
    if max_loss is None:
        max_loss = device.max_loss if device else MAX_LOSS
    with Activity("export") as activity:
        manifest = run(
            loaded,
            dataset,
            out,
            name=name or str(dataset.meta["name"]),
            plan=DepthPlan.load(plan) if plan else None,
            precision=chosen,
            layer_bits=bits,
            item_precision=item_precision,
            max_loss=max_loss,
            every_length=every_length,
            progress=activity.update,
        )
    if as_json:
        show.as_json(manifest.model_dump(mode="json"))
    else:
        show_bundle(manifest)


def _mixed_bits(checkpoint: "Checkpoint", ranking: Path | None, budget_mb: float | None) -> "dict[int, Bits]":
    from fathom.exporter.engines.precision import mixed_bits
    from fathom.importance.layer_ranking import LayerRanking

    if ranking is None or budget_mb is None:
        raise ConfigError("--precision mixed needs --ranking and --budget-mb")
    return mixed_bits(checkpoint.model, LayerRanking.load(ranking).consensus_order, budget_mb)


def certify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; the certificate is written into it.")],
    data: Data,
    eps: Annotated[
        float, typer.Option(help="The loss of NDCG@10 that is allowed, relative to the deepest depth.")
    ] = 0.05,
    delta: Annotated[float, typer.Option(help="The probability that the certificate may be wrong with.")] = 0.05,
    policy: Annotated[
        Literal["mixture", "rule", "learned", "cascade"], typer.Option(help="Family of routings.")
    ] = "mixture",
    profile: Annotated[
        list[str] | None,
        typer.Option(help="A profile's name or file, or a tier; repeatable. Default: all that come with Fathom."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for the report: JSON, PNG and a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Certify the cheapest routing over depths that loses less than eps against the deepest depth.

    Tested on the data set's test items through the bundle's own engines; the server then uses it. Users with the same
    history and the same next item count as one. All claims of one certificate share delta, so name the profiles that
    matter.

    Every run is a new test that may be wrong with probability delta: decide on eps, delta, policy and profiles before
    the first run. Picking the best of n runs is wrong with probability up to n x delta.

    Where nothing can be certified the bundle is left as it is and the exit code is 2.

    Example: fathom certify build/ml-1m/bundle --data build/ml-1m/dataset --profile cloud
    """
    _need_training()
    from fathom.edge_profiles.profile import load_profile, profile_names
    from fathom.exporter.certification.certify import certify as run
    from fathom.exporter.certification.certify import check_risk, measure_bundle, write_certificate
    from fathom.exporter.certification.routing_report import make_report, what_is_needed, write_report
    from fathom.runtime.bundle import Bundle
    from fathom.training.dataset import Dataset

    check_risk(eps, delta)
    check_outputs((artefacts.real(bundle), artefacts.BUNDLE), (report, artefacts.REPORT_FOLDER), inputs=[data])
    opened, dataset = Bundle.open(bundle), Dataset.load(data)
    profiles = [load_profile(name) for name in profile or profile_names()]
    served = [tuple(depth for depth in each.depths if depth in opened.depths) for each in profiles]
    depth_sets = sorted({depths for depths in served if len(depths) > 1}, key=len, reverse=True)
    if not depth_sets:
        raise ConfigError(f"{bundle}: no profile given has two of its depths; there is nothing to choose from")
    with Activity("certify") as activity:
        measured = measure_bundle(opened, dataset, progress=activity.update)
        activity.update("testing routings")
        certificate = run(opened, measured, eps=eps, delta=delta, family=policy, depth_sets=depth_sets)
        if report is not None:
            activity.update("judging every policy against static depths")
            write_report(make_report(opened.manifest.name, measured), certificate, report)
        if certificate.certified:
            write_certificate(opened, certificate)
    if as_json:
        show.as_json(certificate.to_json())
    else:
        show_certificate(certificate)
    if not certificate.certified:
        raise DataError(f"{bundle}: nothing is certified, so it is unchanged: {what_is_needed(certificate)}")


def show_certificate(certificate: "Certificate") -> None:
    """A table of the claims, and of each claim's parts of the users."""
    from fathom.exporter.certification.routing_report import bucket_rows, certificate_rows, percent

    eps, delta = certificate.eps, certificate.delta
    show.table(
        f"At least {percent(1 - eps)} of the deepest depth's NDCG@10, confidence {percent(1 - delta)}",
        certificate_rows(certificate),
    )
    for claim in certificate.claims:
        if claim.buckets:
            show.table(
                f"Depths {', '.join(map(str, claim.depths))}: bounds that hold together", bucket_rows(claim, eps)
            )


@reads_tables
def build(
    source: Annotated[str, typer.Argument(help="As for `fathom data prepare`, or a dataset folder.")],
    out: Annotated[Path, typer.Option(help="The bundle; all other artefacts are kept beside it.")],
    given: dict[str, Any],
    preset: Preset = None,
    settings: Settings = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """All of it: prepare, train, rank, plan, heal, compare, evaluate, export, verify. Skips what has not changed.

    Example: fathom build ml-100k --out build/ml-100k/bundle

    Example: fathom build clicks.csv --items-path products.csv --out build/clicks/bundle
    """
    _need_training()
    from fathom.build import Build
    from fathom.commands_online import show_bundle
    from fathom.runtime.bundle import read_manifest
    from fathom.verdict import verdict

    config = _config(preset or SOURCE_PRESETS.get(source, DEFAULT_PRESET), settings, seed)
    work = Build(source, out, config)
    if not work.is_prepared:
        work = replace(work, options=prepare_options(source, given))
    elif given:
        raise ConfigError(f"{source} is a dataset already: --{next(iter(given)).replace('_', '-')} does nothing for it")
    ran = work.run()
    if not ran:
        show.err.print("nothing has changed: every artefact is current", highlight=False)
    manifest, evaluation = read_manifest(out), work.evaluation()
    sentence = verdict(evaluation, manifest.strategy, sorted(manifest.depths), out)
    if as_json:
        show.as_json({"ran": ran, "verdict": sentence, "manifest": manifest.model_dump(mode="json")})
        return
    show_ranking(work.folder / "ranking.json")
    show.table("Quality on the test items, 95 % intervals over users", evaluation["table"])
    show_bundle(manifest)
    show.out.print(sentence, highlight=False, markup=False)


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())
