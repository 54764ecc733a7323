"""Training a network, healing it for a plan, and its quality."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands import options
from fathom.commands.options import AsJson, Data, Out
from fathom.commands.recording import keep_run
from fathom.errors import ConfigError
from fathom.show import Activity


def train(
    dataset: Annotated[Path | None, typer.Argument(help="Dataset folder; not needed for --show-settings.")] = None,
    out: Annotated[Path | None, typer.Option(help="The checkpoint; replaced only if it is one.")] = None,
    preset: options.Preset = None,
    config_file: options.SettingsPath = None,
    settings: options.Settings = None,
    seed: options.Seed = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print every setting that --set can change, and train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train one elastic network with an exit at each depth; an interrupted run resumes where it stopped.

    Without --preset the settings follow from the data, as in `fathom build`.

    Example: fathom train build/ml-100k/dataset --out build/ml-100k/checkpoint --set train.epochs=10

    Example: fathom train --show-settings --preset ml-1m
    """
    options.need_training()
    from fathom.commands import settings_pages
    from fathom.training.dataset import Dataset
    from fathom.training.train import fit

    config = options.train_config(preset, settings, seed, config_file)
    data, chosen = None, None
    if dataset is not None and (show_settings or out is not None):
        check_outputs((out, artefacts.CHECKPOINT), inputs=[dataset, config_file])
        data = Dataset.load(dataset)
        if not options.names_preset(preset, config_file):
            chosen, config = settings_pages.config_by_data(data, settings, seed, config_file)
    if show_settings:
        default = f"the preset {preset or options.DEFAULT_PRESET}" if chosen is None else f"the data in {dataset}"
        title = f"Settings, from {config_file or default}"
        show.result(settings_pages.as_dict(config), as_json, show.table, title, settings_pages.rows(config))
        return
    if data is None or out is None:
        raise ConfigError("fathom train needs a dataset folder and --out; fathom train --help has an example")
    with Activity("train") as activity:
        checkpoint = fit(config, data, out=out, progress=activity.training)
    keep_run(
        "train",
        model=out,
        data=dataset,
        metrics=_validation(checkpoint.metrics),
        config=settings_pages.plain(config) | ({} if chosen is None else {"chosen": chosen.as_dict()}),
        outputs=(out,),
    )
    show.result(dict(checkpoint.metrics), as_json, _show_training, checkpoint.metrics)


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    data: Data,
    part: Annotated[Literal["test", "validation"], typer.Option(help="Which held-out items.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Quality of every depth and of the baselines: full ranking, seen items left out, 95 % intervals over users.

    Depths are judged as they are served: depth 0 counts what usually follows an item, the deeper ones add a part of
    that to the network's scores where it helps on validation items; "alone" is the network without it. The time since
    the newest event counts too where it helps on validation items; "untimed" is the depth without it. So do the
    features of a context that the data have; "without context" is the depth without them.

    Example: fathom evaluate build/ml-100k/checkpoint --data build/ml-100k/dataset
    """
    options.need_training()
    from fathom.exporter.planning.heal import check_dataset
    from fathom.files import write_json
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.context_fit import fit_context
    from fathom.training.counting import fit_counting
    from fathom.training.dataset import Dataset
    from fathom.training.evaluate import evaluate_model
    from fathom.training.request_time_fit import fit_request_time
    from fathom.training.splits import split

    check_outputs((out, artefacts.EVALUATION), inputs=[checkpoint, data])
    loaded, dataset = Checkpoint.load(checkpoint), Dataset.load(data)
    check_dataset(loaded, dataset)
    with Activity("evaluate") as activity:
        cut = split(dataset, loaded.config.split)
        counting = fit_counting(loaded.model, cut, dataset.n_items, progress=activity.update)
        settings = loaded.config.train.train
        timed = fit_request_time(loaded.model, settings, cut, progress=activity.update)
        report = evaluate_model(
            loaded.model,
            dataset,
            cut,
            part=part,
            counting=counting,
            request_time=timed,
            context=fit_context(loaded.model, settings, cut, timed, progress=activity.update),
            progress=activity.update,
        )
    if out:
        write_json(out, report.as_dict())
    ndcg = {f"{part} ndcg@10 of {name}": system.metrics["ndcg@10"].value for name, system in report.systems.items()}
    keep_run("evaluate", model=checkpoint, data=data, metrics=ndcg, config={"part": part}, outputs=(out,))
    title = f"Quality on the {part} items ({report.cases:,} users)"
    show.result(report.as_dict(), as_json, show.table, title, report.table())


def heal(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    plan: Annotated[Path, typer.Argument(help="plan.json, made by `fathom plan`.")],
    data: Data,
    out: Out,
    settings: options.Settings = None,
    as_json: AsJson = False,
) -> None:
    """Train a checkpoint on in a plan's order, so that layers learn to work beside their new neighbours.

    Example: fathom heal CHECKPOINT plan.json --data DATASET --out HEALED --set train.heal_epochs=3

    Example: fathom heal CHECKPOINT plan.json --data DATASET --out ADAPTED --set train.heal_tune=qlora
    """
    options.need_training()
    from fathom.commands import settings_pages
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
    changed = {"plan": str(plan), **settings_pages.as_dict(config)}
    keep_run("heal", model=out, data=data, metrics=_validation(healed.metrics), config=changed, outputs=(out,))
    show.result(dict(healed.metrics), as_json, _show_training, healed.metrics)


def _validation(metrics: Mapping[str, Any]) -> dict[str, float]:
    """NDCG@10 of each depth where it was last evaluated, the deepest first."""
    found: dict[str, float] = {}
    for epoch in metrics["training"]:
        found |= epoch["validation_ndcg@10"]
    deepest_first = sorted(found, key=int, reverse=True)
    return {f"validation ndcg@10 at depth {depth}": found[depth] for depth in deepest_first}


def _show_training(metrics: Mapping[str, Any]) -> None:
    evaluated = [epoch for epoch in metrics["training"] if epoch["validation_ndcg@10"]]
    if not evaluated:
        show.note("nothing was trained: stacked exits that keep their order of layers stay as they are")
        return
    depths = list(dict.fromkeys(depth for epoch in evaluated for depth in epoch["validation_ndcg@10"]))
    rows = [["stage", "epoch", "loss", *(f"NDCG@10 depth {depth}" for depth in depths)]]
    for epoch in evaluated:
        found = [epoch["validation_ndcg@10"].get(depth) for depth in depths]
        values = ["" if value is None else f"{value:.4f}" for value in found]
        rows.append([epoch["stage"], str(epoch["epoch"]), f"{epoch['loss']:.3f}", *values])
    show.table("Validation while training", rows)
