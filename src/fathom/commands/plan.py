"""Which layers each depth executes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.options import AsJson, need_training, read_json, whole_numbers
from fathom.errors import ConfigError


def plan(
    ranking: Annotated[Path, typer.Argument(help="ranking.json, made by `fathom rank`.")],
    out: Annotated[Path | None, typer.Option(help="The plan to write; --compare writes none.")] = None,
    strategy: Annotated[
        str, typer.Option(help="prefix, nested, permuted-prefix, greedy or lattice.")
    ] = "permuted-prefix",
    depths: Annotated[str, typer.Option(help="Depths separated by commas.")] = "4,8,12,16",
    compare: Annotated[
        bool, typer.Option("--compare", help="Print what a lattice predicts for each strategy.")
    ] = False,
    lattice: Annotated[
        Path | None, typer.Option(help="Every subset's quality, for --strategy lattice and --compare.")
    ] = None,
    metric: Annotated[
        Literal["loss", "ndcg@10"],
        typer.Option(help="What the lattice plan optimizes; loss (log p) is less noisy."),
    ] = "loss",
    as_json: AsJson = False,
) -> None:
    """Turn a ranking into a plan: the layers each depth executes, in order; or compare the strategies.

    Example: fathom plan ranking.json --strategy nested --depths 4,8,12,16 --out plan.json

    Example: fathom plan ranking.json --strategy lattice --lattice lattice --out plan.json

    Example: fathom plan ranking.json --compare --lattice lattice
    """
    need_training()
    wanted = whole_numbers("--depths", depths)
    if compare:
        _compare_plans(ranking, lattice, out, wanted, metric, as_json=as_json)
    elif out is None:
        raise ConfigError("--out is missing: say where to write the plan, as --out plan.json")
    elif lattice is not None and strategy != "lattice":
        raise ConfigError(f"the {strategy} plan reads no lattice; use --strategy lattice or --compare with --lattice")
    else:
        check_outputs((out, artefacts.PLAN), inputs=[ranking, lattice])
        _write_plan(ranking, lattice, out, strategy, wanted, metric)
        _show_plan(out, as_json=as_json)


def _write_plan(
    ranking: Path, lattice: Path | None, out: Path, strategy: str, depths: tuple[int, ...], metric: str
) -> None:
    from fathom.exporter.planning.plan import DepthPlan
    from fathom.files import sha256_file
    from fathom.importance.lattice.lattice import Lattice
    from fathom.importance.layer_ranking import LayerRanking

    loaded, truth = LayerRanking.load(ranking), None if lattice is None else Lattice.load(lattice)
    made = DepthPlan.make(loaded, strategy, depths, lattice=truth, metric=metric, ranking_sha256=sha256_file(ranking))
    made.save(out)


def _show_plan(path: Path, *, as_json: bool) -> None:
    from fathom.exporter.bundle.report import format_layers
    from fathom.exporter.planning.plan import DepthPlan

    made = DepthPlan.load(path)
    rows = [["depth", "layers in order"], *([str(d), format_layers(layers)] for d, layers in made.paths.items())]
    show.result(read_json(path), as_json, show.table, f"{made.strategy} plan", rows)


def _compare_plans(
    ranking: Path, lattice: Path | None, out: Path | None, depths: tuple[int, ...], metric: str, *, as_json: bool
) -> None:
    from fathom.exporter.planning.predict import TITLES, predict
    from fathom.importance.lattice.lattice import Lattice
    from fathom.importance.layer_ranking import LayerRanking

    if out is not None:
        raise ConfigError("--compare writes no plan: leave out --out, or leave out --compare")
    if lattice is None:
        raise ConfigError(
            "--compare needs --lattice FOLDER, every subset's quality; `fathom rank --lattice FOLDER` measures it"
        )
    found = predict(LayerRanking.load(ranking), Lattice.load(lattice), depths, metric=metric)
    if as_json:
        show.print_json({"metric": metric, **found.as_dict()})
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
