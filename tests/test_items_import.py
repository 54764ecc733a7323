"""`fathom items`: tables of items, and what of them goes over the wire."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import polars as pl
import pytest
from in_process import fathom

from fathom.client import CatalogueItem, Client
from fathom.errors import DataError, InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.tools.items_import import import_items, read_table

CSV = """id,title,categories,similar,price,stock,unavailable,boost,expires,maker
007,A lamp,Home|Light,,19.5,3,false,0.25,0,Lux
8,A vase,Home,007|9,,0,true,,1900000000,
"""


class Shelf(recommender_pb2_grpc.RecommenderServicer):
    """Keeps messages as they come; lists them by id."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.items: dict[str, pb.ListedItem] = {}

    def UpsertItems(self, request, context):  # type: ignore[no-untyped-def]  # noqa: ARG002
        self.calls.append(len(request.items))
        new = {each.id for each in request.items} - self.items.keys()
        self.items.update((each.id, pb.ListedItem(item=each)) for each in request.items)
        counts = {"added": len(new), "updated": len(request.items) - len(new)}
        return pb.UpsertItemsResponse(catalogue_version=len(self.calls), **counts)

    def RemoveItems(self, request, context):  # type: ignore[no-untyped-def]  # noqa: ARG002
        for id in request.item_ids:
            self.items[id] = pb.ListedItem(item=pb.CatalogueItem(id=id), removed=True)
        return pb.RemoveItemsResponse(removed=len(request.item_ids), catalogue_version=9, workers_behind=1)

    def ListItems(self, request, context):  # type: ignore[no-untyped-def]  # noqa: ARG002
        ids = sorted(id for id in self.items if id > request.page_token)
        page = ids[: request.page_size or 100]
        more = page[-1] if len(page) < len(ids) else ""
        return pb.ListItemsResponse(items=[self.items[id] for id in page], next_page_token=more, catalogue_version=9)


@pytest.fixture
def shelf() -> Iterator[tuple[Shelf, str]]:
    server, servicer = grpc.server(ThreadPoolExecutor(2)), Shelf()
    recommender_pb2_grpc.add_RecommenderServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None)


LAMP = CatalogueItem("007", "A lamp", ("Home", "Light"), {"price": 19.5, "stock": 3.0}, boost=0.25)
VASE = CatalogueItem("8", "A vase", ("Home",), {"stock": 0.0}, True, 0.0, 1_900_000_000, ("007", "9"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_table_of_any_kind_gives_the_same_items(kind: str, shelf: tuple[Shelf, str], tmp_path: Path) -> None:
    path = tmp_path / f"items.{kind}"
    text = tmp_path / "text.csv"
    text.write_text(CSV)
    if kind == "csv":
        path.write_text(CSV)
    elif kind == "parquet":
        table = read_table(text)
        table.with_columns(pl.col("categories").str.split("|")).write_parquet(path)
    else:
        read_table(text).write_ndjson(path)
    with Client(shelf[1]) as client:
        done = import_items(client, path)
        page = client.list_items()
    assert (done.items, done.added, done.updated, done.left_out) == (2, 2, 0, ("maker",))
    assert [each.item for each in page.items] == [LAMP, VASE]


def test_a_long_table_goes_in_parts_of_a_thousand(shelf: tuple[Shelf, str], tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    pl.DataFrame({"id": range(2_300)}).write_parquet(path)
    seen: list[float] = []
    with Client(shelf[1]) as client:
        done = import_items(client, path, progress=lambda _text, share: seen.append(share))
        again = import_items(client, path)
    assert shelf[0].calls[:3] == [1_000, 1_000, 300]
    assert (done.added, again.added, again.updated) == (2_300, 0, 2_300)
    assert seen[-1] == 1


def test_an_item_is_sent_after_those_that_it_is_like(shelf: tuple[Shelf, str], tmp_path: Path) -> None:
    path = tmp_path / "chain.csv"
    path.write_text("id,similar\n1,2|3\n2,3\n3,elsewhere\n4,\n")
    with Client(shelf[1]) as client:
        assert import_items(client, path).items == 4
        path.write_text("id,similar\n4,\n1,2\n2,1\n")
        with pytest.raises(DataError, match="'1' and others are like each other in a circle"):
            import_items(client, path)
    assert shelf[0].calls == [2, 1, 1]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("items.csv", "title\nA\n", "no column id; it has title"),
        ("items.csv", "id,title\n1,A\n1,B\n", "id '1' is in it more than once"),
        ("items.csv", "id,title\n1,A\n,B\n", "row 2 has no id"),
        ("items.csv", "id,expires\n1,soon\n", "cannot be read as csv"),
        ("items.txt", "id\n1\n", "ends in none of"),
        ("items.parquet", "no parquet", "cannot be read as parquet"),
        ("items.jsonl", "no json", "cannot be read as jsonl"),
    ],
)
def test_a_table_of_something_else_is_refused_in_one_line(name: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=problem) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_the_commands_import_list_and_remove(shelf: tuple[Shelf, str], tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(CSV)
    target = ("--target", shelf[1])
    assert fathom("items", "import", path, *target).stdout == (
        "added 2, updated 0; catalogue version 2; columns left out: maker\n"
    )
    assert fathom("items", "remove", "8", "9", *target).stdout == (
        "removed 2; catalogue version 9; workers that have not answered yet and will follow: 1\n"
    )
    listed = json.loads(fathom("items", "list", "--most", "2", "--json", *target).stdout)
    assert [(each["item"]["id"], each["removed"]) for each in listed["items"]] == [("007", False), ("8", True)]
    assert listed["next_page"] == "8"
    rest = fathom("items", "list", "--after", "8", *target).stdout
    assert "9" in rest
    assert "A lamp" not in rest


@pytest.mark.parametrize(
    "wrong",
    [
        CatalogueItem(7),  # type: ignore[arg-type]
        CatalogueItem("7", categories="Home"),
        CatalogueItem("7", attributes={"price": float("nan")}),
        CatalogueItem("7", attributes=[("price", 1.0)]),  # type: ignore[arg-type]
        CatalogueItem("7", boost="much"),  # type: ignore[arg-type]
        CatalogueItem("7", expires=1.5),  # type: ignore[arg-type]
        CatalogueItem("7", unavailable=1),  # type: ignore[arg-type]
    ],
)
def test_a_field_of_another_type_is_an_error_before_anything_is_sent(wrong: CatalogueItem) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        wrong.message()
    assert "\n" not in str(caught.value)
