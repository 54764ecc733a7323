"""Random byte strings against every RPC: a documented status each, and the server goes on.

So many for each RPC: MESSAGES of the environment; `make fuzz` sends 10,000.
"""

import os
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

SERVICE = "/fathom.v1.Recommender/"
MESSAGES = int(os.environ.get("MESSAGES", "1000"))
IN_FLIGHT = 64
#: Messages of a stream.
STREAMED = 2
DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
REQUEST = pb.RecommendRequest(
    request_id="a",
    item_ids=["item-1", "item-2", "item-30"],
    timestamps=[1, 2, 3],
    k=5,
    profile="edge",
    depth=8,
    filter=pb.Filter(exclude_item_ids=["item-4"], allow_item_ids=["item-5"], categories=["space"], seen_types=["view"]),
    include_titles=True,
    event_types=["view", "", "purchase"],
)
SEEDS = [
    REQUEST.SerializeToString(),
    pb.RecommendRequest(item_ids=["item-7"]).SerializeToString(),
    pb.RecommendRequest(item_ids=["item-7"], context={"country": "DE"}).SerializeToString(),
    pb.RecommendBatchRequest(requests=[REQUEST] * 3).SerializeToString(),
    pb.AppendEventsRequest(
        user_id="anna",
        events=[pb.Event(event_id=f"e{i}", item_id=f"item-{i}", timestamp=i, type="view") for i in range(3)],
    ).SerializeToString(),
    pb.RecommendRequest(user_id="anna").SerializeToString(),
    pb.DeleteUserRequest(user_id="anna").SerializeToString(),
    pb.GetBundleRequest(bundle="synthetic").SerializeToString(),
    pb.ListItemsRequest(page_token="item-9", page_size=3).SerializeToString(),
    pb.RemoveItemsRequest(item_ids=["new", "other"]).SerializeToString(),
    pb.UpsertItemsRequest(
        items=[
            pb.CatalogueItem(id="new", title="New", categories=["western"], similar_item_ids=["item-3"]),
            pb.CatalogueItem(id="item-9", attributes={"price": 3.5}, boost=0.25, expires=2_000_000_000),
        ]
    ).SerializeToString(),
]
METHODS = pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name
STREAMS = ("RecommendStream", "AppendEventStream")


def random_message(rng: random.Random) -> bytes:
    """One third pure noise; the rest a valid message, most with a few bytes changed, removed, inserted or repeated."""
    if rng.random() < 1 / 3:
        return rng.randbytes(rng.randrange(200))
    raw = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(5):
            case 0:
                raw[at : at + 1] = rng.randbytes(1)
            case 1:
                del raw[at : at + rng.randint(1, 8)]
            case 2:
                raw[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                raw[at:at] = raw[at : at + rng.randint(1, 40)]
            case _:
                raw[at : at + 1] = bytes([raw[at] ^ (1 << rng.randrange(8))]) if at < len(raw) else b"\xff"
    return bytes(raw)


def statuses_of_unary_calls(channel: grpc.Channel, name: str, rng: random.Random) -> Counter[grpc.StatusCode]:
    method = channel.unary_unary(SERVICE + name)
    statuses: Counter[grpc.StatusCode] = Counter()
    open_calls: deque[Any] = deque()
    for _ in range(MESSAGES):
        open_calls.append(method.future(random_message(rng), timeout=60))
        if len(open_calls) == IN_FLIGHT:
            statuses[open_calls.popleft().code()] += 1
    statuses.update(call.code() for call in open_calls)
    return statuses


def statuses_of_streams(channel: grpc.Channel, name: str, rng: random.Random) -> Counter[grpc.StatusCode]:
    method = channel.stream_stream(SERVICE + name)
    statuses: Counter[grpc.StatusCode] = Counter()
    for _ in range(MESSAGES // STREAMED):
        call = method(iter([random_message(rng) for _ in range(STREAMED)]), timeout=60)
        with suppress(grpc.RpcError):
            for _ in call:
                pass
        statuses[call.code()] += 1
    return statuses


@pytest.mark.parametrize("name", METHODS)
def test_random_bytes_never_crash_the_server_and_never_end_in_unknown(
    channel: grpc.Channel, stub: recommender_pb2_grpc.RecommenderStub, live: Any, name: str
) -> None:
    log: Path = live.log
    before = len(log.read_text())
    send: Callable[..., Counter[grpc.StatusCode]] = statuses_of_streams if name in STREAMS else statuses_of_unary_calls
    statuses = send(channel, name, random.Random(f"2026 {name}"))
    assert sum(statuses.values()) == (MESSAGES // STREAMED if name in STREAMS else MESSAGES)
    assert set(statuses) <= DOCUMENTED
    # Both kinds of noise got through: what cannot be decoded, and what decodes and is then checked.
    assert 0 < statuses[grpc.StatusCode.INVALID_ARGUMENT] < statuses.total()
    assert "error" not in log.read_text()[before:]
    assert len(stub.Recommend(pb.RecommendRequest(item_ids=["item-1"]), timeout=10).items) == 10


def test_clients_that_hang_up_leave_nothing_behind(
    channel: grpc.Channel, stub: recommender_pb2_grpc.RecommenderStub, live: Any
) -> None:
    log: Path = live.log
    before = len(log.read_text())
    message = REQUEST.SerializeToString()

    def endless() -> Iterator[bytes]:
        while True:
            yield message

    for _ in range(100):
        call = channel.unary_unary(SERVICE + "Recommend").future(message, timeout=30)
        call.cancel()
    for _ in range(20):
        stream = channel.stream_stream(SERVICE + "RecommendStream")(endless(), timeout=30)
        next(stream)
        stream.cancel()
    assert len(stub.Recommend(pb.RecommendRequest(item_ids=["item-1"]), timeout=10).items) == 10
    assert "error" not in log.read_text()[before:]
