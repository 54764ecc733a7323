"""The options of every command that talks to a server, declared once."""

from pathlib import Path
from typing import Annotated

import typer

from fathom.connection import DEFAULT_TARGET, Connection


def connect(
    target: Annotated[str, typer.Option(help="host:port of the server.")] = DEFAULT_TARGET,
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS with gRPC's default certificate authorities.")] = False,
    ca: Annotated[Path | None, typer.Option(help="Use TLS with this certificate authority (PEM).")] = None,
    cert: Annotated[Path | None, typer.Option(help="TLS: client certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="TLS: the key of --cert (PEM).")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata sent with every call. Repeatable.")
    ] = None,
) -> Connection:
    """The connection that the options describe."""
    return Connection.from_options(target, tls=tls, ca=ca, cert=cert, key=key, metadata=metadata or ())
