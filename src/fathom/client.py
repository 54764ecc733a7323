"""A client for a Fathom server.

    with Client("127.0.0.1:50051") as client:
        answer = client.recommend(["1", "50", "181"], k=5, profile="edge", timeout_s=0.2)
        print(answer.depth, answer.why, [item.title for item in answer.items])

``AsyncClient`` is the same with ``async with`` and ``await``. Over TLS, and with a key for every call:

    Client("recommender.example.org:443", tls=True, metadata={"authorization": "Bearer ..."})

Calls that a server refuses because it is full, starting or draining are tried again by gRPC itself, up to four times
in all, when the server says it is worth it, within the timeout, and only while most calls to that server succeed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from types import TracebackType
from typing import Any, Self

import grpc

from fathom import arguments
from fathom.connection import DEFAULT_TARGET, Connection, Pem
from fathom.errors import (
    ConfigError,
    ConnectError,
    DeadlineError,
    FathomError,
    InvalidRequestError,
    NotFoundError,
    OverloadError,
    UnavailableError,
    brief,
)
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

DEFAULT_TIMEOUT_S = 5.0
RELOAD_TIMEOUT_S = 120.0
# gRPC may tell a story of every address that it tried.
LONGEST_DETAILS = 220

#: gRPC's own retries (gRFC A6); the throttling is the budget: ten failures in a row stop them.
_CALLS = {
    "methodConfig": [
        {
            "name": [{"service": pb.DESCRIPTOR.services_by_name["Recommender"].full_name}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
_OPTIONS = (
    ("grpc.service_config", json.dumps(_CALLS)),
    # Without a pool of its own, a channel would share the connection of every other one to the same target.
    ("grpc.use_local_subchannel_pool", 1),
    # By default a connection that fails is not tried again for a second, in which every retry would fail too.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
)

_ERRORS: Mapping[grpc.StatusCode, type[FathomError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
# A newer server may give a reason that is not listed here; its number must do then.
_REASONS = {value: name.removeprefix("DEPTH_REASON_").lower() for name, value in pb.DepthReason.items()}


@dataclass(frozen=True)
class Query:
    """One request: the user's items, oldest first, and what is wanted; empty and None mean the server's own choice.

    ``user_id``: in place of items, a user whose history the server keeps. ``timestamps``: seconds since 1970, none or
    one per item. ``k``: or what there is. ``profile``: a device profile or a tier. ``depth``: run exactly
    this one. ``allow``: when not empty, only these items are returned. ``bundle``: one of several that the server has.
    """

    items: Sequence[str] = ()
    k: int = 10
    timestamps: Sequence[int] = ()
    profile: str = ""
    depth: int | None = None
    include_seen: bool = False
    exclude: Iterable[str] = ()
    allow: Iterable[str] = ()
    categories: Iterable[str] = ()
    titles: bool = True
    request_id: str = ""
    user_id: str = ""
    bundle: str = ""

    def message(self) -> pb.RecommendRequest:
        """The message that goes over the wire; raises InvalidRequestError when it cannot be built."""
        texts, text = arguments.texts, arguments.text
        return arguments.message(
            pb.RecommendRequest,
            request_id=text("request_id", self.request_id),
            item_ids=texts("items", self.items, ordered=True),
            timestamps=arguments.integers("timestamps", self.timestamps),
            k=arguments.integer("k", self.k),
            profile=text("profile", self.profile),
            depth=None if self.depth is None else arguments.integer("depth", self.depth),
            filter=arguments.message(
                pb.Filter,
                include_seen=arguments.flag("include_seen", self.include_seen),
                exclude_item_ids=texts("exclude", self.exclude),
                allow_item_ids=texts("allow", self.allow),
                categories=texts("categories", self.categories),
            ),
            include_titles=arguments.flag("titles", self.titles),
            user_id=text("user_id", self.user_id),
            bundle=text("bundle", self.bundle),
        )


@dataclass(frozen=True)
class Event:
    """Something that a user did: an id of its own among the user's events, the item, seconds since 1970."""

    event_id: str
    item_id: str
    timestamp: int


@dataclass(frozen=True)
class Item:
    """A recommended item; ``score`` is the cosine similarity of user and item, ``title`` is empty when unknown."""

    id: str
    score: float
    title: str


@dataclass(frozen=True)
class Timings:
    """Microseconds inside the server."""

    select_us: int
    queue_us: int
    engine_us: int
    retrieval_us: int
    total_us: int


@dataclass(frozen=True)
class Recommendation:
    """An answer: items best first, the depth that made it, and why: ``reason`` in a word, ``why`` in a sentence.

    ``complexity``: 0 (simple) to 1; None where it had no say in the depth.
    """

    items: tuple[Item, ...]
    depth: int
    reason: str
    why: str
    complexity: float | None
    history_used: int
    unknown_items: int
    timings: Timings
    bundle_version: str
    request_id: str = ""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval over users."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BundleInfo:
    """What a server serves; ``quality`` maps depth to metric (as ndcg@10) to its value on held-out items.

    ``policy``: how requests that name no profile are routed, in words. ``alarm``: their certificate no longer fits.
    ``bundles``: every name that a request may give to this server.
    """

    name: str
    version: str
    strategy: str
    precision: str
    engine: str
    items: int
    max_history: int
    uses_timestamps: bool
    depths: tuple[int, ...]
    default_profile: str
    profiles: tuple[str, ...]
    quality: Mapping[int, Mapping[str, Interval]] = field(default_factory=dict)
    policy: str = ""
    certified: bool = False
    alarm: bool = False
    bundles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reloaded:
    """A bundle after a reload: the version that serves now, the one before, and why a newer one was refused, if so."""

    bundle: str
    version: str
    previous: str
    error: str


class Client:
    """A blocking client, safe to share between threads; calls take turns on its ``channels`` connections.

    A server of several workers is spread over by several connections. ``tls``, ``certificate``, ``key``, ``metadata``:
    see ``fathom.connection.Connection``.

    Every method raises ConnectError when no server answers, or a RequestError of ``fathom.errors`` that says what
    the server did not accept.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        channels: int = 1,
        tls: bool | Pem = False,
        certificate: Pem | None = None,
        key: Pem | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._open(Connection(target, tls, certificate, key, metadata or {}), channels)

    @classmethod
    def over(cls, connection: Connection, *, channels: int = 1) -> Self:
        """A client of a connection that is described already."""
        client = cls.__new__(cls)
        client._open(connection, channels)
        return client

    def _open(self, connection: Connection, channels: int) -> None:
        self.target = connection.target
        self._metadata = connection.pairs
        self._channels = [connection.channel(_OPTIONS) for _ in range(_checked(channels))]
        self._stubs = cycle([_stub(channel) for channel in self._channels])

    def recommend(
        self, items: Sequence[str] = (), *, timeout_s: float = DEFAULT_TIMEOUT_S, **options: Any
    ) -> Recommendation:
        """The best items for one history, or one ``user_id``; ``options`` are the other fields of Query."""
        request = Query(items, **options).message()
        return _recommendation(self._call(self._stub.Recommend, request, timeout_s))

    def recommend_many(
        self, queries: Iterable[Query], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[Recommendation | FathomError]:
        """Up to 1,024 queries in one message; the answer or the error of each, in order."""
        request = pb.RecommendBatchRequest(requests=_messages(queries))
        return [_result(each) for each in self._call(self._stub.RecommendBatch, request, timeout_s).results]

    def append_events(self, user_id: str, events: Iterable[Event], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Add up to 10,000 events to the history that the server keeps of a user; returns how many were new.

        An event whose id is known already is ignored, so the same events may be sent again.
        """
        return int(self._call(self._stub.AppendEvents, _append(user_id, events), timeout_s).appended)

    def delete_user(self, user_id: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Let the server forget a user; returns how many events that were."""
        request = arguments.message(pb.DeleteUserRequest, user_id=arguments.text("user_id", user_id))
        return int(self._call(self._stub.DeleteUser, request, timeout_s).deleted)

    def bundle(self, name: str = "", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> BundleInfo:
        """What the server serves under this name, or by default."""
        return _bundle_info(self._call(self._stub.GetBundle, _named(pb.GetBundleRequest, name), timeout_s))

    def reload(self, name: str = "", *, timeout_s: float = RELOAD_TIMEOUT_S) -> list[Reloaded]:
        """Let the server exchange this bundle, or all, for the newest in its folder; returns when it has."""
        answer = self._call(self._stub.Reload, _named(pb.ReloadRequest, name), timeout_s)
        return [Reloaded(each.bundle, each.version, each.previous, each.error) for each in answer.bundles]

    @property
    def _stub(self) -> Any:
        return next(self._stubs)

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=arguments.seconds("timeout_s", timeout_s), metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(self.target, error) from None

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """``Client`` for asyncio: the same methods, awaited."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        channels: int = 1,
        tls: bool | Pem = False,
        certificate: Pem | None = None,
        key: Pem | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._open(Connection(target, tls, certificate, key, metadata or {}), channels)

    @classmethod
    def over(cls, connection: Connection, *, channels: int = 1) -> Self:
        """A client of a connection that is described already."""
        client = cls.__new__(cls)
        client._open(connection, channels)
        return client

    def _open(self, connection: Connection, channels: int) -> None:
        self.target = connection.target
        self._metadata = connection.pairs
        self._channels = [connection.aio_channel(_OPTIONS) for _ in range(_checked(channels))]
        self._stubs = cycle([_stub(channel) for channel in self._channels])

    async def recommend(
        self, items: Sequence[str] = (), *, timeout_s: float = DEFAULT_TIMEOUT_S, **options: Any
    ) -> Recommendation:
        """The best items for one history, or one ``user_id``; ``options`` are the other fields of Query."""
        request = Query(items, **options).message()
        return _recommendation(await self._call(self._stub.Recommend, request, timeout_s))

    async def recommend_many(
        self, queries: Iterable[Query], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[Recommendation | FathomError]:
        """Up to 1,024 queries in one message; the answer or the error of each, in order."""
        request = pb.RecommendBatchRequest(requests=_messages(queries))
        return [_result(each) for each in (await self._call(self._stub.RecommendBatch, request, timeout_s)).results]

    async def append_events(
        self, user_id: str, events: Iterable[Event], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> int:
        """Add up to 10,000 events to the history that the server keeps of a user; returns how many were new.

        An event whose id is known already is ignored, so the same events may be sent again.
        """
        return int((await self._call(self._stub.AppendEvents, _append(user_id, events), timeout_s)).appended)

    async def delete_user(self, user_id: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Let the server forget a user; returns how many events that were."""
        request = arguments.message(pb.DeleteUserRequest, user_id=arguments.text("user_id", user_id))
        return int((await self._call(self._stub.DeleteUser, request, timeout_s)).deleted)

    async def bundle(self, name: str = "", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> BundleInfo:
        """What the server serves under this name, or by default."""
        return _bundle_info(await self._call(self._stub.GetBundle, _named(pb.GetBundleRequest, name), timeout_s))

    async def reload(self, name: str = "", *, timeout_s: float = RELOAD_TIMEOUT_S) -> list[Reloaded]:
        """Let the server exchange this bundle, or all, for the newest in its folder; returns when it has."""
        answer = await self._call(self._stub.Reload, _named(pb.ReloadRequest, name), timeout_s)
        return [Reloaded(each.bundle, each.version, each.previous, each.error) for each in answer.bundles]

    @property
    def _stub(self) -> Any:
        return next(self._stubs)

    async def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return await method(request, timeout=arguments.seconds("timeout_s", timeout_s), metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(self.target, error) from None

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _checked(channels: int) -> int:
    if not isinstance(channels, int) or channels < 1:
        raise ConfigError(f"channels is {brief(channels)}; it must be at least 1")
    return channels


def _messages(queries: Iterable[Query]) -> list[pb.RecommendRequest]:
    return [query.message() for query in arguments.instances("queries", queries, Query)]


def _named(kind: Any, name: str) -> Any:
    return arguments.message(kind, bundle=arguments.text("name", name))


def _append(user_id: str, events: Iterable[Event]) -> pb.AppendEventsRequest:
    messages = [
        arguments.message(
            pb.Event,
            event_id=arguments.text("event_id", each.event_id),
            item_id=arguments.text("item_id", each.item_id),
            timestamp=arguments.integer("timestamp", each.timestamp),
        )
        for each in arguments.instances("events", events, Event)
    ]
    return arguments.message(pb.AppendEventsRequest, user_id=arguments.text("user_id", user_id), events=messages)


def _stub(channel: Any) -> Any:
    return recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]


def error_of(target: str, error: grpc.RpcError) -> FathomError:
    """Our error for a call that failed."""
    # Both clients raise errors that are also calls, which the stubs do not know.
    call: Any = error
    code, details = call.code(), _one_line(call.details() or "")
    if code is grpc.StatusCode.UNAVAILABLE:
        return ConnectError(f"{target}: no answer: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        late = "Deadline Exceeded"  # gRPC's own words, when the server's did not come in time
        return DeadlineError(f"{target}: {'no answer within the timeout' if details == late else details}")
    if code is grpc.StatusCode.CANCELLED:
        # Nobody cancels a call here: gRPC itself refuses calls so when too many wait to be accepted.
        return OverloadError(f"{target}: the call was refused before it was read ({details}); try again later")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        pushback = dict(call.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
        return OverloadError(details, retry_after_s=None if pushback is None else int(pushback) / 1e3)
    kind = _ERRORS.get(code)
    return kind(details) if kind else ConnectError(f"{target}: {code.name}: {details}")


def _one_line(details: str) -> str:
    text = " ".join(details.split())
    return text if len(text) <= LONGEST_DETAILS else f"{text[:LONGEST_DETAILS]}..."


def _result(result: pb.RecommendResult) -> Recommendation | FathomError:
    if result.WhichOneof("outcome") == "response":
        return _recommendation(result.response)
    code = _BY_NUMBER.get(result.error.code, grpc.StatusCode.UNKNOWN)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        hint = result.error.retry_after_ms / 1e3 if result.error.HasField("retry_after_ms") else None
        return OverloadError(result.error.message, retry_after_s=hint)
    kind = _ERRORS.get(code)
    return kind(result.error.message) if kind else ConnectError(f"{code.name}: {result.error.message}")


def _recommendation(message: pb.RecommendResponse) -> Recommendation:
    timings = message.timings
    return Recommendation(
        items=tuple(Item(item.id, item.score, item.title) for item in message.items),
        depth=message.depth,
        reason=_REASONS.get(message.reason, str(message.reason)),
        why=message.why,
        complexity=message.complexity if message.HasField("complexity") else None,
        history_used=message.history_used,
        unknown_items=message.unknown_items,
        timings=Timings(timings.select_us, timings.queue_us, timings.engine_us, timings.retrieval_us, timings.total_us),
        bundle_version=message.bundle_version,
        request_id=message.request_id,
    )


def _bundle_info(message: pb.GetBundleResponse) -> BundleInfo:
    return BundleInfo(
        name=message.name,
        version=message.version,
        strategy=message.strategy,
        precision=message.precision,
        engine=message.engine,
        items=message.items,
        max_history=message.max_history,
        uses_timestamps=message.uses_timestamps,
        depths=tuple(each.depth for each in message.depths),
        default_profile=message.default_profile,
        profiles=tuple(profile.name for profile in message.profiles),
        quality={
            each.depth: {name: Interval(q.value, q.low, q.high) for name, q in each.quality.items()}
            for each in message.depths
        },
        policy=message.routing.policy,
        certified=message.routing.certified,
        alarm=message.routing.alarm,
        bundles=tuple(message.bundles),
    )
