"""How much each layer matters, by several methods, and how far rankings agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.options import AsJson, Out, methods_within, need_training, read_json, takes
from fathom.commands.recording import keep_run
from fathom.errors import ConfigError
from fathom.show import Activity

if TYPE_CHECKING:
    from fathom.importance.lattice.lattice import Lattice
    from fathom.importance.layer_ranking import LayerRanking

#: More methods than these have too many pairs to print.
MANY_METHODS = 6


@dataclass(frozen=True)
class RankFiles:
    """Where `fathom rank` writes."""

    out: Out
    plot: Annotated[Path | None, typer.Option(help="Also draw the ranking, as PNG.")] = None
    page: Annotated[Path | None, typer.Option(help="Also write ranking and lattice as one HTML page.")] = None
    lattice: Annotated[
        Path | None, typer.Option(help="Folder for the quality of every subset of layers; grades the methods.")
    ] = None
    lattice_plot: Annotated[
        Path | None, typer.Option(help="Also draw the lattice, as PNG: every subset and each method's choice.")
    ] = None

    def check(self, inputs: Sequence[Path]) -> None:
        """Raise OutputError unless all of it may be written."""
        check_outputs(
            (self.out, artefacts.RANKING),
            (self.plot, artefacts.RANKING_PLOT),
            (self.page, artefacts.RANKING_PAGE),
            (self.lattice, artefacts.LATTICE),
            (self.lattice_plot, artefacts.LATTICE_PLOT),
            inputs=inputs,
        )

    def write(self, ranking: "LayerRanking", lattice: "Lattice | None", depths: Sequence[int]) -> None:
        """Write the ranking, and draw what was asked for."""
        from fathom.importance.report.lattice_plot import plot_lattice
        from fathom.importance.report.page import write_page
        from fathom.importance.report.plot import plot_ranking

        ranking.save(self.out)
        if self.plot:
            plot_ranking(ranking, self.plot)
        if self.page:
            write_page(ranking, self.page, lattice=lattice, depths=depths)
        if self.lattice_plot and lattice is not None:
            plot_lattice(lattice, ranking, depths, self.lattice_plot)


@dataclass(frozen=True)
class RankOptions:
    """How `fathom rank` measures."""

    methods: Annotated[
        str,
        typer.Option(
            help="Names separated by commas; all; or auto: the best within --budget. Default: fisher, gradient,"
            " ablation, block_influence.",
            show_default=False,
        ),
    ] = "fisher,gradient,ablation,block_influence"
    budget: Annotated[
        str | None,
        typer.Option(help="Run the --methods that predict best within this time: 60s or 5m. Default for auto: 60s."),
    ] = None
    users: Annotated[int, typer.Option(min=1, help="Number of users, or samples, to measure on.")] = 256
    seed: Annotated[int, typer.Option(help="Seed for drawing users and sampling labels.")] = 0
    lattice_orders: Annotated[
        int, typer.Option(min=0, help="Number of layer orders to sample for --lattice; 0 measures every subset.")
    ] = 0
    workers: Annotated[int, typer.Option(min=1, help="Number of processes that share the work.")] = 1
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster to run on: its address, auto, or local to start one here.")
    ] = None

    def measured_on(self) -> dict[str, Any]:
        """The users and the processes, as the functions that measure take them."""
        from fathom.pieces import over_processes, over_ray

        runner = over_ray(self.ray) if self.ray else over_processes(self.workers)
        return {"users": self.users, "seed": self.seed, "runner": runner}


@dataclass(frozen=True)
class OwnModel:
    """A model that is not Fathom's."""

    model: Annotated[
        str | None,
        typer.Option(
            help="In place of a checkpoint: a folder with config.json, or a package that holds one; see --task."
        ),
    ] = None
    task: Annotated[
        str, typer.Option(help="What --model is for; --data is then a table as `fathom compress` takes it.")
    ] = "classification"


@takes(files=RankFiles, options=RankOptions, own=OwnModel)
def rank(
    data: Annotated[
        Path, typer.Option("--data", help="Dataset folder, made by `fathom data prepare`; with --model, a table.")
    ],
    files: RankFiles,
    options: RankOptions,
    own: OwnModel,
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much each layer matters, by several methods, and where they agree.

    Example: fathom rank build/ml-100k/checkpoint --data build/ml-100k/dataset --out ranking.json --plot ranking.png

    Example: fathom rank CHECKPOINT --data DATASET --out ranking.json --lattice lattice --workers 2 --page ranking.html

    Example: fathom rank --model build/reviews-model --task classification --data reviews.csv --out ranking.json
    """
    need_training()
    if (checkpoint is None) == (own.model is None):
        raise ConfigError("give either a checkpoint folder or --model")
    if options.lattice_orders and files.lattice is None:
        raise ConfigError("--lattice-orders says how much of --lattice is measured: give --lattice FOLDER too")
    if files.lattice_plot and (files.lattice is None or options.lattice_orders):
        raise ConfigError(
            "--lattice-plot draws every subset of layers: give --lattice FOLDER, without --lattice-orders"
        )
    if own.model is not None:
        ranking = _rank_own(own, data, files, options)
        _keep(ranking, own.model, data, files, options, task=own.task)
        show_ranking(files.out, as_json=as_json)
        return
    from fathom.importance.adapter import measure_checkpoint, rank_checkpoint
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.dataset import Dataset

    assert checkpoint is not None
    files.check([checkpoint, data])
    names, budget_seconds = methods_within(options.methods, options.budget)
    loaded, dataset, lattice = Checkpoint.load(checkpoint), Dataset.load(data), None
    on = options.measured_on()
    if files.lattice is not None:
        orders = options.lattice_orders
        with Activity("measure the lattice") as activity:
            lattice = measure_checkpoint(loaded, dataset, files.lattice, orders=orders, progress=activity.lattice, **on)
    with Activity("rank the layers") as activity:
        more = {"budget_seconds": budget_seconds, "lattice": lattice, "progress": activity.ranking, **on}
        ranking = rank_checkpoint(loaded, dataset, names, **more)
    files.write(ranking, lattice, loaded.model.depths)
    _keep(ranking, checkpoint, data, files, options)
    show_ranking(files.out, as_json=as_json)


def _keep(
    ranking: "LayerRanking",
    model: object,
    data: Path,
    files: RankFiles,
    options: RankOptions,
    task: str = "recommendation",
) -> None:
    """Among the runs, with the methods' grades where there are any."""
    grades = ranking.grades.get("loss", {})
    keep_run(
        "rank",
        task=task,
        model=model,
        data=data,
        metrics={f"tau of {name}": grade.tau for name, grade in grades.items()},
        config={
            "methods": list(ranking.methods),
            "samples": ranking.users,
            "seed": options.seed,
            "consensus order": list(ranking.consensus_order),
        },
        outputs=(files.out, files.plot, files.page, files.lattice, files.lattice_plot),
    )


def _rank_own(own: OwnModel, data: Path, files: RankFiles, options: RankOptions) -> "LayerRanking":
    """Rank the layers of a model that is not ours on a table of samples."""
    from fathom.commands.compress import MeasureOptions, analyzer_of

    assert own.model is not None
    if options.ray or options.workers > 1:
        raise ConfigError("--workers and --ray share work on Fathom's own checkpoints; leave them out with --model")
    files.check([data, *([Path(own.model)] if Path(own.model).exists() else [])])
    measured = MeasureOptions(options.methods, options.budget, options.users, options.seed)
    analyzer, rows, _ = analyzer_of(own.model, own.task, data, measured)
    lattice = None
    if files.lattice is not None:
        with Activity("measure the lattice") as activity:
            orders = options.lattice_orders
            lattice = analyzer.measure_lattice(rows, files.lattice, orders=orders, progress=activity.lattice)
    with Activity("rank the layers") as activity:
        ranking = analyzer.analyze_importance(rows, progress=activity.ranking, lattice=lattice)
    # Any depth can be had, so the chain is shown at each quarter.
    depths = sorted({-(-ranking.layers * quarter // 4) for quarter in range(1, 5)})
    files.write(ranking, lattice, depths if lattice is not None else ())
    return ranking


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
        show.print_json(found.as_dict())
        return
    rows = [["method", "mean tau", "lowest tau", f"top {quarter(found.layers)} shared"]]
    named = dict(sorted(found.methods.items(), key=lambda item: -item[1].mean))
    named |= {"consensus (Borda)": found.consensus} | ({"consensus (Kemeny)": found.kemeny} if found.kemeny else {})
    for name, alike in named.items():
        rows.append([name, f"{alike.mean:+.2f}", f"{alike.lowest:+.2f}", f"{alike.overlap:.0%}"])
    show.table(f"How alike {found.rankings} rankings of {found.layers} layers are: Kendall's tau over all pairs", rows)
    if found.only_in_some:
        show.facts("", [("not in every ranking", ", ".join(found.only_in_some))])


def show_ranking(path: Path, *, as_json: bool = False) -> None:
    """Print a LayerRanking: rank of each layer by each method, consensus, tiers, agreement, grades."""
    from fathom.importance.layer_ranking import LayerRanking

    if as_json:
        show.print_json(read_json(path))
        return
    ranking = LayerRanking.load(path)
    layers = range(ranking.layers)
    rows = [["layer", *map(str, layers), "stability"]]
    ranked = [(name, method.ranks, method.stability) for name, method in ranking.methods.items()]
    places = tuple(ranking.consensus_order.index(layer) + 1 for layer in layers)
    for name, ranks, stable in [*ranked, ("consensus", places, ranking.consensus_stability)]:
        rows.append([name, *map(str, ranks), "" if stable is None else f"{stable:.2f}"])
    what = "samples" if ranking.layer_names else "users"
    show.table(f"Layer importance, rank 1 = matters most ({ranking.users:,} {what})", rows)
    facts = [(f"layer {layer}", name) for layer, name in enumerate(ranking.layer_names)]
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
