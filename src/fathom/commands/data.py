"""Data sets, and their import into a store of histories."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.options import AsJson, Out, need_training, takes
from fathom.commands.table_options import prepare_options, table_options
from fathom.show import Activity

data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
history_app = typer.Typer(help="Histories of users that a server keeps.", no_args_is_help=True)


@data_app.command("prepare")
@takes(given=table_options)
def data_prepare(
    *,
    source: Annotated[str, typer.Argument(help="ml-100k, ml-1m, amazon-reviews-2023, online-retail-ii, or a file.")],
    out: Out,
    given: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Make a dataset folder from interactions.

    Example: fathom data prepare ml-100k --out build/ml-100k/dataset

    Example: fathom data prepare clicks.csv --timestamp-column clicked --k-core 5 --out build/clicks/dataset

    Example: fathom data prepare shop.csv --weight purchase=1 --weight view=0.2 --out build/shop/dataset
    """
    need_training()
    from fathom.training.data import prepare
    from fathom.training.sources import files_read

    options = prepare_options(source, given)
    check_outputs((out, artefacts.DATASET), inputs=files_read(source, options))
    with Activity(f"prepare {source}") as activity:
        dataset = prepare(source, out, options=options, progress=activity.update)
    show.result(dataset.meta, as_json, show.facts, str(out), show.dataset_facts(dataset.meta))


@history_app.command("import")
def history_import(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, as `fathom data prepare` writes it.")],
    to: Annotated[str, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DB, as for `fathom serve --history`.")],
    max_events: Annotated[int, typer.Option(min=1, max=10_000, help="Events kept of a user, the newest.")] = 1_000,
    max_days: Annotated[
        int | None, typer.Option(min=1, help="Older events are not imported, as `fathom serve --history-days`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import the interactions of a dataset into a store; repeated imports add only new events. Servers may be running.

    Example: fathom history import build/ml-100k/dataset --to sqlite:build/history.db
    """
    from fathom.serving.history.contract import Retention
    from fathom.tools.history_import import import_dataset

    imported = import_dataset(dataset, to, Retention(max_events, max_days))
    if as_json:
        show.print_json(asdict(imported))
    else:
        left_out = (
            f"{imported.known} known already",
            f"{imported.too_old} too old or beyond the newest {max_events} of a user",
            f"{imported.before_deletion} of users who were deleted later",
        )
        text = f"{imported.added} new events of {imported.users} users; left out: {', '.join(left_out)}"
        show.out.print(text, highlight=False, soft_wrap=True)
