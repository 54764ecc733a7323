"""Between the wire and the pipeline: checks a RecommendRequest against its contract, and words an Answer.

The limits are those of the comments in ``recommender.proto``.
"""

import math
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from struct import Struct
from typing import Any
from urllib.parse import unquote

import numpy as np

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import InvalidRequestError, NotFoundError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.runtime.manifest import LONGEST_TYPE_BYTES
from fathom.runtime.prefix_cache import Owner
from fathom.runtime.query import Answer, IndexedQuery, Range
from fathom.runtime.reasons import MOST_EXPLAINED, MOST_REASONS, Source
from fathom.runtime.rules import Rules
from fathom.runtime.shares import ANYBODY, Client
from fathom.selector.choice import DepthReason
from fathom.serving.history.contract import StoredEvent
from fathom.serving.limits import check_boost, check_id
from fathom.serving.requested_rules import ServerRules, check_rules, indexed_rules

#: Metadata that names a client, and how much of a name counts.
CLIENT_KEY = "fathom-client"
LONGEST_CLIENT = 256
#: Clients whose connection and name have been read.
KEPT_CLIENTS = 4_096
LONGEST_HISTORY = 10_000
MOST_ITEMS, MOST_OF_AN_ITEM = 1_000, 100
#: What a filter may list, by field.
MOST_OF_A_FILTER = {
    "exclude_item_ids": 10_000,
    "allow_item_ids": 10_000,
    "categories": 100,
    "ranges": 20,
    "seen_types": 100,
    "block_lists": 100,
}
LONGEST_TITLE_BYTES, LONGEST_NAME_BYTES = 1_024, 64
DEFAULT_PAGE = 100
DEFAULT_K = 10
LARGEST_K = 1_000
LAST_SECOND_OF_9999 = 253_402_300_799
# Longest piece of a client's own text that an error repeats.
LONGEST_ECHO = 60

REASONS = {reason: getattr(pb, f"DEPTH_REASON_{reason.name}") for reason in DepthReason}
SOURCES: dict[Source, pb.ItemReason.Source] = {"counting": pb.ItemReason.COUNTING, "network": pb.ItemReason.NETWORK}
# Of the wire format: fields 1, 2 and 3 of Item, field 1 of what holds a response, and fields 1, 2 and 5 of that.
_ID, _SCORE, _TITLE, _FIRST = b"\x0a", b"\x15", b"\x1a", b"\x0a"
_REQUEST_ID, _ITEM, _WHY = b"\x0a", b"\x12", b"\x2a"
#: Items whose part of a response is kept.
KEPT_ITEMS = 65_536
_score = Struct("<f").pack
_SCORE_BYTES = 4
#: About how many bytes a response has beside its items, an item beside its id and title, a reason beside its item's id.
ANSWER_BYTES, ITEM_BYTES, REASON_BYTES = 400, 13, 12
#: Items whose sizes are looked at, to know the mean.
SAMPLED_ITEMS = 1_000


class Converter:
    """Translates for one bundle and its catalogue.

    ``profiles`` maps every name and tier a request may give to its DeviceProfile.
    """

    def __init__(
        self,
        bundle: Bundle,
        catalogue: LiveCatalogue,
        profiles: dict[str, DeviceProfile],
        default_profile: DeviceProfile,
    ) -> None:
        self._catalogue = catalogue
        # Of trained items: looked up first, and in most requests enough.
        self._index = bundle.catalogue.index
        self._counts = bundle.counting is not None
        self._profiles = {**profiles, "": default_profile}
        self._items = _EncodedItems(catalogue, titled=False)
        self._titled_items = _EncodedItems(catalogue, titled=True)
        self._head = pb.RecommendResponse(bundle_version=bundle.manifest.version)
        self._id_bytes = _mean_bytes(bundle.catalogue.ids)
        self._title_bytes = _mean_bytes(bundle.catalogue.titles)
        self._retitled = 0
        self._server_rules = ServerRules()
        self._default: Rules | None = None
        self._default_of = -1
        # Items of block lists, and the version of the catalogue that they were looked up in.
        self._blocked: dict[str, tuple[int, np.ndarray]] = {}

    def query(
        self,
        request: pb.RecommendRequest,
        deadline_s: float | None,
        client: Client = ANYBODY,
        owner: Owner | None = None,
        scope: bytes = b"",
    ) -> tuple[IndexedQuery, int]:
        """The IndexedQuery of a client's request, and the number of unknown items in its history.

        ``deadline_s``: on the clock of ``time.monotonic``. ``owner``: whose history it is, where that is known.
        ``scope``: see ``IndexedQuery``. Raises InvalidRequestError or NotFoundError.
        """
        if request.request_id:
            check_id("request_id", request.request_id)
        if request.session_id:
            check_id("session_id", request.session_id)
        items, timestamps, unknown = self._history(request)
        query = IndexedQuery(
            items=items,
            timestamps=timestamps,
            k=self._k(request.k),
            profile=self.profile(request.profile),
            depth=request.depth if request.HasField("depth") else None,
            deadline_s=deadline_s,
            client=client,
            owner=owner,
            scope=scope,
            include_reasons=request.include_reasons,
            rules=self._rules(request.rules) if request.HasField("rules") else self._default_rules(),
            asked_s=_asked(request),
        )
        return self._filtered(query, request) if request.HasField("filter") else query, unknown

    def _filtered(self, query: IndexedQuery, request: pb.RecommendRequest) -> IndexedQuery:
        wanted = request.filter
        _check_filter(wanted)
        seen = self._seen(request) if wanted.seen_types and not wanted.include_seen else None
        return replace(
            query,
            exclude=self._excluded(wanted),
            allow=self._known(wanted.allow_item_ids) if wanted.allow_item_ids else None,
            categories=self._wanted_categories(wanted.categories),
            include_seen=wanted.include_seen,
            seen=seen,
            ranges=[self._range(each) for each in wanted.ranges],
        )

    def use_rules(self, rules: ServerRules) -> None:
        """Follow the server's rules from now on; NotFoundError for an unknown category, and then nothing changes."""
        default = None if rules.default is None else self._rules(rules.default)
        self._server_rules, self._default, self._default_of = rules, default, self._catalogue.version
        self._blocked.clear()

    def is_stranger(self, request: pb.RecommendRequest) -> bool:
        """Whether a request gets what is popular, because no item of its history is known."""
        return self._may_be_stranger(request) and all(self._catalogue.find(id) is None for id in request.item_ids)

    def _may_be_stranger(self, request: pb.RecommendRequest) -> bool:
        return self._counts and not request.strict and not request.depth

    def response(
        self,
        request: pb.RecommendRequest,
        answer: Answer,
        unknown: int,
        *,
        exact: bool = True,
        private: bool = False,
        experiments: Sequence[pb.ExperimentArm] = (),
    ) -> bytes:
        """The RecommendResponse for an Answer, encoded.

        ``exact``: with timings, which show what was cached. ``private``: without scores, nor what it says of the
        history. ``experiments``: that it is part of.
        The items are joined from bytes that are made once: building a message of ten items costs as much as the rest.
        """
        message = self._headed(answer, unknown)
        if not exact:
            message.ClearField("timings")
        if private:
            message.history_used = message.unknown_items = 0
            message.ClearField("complexity")
        head = message.SerializeToString() + _WHY + _text(answer.choice.why)
        if request.request_id:
            head += _REQUEST_ID + _text(request.request_id)
        if experiments:
            head += pb.RecommendResponse(experiments=experiments).SerializeToString()
        if self._retitled != self._catalogue.retitled:
            self._retitled = self._catalogue.retitled
            self._titled_items.clear()
        indices, scores = answer.indices, answer.scores
        if private:
            # Whoever may send any history could search for the one that gives exactly these scores.
            scores = np.zeros_like(scores)
        if answer.reasons:
            explained = self._explained(answer, titled=request.include_titles)
            head += pb.RecommendResponse(items=explained).SerializeToString()
            indices, scores = indices[len(answer.reasons) :], scores[len(answer.reasons) :]
        items = self._titled_items if request.include_titles else self._items
        pairs = zip(indices.tolist(), scores.tolist(), strict=True)
        return head + b"".join([items[index] + _score(score) for index, score in pairs])

    def _headed(self, answer: Answer, unknown: int) -> pb.RecommendResponse:
        """A response's numbers: one message that is filled anew each time, at half the cost of a new one.

        No text: a message keeps every text that was ever put into it for as long as it lives.
        """
        head, timings = self._head, self._head.timings
        choice, timing = answer.choice, answer.timing
        head.depth = choice.depth
        head.reason = REASONS[choice.reason]
        if choice.complexity is None:
            head.ClearField("complexity")
        else:
            head.complexity = choice.complexity
        head.history_used = answer.history_used
        head.unknown_items = unknown
        head.catalogue_version = answer.catalogue_version
        timings.select_us = timing.select_us
        timings.queue_us = timing.queue_us
        timings.engine_us = timing.engine_us
        timings.retrieval_us = timing.retrieval_us
        timings.total_us = timing.total_us
        return head

    def _explained(self, answer: Answer, *, titled: bool) -> Iterator[pb.Item]:
        """The items of an answer that have reasons, the first."""
        name, title = self._catalogue.id, self._catalogue.title
        first = slice(len(answer.reasons))
        rows = zip(answer.indices[first].tolist(), answer.scores[first].tolist(), answer.reasons, strict=True)
        for index, score, reasons in rows:
            item = pb.Item(id=name(index), score=score, title=title(index) if titled else "")
            for each in reasons:
                item.reasons.add(item_id=name(each.item), source=SOURCES[each.source], amount=each.amount)
            yield item

    def answer_bytes(self, request: pb.RecommendRequest) -> int:
        """About how many bytes the response to a request has, of items of the mean size."""
        k = min(request.k or DEFAULT_K, len(self._catalogue))
        reasons = min(k, MOST_EXPLAINED) * MOST_REASONS * (self._id_bytes + REASON_BYTES)
        item_bytes = self._id_bytes + self._title_bytes * request.include_titles + ITEM_BYTES
        return ANSWER_BYTES + k * item_bytes + reasons * request.include_reasons

    def _history(self, request: pb.RecommendRequest) -> tuple[np.ndarray, np.ndarray | None, int]:
        given, may_be_stranger = len(request.item_ids), self._may_be_stranger(request)
        if given == 0 and not may_be_stranger:
            if request.user_id:
                user = echo(request.user_id)
                raise NotFoundError(f"user {user} has no history; send item_ids, or append events first")
            raise InvalidRequestError("item_ids is empty; send at least one item of the user's history, or a user_id")
        if given > LONGEST_HISTORY:
            raise InvalidRequestError(f"item_ids has {given} items, at most {LONGEST_HISTORY}; send the newest ones")
        if request.event_types:
            _check_types(request.event_types, given)
        timestamps = _checked_timestamps(request.timestamps, given) if request.timestamps else None
        try:
            return np.fromiter(map(self._index.get, request.item_ids), np.int64, given), timestamps, 0
        except TypeError:  # a None: an unknown item
            found = list(map(self._catalogue.find, request.item_ids))
        known = np.array([index is not None for index in found])
        items = np.array([index for index in found if index is not None], np.int64)
        if not items.size:
            if may_be_stranger:
                return items, None, given
            raise NotFoundError(f"no item of the history is in the catalogue, as {echo(request.item_ids[0])}")
        return items, None if timestamps is None else timestamps[known], given - len(items)

    def _seen(self, request: pb.RecommendRequest) -> np.ndarray:
        """The known items of the history whose event was of one of the filter's types; without types, all are empty."""
        for each in request.filter.seen_types:
            _check_type("seen_types", each)
        wanted, types = frozenset(request.filter.seen_types), request.event_types
        if not types:
            return self._known(request.item_ids if "" in wanted else ())
        return self._known(item for item, kind in zip(request.item_ids, types, strict=True) if kind in wanted)

    def _excluded(self, wanted: pb.Filter) -> np.ndarray:
        """The items that a filter names one by one or by block lists; repeats are welcome."""
        excluded = self._known(wanted.exclude_item_ids)
        if not wanted.block_lists:
            return excluded
        return np.concatenate((excluded, *map(self._block_list, dict.fromkeys(wanted.block_lists))))

    def _block_list(self, name: str) -> np.ndarray:
        """The items of one of the server's block lists; looked up again when the catalogue has changed."""
        if name not in self._server_rules.block_lists:
            known = ", ".join(sorted(self._server_rules.block_lists)) or "none"
            raise NotFoundError(f"block list {echo(name)} is not in the server's rules; there: {known}")
        version, items = self._blocked.get(name, (-1, np.empty(0, np.int64)))
        if version != self._catalogue.version:
            items = self._known(self._server_rules.block_lists[name])
            self._blocked[name] = self._catalogue.version, items
        return items

    def _range(self, wanted: pb.Range) -> Range:
        name = wanted.attribute
        size = len(name.encode())
        if not 1 <= size <= LONGEST_TYPE_BYTES:
            raise InvalidRequestError(f"ranges has an attribute of {size} bytes, 1 to {LONGEST_TYPE_BYTES}")
        low = wanted.at_least if wanted.HasField("at_least") else None
        high = wanted.at_most if wanted.HasField("at_most") else None
        if any(bound is not None and math.isnan(bound) for bound in (low, high)):
            raise InvalidRequestError(f"the range of {echo(name)} has a bound that is no number")
        if self._catalogue.attribute(name) is None:
            raise NotFoundError(f"no item of the catalogue has the attribute {echo(name)}")
        return Range(name, low, high)

    def _rules(self, wanted: pb.Rules) -> Rules:
        """The rules of a request or of the server; raises InvalidRequestError or NotFoundError."""
        check_rules(wanted)
        return indexed_rules(wanted, self._catalogue)

    def _default_rules(self) -> Rules | None:
        """What the server does where a request does not say; looked up again when the catalogue has changed."""
        wanted = self._server_rules.default
        if wanted is None:
            return None
        if self._default_of != self._catalogue.version:
            self._default_of = self._catalogue.version
            with suppress(NotFoundError):  # A category that was in the catalogue at the start, and is no more.
                self._default = self._rules(wanted)
        return self._default

    def _k(self, k: int) -> int:
        if k > LARGEST_K:
            raise InvalidRequestError(f"k is {k}, at most {LARGEST_K}")
        # What is not there is not returned, whether the catalogue ends before k or a filter leaves less.
        return min(k or DEFAULT_K, len(self._catalogue))

    def profile(self, name: str) -> DeviceProfile:
        """The profile of a request; raises NotFoundError for one that is not served."""
        profile = self._profiles.get(name)
        if profile is None:
            known = ", ".join(sorted(filter(None, self._profiles)))
            raise NotFoundError(f"profile {echo(name)} is not served; served: {known}")
        return profile

    def _known(self, ids: Iterable[str]) -> np.ndarray:
        indices = [index for item in ids if (index := self._catalogue.find(item)) is not None]
        return np.array(indices, np.int64)

    def _wanted_categories(self, names: Sequence[str]) -> frozenset[str]:
        wanted = frozenset(names)
        for name in names:
            if not self._catalogue.has_category(name):
                raise NotFoundError(f"category {echo(name)} is not in the catalogue")
        return wanted


def user_of(request: pb.RecommendRequest | pb.AppendEventsRequest | pb.DeleteUserRequest) -> str:
    """The user_id of a message; raises InvalidRequestError when there is none or it is too long."""
    check_id("user_id", request.user_id)
    return request.user_id


def stored_event(each: pb.Event) -> StoredEvent:
    """An event of a message; raises InvalidRequestError where it contradicts the contract."""
    event = StoredEvent(each.event_id, each.item_id, each.timestamp, each.type)
    check_id("event_id", event.event_id)
    check_id("item_id", event.item_id)
    if not 0 <= event.timestamp <= LAST_SECOND_OF_9999:
        raise InvalidRequestError(_bad_second("timestamp", event.timestamp))
    if event.type:
        _check_type("type", event.type)
    return event


def record_of(item: pb.CatalogueItem) -> ItemRecord:
    """What a client says of an item."""
    return ItemRecord(
        id=item.id,
        title=item.title,
        categories=tuple(dict.fromkeys(item.categories)),
        attributes=dict(item.attributes),
        unavailable=item.unavailable,
        boost=item.boost,
        expires=item.expires,
        similar=tuple(dict.fromkeys(item.similar_item_ids)),
    )


def check_similar(item: ItemRecord, ids: Container[str]) -> None:
    """Raise InvalidRequestError where an item is like one of the same message."""
    for similar in item.similar:
        if similar in ids:
            raise InvalidRequestError(
                f"item {echo(item.id)} is like {echo(similar)} of the same message; send that one first"
            )


def check_item(item: pb.CatalogueItem) -> None:
    """Raise InvalidRequestError for an item that contradicts the contract."""
    check_id("id", item.id)
    where = f"item {echo(item.id)}"
    for name, count in (
        ("categories", len(item.categories)),
        ("attributes", len(item.attributes)),
        ("similar_item_ids", len(item.similar_item_ids)),
    ):
        if count > MOST_OF_AN_ITEM:
            raise InvalidRequestError(f"{where}: {count} {name}, at most {MOST_OF_AN_ITEM}")
    if (size := len(item.title.encode())) > LONGEST_TITLE_BYTES:
        raise InvalidRequestError(f"{where}: its title has {size} bytes, at most {LONGEST_TITLE_BYTES}")
    for name in item.categories:
        check_id(f"{where}: a category", name)
    for name, value in item.attributes.items():
        if not 1 <= len(name.encode()) <= LONGEST_NAME_BYTES:
            raise InvalidRequestError(f"{where}: an attribute's name has 1 to {LONGEST_NAME_BYTES} bytes")
        if not math.isfinite(value):
            raise InvalidRequestError(f"{where}: attribute {echo(name)} is {value}; leave out what is not known")
    check_boost(f"{where}: boost", item.boost)
    if not 0 <= item.expires <= LAST_SECOND_OF_9999:
        raise InvalidRequestError(f"{where}: " + _bad_second("expires", item.expires))


def check_removed(ids: Sequence[str]) -> None:
    """Raise InvalidRequestError where these cannot be the items of one message."""
    if not 1 <= len(ids) <= MOST_ITEMS:
        raise InvalidRequestError(f"the message has {len(ids)} item_ids; send 1 to {MOST_ITEMS}")


def listed_item(id: str, record: bytes | None, catalogue: LiveCatalogue) -> pb.ListedItem:
    """What a store says of an item; ``record``: a CatalogueItem, None where it was removed."""
    item = pb.CatalogueItem(id=id) if record is None else pb.CatalogueItem.FromString(record)
    return pb.ListedItem(item=item, trained=id in catalogue.index, removed=record is None)


def use_history(request: pb.RecommendRequest, events: Sequence[StoredEvent]) -> None:
    """Put what is known of a request's user in the place of a history."""
    request.item_ids.extend(event.item_id for event in events)
    request.timestamps.extend(event.timestamp for event in events)
    if request.filter.seen_types:  # Nothing else asks for them.
        request.event_types.extend(event.type for event in events)


def result_of(response: bytes) -> bytes:
    """The RecommendResult that holds a RecommendResponse, both encoded."""
    return _FIRST + _varint(len(response)) + response


def batch_of(results: Iterable[bytes]) -> bytes:
    """The RecommendBatchResponse of such results, all encoded."""
    return b"".join(_FIRST + _varint(len(result)) + result for result in results)


def deadline_of(time_remaining_s: float | None) -> float | None:
    """The moment on ``time.monotonic``'s clock at which a call's deadline passes; None without one."""
    return None if time_remaining_s is None else time.monotonic() + time_remaining_s


def client_of(context: Any) -> Client:
    """Whose call it is: its peer's address, its connection, and the name that CLIENT_KEY of its metadata claims."""
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_KEY:
            return _client(context.peer(), value[:LONGEST_CLIENT])
    return _client(context.peer(), "")


@lru_cache(KEPT_CLIENTS)
def _client(peer: str, name: str) -> Client:
    return Client(address_of(peer), peer, name)


def address_of(peer: str) -> str:
    """What the connections of one host have in common, of gRPC's ``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``, ``unix:``.

    Of IPv6 the network of 64 bits: a host has as many addresses in it as it likes.
    """
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return peer
    host = unquote(rest.rpartition(":")[0]).strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return peer
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64)
    return str(address)


def _check_filter(wanted: pb.Filter) -> None:
    for name, most in MOST_OF_A_FILTER.items():
        if (given := len(getattr(wanted, name))) > most:
            raise InvalidRequestError(f"filter has {given} {name}, at most {most}")


def _checked_timestamps(values: Sequence[int], given: int) -> np.ndarray:
    if len(values) != given:
        raise InvalidRequestError(f"timestamps has {len(values)} values for {given} items; send one per item, or none")
    times = np.fromiter(values, np.int64, given)
    if times.min() < 0 or times.max() > LAST_SECOND_OF_9999:
        worst = int(times.min()) if times.min() < 0 else int(times.max())
        raise InvalidRequestError(_bad_second("timestamps", worst))
    falls = np.flatnonzero(times[1:] < times[:-1])
    if falls.size:
        raise InvalidRequestError(
            f"timestamps fall at position {int(falls[0]) + 1}; send the history oldest first, with its own times"
        )
    return times


def _asked(request: pb.RecommendRequest) -> int:
    """The time of a request, in seconds since 1970."""
    if not 0 <= request.request_time <= LAST_SECOND_OF_9999:
        raise InvalidRequestError(_bad_second("request_time", request.request_time))
    return request.request_time or int(time.time())


class _EncodedItems(dict[int, bytes]):
    """Items in a response by their index, up to the score, which comes last; made when first asked for."""

    def __init__(self, catalogue: LiveCatalogue, *, titled: bool) -> None:
        super().__init__()
        self._catalogue = catalogue
        self._titled = titled

    def __missing__(self, index: int) -> bytes:
        title = self._catalogue.title(index) if self._titled else ""
        item = _ID + _text(self._catalogue.id(index)) + (_TITLE + _text(title) if title else b"") + _SCORE
        if len(self) >= KEPT_ITEMS:
            self.clear()
        encoded = self[index] = _ITEM + _varint(len(item) + _SCORE_BYTES) + item
        return encoded


def _mean_bytes(texts: Sequence[str]) -> int:
    """The mean size of texts, rounded up; of about SAMPLED_ITEMS evenly among them."""
    some = texts[:: max(1, len(texts) // SAMPLED_ITEMS)]
    return -(-sum(len(text.encode()) for text in some) // max(1, len(some)))


def _text(value: str) -> bytes:
    """A string on the wire, after its tag."""
    raw = value.encode()
    return _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    """A number on the wire: seven bits a byte, the lowest first."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _check_types(types: Sequence[str], given: int) -> None:
    if len(types) != given:
        raise InvalidRequestError(f"event_types has {len(types)} values for {given} items; send one per item, or none")
    for kind in types:
        _check_type("event_types", kind)


def _check_type(name: str, value: str) -> None:
    size = len(value.encode())
    if size > LONGEST_TYPE_BYTES:
        raise InvalidRequestError(f"{name} has a type of {size} bytes, at most {LONGEST_TYPE_BYTES}")


def _bad_second(name: str, value: int) -> str:
    return f"{name} has {value}; send seconds since 1970 (not milliseconds), none negative or after the year 9999"


def echo(text: str) -> str:
    """A client's own text, as an error may repeat it."""
    return ascii(text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO] + "...")
