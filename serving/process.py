"""Processes that serve: their signals, their workers, and how they end."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError, FathomError, ServerFailedError
from fathom.serving.config import ServerSettings
from fathom.serving.describe import ServerInfo
from fathom.serving.exposure import check_exposure
from fathom.serving.logs import logging_to
from fathom.serving.loop import run_in_loop
from fathom.serving.memory import give_back, tidy, use_memory_sparingly
from fathom.serving.server import Server
from fathom.serving.signals import RELOAD, STOP, ignore_others
from fathom.serving.transport.options import allow_connections
from fathom.serving.workers import Notice, Peers, supervise

log = logging.getLogger("fathom.serving")


def serve(settings: ServerSettings, bundle_path: Path, *, ready: Callable[[ServerInfo], None] | None = None) -> None:
    """Serve a bundle until SIGTERM or SIGINT, then drain and return; a second signal ends the process at once.

    SIGHUP reloads all bundles.
    ``ready`` is called once, when requests are answered; without it the information is printed as one line.
    Raises BundleError or ConfigError when it cannot serve.
    """
    ready = ready or partial(print, flush=True)
    check_exposure(settings)
    ignore_others()
    with logging_to(log_format=settings.log_format, level=settings.log_level):
        if settings.workers > 1:
            for name in ("history", "catalogue"):
                if getattr(settings, name) == "memory":
                    raise ConfigError(f"{name}: workers do not share memory; choose sqlite:PATH, or one worker")
            asyncio.run(supervise(settings, bundle_path, _work, ready=ready))
        else:
            run_in_loop(_serve(settings, bundle_path, ready))


def _work(settings: ServerSettings, bundle_path: Path, pipe: Connection) -> None:
    """One of several workers: tells the parent that it is ready, or why not, and drains when the pipe ends."""
    # Ctrl-C goes to the whole group, as the end of a terminal does; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignore_others()

    def say(message: ServerInfo | str) -> None:
        with suppress(BrokenPipeError):
            pipe.send(message)

    with logging_to(log_format=settings.log_format, level=settings.log_level):
        try:
            run_in_loop(_serve(settings, bundle_path, say, pipe))
        except FathomError as error:
            say(str(error))
            sys.exit(2)


async def _serve(
    settings: ServerSettings, bundle_path: Path, ready: Callable[[ServerInfo], None], pipe: Connection | None = None
) -> None:
    use_memory_sparingly()
    sparing = load_profile(settings.profile).tier == "mobile"
    if sparing:
        give_back()
        import onnxruntime  # noqa: F401  # what it needs once is given back before the engines come on top

        give_back()
    allow_connections()
    stop = asyncio.Event()
    peers = Peers(pipe, settings.workers - 1) if pipe else None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM,) if peers else STOP:
        loop.add_signal_handler(number, _drain, stop, number.name)
    tell_workers = peers.tell if peers else None
    async with Server(
        settings, bundle_path, shares_port=pipe is not None, tell_workers=tell_workers, owns_process=True
    ) as server:
        if peers:
            peers.listen(server.notice, partial(_drain, stop, "the parent is gone"))
        else:
            loop.add_signal_handler(RELOAD, server.notice, Notice(0, "reload", ""))
        server.bundles.on_retired = tidy
        info = await server.start()
        tidy()
        if sparing:
            give_back()
        log.info("ready", extra={"fields": {"server": str(info)}})
        ready(info)
        await _first(stop, server.failed)
        if server.failed.is_set():
            raise ServerFailedError("the server has failed and ends; its log says why, start it again")
        left = await server.drain()
        log.log(logging.WARNING if left else logging.INFO, "drained; %d calls cut off", left)


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waiting = [asyncio.create_task(each.wait()) for each in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()


def _drain(stop: asyncio.Event, reason: str) -> None:
    """Begin to drain; a signal that comes after this one ends the process at once."""
    if stop.is_set():
        return
    log.info("%s: draining", reason)
    stop.set()
    for number in STOP:
        asyncio.get_running_loop().remove_signal_handler(number)
