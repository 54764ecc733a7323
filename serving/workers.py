"""Several server processes on one port: started together, started again when one dies, drained together.

The kernel spreads connections over the processes (SO_REUSEPORT), so a client needs several connections to reach all
of them (``fathom.client``: ``channels``). Each worker is bound to its parent by a pipe whose end tells it to drain,
whether the parent asked for it or was killed.
"""

import asyncio
import logging
import multiprocessing
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from fathom.errors import ConfigError, FathomError
from fathom.serving.config import ServerSettings
from fathom.serving.describe import ServerInfo

#: Runs one worker until the pipe ends: (settings, bundle, pipe, ready).
Work = Callable[[ServerSettings, Path, Connection], None]
#: What a call has told one worker and all are to know: ("reload", name of the bundle or "") or ("forget", "").
Message = tuple[str, str]

MOST_PAUSE_S = 30.0
_SPAWN = multiprocessing.get_context("spawn")

log = logging.getLogger("fathom.serving")


async def supervise(
    settings: ServerSettings, bundle_path: Path, work: Work, *, ready: Callable[[ServerInfo], None]
) -> None:
    """Keep ``settings.workers`` workers running until SIGTERM or SIGINT, then let all of them drain.

    A second signal ends them at once. Raises ConfigError when the port is taken or a worker cannot start at all.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    workers: list[_Worker] = []

    def stopped() -> None:
        if stop.is_set():
            for worker in workers:
                worker.kill()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)
    with _reserved(settings.host, settings.port) as port:

        def relay(speaker: "_Worker", message: Message) -> None:
            for worker in workers:
                if worker is not speaker:
                    worker.tell(message)

        workers += [
            _Worker(_own(settings, port, number), bundle_path, work, number, relay)
            for number in range(settings.workers)
        ]
        try:
            # What keeps the first from starting would keep all of them, and is said once.
            info = await workers[0].start()
            if settings.default_bundle is None and len(info.bundles) == 1:
                # A worker that is started again later may find more than one.
                for worker in workers:
                    worker.pin(info.bundles[0].name)
            await asyncio.gather(*(worker.start() for worker in workers[1:]))
            ready(replace(info, workers=len(workers)))
            keepers = [asyncio.create_task(worker.keep()) for worker in workers]
            await stop.wait()
            for keeper in keepers:
                keeper.cancel()
        finally:
            for worker in workers:
                worker.release()
            await asyncio.gather(*(worker.ended() for worker in workers))


def _own(settings: ServerSettings, port: int, number: int) -> ServerSettings:
    """One worker's settings: the common port, and a port of its own for its metrics."""
    metrics_port = settings.metrics_port + number if settings.metrics_port else settings.metrics_port
    return settings.model_copy(update={"port": port, "metrics_port": metrics_port})


class _Worker:
    """One process, and its successors."""

    def __init__(
        self,
        settings: ServerSettings,
        bundle_path: Path,
        work: Work,
        number: int,
        relay: Callable[["_Worker", Message], None],
    ) -> None:
        self._settings = settings
        self._bundle_path = bundle_path
        self._work = work
        self._number = number
        self._relay = relay
        self._pipe: Connection | None = None
        self._process: multiprocessing.context.SpawnProcess | None = None

    def pin(self, default_bundle: str) -> None:
        """From its next start on, the bundle of requests that name none."""
        self._settings = self._settings.model_copy(update={"default_bundle": default_bundle})

    async def start(self) -> ServerInfo:
        """Start it and wait until it is ready; raises ConfigError with its own words when it does not get so far."""
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (self._settings, self._bundle_path, theirs)
        self._process = _SPAWN.Process(target=self._work, args=arguments, name=f"fathom-worker-{self._number}")
        self._process.start()
        theirs.close()
        await _readable(self._pipe.fileno())
        try:
            said = self._pipe.recv()
        except EOFError:
            raise ConfigError(f"worker {self._number} ended before it was ready; its log says why") from None
        if isinstance(said, ServerInfo):
            asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._heard, self._pipe)
            return said
        raise ConfigError(said)

    async def keep(self) -> None:
        """Whenever it ends, start it again; at once after a good start, later and later after bad ones."""
        pause_s = 0.0
        while True:
            log.warning("worker %d ended with code %s; starting another", self._number, await self.ended())
            await asyncio.sleep(pause_s)
            try:
                await self.start()
                pause_s = 0.0
            except FathomError as error:
                log.error("worker %d: %s", self._number, error)
                pause_s = min(MOST_PAUSE_S, 2 * pause_s or 1.0)

    def tell(self, message: Message) -> None:
        """Say to it what another one has been told, if it still listens."""
        if self._pipe is not None:
            with suppress(OSError):
                self._pipe.send(message)

    def _heard(self, pipe: Connection) -> None:
        """It has been told what all are to know, or it has ended."""
        try:
            self._relay(self, pipe.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            pipe.close()

    def release(self) -> None:
        """Let it drain and end."""
        if self._pipe is not None and not self._pipe.closed:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()

    async def ended(self) -> int | None:
        """Its exit code, once it has ended."""
        if self._process is None:
            return None
        await _readable(self._process.sentinel)
        self._process.join()
        return self._process.exitcode


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read, or the other end is closed."""
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(descriptor, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(descriptor)


@contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """The port, kept for us and our children: nobody who does not share it can take it, and it is free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Without SO_REUSEPORT this fails where anybody listens, even with it.
        with socket.create_server((host, port), family=family) as probe:
            port = probe.getsockname()[1]
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise ConfigError(f"{host}:{port} cannot be listened on: {error.strerror}; choose another port") from None
    with holder:
        yield port
