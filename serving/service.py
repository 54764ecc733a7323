"""The RPCs of ``fathom.v1.Recommender`` on top of the bundles in service.

They raise our own errors; ``guard.py`` turns those of a whole call into its status, and ``many.py`` those of one
request in a batch or stream into its RecommendError.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeVar

import grpc

from fathom.errors import InvalidRequestError, PermissionDeniedError, RequestError, brief
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.serving.access.caller import CallContext, Caller
from fathom.serving.access.principal import Tenant
from fathom.serving.bundles import ReloadResult
from fathom.serving.catalogues import Catalogues, Changed
from fathom.serving.experiments.running import RunningExperiments
from fathom.serving.experiments.states import Phase
from fathom.serving.experiments.units import outcomes_of
from fathom.serving.history.contract import Appended, HistoryStore, digest_of
from fathom.serving.history.messages import user_of
from fathom.serving.items.contract import ItemChange
from fathom.serving.items.messages import MOST_ITEMS, check_removed, listed_item
from fathom.serving.live_counter import LiveCounter
from fathom.serving.many import Many
from fathom.serving.recommend import Recommend
from fathom.serving.uploads import read_events, read_items
from fathom.serving.work import PLAIN_IDS

#: Lets the other workers follow: ("reload", name of the bundle or ""), ("forget", digest of the user's id) or
#: ("catalogue", name of the bundle). Returns how many have not answered in time.
TellWorkers = Callable[[Literal["reload", "forget", "catalogue", "experiments"], str], Awaitable[int]]
Result = TypeVar("Result")

#: Methods whose messages can be so large that they are decoded here, a few parts at a time.
ENCODED = ("RecommendBatch", "RecommendStream", "AppendEvents", "AppendEventStream", "UpsertItems")

DEFAULT_PAGE = 100
#: Of the items of a page, as far as there are several.
LARGEST_PAGE_BYTES = 2**20

_PHASES = {
    pb.ChangeExperimentRequest.START: Phase.RUNNING,
    pb.ChangeExperimentRequest.STOP: Phase.STOPPED,
    pb.ChangeExperimentRequest.PROMOTE: Phase.PROMOTED,
}

log = logging.getLogger("fathom.serving")


@dataclass(eq=False)
class RecommenderService(recommender_pb2_grpc.RecommenderServicer):
    """Answers all methods but Recommend, whose calls ``recommend`` takes itself, while the gate is open.

    Messages of the methods in ``ENCODED`` come as they are. ``most_bytes``: of a message that is sent.
    """

    recommend: Recommend
    transport: str
    stream_in_flight: int
    most_bytes: int
    tell_workers: TellWorkers
    counter: LiveCounter | None = None
    catalogues: Catalogues | None = None

    def __post_init__(self) -> None:
        self.bundles, self.gate, self.metrics = self.recommend.bundles, self.recommend.gate, self.recommend.metrics
        self.many = Many(self.recommend, self.most_bytes)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def RecommendBatch(self, request: bytes, context: CallContext) -> bytes:
        """Many independent requests; results in their order."""
        with self.gate:
            return await self.many.batch(request, context.deadline_s(), context.caller)

    async def RecommendStream(self, requests: AsyncIterator[bytes], context: CallContext) -> None:
        """Independent requests; results as they are ready, at most ``stream_in_flight`` waiting at a time.

        What is in flight is still answered when the server drains or a message cannot be decoded.
        """
        caller = context.caller
        slots = asyncio.Semaphore(self.stream_in_flight)
        writing = asyncio.Lock()  # gRPC sends one message of a call at a time

        async def answer(request: pb.RecommendRequest) -> None:
            try:
                result = await self.many.streamed(request, context.deadline_s(), caller)
                async with writing:
                    await context.write(result)
            except grpc.aio.BaseError as error:
                # The client has left, and gRPC is about to cancel this call.
                log.debug("a result could not be sent: %s", error)
            finally:
                # Only now: a client that does not read its results is not read either.
                slots.release()

        failure: RequestError | None = None
        with self.gate:
            async with asyncio.TaskGroup() as group:
                try:
                    async with self.gate.until_closing():
                        async for raw in requests:
                            await slots.acquire()
                            group.create_task(answer(await self.many.read(raw, caller.client)))
                except RequestError as error:
                    failure = error
        if failure is not None:
            raise failure

    async def AppendEvents(self, request: bytes, context: CallContext) -> pb.AppendEventsResponse:
        """Add events to what is known of a user."""
        with self.gate:
            return _appended(await self._append(request, context.caller))

    async def AppendEventStream(
        self,
        requests: AsyncIterator[bytes],
        context: CallContext,
    ) -> pb.AppendEventsResponse:
        """The same for many messages."""
        total, caller = Appended(), context.caller
        with self.gate:
            async with self.gate.until_closing():
                async for each in requests:
                    total += await self._append(each, caller)
            return _appended(total)

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: CallContext) -> pb.DeleteUserResponse:
        """Forget a user; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            user = context.caller.about["user"] = context.caller.principal.key_of(user_of(request))
            return await self._to_its_end(self._delete(self.recommend.known(), user))

    async def UpsertItems(self, request: bytes, context: CallContext) -> pb.UpsertItemsResponse:
        """Say what items are; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            catalogues = self._changeable()
            items = await read_items(request, self.recommend.turns, context.caller.client)
            items = items._replace(bundle=self._own(items.bundle, context.caller))
            context.caller.about["items"] = len(items.records)
            changed, behind = await self._to_its_end(self._change(items.bundle, catalogues.upsert(items)))
            return pb.UpsertItemsResponse(
                added=changed.new,
                updated=changed.known,
                catalogue_version=changed.version,
                workers_behind=behind,
            )

    async def RemoveItems(self, request: pb.RemoveItemsRequest, context: CallContext) -> pb.RemoveItemsResponse:
        """Take items out; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            catalogues = self._changeable()
            check_removed(request.item_ids)
            bundle = self._own(request.bundle, context.caller)
            context.caller.about["items"] = len(request.item_ids)
            changed, behind = await self._to_its_end(self._change(bundle, catalogues.remove(bundle, request.item_ids)))
            return pb.RemoveItemsResponse(
                removed=changed.known, catalogue_version=changed.version, workers_behind=behind
            )

    async def ListItems(self, request: pb.ListItemsRequest, context: CallContext) -> pb.ListItemsResponse:
        """What was said of items, by id."""
        with self.gate:
            size = request.page_size or DEFAULT_PAGE
            if size > MOST_ITEMS:
                raise InvalidRequestError(f"page_size is {size}, at most {MOST_ITEMS}")
            catalogues, bundle = self._changeable(), self._own(request.bundle, context.caller)
            found, catalogue = await catalogues.listed(bundle, request.page_token, size + 1)
            page = _page(found[:size])
            return pb.ListItemsResponse(
                items=[listed_item(each.id, each.record, catalogue) for each in page],
                next_page_token=page[-1].id if len(found) > len(page) else "",
                catalogue_version=catalogue.version,
            )

    async def ReportOutcomes(
        self, request: pb.ReportOutcomesRequest, context: CallContext
    ) -> pb.ReportOutcomesResponse:
        """What users did with answers of experiments."""
        with self.gate:
            experiments, tenant = self._experimenting(), context.caller.principal.tenant
            if context.caller.principal.user is not None:
                raise PermissionDeniedError("outcomes are reported by services, not by a user's own token")
            context.caller.about["outcomes"] = len(request.outcomes)
            context.caller.principal.charge(max(1, -(-len(request.outcomes) // PLAIN_IDS)), time.monotonic())
            outcomes = outcomes_of(request, tenant, time.time())
            return pb.ReportOutcomesResponse(noted=experiments.report(outcomes))

    async def ListExperiments(
        self,
        request: pb.ListExperimentsRequest,  # noqa: ARG002
        context: CallContext,
    ) -> pb.ListExperimentsResponse:
        """How the experiments stand."""
        with self.gate:
            return pb.ListExperimentsResponse(experiments=self._experimenting(context.caller).registry.statuses())

    async def ChangeExperiment(self, request: pb.ChangeExperimentRequest, context: CallContext) -> pb.ExperimentStatus:
        """Start, stop or promote one."""
        with self.gate:
            phase = _PHASES.get(request.action)
            if phase is None:
                raise InvalidRequestError("action is not set; START, STOP or PROMOTE")
            about = {"experiment": brief(request.name), "phase": phase.value, "arm": brief(request.arm)}
            context.caller.about |= about
            return await self._experimenting(context.caller).registry.change(request.name, phase, request.arm)

    async def GetBundle(self, request: pb.GetBundleRequest, context: CallContext) -> pb.GetBundleResponse:
        """What is being served."""
        with self.gate:
            answer = pb.GetBundleResponse()
            tenant = context.caller.principal.tenant
            answer.CopyFrom(self.bundles.choose(request.bundle, tenant).describe())
            answer.bundles.extend(self.bundles.names(tenant))
            answer.transport = self.transport
            return answer

    async def Reload(self, request: pb.ReloadRequest, context: CallContext) -> pb.ReloadResponse:
        """Serve the newest bundles; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            context.caller.about["bundle"] = brief(request.bundle)
            return await self._to_its_end(self._reload(request.bundle, context.caller.principal.tenant))

    async def _reload(self, name: str, tenant: Tenant) -> pb.ReloadResponse:
        reloaded = await self.bundles.reload(name, tenant)
        behind = [await self.tell_workers("reload", each) for each in _told(reloaded, name, tenant)]
        return pb.ReloadResponse(bundles=map(_reloaded, reloaded), workers_behind=max(behind, default=0))

    async def _delete(self, history: HistoryStore, user: str) -> pb.DeleteUserResponse:
        """``user``: as ``Principal.key_of`` says."""
        digest = digest_of(user)
        try:
            with self.metrics.using_history("delete"):
                deleted = await history.delete(user)
        finally:
            # A store that fails may have deleted already, and what is remembered must not outlive that.
            self.bundles.forget(digest)
            if self.counter is not None:
                self.counter.forget(digest)
            behind = await self.tell_workers("forget", digest)
        return pb.DeleteUserResponse(deleted=deleted, workers_behind=behind)

    async def _to_its_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _change(self, bundle: str, change: Awaitable[Changed]) -> tuple[Changed, int]:
        """Change a catalogue and let the other workers follow; how many of them have not, in time."""
        changed = await change
        return changed, await self.tell_workers("catalogue", self.bundles.choose(bundle).name)

    def _experimenting(self, operator: Caller | None = None) -> RunningExperiments:
        """The server's experiments; raises PermissionDeniedError for an operator who is some tenant's."""
        if self.recommend.experiments is None:
            raise InvalidRequestError("this server runs no experiments; start it with `fathom serve --experiments`")
        if operator is not None and operator.principal.tenant.name:
            raise PermissionDeniedError("experiments are for all tenants, so they are changed by admins of the server")
        return self.recommend.experiments

    def _changeable(self) -> Catalogues:
        if self.catalogues is None:
            raise InvalidRequestError("this server keeps no catalogue; start it with `fathom serve --catalogue`")
        return self.catalogues

    def _own(self, bundle: str, caller: Caller) -> str:
        """The name of the bundle that a caller means; raises NotFoundError where it is not the caller's."""
        name = caller.about["bundle"] = self.bundles.choose(bundle, caller.principal.tenant).name
        return name

    async def _append(self, request: bytes, caller: Caller) -> Appended:
        history = self.recommend.known()
        user_id, events = await read_events(request, self.recommend.turns, caller.client)
        user = caller.about["user"] = caller.principal.key_of(user_id)
        caller.about["events"] = len(events)
        caller.principal.charge(max(1, -(-len(events) // PLAIN_IDS)), time.monotonic())
        with self.metrics.using_history("append"):
            if self.counter is None:
                return await history.append(user, events)
            return await self.counter.append(user, events, caller.principal.tenant.may_use)


def _page(found: Sequence[ItemChange]) -> Sequence[ItemChange]:
    """The first of some items, at least one: as many as have LARGEST_PAGE_BYTES together."""
    sizes = accumulate(len(each.id) + len(each.record or b"") for each in found)
    return found[: max(1, sum(size <= LARGEST_PAGE_BYTES for size in sizes))]


def _appended(done: Appended) -> pb.AppendEventsResponse:
    return pb.AppendEventsResponse(
        appended=done.added,
        already_known=done.known,
        too_old=done.too_old,
        before_deletion=done.before_deletion,
    )


def _told(reloaded: Sequence[ReloadResult], name: str, tenant: Tenant) -> Sequence[str]:
    """What other workers are to reload: what the caller has named, and nothing of other tenants."""
    return [name] if name or tenant.bundles is None else [each.name for each in reloaded]


def _reloaded(each: ReloadResult) -> pb.Reloaded:
    return pb.Reloaded(bundle=each.name, version=each.version, previous=each.previous, error=each.error)
