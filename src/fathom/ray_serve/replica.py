"""One replica: a Fathom server without a port, whose methods Ray Serve calls."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError

from fathom.errors import FathomError, UnavailableError
from fathom.ray_serve import notices
from fathom.ray_serve.autoscaling import Report
from fathom.ray_serve.settings import replica_settings
from fathom.ray_serve.transport import Encoded, RayTransport
from fathom.serving.server import Server
from fathom.serving.workers import Notice

#: Before the notices are asked for again, after they could not be.
AGAIN_S = 1.0

log = logging.getLogger("fathom.serving")


def _unary(method: str) -> Callable[..., Awaitable[Encoded]]:
    # Ray looks for a parameter of this name.
    async def call(self: "Recommender", request: Any, grpc_context: Any) -> Encoded:
        return await self.transport.unary(method, request, grpc_context)

    return call


class Recommender:
    """``fathom.v1.Recommender`` on a bundle, or a repository of bundles, that all machines of the cluster can read."""

    def __init__(self, bundle: str, given: Mapping[str, object], replicas: int) -> None:
        self.transport = RayTransport()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._server = Server(
            replica_settings(given, replicas),
            Path(bundle),
            tell_workers=self._tell,
            make_transport=lambda _: self.transport,
        )
        self._report = Report()
        self._following: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def reconfigure(self, user_config: Mapping[str, object]) -> None:
        """Called by Ray before the first request, and when ``user_config`` changes: then bundles are loaded again."""
        async with self._starting:
            if self._following is None:
                await self._server.start()
                self._following = asyncio.create_task(self._follow())
                return
        log.info("reloading, as user_config has changed: %s", dict(user_config))
        for each in await self._server.bundles.reload(""):
            if each.error:
                raise UnavailableError(f"{each.name}: {each.error}")

    Recommend = _unary("Recommend")
    RecommendBatch = _unary("RecommendBatch")
    AppendEvents = _unary("AppendEvents")
    AppendEventStream = _unary("AppendEventStream")
    DeleteUser = _unary("DeleteUser")
    UpsertItems = _unary("UpsertItems")
    RemoveItems = _unary("RemoveItems")
    ListItems = _unary("ListItems")
    GetBundle = _unary("GetBundle")
    Reload = _unary("Reload")
    ReportOutcomes = _unary("ReportOutcomes")
    ListExperiments = _unary("ListExperiments")
    ChangeExperiment = _unary("ChangeExperiment")

    async def RecommendStream(self, requests: Any, grpc_context: Any) -> AsyncIterator[Encoded]:
        """The only method with many answers."""
        async for each in self.transport.stream("RecommendStream", requests, grpc_context):
            yield each

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray every ``metrics_interval_s``, for policies as ``QueueTime``."""
        return self._report.next(*self._server.work())

    async def check_health(self) -> None:
        """Called by Ray, which replaces a replica whose engine does not answer any longer."""
        check_serving(self._server)

    async def __del__(self) -> None:
        """Called by Ray once no request is in flight, or graceful_shutdown_timeout_s is over."""
        if self._following is not None:
            self._following.cancel()
        await self._server.drain()
        await self._server.close()

    async def _tell(self, what: str, name: str) -> int:
        try:
            told: int = await serve.get_deployment_actor(notices.NAME).tell.remote(self._name, what, name)
        except (RayError, ValueError) as error:
            log.warning("perhaps none of the other replicas has been told to %s: %s", what, error)
            return 1
        return told

    async def _follow(self) -> None:
        """Do what other replicas were told to do."""
        done: int | None = None
        while True:
            try:
                number, news = await serve.get_deployment_actor(notices.NAME).wait.remote(self._name, done)
                for each in news:
                    await self._do(each)
                done = number
            except (RayError, ValueError) as error:
                log.warning("cannot follow the other replicas: %s", error)
                await asyncio.sleep(AGAIN_S)

    async def _do(self, notice: Notice) -> None:
        try:
            if (doing := self._server.notice(notice)) is not None:
                await doing
        except FathomError as error:
            log.warning("cannot follow the other replicas (%s): %s", notice.what, error)


def check_serving(server: Server) -> None:
    """Raise UnavailableError where a server is not ready, or has lost its engine."""
    if server.state != "serving":
        raise UnavailableError(server.state)
