"""The HTTP port: routes from the rules, one handler for all methods."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.caller import CallContext, Caller
from fathom.serving.convert import deadline_of
from fathom.serving.guard import ending_of
from fathom.serving.http.call import HTTP_STATUSES, TIMEOUT_HEADER, HttpCall
from fathom.serving.http.rules import Rule, http_rules
from fathom.serving.http.transcoding import read_json, set_fields, written_json
from fathom.serving.recommend import METHOD, charge
from fathom.serving.service import ENCODED, RecommenderService
from fathom.serving.transport.contract import Metadata
from fathom.serving.work import LIGHT_BYTES, request_of

JSON = "application/json"
#: Hosts that a browser on this machine may name; a page that has its own name point here is not answered.
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
#: How often it is looked whether a caller still waits.
LOOK_EVERY_S = 0.5

_METHODS = pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name


class Gateway:
    """Answers HTTP requests with the methods of a service, ``but`` for some; used from its event loop."""

    def __init__(
        self,
        service: RecommenderService,
        *,
        most_bytes: int,
        state: Callable[[], str],
        but: Collection[str] = (),
        origins: Sequence[str] = (),
    ) -> None:
        self._service = service
        self._recommend = service.recommend
        self._most_bytes = most_bytes
        self._state = state
        rules = [rule for rule in http_rules() if rule.method not in but]
        routes = [Route(rule.route, self._handler(rule), methods=[rule.verb]) for rule in rules]
        middleware = []
        if self._recommend.access.is_open:
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_HOSTS)))
        if origins:
            verbs, headers = ["GET", "POST", "DELETE"], ["authorization", TIMEOUT_HEADER]
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
            started_s, call, caller = time.perf_counter(), HttpCall(request), None
            code, extra = grpc.StatusCode.OK, dict[str, str]()
            try:
                caller = self._recommend.access.caller_of(call)
                caller.principal.check(rule.method)
                answer = await self._answer(rule, request, CallContext(call, caller))
                body = await _off_loop(written_json, answer)
            except ClientDisconnect:
                code, body = grpc.StatusCode.CANCELLED, b""
            except Exception as error:
                code, text, trailing = ending_of(error, rule.method)
                body, extra = _failure(code, text), _headers(code, trailing)
            self._note(rule.method, caller, call, code, time.perf_counter() - started_s)
            return Response(body, HTTP_STATUSES.get(code, 499), media_type=JSON, headers=extra)

        return handle

    async def _answer(self, rule: Rule, request: Request, context: CallContext) -> Message:
        """What a method answers to a request; raises what it raises."""
        message = GetMessageClass(_METHODS[rule.method].input_type)()
        if rule.has_body:
            read = await self._body(request)
            await _off_loop(read_json, read, message)
        elif request.headers.get("content-length", "0") != "0":
            raise InvalidRequestError(f"{rule.verb} {rule.path} takes no body")
        set_fields(message, [(name, request.path_params[name]) for name in rule.variables])
        if not rule.has_body:
            set_fields(message, request.query_params.multi_items())
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
            return await self._recommend.answer(request, deadline_of(context.time_remaining()), context.caller)

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

    def _note(self, method: str, caller: Caller | None, call: HttpCall, code: grpc.StatusCode, seconds: float) -> None:
        self._recommend.metrics.called(method, code, seconds)
        if self._recommend.audit is not None:
            self._recommend.audit.note(method, caller, call, code)


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
