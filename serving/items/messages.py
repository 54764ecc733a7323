"""Items of the catalogue as messages say them: checked against their contract, and read.

The limits are those of the comments in ``recommender.proto``.
"""

import math
from collections.abc import Container, Sequence

from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.serving.limits import LAST_SECOND_OF_9999, bad_second, check_boost, check_id, echo

MOST_ITEMS, MOST_OF_AN_ITEM = 1_000, 100
LONGEST_TITLE_BYTES, LONGEST_NAME_BYTES = 1_024, 64


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
        raise bad_second(f"{where}: expires", item.expires)


def check_similar(item: ItemRecord, ids: Container[str]) -> None:
    """Raise InvalidRequestError where an item is like one of the same message."""
    for similar in item.similar:
        if similar in ids:
            raise InvalidRequestError(
                f"item {echo(item.id)} is like {echo(similar)} of the same message; send that one first"
            )


def check_removed(ids: Sequence[str]) -> None:
    """Raise InvalidRequestError where these cannot be the items of one message."""
    if not 1 <= len(ids) <= MOST_ITEMS:
        raise InvalidRequestError(f"the message has {len(ids)} item_ids; send 1 to {MOST_ITEMS}")


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


def listed_item(id: str, record: bytes | None, catalogue: LiveCatalogue) -> pb.ListedItem:
    """What a store says of an item; ``record``: a CatalogueItem, None where it was removed."""
    item = pb.CatalogueItem(id=id) if record is None else pb.CatalogueItem.FromString(record)
    return pb.ListedItem(item=item, trained=id in catalogue.index, removed=record is None)
