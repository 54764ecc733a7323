"""`fathom key`: makes an API key for the access file of a server."""

from pathlib import Path
from typing import Annotated

import typer


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; for logs and the audit log.")],
    roles: Annotated[str, typer.Option(help="What it may do: recommend, write, admin, or several with commas.")] = (
        "recommend"
    ),
    tenant: Annotated[str, typer.Option(help="The tenant that it belongs to. Default: none.")] = "",
    rate: Annotated[
        float | None, typer.Option(help="At most so many plain requests a second. Default: no limit.")
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="Last day on which it is accepted.")] = None,
    add: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add it to this access file, which is made if it is missing.")
    ] = None,
) -> None:
    """Make an API key: print it once, with the line that lets a server accept it.

    Example: fathom key web --roles recommend --add access.yaml
    """
    from fathom.serving.access.key_line import add_key, key_line
    from fathom.serving.access.keys import new_key

    made = new_key()
    line = key_line(name, made.sha256, roles.split(","), tenant=tenant, rate=rate, expires=expires)
    if add is not None:
        add_key(add, line)
    print(made.text)
    where = f"through {add}" if add else f"with this line under `keys:` of its access file:\n{line}"
    typer.echo(
        f"Give it to {name}: it is not stored, and cannot be shown again. The server accepts it {where}", err=True
    )
