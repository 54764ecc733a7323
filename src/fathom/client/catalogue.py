"""What a client says of a catalogue's items, and what it hears."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fathom.client import arguments
from fathom.client.messages import Call
from fathom.errors import InvalidRequestError, brief
from fathom.protos.fathom.v1 import recommender_pb2 as pb

#: Items in one call, at most.
MOST_ITEMS = 1_000


@dataclass(frozen=True)
class CatalogueItem:
    """An item as a shop knows it; ``CatalogueItem`` of recommender.proto says what each field does.

    ``attributes``: numbers to filter by, as price. ``unavailable``: not returned now. ``boost``: added to its score,
    -10 to 10. ``expires``: seconds since 1970 from which it is no longer returned; 0: never. ``similar``: ids of items
    that it is like.
    """

    id: str
    title: str = ""
    categories: Iterable[str] = ()
    attributes: Mapping[str, float] = field(default_factory=dict)
    unavailable: bool = False
    boost: float = 0.0
    expires: int = 0
    similar: Iterable[str] = ()

    def message(self) -> pb.CatalogueItem:
        """The message that goes over the wire; raises InvalidRequestError when it cannot be built."""
        if not isinstance(self.attributes, Mapping):
            raise InvalidRequestError(f"attributes is {brief(self.attributes)}; give a dict of names and numbers")
        numbers = {
            arguments.text("attributes", name): arguments.number(f"attribute {brief(name)}", value)
            for name, value in self.attributes.items()
        }
        return arguments.message(
            pb.CatalogueItem,
            id=arguments.text("id", self.id),
            title=arguments.text("title", self.title),
            categories=arguments.texts("categories", self.categories),
            attributes=numbers,
            unavailable=arguments.flag("unavailable", self.unavailable),
            boost=arguments.number("boost", self.boost),
            expires=arguments.integer("expires", self.expires),
            similar_item_ids=arguments.texts("similar", self.similar),
        )


@dataclass(frozen=True)
class Upserted:
    """What became of items: new ones, and those that the catalogue held; ``catalogue_version`` counts its changes.

    ``workers_behind``: workers of the server that have not answered in time; they follow as soon as they do.
    """

    added: int
    updated: int
    catalogue_version: int
    workers_behind: int


@dataclass(frozen=True)
class Removed:
    """How many items were taken out; until ``workers_behind`` is 0, so many workers may still return them."""

    removed: int
    catalogue_version: int
    workers_behind: int


@dataclass(frozen=True)
class ListedItem:
    """An item that was changed; of one that is ``removed``, only the id is told. ``trained``: the bundle knows it."""

    item: CatalogueItem
    trained: bool
    removed: bool


@dataclass(frozen=True)
class ItemPage:
    """Items by id; ``next_page`` is what the call for the next page takes, empty after the last one."""

    items: tuple[ListedItem, ...]
    next_page: str
    catalogue_version: int


def upsert_items(items: Iterable[CatalogueItem], bundle: str) -> Call[Upserted]:
    """Items to be added or changed."""
    messages = [each.message() for each in arguments.instances("items", items, CatalogueItem)]
    request = arguments.message(pb.UpsertItemsRequest, bundle=arguments.text("bundle", bundle), items=messages)
    return Call("UpsertItems", request, _upserted)


def remove_items(ids: Iterable[str], bundle: str) -> Call[Removed]:
    """Items to be taken out."""
    request = arguments.message(
        pb.RemoveItemsRequest, bundle=arguments.text("bundle", bundle), item_ids=arguments.texts("ids", ids)
    )
    return Call("RemoveItems", request, _removed)


def list_items(page: str, size: int, bundle: str) -> Call[ItemPage]:
    """One page of the items that were changed."""
    request = arguments.message(
        pb.ListItemsRequest,
        bundle=arguments.text("bundle", bundle),
        page_size=arguments.integer("size", size),
        page_token=arguments.text("page", page),
    )
    return Call("ListItems", request, _page)


def _upserted(response: pb.UpsertItemsResponse) -> Upserted:
    return Upserted(response.added, response.updated, response.catalogue_version, response.workers_behind)


def _removed(response: pb.RemoveItemsResponse) -> Removed:
    return Removed(response.removed, response.catalogue_version, response.workers_behind)


def _page(response: pb.ListItemsResponse) -> ItemPage:
    items = tuple(ListedItem(_item(each.item), each.trained, each.removed) for each in response.items)
    return ItemPage(items, response.next_page_token, response.catalogue_version)


def _item(message: Any) -> CatalogueItem:
    return CatalogueItem(
        id=message.id,
        title=message.title,
        categories=tuple(message.categories),
        attributes=dict(message.attributes),
        unavailable=message.unavailable,
        boost=message.boost,
        expires=message.expires,
        similar=tuple(message.similar_item_ids),
    )
