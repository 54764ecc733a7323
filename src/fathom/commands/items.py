"""Items of a running server's catalogue."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fathom import show
from fathom.commands.connection_options import connect
from fathom.commands.options import AsJson, takes
from fathom.connection import Connection
from fathom.errors import InvalidRequestError, MissingExtraError

if TYPE_CHECKING:
    from fathom.client import ListedItem

app = typer.Typer(help="Items of a running server's catalogue.", no_args_is_help=True)

Bundle = Annotated[str, typer.Option(help="Which of the server's bundles. Default: the server's default.")]
AT_ONCE = 1_000


@app.command("import")
@takes(connection=connect)
def items_import(
    *,
    file: Annotated[Path, typer.Argument(help="csv, parquet or jsonl, with a column id.")],
    bundle: Bundle = "",
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Add the items of a table, or change them, without training. May be run again.

    Columns: id, title, categories and similar (ids of similar items), both split at |, unavailable, boost, expires
    (seconds since 1970); other numbers are attributes to filter by, such as price.

    Example: fathom items import new.csv --target 127.0.0.1:50051
    """
    from fathom.client import Client

    try:
        from fathom.tools.items_import import import_items
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "train") from None
    with Client.over(connection) as client, show.Activity(f"import {file}") as activity:
        done = import_items(client, file, bundle=bundle, progress=activity.update)
    left_out = f"; columns left out: {', '.join(done.left_out)}" if done.left_out else ""
    text = f"added {done.added}, updated {done.updated}; catalogue version {done.catalogue_version}"
    show.result(asdict(done), as_json, _say, f"{text}{_behind(done.workers_behind)}{left_out}")


@app.command("list")
@takes(connection=connect)
def items_list(
    *,
    most: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    after: Annotated[str, typer.Option(help="The page after this token, which a shortened list ends with.")] = "",
    bundle: Bundle = "",
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Items that were added, changed or removed since the bundle was built, by id.

    Example: fathom items list --most 20
    """
    from fathom.client import Client

    found: list[ListedItem] = []
    token, more = after, True
    with Client.over(connection) as client:
        while more and len(found) < most:
            page = client.list_items(token, size=min(AT_ONCE, most - len(found)), bundle=bundle)
            found += page.items
            token, more = page.next_page, bool(page.next_page)
    if as_json:
        show.print_json({"items": [asdict(each) for each in found], "next_page": token if more else ""})
        return
    show.table(f"Changed items of {connection.target}", [["id", "title", "categories", "state"], *map(_row, found)])
    if more:
        _say(f"there are more: --after {token}")


@app.command("remove")
@takes(connection=connect)
def items_remove(
    *,
    ids: Annotated[list[str], typer.Argument(help="Ids of items.")],
    bundle: Bundle = "",
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Take items out: from then on no answer holds them. Unknown ids are ignored.

    Example: fathom items remove 1042 1043
    """
    from fathom.client import Client

    if len(ids) > AT_ONCE:
        raise InvalidRequestError(f"{len(ids)} ids, at most {AT_ONCE}; remove them in several calls")
    with Client.over(connection) as client:
        done = client.remove_items(ids, bundle=bundle)
    text = f"removed {done.removed}; catalogue version {done.catalogue_version}{_behind(done.workers_behind)}"
    show.result(asdict(done), as_json, _say, text)


def _row(listed: "ListedItem") -> list[str]:
    item = listed.item
    kind = "trained" if listed.trained else "added"
    state = "removed" if listed.removed else "unavailable" if item.unavailable else kind
    return [item.id, item.title or "-", "|".join(item.categories) or "-", state]


def _say(text: str) -> None:
    show.out.print(text, highlight=False, soft_wrap=True, markup=False)


def _behind(workers: int) -> str:
    return f"; workers that have not answered yet and will follow: {workers}" if workers else ""
