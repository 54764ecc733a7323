"""Users who change the catalogue: invented items only, which no answer ever holds and which are removed at the end."""

import random
from typing import ClassVar

from locust import task

from fathom.client import CATALOGUE_TIMEOUT_S
from fathom.loadtests.users.calling import GrpcUser
from fathom.loadtests.users.invented import CHANGED_IDS, REMOVED_IDS
from fathom.loadtests.users.load_run import LoadRun
from fathom.protos.fathom.v1 import recommender_pb2 as pb

AT_ONCE = 10
#: An item that comes back after its removal takes another place in the catalogue, which has room for 100,000.
MOST_PLACES = 1_000


def _items(load: LoadRun, ids: list[str]) -> pb.UpsertItemsRequest:
    """Items as they can do no harm: not available; and like the same items every time, so that they keep their place.

    What changes from message to message is their boost.
    """
    always = pb.CatalogueItem(title="load test", similar_item_ids=load.some_items, unavailable=True)
    request = pb.UpsertItemsRequest()
    for id in ids:
        item = request.items.add()
        item.CopyFrom(always)
        item.id, item.boost = id, random.uniform(-1, 1)
    return request


class WritesItems(GrpcUser):
    """Needs a server that keeps a catalogue, and the role of an admin."""

    abstract = True
    asks_for = "write_items"
    because = "it writes invented items into the catalogue"
    timeout_s = CATALOGUE_TIMEOUT_S


class UpsertItemsUser(WritesItems):
    """Changes a few items."""

    weight = 1

    @task
    def upsert(self) -> None:
        """One message."""
        self.call("UpsertItems", _items(self.load, random.sample(CHANGED_IDS, AT_ONCE)))


class RemoveItemsUser(WritesItems):
    """Adds an item and removes it; after many of them in one process, items that are gone already."""

    weight = 1
    places: ClassVar[int] = 0

    @task
    def remove(self) -> None:
        """One item."""
        id = random.choice(REMOVED_IDS)
        if RemoveItemsUser.places < MOST_PLACES:
            RemoveItemsUser.places += 1
            self.call("UpsertItems", _items(self.load, [id]))
        self.call("RemoveItems", pb.RemoveItemsRequest(item_ids=[id]))


class ListItemsUser(WritesItems):
    """Lists what was changed."""

    weight = 1

    @task
    def list_items(self) -> None:
        """The first page."""
        self.call("ListItems", pb.ListItemsRequest())
