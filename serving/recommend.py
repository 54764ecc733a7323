"""Answers Recommend: no request needs a task of its own, unless a user's history is to be read for it."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import grpc

from fathom.errors import DeadlineError, InvalidRequestError, LimitError, OverloadError, UnavailableError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.futures import settle
from fathom.runtime.pipeline import Leave
from fathom.runtime.prefix_cache import Owner
from fathom.runtime.query import Answer
from fathom.runtime.shares import Client
from fathom.serving.access.caller import Caller, client_of
from fathom.serving.access.control import OPEN, AccessControl
from fathom.serving.access.principal import Principal, Role
from fathom.serving.access.privacy import check_private, check_private_size, sees_histories
from fathom.serving.audit import AuditLog
from fathom.serving.bundles import Bundles
from fathom.serving.experiments.running import RunningExperiments
from fathom.serving.experiments.treatment import NO_CHANGE, Change
from fathom.serving.experiments.trial import Trial
from fathom.serving.gate import Gate
from fathom.serving.guard import ending_of
from fathom.serving.history.contract import HistoryStore, digest_of
from fathom.serving.history.messages import use_history, user_of
from fathom.serving.intake import FEW, TURN_S, Intake
from fathom.serving.metrics import Metrics
from fathom.serving.recording import Recorder
from fathom.serving.tracing import SpanDetails, Tracing
from fathom.serving.transport.contract import PATIENCE_S, REFUSAL, Call, Metadata, can_wait, status_of_leaving
from fathom.serving.turns import Ring, Turns
from fathom.serving.work import LIGHT_BYTES, is_light, request_of, work_of

METHOD = "Recommend"

#: Of the calls that can wait, at least so many are begun in a turn.
PATIENT_BEGUN = 4
#: Of a call that ends so, but for a LimitError, the server has begun more than it could do; all others are its answers.
WASTED: Final = DeadlineError, OverloadError, UnavailableError
TOO_LATE: Final = (grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed", ())

#: Gets an encoded RecommendResponse, or why there is none.
Done = Callable[[bytes | Exception], None]

log = logging.getLogger("fathom.serving")


@dataclass(eq=False)
class Recommend:
    """Answers single requests from the bundles in service, in one event loop."""

    bundles: Bundles
    history: HistoryStore | None
    gate: Gate
    metrics: Metrics
    recorder: Recorder | None = None
    access: AccessControl = OPEN
    audit: AuditLog | None = None
    experiments: RunningExperiments | None = None
    tracing: Tracing | None = None
    #: Of what keeps the event loop longer than a plain request.
    turns: Turns = field(default_factory=Turns)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    intake: Intake = field(default_factory=Intake)
    #: Those that can wait for a later turn of the event loop, clients in turn.
    _waiting: "Ring[_Patient]" = field(default_factory=Ring)
    _resuming: bool = False

    def take(self, calls: Sequence[Call], refused: int) -> int | None:
        """Begin to answer calls of Recommend while the gate is open; see ``contract.Take``."""
        for _ in range(refused):
            self._count_refused(REFUSAL[0])
        began_s = now_s = time.monotonic()
        behind, begun = self.intake.behind, 0
        patient: list[Call] = []
        for place, call in enumerate(_in_turn(calls) if behind else calls):
            if call.deadline_s is not None and call.deadline_s <= now_s:
                self._refuse(call, *TOO_LATE)
                begun += 1
            elif (behind or self._waiting or now_s - began_s > TURN_S) and can_wait(call.deadline_s, now_s):
                patient.append(call)
            elif behind and place >= FEW and now_s - began_s > TURN_S:
                self._refuse(call, *REFUSAL)
                refused += 1
            else:
                _Recommending(self, call).begin()
                begun += 1
            now_s = time.monotonic()
        for call in reversed(patient) if behind else patient:
            self._let_wait(_Patient(call, client_of(call), now_s))
        begun += self._begin_waiting(began_s)
        return self.intake.note(began_s, begun, refused)

    def _begin_waiting(self, began_s: float) -> int:
        """Begin calls that could wait, a few, and more while the turn lasts: clients in turn, the oldest of each first.

        Returns how many.
        """
        taken = begun = 0
        now_s = time.monotonic()
        while self._waiting and (taken < PATIENT_BEGUN or now_s - began_s <= TURN_S):
            patient = self._waiting.pop()
            patient.call.left = None
            taken += 1
            if now_s - patient.since_s > PATIENCE_S:
                self._refuse(patient.call, *REFUSAL)
            else:
                _Recommending(self, patient.call).begin()
                begun += 1
            now_s = time.monotonic()
        if self._waiting and not self._resuming:
            self._resuming = True
            asyncio.get_running_loop().call_soon(self._resume)
        return begun

    def _let_wait(self, patient: "_Patient") -> None:
        self._waiting.add(patient.client, patient)
        patient.call.left = partial(self._stop_waiting, patient)

    def _stop_waiting(self, patient: "_Patient") -> None:
        """A caller has left before its call was begun."""
        self._waiting.remove(patient.client, patient)
        self.metrics.called(METHOD, status_of_leaving(patient.call), 0.0)

    def _resume(self) -> None:
        self._resuming = False
        self.take((), 0)

    def _refuse(self, call: Call, code: grpc.StatusCode, text: str, trailing: Metadata) -> None:
        """End a call that is not even decoded."""
        call.fail(code, text, trailing)
        self._count_refused(code)

    def _count_refused(self, code: grpc.StatusCode) -> None:
        """Count a call that was not even decoded."""
        self.metrics.failed(code)
        self.metrics.called(METHOD, code, 0.0)

    def known(self) -> HistoryStore:
        """Where histories are kept; raises InvalidRequestError where none are."""
        if self.history is None:
            raise InvalidRequestError("this server keeps no histories (`fathom serve --history`); send item_ids")
        return self.history

    def enter(
        self, request: pb.RecommendRequest, deadline_s: float | None, caller: Caller, owner: Owner | None, done: Done
    ) -> Leave:
        """Begin to answer a request that has its history; ``done`` may be called before this returns.

        Raises what is wrong with it. Returns what takes it out of the queue.
        """
        trial = None if self.experiments is None else self.experiments.begin(request, caller.principal, owner)
        if trial is None:
            return self._enter(request, deadline_s, caller, owner, None, NO_CHANGE, done)
        return trial.enter(partial(self._enter, request, deadline_s, caller, owner, trial), done)

    def _enter(
        self,
        request: pb.RecommendRequest,
        deadline_s: float | None,
        caller: Caller,
        owner: Owner | None,
        trial: Trial | None,
        change: Change,
        done: Done,
    ) -> Leave:
        """The same as a part of experiments, with what an arm changes."""
        request = change.prepared(request)
        # From here to the queue nothing waits, so a bundle that is being exchanged is never chosen too late.
        client, principal = caller.client, caller.principal
        deployment, behind = self.bundles.choose(request.bundle, principal.tenant), self.intake.behind
        if not deployment.decoder.is_stranger(request):
            profile = deployment.decoder.profile(request.profile)
            depth = request.depth if request.HasField("depth") else None
            deployment.pipeline.admit(len(request.item_ids), profile, depth, deadline_s, client, behind=behind)
        query, unknown = deployment.decoder.query(request, deadline_s, client, owner, principal.scope)
        exact, private = principal.may(Role.ADMIN), owner is not None and not sees_histories(principal)
        if private:
            check_private_size(query.k, deployment.catalogue.offered, principal)
        query = change.applied(query)

        def answered(answer: Answer | Exception) -> None:
            if isinstance(answer, Exception):
                done(answer)
                return
            self.metrics.answered(deployment.name, answer, unknown)
            if self.tracing is not None:
                caller.span = SpanDetails(deployment.name, answer)
            if self.recorder is not None:
                self.recorder.offer(deployment, query, answer)
            labels = () if trial is None else trial.labels
            done(
                deployment.encoder.response(request, answer, unknown, exact=exact, private=private, experiments=labels)
            )
            if trial is not None:
                trial.answered(deployment, answer)

        return deployment.pipeline.enter(query, answered, behind=behind)

    async def read_history(self, request: pb.RecommendRequest, principal: Principal) -> Owner:
        """Put a user's history into the request; returns whose it is."""
        if request.item_ids or request.timestamps or request.event_types:
            raise InvalidRequestError("the request has a user_id and a history; send one of them")
        check_private(request, principal)
        history, user = self.known(), principal.key_of(user_of(request))
        # Before the history is read: what is deleted from then on is not remembered.
        owner = self.bundles.owners.of(digest_of(user))
        with self.metrics.using_history("read"):
            events = await history.read(user)
        use_history(request, events)
        return owner

    async def answer(self, request: pb.RecommendRequest, deadline_s: float | None, caller: Caller) -> bytes:
        """An encoded RecommendResponse, for a request of many; raises why there is none."""
        owner = await self.read_history(request, caller.principal) if request.user_id else None
        found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        leave: Leave = found.cancel
        try:
            async with self.turn_for(request, caller.client):
                leave = self.enter(request, deadline_s, caller, owner, settle(found))
            return await found
        except asyncio.CancelledError:
            leave()
            raise

    def turn_for(self, request: pb.RecommendRequest, client: Client) -> AbstractAsyncContextManager[None]:
        """Where a request is to enter: at once, or when it is the client's turn."""
        return nullcontext() if is_light(request) else self.turns.take(client)

    def spawn(self, work: Coroutine[Any, Any, None]) -> Leave:
        """Run what has to wait; returns what ends it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task.cancel


def charge(caller: Caller, *requests: pb.RecommendRequest) -> None:
    """Count the work of requests; raises LimitError where that is more than their caller may ask for now."""
    if caller.principal.buckets:
        caller.principal.charge(sum(map(work_of, requests)), time.monotonic())


def _in_turn(calls: Sequence[Call]) -> Sequence[Call]:
    """Calls that have arrived together, as they are to be begun where not all can be.

    The newest first: they have most time left, and those that are refused hear of it before it is late. But before
    them one of every connection.
    """
    firsts = {call.peer(): call for call in calls}
    return list(dict.fromkeys((*firsts.values(), *reversed(calls))))


@dataclass(eq=False, slots=True)
class _Patient:
    """A call that can wait, whose it is, and since when it does."""

    call: Call
    client: Client
    since_s: float


class _Recommending:
    """One call of Recommend, from its message to its end."""

    __slots__ = ("_call", "_caller", "_ended", "_leave", "_service", "_started_s")

    def __init__(self, service: Recommend, call: Call) -> None:
        self._service = service
        self._call = call
        self._started_s = time.perf_counter()
        self._leave: Leave | None = None
        self._caller: Caller | None = None
        self._ended = False

    def begin(self) -> None:
        """Let it in, unless the gate is closed."""
        service, call = self._service, self._call
        try:
            service.gate.enter()
        except Exception as error:
            self._fail(error)
            return
        call.left = self._left
        try:
            caller = self._caller = service.access.caller_of(call)
            caller.principal.check(METHOD)
            request = request_of(call.payload) if len(call.payload) <= LIGHT_BYTES else None
            if request is None or request.user_id or not is_light(request):
                self._leave = service.spawn(self._enter_later(request, caller))
            else:
                charge(caller, request)
                self._leave = service.enter(request, call.deadline_s, caller, None, self._done)
        except Exception as error:
            self._done(error)

    async def _enter_later(self, request: pb.RecommendRequest | None, caller: Caller) -> None:
        """Let a request in that needs a history, or its turn; None: it is not read yet."""
        service, owner = self._service, None
        try:
            if request is None:
                async with service.turns.take(caller.client):
                    request = request_of(self._call.payload)
            charge(caller, request)
            if request.user_id:
                owner = await service.read_history(request, caller.principal)
            async with service.turn_for(request, caller.client):
                self._leave = service.enter(request, self._call.deadline_s, caller, owner, self._done)
        except Exception as error:
            self._done(error)

    def _done(self, answer: bytes | Exception) -> None:
        if self._ended:
            return
        self._end()
        if not isinstance(answer, WASTED) or isinstance(answer, LimitError):
            self._service.intake.answered()
        if isinstance(answer, Exception):
            self._service.metrics.failed(self._fail(answer))
        else:
            self._call.respond(answer)
            self._observe(grpc.StatusCode.OK)

    def _left(self) -> None:
        """The caller does not wait any longer."""
        if self._ended:
            return
        self._end()
        if self._leave is not None:
            self._leave()
        self._observe(status_of_leaving(self._call))

    def _end(self) -> None:
        self._ended = True
        self._service.gate.leave()

    def _fail(self, error: Exception) -> grpc.StatusCode:
        code, text, trailing = ending_of(error, METHOD)
        self._observe(code)
        self._call.fail(code, text, trailing)
        return code

    def _observe(self, code: grpc.StatusCode) -> None:
        service, seconds = self._service, time.perf_counter() - self._started_s
        service.metrics.called(METHOD, code, seconds)
        if service.tracing is not None:
            details = None if self._caller is None else self._caller.span
            service.tracing.ended(METHOD, self._call.invocation_metadata(), code, seconds, details)
        if service.audit is not None:
            service.audit.note(METHOD, self._caller, self._call, code)
