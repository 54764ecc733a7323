"""Serving bundles."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from fathom.commands.options import AsJson


def serve(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, or a folder with NAME/NUMBER/ bundles in it.")
    ],
    default_bundle: Annotated[
        str | None, typer.Option(help="Bundle of requests that name none. Default: the only one.")
    ] = None,
    watch_s: Annotated[
        float | None, typer.Option(help="Seconds between looks for newer bundles. Default: never.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of requests that name none. Default: cloud.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port, 0 takes a free one. Default: 50051.")] = None,
    metrics_port: Annotated[str | None, typer.Option(help="HTTP port of /metrics. Default: off.")] = None,
    workers: Annotated[int | None, typer.Option(help="Server processes on the port. Default: 1.")] = None,
    force: Annotated[
        bool | None, typer.Option("--force", help="Serve although the bundle did not fit the profile.")
    ] = None,
    policy: Annotated[
        Literal["auto", "certified", "rule", "deepest"] | None,
        typer.Option(
            metavar="POLICY",
            help="How depths are chosen: certified, rule (the profile's), deepest, or auto: as certified, else by the"
            " rule. Default: auto.",
        ),
    ] = None,
    feedback_share: Annotated[
        float | None, typer.Option(help="Certified requests that run twice. Default: 0.01.")
    ] = None,
    feedback_alpha: Annotated[float | None, typer.Option(help="Chance of a false alarm, ever. Default: 0.01.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Users' histories: off, memory, sqlite:PATH, redis://HOST:PORT/DB. Default: off.")
    ] = None,
    history_max_events: Annotated[int | None, typer.Option(help="Events kept of a user. Default: 1000.")] = None,
    history_days: Annotated[int | None, typer.Option(help="Older events are forgotten. Default: never.")] = None,
    history_ahead_s: Annotated[
        int | None, typer.Option(help="How far ahead of the clock events may be dated. Default: 86400.")
    ] = None,
    history_tombstone_days: Annotated[
        int | None, typer.Option(help="Days for which late events of a deleted user are ignored. Default: 7.")
    ] = None,
    history_memory_mb: Annotated[int | None, typer.Option(help="Memory of --history memory. Default: 256.")] = None,
    reuse_mb: Annotated[
        float | None,
        typer.Option(help="Memory for histories that may return. Default: by the profile, at most 64."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads. Default: the profile's.")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where engines run. Default: auto, a GPU if it can.")
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that bundles must be signed with; may be repeated. Default: none is needed."
        ),
    ] = None,
    max_queue: Annotated[int | None, typer.Option(help="Waiting requests before the server is full.")] = None,
    backlog: Annotated[int | None, typer.Option(help="Calls held unread. Default: ten times --max-queue.")] = None,
    max_message_mb: Annotated[int | None, typer.Option(help="Largest message in and out.")] = None,
    stream_in_flight: Annotated[int | None, typer.Option(help="Requests one stream may have waiting.")] = None,
    drain_s: Annotated[float | None, typer.Option(help="Time for requests in flight at SIGTERM.")] = None,
    log_format: Annotated[Literal["json", "text"] | None, typer.Option(help="Default: json.")] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(metavar="LEVEL", help="debug, info, warning or error. Default: info."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with any of these settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a bundle over gRPC until SIGTERM or Ctrl-C, then finish what is in flight.

    Example: fathom serve build/ml-100k/bundle --profile cloud --metrics-port 9464
    """
    options = {key: value for key, value in locals().items() if key not in ("bundle", "config", "as_json")}
    options["trust"] = tuple(trust) if trust else None
    from fathom.serving.config import load_settings
    from fathom.serving.server import serve as run

    settings = load_settings(options, file=config)
    if as_json:
        run(settings, bundle, ready=lambda info: print(json.dumps(asdict(info)), flush=True))
    else:
        run(settings, bundle)
