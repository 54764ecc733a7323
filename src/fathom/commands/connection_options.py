"""The options of every command that talks to a server, declared once."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from fathom.connection import DEFAULT_TARGET, Connection


def talks_to_server(command: Callable[..., None]) -> Callable[..., None]:
    """A command with --target, --tls and so on, in place of its parameter ``connection``."""
    own = {name: each for name, each in inspect.signature(command).parameters.items() if name != "connection"}
    added = inspect.signature(_connection).parameters

    @wraps(command)
    def with_options(**given: Any) -> None:
        connection = _connection(**{name: given.pop(name) for name in added})
        command(connection=connection, **given)

    # Where typer looks for options.
    positions = [*own.values(), *added.values()]
    with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in positions]
    )
    hints = get_type_hints(_connection, include_extras=True) | get_type_hints(command, include_extras=True)
    with_options.__annotations__ = {name: hint for name, hint in hints.items() if name in own or name in added}
    return with_options


def _connection(
    target: Annotated[str, typer.Option(help="host:port of the server.")] = DEFAULT_TARGET,
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS, with the certificate authorities of gRPC.")] = False,
    ca: Annotated[Path | None, typer.Option(help="Use TLS, with this certificate authority (PEM).")] = None,
    cert: Annotated[Path | None, typer.Option(help="TLS: the certificate to show (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="TLS: the key of --cert (PEM).")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Sent with every call. Repeatable.")
    ] = None,
) -> Connection:
    return Connection.from_options(target, tls=tls, ca=ca, cert=cert, key=key, metadata=metadata or ())
