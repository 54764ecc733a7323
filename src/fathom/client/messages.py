"""What a client asks for and what it gets, and how both travel over the wire."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import grpc

from fathom import errors
from fathom.client import arguments
from fathom.client.rules import Range, Rules
from fathom.errors import ConnectError, DeadlineError, FathomError, OverloadError
from fathom.protos.fathom.v1 import recommender_pb2 as pb

T = TypeVar("T")
#: An answer or an error for each of many queries.
Many = list["Recommendation | FathomError"]

#: Queries in a message where there are many: enough to share what a call costs, and few enough to wait for together.
PART = 32
# gRPC lists every address that it tried.
LONGEST_DETAILS = 220

_ERRORS: Mapping[grpc.StatusCode, type[FathomError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_SOURCES = {value: name.lower() for name, value in pb.ItemReason.Source.items()}
_REASONS = {value: name.removeprefix("DEPTH_REASON_").lower() for name, value in pb.DepthReason.items()}


#: Of each argument: its name, that of its field, the value that needs no field, and what checks and converts it.
_Fields = Sequence[tuple[str, str, object, Callable[[str, Any], Any]]]
_FIELDS: _Fields = (
    ("request_id", "request_id", "", arguments.text),
    ("items", "item_ids", (), arguments.ordered_texts),
    ("timestamps", "timestamps", (), arguments.integers),
    ("k", "k", 0, arguments.integer),
    ("profile", "profile", "", arguments.text),
    ("depth", "depth", None, arguments.integer),
    ("titles", "include_titles", False, arguments.flag),
    ("user_id", "user_id", "", arguments.text),
    ("session_id", "session_id", "", arguments.text),
    ("request_time", "request_time", 0, arguments.integer),
    ("context", "context", None, arguments.text_map),
    ("bundle", "bundle", "", arguments.text),
    ("strict", "strict", False, arguments.flag),
    ("event_types", "event_types", (), arguments.ordered_texts),
    ("reasons", "include_reasons", False, arguments.flag),
    ("rules", "rules", None, lambda name, value: arguments.instance(name, value, Rules).message()),
)
_FILTER_FIELDS: _Fields = (
    ("include_seen", "include_seen", False, arguments.flag),
    ("exclude", "exclude_item_ids", (), arguments.texts),
    ("allow", "allow_item_ids", (), arguments.texts),
    ("categories", "categories", (), arguments.texts),
    ("seen_types", "seen_types", (), arguments.texts),
    ("ranges", "ranges", (), lambda name, value: [e.message() for e in arguments.instances(name, value, Range)]),
    ("block_lists", "block_lists", (), arguments.texts),
)


@dataclass(frozen=True)
class Query:
    """One request: the user's items, oldest first, and what is wanted; empty and None mean the server's own choice.

    ``user_id``: in place of items, a user whose history the server keeps. ``timestamps``: seconds since 1970, none or
    one per item. ``k``: or what there is. ``profile``: a device profile or a tier. ``depth``: run exactly this one; 0
    is the counting exit. ``allow``: when not empty, only these items are returned. ``bundle``: one of several that the
    server has. ``strict``: where no item of the history is known, an error instead of popular items. ``event_types``:
    what each item of the history was, as "view", none or one per item. ``seen_types``: when not empty, only items of
    such events are left out as seen. ``reasons``: also say which items of the history each item is due to.
    ``ranges``: what attributes of items must be. ``block_lists``: names of the server's lists of items to leave out.
    ``rules``: how the best items are arranged; None: by the server's own. ``session_id``: of somebody without an id,
    who then has the same arm of experiments in all of a visit. ``request_time``: seconds since 1970 at which the answer
    is shown, where the time since the newest of the ``timestamps`` changes it; 0: now. ``context``: a value for each
    feature, as {"country": "DE"}, of those in ``BundleInfo.context``; what the bundle does not know counts as missing.
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
    strict: bool = False
    event_types: Sequence[str] = ()
    seen_types: Iterable[str] = ()
    reasons: bool = False
    ranges: Iterable[Range] = ()
    block_lists: Iterable[str] = ()
    rules: Rules | None = None
    session_id: str = ""
    request_time: int = 0
    context: Mapping[str, str] | None = None

    def message(self) -> pb.RecommendRequest:
        """The message that goes over the wire; raises InvalidRequestError when it cannot be built."""
        fields = self._checked(_FIELDS)
        if chosen := self._checked(_FILTER_FIELDS):
            fields["filter"] = arguments.message(pb.Filter, **chosen)
        return arguments.message(pb.RecommendRequest, **fields)

    def _checked(self, fields: _Fields) -> dict[str, Any]:
        """Those that are not as the message has them by itself."""
        given = vars(self)
        return {field: check(name, given[name]) for name, field, unset, check in fields if given[name] is not unset}


@dataclass(frozen=True)
class Event:
    """Something that a user did: an id of its own among the user's events, the item, seconds since 1970.

    ``type``: what it was, as "view" or "purchase".
    """

    event_id: str
    item_id: str
    timestamp: int
    type: str = ""


@dataclass(frozen=True)
class Reason:
    """An item of the history that a recommended one is due to.

    ``amount``: where ``source`` is "counting", its part in what is counted for the recommended item, 0 to 1; where it
    is "network", by how much the network's part of the score falls when the history lacks it.
    """

    item_id: str
    source: str
    amount: float


@dataclass(frozen=True)
class Item:
    """A recommended item; ``title`` is empty when unknown.

    ``score``: to compare with others of the same answer: a cosine, with counting mixed in if the bundle does so; at
    depth 0 a share, or popularity less 1. ``reasons``: where the query asks for them, the most telling first.
    """

    id: str
    score: float
    title: str
    reasons: tuple[Reason, ...] = ()


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

    ``complexity``: 0 (simple) to 1; None where it had no say in the depth. ``catalogue_version``: how many changes the
    catalogue had had; 0 where the server keeps none. ``experiments``: that it is part of, with its arm; outcomes are
    reported with its ``request_id``.
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
    catalogue_version: int = 0
    experiments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval over users."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BundleInfo:
    """What a server serves; ``quality`` maps depth to metric (as ndcg@10) to its value on held-out items.

    ``depths``: 0 among them where the bundle has a counting exit.
    ``policy``: how requests that name no profile are routed, in words. ``alarm``: their certificate no longer fits.
    ``recertified``: how often the server has certified another routing since. ``drifted``: features by which requests
    are no longer like the training data.
    ``bundles``: every name that a request may give to this server. ``transport``: what carries its calls, "http2" or
    "aio"; empty where an older server does not say. ``context``: features that requests may give.
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
    recertified: int = 0
    drifted: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    transport: str = ""
    context: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reloaded:
    """A bundle after a reload: the version that serves now, the one before, and why a newer one was refused, if so."""

    bundle: str
    version: str
    previous: str
    error: str


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call: the name of the RPC, its request, and how its response is read."""

    rpc: str
    request: Any
    read: Callable[[Any], T]


def recommend(query: Query) -> Call[Recommendation]:
    """One query; raises InvalidRequestError when it cannot be put into a message, as all calls do."""
    return Call("Recommend", query.message(), _recommendation)


def recommend_many(queries: Iterable[Query]) -> Call[Many]:
    """Several queries in one message."""
    requests = [query.message() for query in arguments.instances("queries", queries, Query)]
    request = pb.RecommendBatchRequest(requests=requests)
    return Call("RecommendBatch", request, lambda response: [_result(each) for each in response.results])


def in_parts(queries: Iterable[Query], size: int = PART) -> Iterator[Call[Many]]:
    """Any number of queries, ``size`` in a message, each made when it is asked for."""
    return (recommend_many(part) for part in arguments.parts("queries", queries, size))


def some_of(call: Call[T], places: Sequence[int]) -> Call[T]:
    """Those queries of a message of many, in a message of their own."""
    request = pb.RecommendBatchRequest(requests=[call.request.requests[place] for place in places])
    return replace(call, request=request)


def append_events(user_id: str, events: Iterable[Event]) -> Call[int]:
    """Events of a user; the answer is how many were new."""
    messages = [
        arguments.message(
            pb.Event,
            event_id=arguments.text("event_id", each.event_id),
            item_id=arguments.text("item_id", each.item_id),
            timestamp=arguments.integer("timestamp", each.timestamp),
            type=arguments.text("type", each.type),
        )
        for each in arguments.instances("events", events, Event)
    ]
    request = arguments.message(pb.AppendEventsRequest, user_id=arguments.text("user_id", user_id), events=messages)
    return Call("AppendEvents", request, lambda response: int(response.appended))


def delete_user(user_id: str) -> Call[int]:
    """A user to be forgotten; the answer is how many events that were."""
    request = arguments.message(pb.DeleteUserRequest, user_id=arguments.text("user_id", user_id))
    return Call("DeleteUser", request, lambda response: int(response.deleted))


def bundle(name: str) -> Call[BundleInfo]:
    """What is served under a name."""
    request = arguments.message(pb.GetBundleRequest, bundle=arguments.text("name", name))
    return Call("GetBundle", request, _bundle_info)


def reload(name: str) -> Call[list[Reloaded]]:
    """A bundle to be reloaded, or all."""
    request = arguments.message(pb.ReloadRequest, bundle=arguments.text("name", name))
    return Call("Reload", request, _reloaded)


def reason_of(response: pb.RecommendResponse) -> str:
    """The reason in a word; its number where a newer server gives one that is unknown here."""
    return _REASONS.get(response.reason, str(response.reason))


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
        hint = None if pushback is None or int(pushback) < 0 else int(pushback) / 1e3
        return OverloadError(details, retry_after_s=hint)
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


def _item(item: pb.Item) -> Item:
    reasons = item.reasons
    if not reasons:
        return Item(item.id, item.score, item.title)
    due_to = tuple(Reason(each.item_id, _SOURCES[each.source], each.amount) for each in reasons)
    return Item(item.id, item.score, item.title, due_to)


def _recommendation(message: pb.RecommendResponse) -> Recommendation:
    spent = message.timings
    return Recommendation(
        items=tuple([_item(item) for item in message.items]),
        depth=message.depth,
        reason=reason_of(message),
        why=message.why,
        complexity=message.complexity if message.HasField("complexity") else None,
        history_used=message.history_used,
        unknown_items=message.unknown_items,
        timings=Timings(spent.select_us, spent.queue_us, spent.engine_us, spent.retrieval_us, spent.total_us),
        bundle_version=message.bundle_version,
        request_id=message.request_id,
        catalogue_version=message.catalogue_version,
        experiments={each.experiment: each.arm for each in message.experiments},
    )


def _bundle_info(message: pb.GetBundleResponse) -> BundleInfo:
    same = ("name", "version", "strategy", "precision", "engine", "items", "max_history", "uses_timestamps")
    return BundleInfo(
        depths=tuple(each.depth for each in message.depths),
        profiles=tuple(profile.name for profile in message.profiles),
        quality={
            each.depth: {name: Interval(q.value, q.low, q.high) for name, q in each.quality.items()}
            for each in message.depths
        },
        bundles=tuple(message.bundles),
        context=tuple(message.context),
        drifted=tuple(each.name for each in message.drift.features if each.alarm),
        **_copied(message, *same, "default_profile", "transport"),
        **_copied(message.routing, "policy", "certified", "alarm", "recertified"),
    )


def _copied(message: Any, *names: str) -> dict[str, Any]:
    """Fields that are called the same on both sides of the wire."""
    return {name: getattr(message, name) for name in names}


def _reloaded(response: pb.ReloadResponse) -> list[Reloaded]:
    return [Reloaded(each.bundle, each.version, each.previous, each.error) for each in response.bundles]
