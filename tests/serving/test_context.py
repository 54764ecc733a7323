"""The context of a request from the client to the answer: what changes it, what counts as missing, what is refused."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fathom.client import AsyncClient, Query
from fathom.errors import InvalidRequestError
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.bundle.item_files import context_files
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import ContextInfo, MetricInterval
from fathom.serving.recording import recordings
from fathom.training.context import Context
from fathom.training.metrics import Interval

LocalServer = Callable[..., AbstractAsyncContextManager[Any]]
ITEMS = ["item-5", "item-9", "item-30"]


@pytest.fixture(scope="module")
def told(synthetic_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, plain = tmp_path_factory.mktemp("told") / "bundle", Bundle.open(synthetic_bundle)
    changes = np.random.default_rng(0).normal(size=(3, 2, plain.vectors.width)).astype(np.float32)
    values = {"country": ("AT", "DE"), "device": ("tv",)}
    info = ContextInfo(features={"country": 2, "device": 1}, gain=MetricInterval(value=0.01, low=0.0, high=0.02))
    derive_bundle(plain, out, context_files(Context(values, changes, Interval(0.01, 0.0, 0.02))), context=info)
    return out


def ids(answer: Any) -> tuple[str, ...]:
    return tuple(item.id for item in answer.items)


async def test_a_context_changes_the_answer_and_what_is_not_known_of_it_does_not(
    local: LocalServer, told: Path
) -> None:
    contexts = [None, {}, {"country": "DE"}, {"country": "XX"}, {"country": "DE", "device": ""}, {"device": "tv"}]
    async with local(told) as it, AsyncClient(it.info.address) as client:
        assert (await client.bundle()).context == ("country", "device")
        answers = [await client.recommend(ITEMS, k=5, depth=16, context=context) for context in contexts]
        many = await client.recommend_many([Query(ITEMS, k=5, depth=16, context=context) for context in contexts])
        counted = [await client.recommend(ITEMS, k=5, depth=0, context=context) for context in contexts]
    plain, empty, german, unknown, half, television = map(ids, answers)
    assert plain == empty == unknown
    assert german == half
    assert len({plain, german, television}) == 3
    assert [*map(ids, many)] == [*map(ids, answers)]
    assert len({*map(ids, counted)}) == 1


@pytest.mark.parametrize(
    ("context", "text"),
    [
        ({"weather": "rain"}, "context has the feature 'weather'; this bundle's are: country, device"),
        ({"": "DE"}, "context has the feature ''"),
        ({"country": "DE", "x" * 100_000: ""}, "context has the feature 'xxx"),
        ({"country": "x" * 129}, "context has 129 bytes of 'country', at most 128"),
        ({str(n): "" for n in range(9)}, "context has 9 features, at most 8"),
    ],
)
async def test_a_context_that_cannot_be_is_refused_in_one_line(
    local: LocalServer, told: Path, context: dict[str, str], text: str
) -> None:
    async with local(told) as it:
        with pytest.raises(grpc.RpcError) as caught:
            await it.stub.Recommend(pb.RecommendRequest(item_ids=ITEMS, context=context))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in caught.value.details()
        assert len(caught.value.details()) < 200


async def test_a_bundle_that_knows_no_context_refuses_any(local: LocalServer) -> None:
    async with local() as it, AsyncClient(it.info.address) as client:
        assert (await client.bundle()).context == ()
        with pytest.raises(InvalidRequestError, match="context has the feature 'country'; this bundle's are: none"):
            await client.recommend(ITEMS, context={"country": "DE"})


async def test_a_recording_says_what_is_known_of_the_context(local: LocalServer, told: Path, tmp_path: Path) -> None:
    async with local(told, record=str(tmp_path / "log")) as it:
        for context in ({"country": "DE", "device": "watch"}, {"country": "XX"}, {}):
            await it.stub.Recommend(pb.RecommendRequest(item_ids=ITEMS, context=context))
    lines = [json.loads(line) for file in recordings(tmp_path / "log") for line in file.read_text().splitlines()]
    assert [line.get("context") for line in lines] == [{"country": "DE"}, None, None]
