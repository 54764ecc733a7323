"""`fathom console`."""

import json
import os
from socket import gethostname
from typing import Annotated

import typer

from fathom import show
from fathom.commands.connection_options import connect
from fathom.commands.options import AsJson, takes
from fathom.connection import Connection
from fathom.errors import optional


@takes(connection=connect)
def console(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 picks a free one.")] = 8288,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on other addresses, too: whoever reaches them can ask.")
    ] = False,
    metrics_url: Annotated[
        list[str] | None, typer.Option(help="The server's /metrics. Repeatable, for several workers.")
    ] = None,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Show a running server in the browser: its answers at every depth, its bundles, its load. Changes nothing.

    The environment variable FATHOM_TOKEN holds a token for the server, sent as `authorization: Bearer`.

    Example: fathom console --metrics-url http://127.0.0.1:9464/metrics
    """
    # As in `fathom serve`: what gRPC's core notes of connections is not for whoever reads this terminal.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for module in ("starlette", "uvicorn"):
        optional(module, "web")
    from fathom.console.run import listen, run

    def ready(url: str) -> None:
        if as_json:
            print(json.dumps({"url": url, "target": connection.target}), flush=True)
        else:
            show.out.print(
                f"console of {connection.target} on {url} (Ctrl-C ends it)",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    listening = listen(host, port, insecure=insecure)
    run(connection, listening, metrics_url or (), names=(host, gethostname()), ready=ready)
