"""Every kind of bad input gets its documented status, and the server goes on."""

import grpc
import pytest

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

Stub = recommender_pb2_grpc.RecommenderStub
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
# Field 2 (item_ids), two bytes that are not UTF-8; field 2, longer than the message; field number 0.
NOT_UTF8, TRUNCATED, NO_FIELD = b"\x12\x02\xff\xfe", b"\x12\x7fabc", b"\x00\x00"


def request(**fields: object) -> pb.RecommendRequest:
    return pb.RecommendRequest(**{"item_ids": ["item-1", "item-2"], **fields})  # type: ignore[arg-type]


def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()  # type: ignore[operator]
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(
    ("bad", "code", "text"),
    [
        (pb.RecommendRequest(strict=True), INVALID, "item_ids is empty"),
        (pb.RecommendRequest(depth=4), INVALID, "item_ids is empty"),
        (pb.RecommendRequest(timestamps=[1]), INVALID, "1 values for 0 items"),
        (pb.RecommendRequest(user_id="nobody", strict=True), NOT_FOUND, "user 'nobody' has no history"),
        (request(item_ids=["who?"], strict=True), NOT_FOUND, "no item of the history"),
        (request(item_ids=["who?"], depth=4), NOT_FOUND, "no item of the history"),
        (request(item_ids=["who?"], timestamps=[-1]), INVALID, "-1"),
        (request(item_ids=["who?"], k=1_001), INVALID, "k is 1001"),
        (request(item_ids=["who?"], profile="cluod"), NOT_FOUND, "profile 'cluod' is not served"),
        (request(item_ids=[""], strict=True), NOT_FOUND, "no item of the history"),
        (request(item_ids=["x" * 100_000], strict=True), NOT_FOUND, "no item of the history"),
        (request(item_ids=["item-1"] * 10_001), INVALID, "10001 items, at most 10000"),
        (request(item_ids=["item-1"] * 50_000), INVALID, "50000 items, at most 10000"),
        (request(k=1_001), INVALID, "k is 1001, at most 1000"),
        (request(k=2**32 - 1), INVALID, "k is 4294967295"),
        (request(timestamps=[1]), INVALID, "1 values for 2 items"),
        (request(timestamps=[1, 2, 3]), INVALID, "3 values for 2 items"),
        (request(timestamps=[-1, 2]), INVALID, "-1"),
        (request(timestamps=[1, 2**63 - 1]), INVALID, "9223372036854775807"),
        (request(timestamps=[1, 1_700_000_000_000]), INVALID, "not milliseconds"),
        (request(timestamps=[5, 4]), INVALID, "fall at position 1"),
        (request(profile="cluod"), NOT_FOUND, "profile 'cluod' is not served"),
        (request(profile="../../etc/passwd"), NOT_FOUND, "is not served"),
        (request(depth=5), NOT_FOUND, "depth 5"),
        (request(depth=2**32 - 1), NOT_FOUND, "depth 4294967295"),
        (request(filter=pb.Filter(categories=["opera"])), NOT_FOUND, "'opera'"),
        (request(filter=pb.Filter(exclude_item_ids=["x"] * 10_001)), INVALID, "10001 exclude_item_ids, at most 10000"),
        (request(filter=pb.Filter(allow_item_ids=["x"] * 10_001)), INVALID, "10001 allow_item_ids, at most 10000"),
        (request(filter=pb.Filter(categories=["space"] * 101)), INVALID, "101 categories, at most 100"),
        (request(filter=pb.Filter(ranges=[pb.Range(attribute="price")] * 21)), INVALID, "21 ranges, at most 20"),
        (request(filter=pb.Filter(seen_types=["view"] * 101)), INVALID, "101 seen_types, at most 100"),
        (request(filter=pb.Filter(block_lists=["all"] * 101)), INVALID, "101 block_lists, at most 100"),
        (request(request_id="x" * 129), INVALID, "129 bytes, at most 128"),
        (request(request_id="é" * 65), INVALID, "130 bytes, at most 128"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_bad_request_gets_its_status_alone_and_in_a_batch(
    stub: Stub, bad: pb.RecommendRequest, code: grpc.StatusCode, text: str
) -> None:
    alone, details = refusal(lambda: stub.Recommend(bad, timeout=10))
    assert alone is code
    assert text in details
    assert "\n" not in details
    assert len(details) < 600
    result = stub.RecommendBatch(pb.RecommendBatchRequest(requests=[bad, request()]), timeout=10).results
    assert (result[0].error.code, result[0].error.message) == (code.value[0], details)
    assert len(result[1].response.items) == 10


@pytest.mark.parametrize(
    "good",
    [
        request(timestamps=[5, 5]),
        request(timestamps=[0, 253_402_300_799]),
        request(request_id="x" * 128),
        request(item_ids=["item-1"] * 10_000),
        request(k=50),
        request(filter=pb.Filter(exclude_item_ids=["x"] * 10_000, categories=["comedy", "drama"] * 50)),
    ],
    ids=[
        "equal times",
        "first and last time",
        "longest request_id",
        "longest history",
        "the whole catalogue",
        "longest filter",
    ],
)
def test_what_is_just_within_the_limits_is_answered(stub: Stub, good: pb.RecommendRequest) -> None:
    assert len(stub.Recommend(good, timeout=10).items) >= 10


@pytest.mark.parametrize(
    ("method", "raw"),
    [
        ("fathom.v1.Recommender/Recommend", NOT_UTF8),
        ("fathom.v1.Recommender/Recommend", TRUNCATED),
        ("fathom.v1.Recommender/Recommend", NO_FIELD),
        ("fathom.v1.Recommender/RecommendBatch", b"\x0a\x04" + NOT_UTF8),
        ("fathom.v1.Recommender/RecommendBatch", TRUNCATED),
        ("fathom.v1.Recommender/GetBundle", TRUNCATED),
        ("grpc.health.v1.Health/Check", b"\x0a\x02\xff\xfe"),
        ("grpc.health.v1.Health/Check", TRUNCATED),
    ],
)
def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.Channel, method: str, raw: bytes) -> None:
    code, details = refusal(lambda: channel.unary_unary(f"/{method}")(raw, timeout=10))
    assert (code, "cannot be decoded" in details) == (INVALID, True)


def test_a_stream_answers_what_it_could_read_before_it_refuses(channel: grpc.Channel) -> None:
    stream = channel.stream_stream("/fathom.v1.Recommender/RecommendStream")
    messages = [request(request_id="good").SerializeToString(), NOT_UTF8]
    answers = stream(iter(messages), timeout=10)
    assert pb.RecommendResult.FromString(next(answers)).response.request_id == "good"
    code, details = refusal(lambda: next(answers))
    assert (code, "cannot be decoded" in details) == (INVALID, True)


def test_a_batch_that_is_too_large_is_refused_whole(stub: Stub) -> None:
    batch = pb.RecommendBatchRequest(requests=[request()] * 1_025)
    code, details = refusal(lambda: stub.RecommendBatch(batch, timeout=10))
    assert (code, details) == (INVALID, "the batch has more than 1024 requests; send several")
    assert len(stub.RecommendBatch(pb.RecommendBatchRequest(requests=[request()] * 1_024), timeout=30).results) == 1_024


def test_a_request_of_too_many_bytes_is_not_read_alone_nor_in_a_batch_or_stream(stub: Stub) -> None:
    large = request(item_ids=["item-1"] * 100_000)
    for call in (
        lambda: stub.Recommend(large, timeout=10),
        lambda: stub.RecommendBatch(pb.RecommendBatchRequest(requests=[request(), large]), timeout=10),
        lambda: list(stub.RecommendStream(iter([large]), timeout=10)),
    ):
        code, details = refusal(call)
        assert code is INVALID
        assert "800,000 bytes, at most 524,288; send only the newest items of the history" in details


def test_a_message_over_the_limit_is_refused_by_grpc_itself(stub: Stub) -> None:
    code, _ = refusal(lambda: stub.Recommend(request(item_ids=["x" * 5_000_000]), timeout=10))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(stub.Recommend(request(), timeout=10).items) == 10


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    code, _ = refusal(lambda: channel.unary_unary("/fathom.v1.Recommender/Reccomend")(b"", timeout=10))
    assert code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("k", [49, 50, 51, 999, 1_000])
def test_a_k_beyond_what_there_is_gets_what_there_is(stub: Stub, k: int) -> None:
    everything = pb.Filter(include_seen=True)
    few = pb.Filter(allow_item_ids=["item-7", "item-8"])
    for wanted, there in ((everything, 50), (few, 2), (pb.Filter(), 48)):
        answer = stub.Recommend(request(k=k, filter=wanted), timeout=10)
        assert len(answer.items) == min(k, there)
