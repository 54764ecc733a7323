import time
from collections.abc import Iterator

import grpc
import pytest

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

Stub = recommender_pb2_grpc.RecommenderStub
HISTORY = ["item-1", "item-2", "item-3"]


def ids(answer: pb.RecommendResponse) -> list[str]:
    return [item.id for item in answer.items]


def test_an_answer_says_what_was_recommended_at_which_depth_and_why(stub: Stub) -> None:
    answer = stub.Recommend(pb.RecommendRequest(request_id="r-1", item_ids=HISTORY, k=5, profile="edge"), timeout=10)
    assert answer.request_id == "r-1"
    assert len(answer.items) == 5
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.001 <= score <= 1.001 for score in scores)
    assert (answer.depth, answer.reason) == (12, pb.DEPTH_REASON_DEEPEST)
    assert f"depth {answer.depth}" in answer.why
    assert (answer.history_used, answer.unknown_items) == (3, 0)
    assert answer.timings.total_us >= answer.timings.engine_us > 0
    assert len(answer.bundle_version) == 12
    assert all(item.title == "" for item in answer.items)


def test_titles_come_when_they_are_asked_for(stub: Stub) -> None:
    answer = stub.Recommend(pb.RecommendRequest(item_ids=HISTORY, k=50, include_titles=True), timeout=10)
    titles = {item.id: item.title for item in answer.items}
    assert titles["item-8"] == "Title 8"
    assert titles["item-7"] == ""


def test_k_is_ten_unless_said_otherwise(stub: Stub) -> None:
    assert len(stub.Recommend(pb.RecommendRequest(item_ids=HISTORY), timeout=10).items) == 10


@pytest.mark.parametrize("depth", [4, 8, 12, 16])
def test_a_request_can_fix_its_depth(stub: Stub, depth: int) -> None:
    answer = stub.Recommend(pb.RecommendRequest(item_ids=HISTORY, depth=depth), timeout=10)
    assert (answer.depth, answer.reason) == (depth, pb.DEPTH_REASON_FIXED)


@pytest.mark.parametrize(("profile", "depth"), [("mobile", 8), ("edge", 12), ("cloud", 16), ("", 16)])
def test_without_a_certificate_each_tier_answers_at_its_deepest_depth(stub: Stub, profile: str, depth: int) -> None:
    histories = [[f"item-{i * step % 50}" for i in range(length)] for length in (1, 5, 20) for step in (1, 7)]
    answers = [stub.Recommend(pb.RecommendRequest(item_ids=each, profile=profile), timeout=10) for each in histories]
    assert {answer.depth for answer in answers} == {depth}


def test_filters_decide_what_may_be_returned(stub: Stub) -> None:
    def recommended(**options: object) -> set[str]:
        request = pb.RecommendRequest(item_ids=HISTORY, k=50, filter=pb.Filter(**options))  # type: ignore[arg-type]
        return set(ids(stub.Recommend(request, timeout=10)))

    everything = {f"item-{i}" for i in range(50)}
    assert recommended() == everything - set(HISTORY)
    assert recommended(include_seen=True) == everything
    assert recommended(exclude_item_ids=["item-9", "who?"]) == everything - set(HISTORY) - {"item-9"}
    assert recommended(allow_item_ids=["item-9", "item-1", "who?"]) == {"item-9"}
    assert recommended(allow_item_ids=["who?"]) == set()
    western = {f"item-{i}" for i in range(50) if i % 5 and (i % 4 == 3 or i // 4 % 4 == 3)}
    assert recommended(categories=["western"], include_seen=True) == western


def test_unknown_items_are_left_out_with_their_times_and_counted(stub: Stub) -> None:
    mixed = pb.RecommendRequest(item_ids=["new", *HISTORY, "newer"], timestamps=[1, 2, 3, 4, 5], depth=8)
    plain = pb.RecommendRequest(item_ids=HISTORY, timestamps=[2, 3, 4], depth=8)
    with_unknown, without = (stub.Recommend(each, timeout=10) for each in (mixed, plain))
    assert (with_unknown.unknown_items, with_unknown.history_used) == (2, 3)
    assert ids(with_unknown) == ids(without)


def test_only_the_newest_items_of_a_long_history_are_used(stub: Stub) -> None:
    long = [f"item-{i % 50}" for i in range(10_000)]
    answer = stub.Recommend(pb.RecommendRequest(item_ids=long, filter=pb.Filter(include_seen=True)), timeout=10)
    newest = stub.Recommend(pb.RecommendRequest(item_ids=long[-20:], filter=pb.Filter(include_seen=True)), timeout=10)
    assert answer.history_used == 20
    assert ids(answer) == ids(newest)


def test_repeated_items_are_fine(stub: Stub) -> None:
    assert stub.Recommend(pb.RecommendRequest(item_ids=["item-1"] * 15), timeout=10).history_used == 15


def test_the_requests_of_a_batch_keep_their_order_and_fail_alone(stub: Stub) -> None:
    requests = [pb.RecommendRequest(request_id=str(i), item_ids=[f"item-{i}"], depth=4) for i in range(40)]
    requests[7] = pb.RecommendRequest(request_id="7", strict=True)
    requests[8] = pb.RecommendRequest(request_id="8", item_ids=["who?"], strict=True)
    results = stub.RecommendBatch(pb.RecommendBatchRequest(requests=requests), timeout=10).results
    assert [(r.response or r.error).request_id for r in results if r.HasField("response")] == [
        str(i) for i in range(40) if i not in (7, 8)
    ]
    assert (results[7].error.request_id, results[7].error.code) == ("7", grpc.StatusCode.INVALID_ARGUMENT.value[0])
    assert (results[8].error.request_id, results[8].error.code) == ("8", grpc.StatusCode.NOT_FOUND.value[0])
    alone = stub.Recommend(requests[3], timeout=10)
    assert ids(results[3].response) == ids(alone)


def test_an_empty_batch_has_an_empty_answer(stub: Stub) -> None:
    assert len(stub.RecommendBatch(pb.RecommendBatchRequest(), timeout=10).results) == 0


def test_a_stream_answers_every_request_and_ends_when_the_client_ends(stub: Stub) -> None:
    def requests() -> Iterator[pb.RecommendRequest]:
        for i in range(300):
            yield pb.RecommendRequest(request_id=str(i), item_ids=[f"item-{i % 60}"], depth=4)

    results = list(stub.RecommendStream(requests(), timeout=30))
    answered = {r.response.request_id for r in results if r.HasField("response")}
    refused = {r.error.request_id: r.error.code for r in results if r.HasField("error")}
    assert answered | refused.keys() == {str(i) for i in range(300)}
    assert len(results) == 300
    assert set(refused.values()) == {grpc.StatusCode.NOT_FOUND.value[0]}
    assert refused.keys() == {str(i) for i in range(300) if i % 60 >= 50}


def test_the_bundle_is_described(stub: Stub) -> None:
    bundle = stub.GetBundle(pb.GetBundleRequest(), timeout=10)
    assert (bundle.name, bundle.strategy, bundle.precision) == ("synthetic", "prefix", "fp32")
    assert (bundle.items, bundle.max_history, bundle.uses_timestamps) == (50, 20, False)
    assert [each.depth for each in bundle.depths] == [0, 4, 8, 12, 16]
    assert [each.quality["ndcg@10"].value for each in bundle.depths[:2]] == pytest.approx([0.09, 0.104])
    assert bundle.default_profile == "cloud-cpu"
    assert {profile.tier for profile in bundle.profiles} == {"mobile", "edge", "cloud"}
    assert bundle.engine == "onnxruntime-cpu"


def test_a_second_after_a_large_batch_short_deadlines_are_met_again(stub: Stub) -> None:
    request = pb.RecommendRequest(item_ids=HISTORY)

    def answered() -> bool:
        try:
            return bool(stub.Recommend(request, timeout=0.05).depth)
        except grpc.RpcError:
            return False

    batch = stub.RecommendBatch(pb.RecommendBatchRequest(requests=[request] * 1_000), timeout=60)
    assert all(result.HasField("response") for result in batch.results)
    again_s = time.monotonic() + 1
    while time.monotonic() < again_s:
        answered()
    assert sum(answered() for _ in range(100)) >= 80
