"""Several server processes on one port: started together, started again when one dies, drained together.

The kernel spreads connections over the processes (SO_REUSEPORT), so a client needs several connections to reach all
of them (``fathom.client``: ``channels``). Each worker is bound to its parent by a pipe whose end tells it to drain,
whether the parent asked for it or was killed.

A worker forwards calls that concern all (to reload, to forget a user) through the pipe: the parent sends them to the
others and answers with how many did not confirm in time. Pipes never block: a worker that does not
answer gets what it missed as soon as it answers again.
"""

import asyncio
import itertools
import logging
import multiprocessing
import select
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from fathom.errors import ConfigError, FathomError
from fathom.serving.config import ServerSettings
from fathom.serving.describe import ServerInfo
from fathom.serving.signals import RELOAD, STOP

#: Runs one worker until the pipe ends: (settings, bundle, pipe, ready).
RunWorker = Callable[[ServerSettings, Path, Connection], None]
#: How long a worker may take to confirm a forwarded call, and how much longer the parent may.
ANSWER_S, PARENT_S = 1.0, 0.5
#: How long a worker may take to end, beyond its drain.
ENDING_S = 5.0
#: How often a worker is asked whether it is there. Its event loop answers, which stands still for a second or two under
#: the worst load, and not while a bundle is loaded: without an answer to ten questions, it hangs. Two are enough where
#: the kernel says that it was stopped. Questions, not seconds: a parent that was stopped itself has asked only one.
BEAT_S, LOST_BEATS, STOPPED_BEATS = 1.0, 10, 2
BEAT = "beat"
MOST_PAUSE_S = 30.0
_SPAWN = multiprocessing.get_context("spawn")

log = logging.getLogger("fathom.serving")


class Notice(NamedTuple):
    """What one worker was told and all must know; the name "" means all.

    "reload" a bundle, "forget" a user, follow the changes of a bundle's "catalogue". BEAT: only say that it is there.
    """

    number: int
    what: str
    name: str


class Ack(NamedTuple):
    """The reply to a Notice: from a worker, that it has it; from the parent, how many workers do not."""

    number: int
    behind: int = 0


#: Does what another worker was told.
OnNotice = Callable[[Notice], Awaitable[None] | None]


class Peers:
    """A worker's way to the others, by the pipe to their parent; used from one event loop."""

    def __init__(self, pipe: Connection, others: int) -> None:
        self._pipe = pipe
        self._others = others
        self._numbers = itertools.count()
        self._awaited: dict[int, asyncio.Future[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def tell(self, what: str, name: str) -> int:
        """Let the others know; returns how many of them have not heard it in time."""
        told = Notice(next(self._numbers), what, name)
        heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._awaited[told.number] = heard
        try:
            if _send(self._pipe, told):
                async with asyncio.timeout(ANSWER_S + PARENT_S):
                    return await heard
        except TimeoutError:
            pass
        finally:
            del self._awaited[told.number]
        log.warning("the parent of the workers does not answer; perhaps none of the others has been told to %s", what)
        return self._others

    def listen(self, on_notice: OnNotice, on_parent_gone: Callable[[], None]) -> None:
        """From now on call ``on_notice`` with what another worker was told, ``on_parent_gone`` when the pipe ends.

        What ``on_notice`` returns is waited for before it counts as done.
        """
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._receive, on_notice, on_parent_gone)

    def _receive(self, on_notice: OnNotice, on_parent_gone: Callable[[], None]) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            on_parent_gone()
            return
        if isinstance(message, Notice):
            if message.what == BEAT:
                _send(self._pipe, Ack(message.number))
                return
            task = asyncio.create_task(self._do(message, on_notice))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif (waiting := self._awaited.get(message.number)) is not None and not waiting.done():
            waiting.set_result(message.behind)

    async def _do(self, notice: Notice, on_notice: OnNotice) -> None:
        try:
            if (doing := on_notice(notice)) is not None:
                await doing
        except FathomError as error:
            log.warning("cannot follow the other workers (%s): %s", notice.what, error)
            return
        _send(self._pipe, Ack(notice.number))


async def supervise(
    settings: ServerSettings, bundle_path: Path, run: RunWorker, *, ready: Callable[[ServerInfo], None]
) -> None:
    """Keep ``settings.workers`` workers running until SIGTERM or SIGINT, then let all of them drain.

    A second signal ends them at once; SIGHUP lets them reload. Raises ConfigError when the port is taken or a worker
    cannot start at all.
    """
    stop = asyncio.Event()
    with ExitStack() as ports:
        shared = {
            name: ports.enter_context(_reserved(host, port))
            for name, host, port in (
                ("port", settings.host, settings.port),
                ("http_port", settings.host, settings.http_port),
                ("admin_port", settings.admin_host, settings.admin_port),
            )
            if port is not None
        }
        workers: list[_Worker] = []

        async def relay(speaker: "_Worker", notice: Notice) -> None:
            others = (worker.tell(notice.what, notice.name) for worker in workers if worker is not speaker)
            speaker.answer(Ack(notice.number, behind=(await asyncio.gather(*others)).count(False)))

        for number in range(settings.workers):
            workers.append(_Worker(_own(settings, shared, number), bundle_path, run, number, relay))
        _on_signals(stop, workers)
        try:
            info = await _start_all(workers, settings)
            ready(replace(info, workers=len(workers)))
            keepers = [asyncio.create_task(worker.keep()) for worker in workers]
            await stop.wait()
            for keeper in keepers:
                keeper.cancel()
        finally:
            for worker in workers:
                worker.release()
            await asyncio.gather(*(worker.end(settings.drain_s + ENDING_S) for worker in workers))


def _on_signals(stop: asyncio.Event, workers: "Sequence[_Worker]") -> None:
    def stopped() -> None:
        if stop.is_set():
            for worker in workers:
                worker.kill()
        stop.set()

    def reload() -> None:
        for worker in workers:
            worker.begin(worker.tell("reload", ""))

    loop = asyncio.get_running_loop()
    for number in STOP:
        loop.add_signal_handler(number, stopped)
    loop.add_signal_handler(RELOAD, reload)


async def _start_all(workers: "Sequence[_Worker]", settings: ServerSettings) -> ServerInfo:
    """Start the first, then the others: what keeps one from starting keeps all, and is reported once."""
    info = await workers[0].start()
    if settings.default_bundle is None and len(info.bundles) == 1:
        # A worker that is restarted later may find more than one.
        for worker in workers:
            worker.pin(info.bundles[0].name)
    await asyncio.gather(*(worker.start() for worker in workers[1:]))
    return info


def _own(settings: ServerSettings, ports: Mapping[str, int], number: int) -> ServerSettings:
    """One worker's settings: the common ports, and a port of its own for its metrics."""
    metrics_port = settings.metrics_port + number if settings.metrics_port else settings.metrics_port
    return settings.model_copy(update={**ports, "metrics_port": metrics_port})


@dataclass(eq=False)
class _Worker:
    """One process, and its successors."""

    settings: ServerSettings
    bundle_path: Path
    run: RunWorker
    number: int
    relay: "Callable[[_Worker, Notice], Coroutine[Any, Any, None]]"

    def __post_init__(self) -> None:
        self._pipe: Connection | None = None
        self._process: multiprocessing.context.SpawnProcess | None = None
        self._ready: asyncio.Future[ServerInfo | str | None] | None = None
        self._numbers = itertools.count()
        self._awaited: dict[int, asyncio.Future[bool]] = {}
        # What a worker that does not answer is to be told when it does.
        self._missed: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._spoke = False

    def pin(self, default_bundle: str) -> None:
        """From its next start on, the bundle of requests that name none."""
        self.settings = self.settings.model_copy(update={"default_bundle": default_bundle})

    async def start(self) -> ServerInfo:
        """Start it and wait until it is ready; raises ConfigError with its own words when it does not get so far."""
        loop = asyncio.get_running_loop()
        self.release()
        self._pipe, theirs = _SPAWN.Pipe()
        self._ready = loop.create_future()
        self._missed.clear()
        arguments = (self.settings, self.bundle_path, theirs)
        self._process = _SPAWN.Process(target=self.run, args=arguments, name=f"fathom-worker-{self.number}")
        self._process.start()
        theirs.close()
        loop.add_reader(self._pipe.fileno(), self._hear, self._pipe)
        said = await self._ready
        if isinstance(said, ServerInfo):
            return said
        raise ConfigError(said or f"worker {self.number} ended before it was ready; its log says why")

    async def keep(self) -> None:
        """Whenever it ends, or hangs, start it again; at once after a good start, later and later after bad ones."""
        pause_s = 0.0
        while True:
            watching = asyncio.create_task(self._watch())
            try:
                code = await self.ended()
            finally:
                watching.cancel()
            log.warning("worker %d ended with code %s; starting another", self.number, code)
            await asyncio.sleep(pause_s)
            try:
                await self.start()
                pause_s = 0.0
            except FathomError as error:
                log.error("worker %d: %s", self.number, error)
                pause_s = min(MOST_PAUSE_S, 2 * pause_s or 1.0)

    async def _watch(self) -> None:
        """Kill it when it no longer answers: it would keep its callers, and the kernel would bring it more."""
        silent = 0
        while self._pipe is not None and not self._pipe.closed:
            self._spoke = False
            _send(self._pipe, Notice(next(self._numbers), BEAT, ""))
            await asyncio.sleep(BEAT_S)
            silent = 0 if self._spoke else silent + 1
            stopped = silent and self._process is not None and _is_stopped(self._process.pid)
            if silent >= (STOPPED_BEATS if stopped else LOST_BEATS):
                state = "is stopped" if stopped else f"has not answered for {silent * BEAT_S:g} s"
                log.error(
                    "worker %d (process %s) %s; it is killed", self.number, self._process and self._process.pid, state
                )
                self.kill()
                return

    async def tell(self, what: str, name: str) -> bool:
        """Forward a call that another worker received; False if it does not answer within ANSWER_S.

        If it has ended, nothing is lost: its successor starts with the newest bundles and an empty prefix cache.
        """
        if self._pipe is None or self._pipe.closed:
            return True
        told = Notice(next(self._numbers), what, name)
        if not self._missed and _send(self._pipe, told):
            if self._ready is None or not self._ready.done():
                return True  # It reads the pipe before anything else.
            heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._awaited[told.number] = heard
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await heard
            except TimeoutError:
                pass
            finally:
                del self._awaited[told.number]
        if not self._missed:
            log.warning(
                "worker %d (process %s) does not answer; the others go on, and it follows when it answers again",
                self.number,
                self._process and self._process.pid,
            )
        self._missed.add(what)
        return False

    def answer(self, heard: Ack) -> None:
        """Say to it what became of what it has passed on, if it still listens."""
        if self._pipe is not None and not self._pipe.closed:
            _send(self._pipe, heard)

    def _hear(self, pipe: Connection) -> None:
        """It is ready, or has failed to be; it has been told what all are to know; it has heard; or it has ended."""
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            self._let_go(pipe)
            return
        self._spoke = True
        if isinstance(said, Notice):
            self.begin(self.relay(self, said))
        elif isinstance(said, Ack):
            self._settle(self._awaited.get(said.number), True)
        else:
            self._settle(self._ready, said)
        if self._missed:
            log.warning("worker %d answers again; repeating the calls it missed", self.number)
            missed, self._missed = self._missed, set()
            for what in missed:
                self.begin(self.tell(what, ""))

    def _let_go(self, pipe: Connection) -> None:
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        pipe.close()
        self._settle(self._ready, None)
        for heard in self._awaited.values():
            self._settle(heard, True)

    def _settle(self, future: "asyncio.Future[Any] | None", result: object) -> None:
        if future is not None and not future.done():
            future.set_result(result)

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let something go on by itself."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def release(self) -> None:
        """Let it drain and end."""
        if self._pipe is not None and not self._pipe.closed:
            self._let_go(self._pipe)

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

    async def end(self, within_s: float) -> None:
        """Wait until it has ended; kill it when that takes too long."""
        try:
            async with asyncio.timeout(within_s):
                await self.ended()
        except TimeoutError:
            log.warning("worker %d has not ended within %g s; it is killed", self.number, within_s)
            self.kill()
            await self.ended()


def _is_stopped(process: int | None) -> bool:
    """Whether the kernel says that a process was stopped, as by SIGSTOP; never where it cannot be asked."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _send(pipe: Connection, message: Notice | Ack) -> bool:
    """Send a message without ever waiting; False where the other end reads nothing, or is closed."""
    poll = select.poll()
    try:
        poll.register(pipe.fileno(), select.POLLOUT)
        # A socket that can be written to has room for many messages of this size.
        if not poll.poll(0):
            return False
        pipe.send(message)
    except OSError:
        return False
    return True


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
    """Reserve a free port for this process and its children; only sockets that share it can bind it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Without SO_REUSEPORT this fails where anybody listens, even with it.
        with socket.create_server((host, port), family=family) as probe:
            port = probe.getsockname()[1]
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from None
    with holder:
        yield port
