"""A server in one process: ports, warm-up, health, drain; one event loop and one thread for the engine."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from grpc_health.v1 import health, health_pb2

from fathom.errors import FathomError, RequestError, optional
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine
from fathom.serving.access.control import AccessControl
from fathom.serving.access.principal import ADMIN_METHODS, ROLE_OF
from fathom.serving.audit import AuditLog
from fathom.serving.bundles import Bundles
from fathom.serving.catalogues import Catalogues
from fathom.serving.config import ServerSettings
from fathom.serving.deployment import MakeEngine, reuse_mb
from fathom.serving.describe import ServerInfo, own_profile
from fathom.serving.experiments.running import RunningExperiments
from fathom.serving.experiments.shadows import Shadows
from fathom.serving.exposure import is_loopback
from fathom.serving.fit import check_fit
from fathom.serving.gate import Gate
from fathom.serving.gauges import readings
from fathom.serving.history.contract import HistoryStore, Retention
from fathom.serving.history.open import open_history
from fathom.serving.items.open import open_items
from fathom.serving.listener import SERVICE, Listener, address
from fathom.serving.live_counter import LiveCounter
from fathom.serving.memory import give_back
from fathom.serving.metrics import Metrics, Reading
from fathom.serving.metrics_export import MetricsExport
from fathom.serving.metrics_port import MetricsPort
from fathom.serving.recommend import Recommend
from fathom.serving.recording import Recorder
from fathom.serving.service import RecommenderService, TellWorkers
from fathom.serving.tracing import Tracing
from fathom.serving.transport.contract import Options, Transport
from fathom.serving.transport.open import open_transport
from fathom.serving.transport.options import server_options
from fathom.serving.transport.tls import Certificates
from fathom.serving.workers import Notice

# How often it is looked whether the engines still answer.
HEALTH_EVERY_S = 1.0
SWEEP_EVERY_S = 60.0

if TYPE_CHECKING:
    from fathom.serving.http.port import HttpPort

log = logging.getLogger("fathom.serving")


class Server:
    """A gRPC server over a bundle or a repository; ``async with`` closes it at once, ``drain`` first lets calls finish.

    Belongs to the event loop it is started in; keeps no bundle and no engine open after ``close``. ``shares_port``:
    with other processes. ``tell_workers``: called with what the others must know. ``make_transport``: instead of what
    the settings say. ``owns_process``: what the process takes is the server's, and must fit its profile.
    """

    def __init__(
        self,
        settings: ServerSettings,
        path: Path,
        *,
        make_engine: MakeEngine | None = None,
        shares_port: bool = False,
        tell_workers: TellWorkers | None = None,
        make_transport: Callable[[Options], Transport] | None = None,
        owns_process: bool = False,
    ) -> None:
        self._settings = settings
        # Another's transport has a port that is none of ours.
        self._shares_port = shares_port or make_transport is not None
        self._has_others = shares_port
        self._make_transport = make_transport or partial(open_transport, settings.transport)
        self._tell_workers = tell_workers or _alone
        self._checks_fit = owns_process and not settings.force
        self._gate = Gate()
        # Whoever brings a transport may ask for ``work``.
        shown = settings.metrics_port is not None or settings.metrics == "otlp" or make_transport is not None
        self._metrics = Metrics(shown=shown)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs

        def onnx_engine(bundle: Bundle, threads: int) -> Engine:
            profile = own_profile(settings.profile, bundle, force=True)
            incremental = reuse_mb(settings, profile) > 0
            if profile.tier == "mobile":
                give_back()
            engine = open_engine(
                bundle,
                threads=threads,
                incremental=incremental,
                device=settings.device,
                tensorrt_cache=settings.tensorrt_cache,
            )
            if profile.tier == "mobile":
                give_back()
            return engine

        self.bundles = Bundles(path, settings, self._metrics, make_engine or onnx_engine)
        retention = _retention(settings)
        self._history = open_history(settings.history, retention)
        self._counter = LiveCounter(self._history, retention, self.bundles) if self._history is not None else None
        items = open_items(settings.catalogue)
        self._items = items
        self._catalogues = None if items is None else Catalogues(items, self.bundles.choose, self.bundles)
        if self._catalogues is not None:
            self.bundles.taking_over = self._catalogues.taking_over
        self._following: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._recorder = _recorder(settings)
        self._access = AccessControl(settings.access, workers=settings.workers)
        #: None without one.
        self.audit = _audit(settings)
        self._certificates = Certificates.of(settings)
        self._metrics.show(self._readings)
        self._listeners: list[Listener] = []
        self._following_access: asyncio.Task[None] | None = None
        self._experiments = _experiments(settings, self.bundles, self._tell_workers)
        self._tracing = Tracing() if settings.trace == "otlp" else None
        self._experimenting: list[asyncio.Task[None]] = []
        self._metrics_export = MetricsExport(self._metrics.registry) if settings.metrics == "otlp" else None
        self._metrics_http: MetricsPort | None = None
        self._http: HttpPort | None = None
        self._engines_answer = True
        self._watching: asyncio.Task[None] | None = None
        self._reloads: set[asyncio.Task[None]] = set()
        #: Set when no calls can be taken any more, for a fault that has been logged.
        self.failed = asyncio.Event()

    @property
    def state(self) -> str:
        """In a word: "starting", "serving", "draining" or "engine lost"; gRPC's health and /healthz follow it."""
        return self._gate.state if self._engines_answer or self._gate.state != "serving" else "engine lost"

    def work(self) -> tuple[int, float, dict[str, float]]:
        """See ``Metrics.work``."""
        return self._metrics.work()

    async def start(self) -> ServerInfo:
        """Listen, warm up, and serve; until it returns, health says NOT_SERVING and calls get UNAVAILABLE.

        Where others answer on the same port it listens last: the kernel would bring it calls that they could answer.
        Raises ConfigError when a port cannot be used or a bundle not be served so, BundleError for one that is refused.
        """
        started = time.perf_counter()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.to_thread(self._access.load)
        if self.audit is not None:
            self.audit.start()
        addresses = None if self._has_others else await self._listen()
        if self._settings.metrics_port is not None:
            port = MetricsPort(self._metrics.registry, lambda: self.state, self._access, self.audit, self._certificates)
            self._metrics_http = await port.start(self._settings.host, self._settings.metrics_port)
        if self._metrics_export is not None:
            self._metrics_export.start()
        if not self._access.is_open:
            self._following_access = asyncio.create_task(self._access.run())
        await self.bundles.start()
        if self._checks_fit:
            await check_fit(self.bundles)
        if self._experiments is not None:
            await self._experiments.registry.load()
            self._experimenting = [
                asyncio.create_task(each) for each in (self._experiments.registry.run(), self._experiments.logs.run())
            ]
        if self._history is not None:
            self._sweeping = asyncio.create_task(_sweep(self._history))
        if self._counter:
            self._counting = asyncio.create_task(self._counter.run())
        if self._catalogues is not None:
            self._following = asyncio.create_task(self._catalogues.run())
        if self._recorder is not None:
            self._recorder.start()
        self._gate.open()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._watching = asyncio.create_task(self._watch_engines())
        main, admin = addresses or await self._listen()
        return ServerInfo(
            address=main,
            admin_address=admin,
            http_address=address(self._settings.host, self._http.port) if self._http else None,
            secure=self._certificates is not None,
            metrics_address=address(self._settings.host, self._metrics_http.port) if self._metrics_http else None,
            bundles=tuple(each.info() for each in self.bundles),
            started_s=time.perf_counter() - started,
        )

    async def drain(self) -> int:
        """Health flips, new calls get UNAVAILABLE, calls in flight finish; returns how many had to be cut off."""
        await self._health.enter_graceful_shutdown()
        for each in self._listeners:
            each.stop_listening()
        if self._http is not None:
            self._http.stop_listening()
        left = await self._gate.drain(self._settings.drain_s)
        if self._counter:
            with suppress(RequestError):
                await self._counter.exchange()
        await asyncio.gather(*(each.hang_up() for each in self._listeners))
        return left

    async def close(self) -> None:
        """Stop at once: calls in flight get UNAVAILABLE, ports and engine are given back."""
        if self._watching:
            self._watching.cancel()
        for listener in self._listeners:
            await listener.stop()
        if self._http is not None:
            await self._http.close()
        if self._metrics_export is not None:
            await asyncio.to_thread(self._metrics_export.close)
        await self.bundles.close()
        for task in filter(None, (self._sweeping, self._counting, self._following_access, *self._experimenting)):
            task.cancel()
        if self._experiments is not None:
            await self._experiments.close()
        if self._history is not None:
            await self._history.close()
        if self._following:
            self._following.cancel()
        if self._items is not None:
            await self._items.close()
        if self._metrics_http:
            await self._metrics_http.close()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)
        if self.audit is not None:
            self.audit.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _listen(self) -> tuple[str, str | None]:
        """The addresses of the port, and of the admin port where there is one."""
        settings, options = self._settings, server_options(self._settings, shares_port=self._shares_port)
        main = Listener(self._transport(options), settings.host, settings.port, shares_port=self._shares_port)
        recommend = Recommend(
            self.bundles,
            self._history,
            self._gate,
            self._metrics,
            self._recorder,
            self._access,
            self.audit,
            self._experiments,
            self._tracing,
        )
        service = RecommenderService(
            recommend,
            transport=main.transport.name,
            stream_in_flight=settings.stream_in_flight,
            most_bytes=settings.max_message_mb * 2**20,
            tell_workers=self._tell_workers,
            counter=self._counter,
            catalogues=self._catalogues,
        )
        main.answer(recommend, service, self._health, but=() if settings.admin_port is None else ADMIN_METHODS)
        admin = None
        if settings.admin_port is not None:
            admin = Listener(
                self._transport(options), settings.admin_host, settings.admin_port, shares_port=self._shares_port
            )
            admin.answer(recommend, service, self._health, but=[each for each in ROLE_OF if each not in ADMIN_METHODS])
            self._listeners.append(admin)
        self._listeners.append(main)
        if settings.http_port is not None:
            self._http = await self._open_http(service)
        return await main.start(self._certificates), None if admin is None else await admin.start(self._certificates)

    async def _open_http(self, service: RecommenderService) -> "HttpPort":
        settings, certificates = self._settings, self._certificates
        optional("starlette", "web")
        optional("uvicorn", "web")
        from fathom.serving.http.gateway import Gateway
        from fathom.serving.http.port import HttpPort

        gateway = Gateway(
            service,
            most_bytes=settings.max_message_mb * 2**20,
            state=lambda: self.state,
            but=() if settings.admin_port is None else ADMIN_METHODS,
            origins=settings.http_origins,
            is_local=is_loopback(settings.host),
        )
        port = HttpPort(gateway.app, certificates)
        return await port.start(settings.host, settings.http_port or 0, shares_port=self._shares_port)

    def _readings(self) -> Iterator[Reading]:
        return readings(
            self.bundles, self._gate.in_flight, self._history, self._recorder, self.audit, self._experiments
        )

    def _transport(self, options: Options) -> Transport:
        transport = self._make_transport(options)
        transport.on_failure = self.failed.set
        transport.on_unread = self._metrics.unread
        return transport

    async def _watch_engines(self) -> None:
        """Let the health say whether every engine answers."""
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            answer = all([await each.has_engine() for each in self.bundles])
            if answer != self._engines_answer:
                self._engines_answer = answer
                serving = health_pb2.HealthCheckResponse.SERVING
                # While it drains, the health servicer ignores this.
                await self._set_health(serving if answer else health_pb2.HealthCheckResponse.NOT_SERVING)
                log.log(logging.INFO if answer else logging.ERROR, "%s", self.state)

    def notice(self, notice: Notice) -> Awaitable[None] | None:
        """Do what another worker of this server was told to do; what is returned is to be waited for."""
        if notice.what == "catalogue":
            return self._catalogues.follow(notice.name) if self._catalogues else None
        if notice.what == "experiments":
            return self._experiments.registry.follow() if self._experiments else None
        if notice.what == "forget":
            self.bundles.forget(notice.name)
            if self._counter:
                self._counter.forget(notice.name)
            return None
        if self._gate.state == "draining":
            return None
        task = asyncio.create_task(self._reload(notice.name))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return None

    async def _reload(self, name: str) -> None:
        try:
            await self.bundles.reload(name)
        except FathomError as error:
            log.error("cannot reload: %s", error)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


def _retention(settings: ServerSettings) -> Retention:
    return Retention(
        max_events=settings.history_max_events,
        max_age_days=settings.history_days,
        max_ahead_s=settings.history_ahead_s,
        tombstone_days=settings.history_tombstone_days,
        memory_mb=settings.history_memory_mb,
    )


def _recorder(settings: ServerSettings) -> Recorder | None:
    if settings.record is None:
        return None
    return Recorder(Path(settings.record), settings.record_mb * 2**20, settings.workers)


def _experiments(settings: ServerSettings, bundles: Bundles, tell_workers: TellWorkers) -> RunningExperiments | None:
    if settings.experiments is None:
        return None
    files = settings.experiments, settings.experiments_log
    return RunningExperiments(*files, Shadows(bundles), tell_workers=tell_workers, workers=settings.workers)


def _audit(settings: ServerSettings) -> AuditLog | None:
    return None if settings.audit is None else AuditLog(settings.audit, settings.audit_mb * 2**20, settings.workers)


async def _sweep(history: HistoryStore) -> None:
    while True:
        # The store has logged what keeps it from being swept; so does the next request that needs it.
        with suppress(RequestError):
            if removed := await history.sweep():
                log.info("removed %d events that are older than history_days", removed)
        await asyncio.sleep(SWEEP_EVERY_S)


async def _alone(what: str, name: str) -> int:  # noqa: ARG001
    """There are no other workers to be told, so none is behind."""
    return 0
