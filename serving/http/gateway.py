"""The HTTP port: routes from the rules, one handler for all methods."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.caller import CLIENT_KEY, CallContext, Caller
from fathom.serving.access.principal import COUNTED_BY_CONTENT
from fathom.serving.guard import ending_of
from fathom.serving.http.call import HTTP_STATUSES, TIMEOUT_HEADER, HttpCall
from fathom.serving.http.rules import Rule, http_rules
from fathom.serving.http.transcoding import read_json, set_fields, written_json
from fathom.serving.recommend import METHOD, Recommend, charge
from fathom.serving.service import ENCODED, RecommenderService
from fathom.serving.transport.contract import Metadata
from fathom.serving.work import LIGHT_BYTES, request_of

JSON = "application/json"
#: Hosts that a browser on this machine may name; a page that has its own name point here is not answered.
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
#: What nginx calls a client that has left.
CLIENT_CLOSED = 499
#: How often it is looked whether a caller still waits.
LOOK_EVERY_S = 0.5

_METHODS = pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name


class Gateway:
    """Answers HTTP requests with the methods of a service, ``but`` for some; used from its event loop.

    ``state``: as ``Server.state``. ``origins``: whose pages may call. ``is_local``: only this machine reaches the port.
    """

    def __init__(
        self,
        service: RecommenderService,
        *,
        most_bytes: int,
        state: Callable[[], str],
        but: Collection[str] = (),
        origins: Sequence[str] = (),
        is_local: bool = True,
    ) -> None:
        self._service = service
        self._recommend = service.recommend
        self._most_bytes = most_bytes
        self._state = state
        self._checks_host = is_local and self._recommend.access.is_open
        rules = [rule for rule in http_rules() if rule.method not in but]
        routes = [Route(rule.route, self._handler(rule), methods=[rule.verb]) for rule in rules]
        middleware = []
        if origins:
            verbs, headers = ["GET", "POST", "DELETE"], ["authorization", TIMEOUT_HEADER, CLIENT_KEY]
            middleware.append(
                Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=verbs, allow_headers=headers)
            )
        #: An ASGI application.
        self.app = Starlette(routes=[*routes, Route("/healthz", self._healthz)], middleware=middleware)

    async def _healthz(self, _: Request) -> Response:
        state = self._state()
        return Response(f"{state}\n", 200 if state == "serving" else 503, media_type="text/plain")

    def _handler(self, rule: Rule) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            ending = _HttpEnding(self._recommend, rule.method, request)
            try:
                if self._checks_host and request.url.hostname not in LOCAL_HOSTS:
                    raise InvalidRequestError("this server answers callers on its own machine only")
                ending.begin()
                answer = await self._answer(rule, request, CallContext(ending.call, ending.caller))
                return ending.response(grpc.StatusCode.OK, await _off_loop(written_json, answer))
            except (ClientDisconnect, asyncio.CancelledError) as error:
                ending.note(grpc.StatusCode.CANCELLED)
                ending.leave()
                if isinstance(error, asyncio.CancelledError):
                    raise
                return Response(status_code=CLIENT_CLOSED)
            except Exception as error:
                code, text, trailing = ending_of(error, rule.method)
                return ending.response(code, _failure(code, text), _headers(code, trailing))

        return handle

    async def _answer(self, rule: Rule, request: Request, context: CallContext) -> Message:
        """What a method answers to a request; raises what it raises."""
        message = GetMessageClass(_METHODS[rule.method].input_type)()
        if rule.has_body:
            read = await self._body(request)
            await _off_loop(read_json, read, message)
        elif request.headers.get("content-length", "0") != "0":
            raise InvalidRequestError(f"{rule.verb} {rule.path} takes no body")
        if not rule.has_body:
            set_fields(message, request.query_params.multi_items())
            if any(getattr(message, name) for name in rule.variables):
                raise InvalidRequestError(f"{' and '.join(rule.variables)} is in the path; leave it out of the query")
        set_fields(message, [(name, request.path_params[name]) for name in rule.variables])
        raw = message.SerializeToString()
        work = self._called(rule.method, raw, message, context)
        found = await _while_waited_for(request, work)
        answer: Message = found
        if isinstance(found, bytes):
            answer = GetMessageClass(_METHODS[rule.method].output_type).FromString(found)
        return answer

    def _called(self, method: str, raw: bytes, message: Message, context: CallContext) -> Awaitable[Any]:
        if method == METHOD:
            return self._recommended(raw, context)
        return getattr(self._service, method)(raw if method in ENCODED else message, context)  # type: ignore[no-any-return]

    async def _recommended(self, raw: bytes, context: CallContext) -> bytes:
        with self._service.gate:
            request = request_of(raw)
            charge(context.caller, request)
            return await self._recommend.answer(request, context.deadline_s(), context.caller)

    async def _body(self, request: Request) -> bytes:
        """The whole body; raises InvalidRequestError where it is too large or is not said to be JSON.

        A page of another origin may send other kinds of bodies without asking first.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise InvalidRequestError(f"the body must be JSON; send `Content-Type: {JSON}`")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._most_bytes:
                raise InvalidRequestError(f"the body has more than {self._most_bytes:,} bytes; send less at once")
        return bytes(body)


class _HttpEnding:
    """One call, from who begins it to the last byte of its answer."""

    def __init__(self, recommend: Recommend, method: str, request: Request) -> None:
        self._recommend, self._method = recommend, method
        self.call, self.caller = HttpCall(request), Caller()
        self._known = self._entered = False
        self._started_s = time.perf_counter()

    def begin(self) -> None:
        """Find out who calls, and count the call as in flight until ``leave``; raises why it may not."""
        recommend = self._recommend
        self.caller = recommend.access.caller_of(self.call)
        self._known = True
        self.caller.principal.check(self._method)
        if self._method not in COUNTED_BY_CONTENT:
            self.caller.principal.charge(1, time.monotonic())
        recommend.gate.enter()
        self._entered = True

    def leave(self) -> None:
        """Nothing more is sent."""
        if self._entered:
            self._entered = False
            self._recommend.gate.leave()

    def note(self, code: grpc.StatusCode) -> None:
        """It has ended."""
        seconds, recommend = time.perf_counter() - self._started_s, self._recommend
        recommend.metrics.called(self._method, code, seconds)
        if recommend.audit is not None:
            recommend.audit.note(self._method, self.caller if self._known else None, self.call, code)
        if recommend.tracing is not None:
            recommend.tracing.ended(self._method, self.call.invocation_metadata(), code, seconds, self.caller.span)

    def response(self, code: grpc.StatusCode, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
        """It has ended, but for its answer, which a server that drains still sends."""
        self.note(code)
        return Response(
            body, HTTP_STATUSES[code], media_type=JSON, headers=headers, background=BackgroundTask(self._sent)
        )

    async def _sent(self) -> None:
        self.leave()


async def _while_waited_for(request: Request, work: Awaitable[Any]) -> Any:
    """What work gives; cancels it when the caller leaves, as gRPC does, and then raises ClientDisconnect."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait((task,), timeout=LOOK_EVERY_S))[0]:
            if await request.is_disconnected():
                raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()


async def _off_loop(work: Callable[..., Any], first: Any, *more: Any) -> Any:
    """Run what may take long in a thread, what is small at once."""
    size = len(first) if isinstance(first, bytes) else first.ByteSize()
    return work(first, *more) if size <= LIGHT_BYTES else await asyncio.to_thread(work, first, *more)


def _failure(code: grpc.StatusCode, text: str) -> bytes:
    """As google.rpc.Status is written in JSON."""
    return json.dumps({"code": code.value[0], "status": code.name, "message": text}, ensure_ascii=False).encode()


def _headers(code: grpc.StatusCode, trailing: Metadata) -> dict[str, str]:
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return {"WWW-Authenticate": "Bearer"}
    pushback_ms = int(dict(trailing).get("grpc-retry-pushback-ms", -1))
    return {"Retry-After": str(-(-pushback_ms // 1000))} if pushback_ms >= 0 else {}
