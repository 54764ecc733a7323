"""Messages with many events or items: read a few at a time, in turn with other clients."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.live_catalogue import ItemRecord
from fathom.runtime.shares import Client
from fathom.serving.guard import undecodable
from fathom.serving.history.contract import StoredEvent
from fathom.serving.history.messages import stored_event, user_of
from fathom.serving.items.messages import MOST_ITEMS, check_item, check_similar, record_of
from fathom.serving.turns import Turns
from fathom.serving.wire import parts_of
from fathom.serving.work import LIGHT_BYTES, few_of

MOST_EVENTS = 10_000
LARGEST_ITEM_BYTES = 65_536

M = TypeVar("M", bound=Message)


class Items(NamedTuple):
    """What a client says of items: of one bundle, as records and, by id, as CatalogueItems, encoded."""

    bundle: str
    records: Sequence[ItemRecord]
    encoded: Mapping[str, bytes]


async def read_events(raw: bytes, turns: Turns, client: Client) -> tuple[str, list[StoredEvent]]:
    """A user's id and the events of an AppendEventsRequest; raises InvalidRequestError for what is wrong with it."""
    if len(raw) <= LIGHT_BYTES:
        message = _decoded(pb.AppendEventsRequest, raw)
        return user_of(message), list(map(stored_event, message.events))
    parts, rest = parts_of(raw, pb.AppendEventsRequest.EVENTS_FIELD_NUMBER, MOST_EVENTS)
    if len(parts) > MOST_EVENTS:
        raise InvalidRequestError(f"the message has more than {MOST_EVENTS} events; send several")
    user_id = user_of(_decoded(pb.AppendEventsRequest, rest))
    events: list[StoredEvent] = []
    for few in few_of(parts):
        async with turns.take(client):
            events += [stored_event(_decoded(pb.Event, part)) for part in few]
    return user_id, events


async def read_items(raw: bytes, turns: Turns, client: Client) -> Items:
    """The items of an UpsertItemsRequest; raises InvalidRequestError for what is wrong with it."""
    parts, rest = parts_of(raw, pb.UpsertItemsRequest.ITEMS_FIELD_NUMBER, MOST_ITEMS)
    if not 1 <= len(parts) <= MOST_ITEMS:
        given = f"more than {MOST_ITEMS}" if parts else 0
        raise InvalidRequestError(f"the message has {given} items; send 1 to {MOST_ITEMS}")
    records: list[ItemRecord] = []
    encoded: dict[str, bytes] = {}
    for few in few_of(parts):
        async with turns.take(client):
            for part in few:
                item = _item(part)
                records.append(record_of(item))
                encoded[item.id] = item.SerializeToString()
    if len(encoded) < len(records):
        raise InvalidRequestError("an item occurs twice in the message; send each once")
    for low in range(0, len(records), MOST_ITEMS // 10):
        async with turns.take(client):
            for record in records[low : low + MOST_ITEMS // 10]:
                check_similar(record, encoded)
    return Items(_decoded(pb.UpsertItemsRequest, rest).bundle, records, encoded)


def _item(part: memoryview) -> pb.CatalogueItem:
    if len(part) > LARGEST_ITEM_BYTES:
        raise InvalidRequestError(f"an item has {len(part):,} bytes, at most {LARGEST_ITEM_BYTES:,}")
    item = _decoded(pb.CatalogueItem, part)
    check_item(item)
    return item


def _decoded(kind: type[M], raw: bytes | memoryview) -> M:
    try:
        return kind.FromString(raw)  # type: ignore[arg-type]  # the stubs know no memoryview
    except DecodeError:
        raise undecodable() from None
