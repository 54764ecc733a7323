import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.client import (
    AsyncClient,
    Boost,
    BundleInfo,
    Client,
    Event,
    Interval,
    Item,
    Query,
    Range,
    Recommendation,
    Rules,
    Timings,
)
from fathom.connection import Connection
from fathom.errors import (
    ConfigError,
    ConnectError,
    DeadlineError,
    FathomError,
    InvalidRequestError,
    NotFoundError,
    OverloadError,
    UnavailableError,
)
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc


def one_line(error: FathomError) -> bool:
    return len(str(error).splitlines()) == 1 and len(str(error)) < 300


#: Attempts at requests that a full server refuses, by request_id.
asked: Counter[str] = Counter()


class Echo(recommender_pb2_grpc.RecommenderServicer):
    """Answers with what it was asked; a profile that is a status name is answered with that status."""

    def Recommend(self, request, context):  # type: ignore[no-untyped-def]
        if request.profile == "FULL":
            asked[request.request_id] += 1
            if asked[request.request_id] < request.k:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", "3"),))
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        if request.profile in grpc.StatusCode.__members__:
            context.abort(grpc.StatusCode[request.profile], "two\nlines")
        return pb.RecommendResponse(
            request_id=request.request_id,
            items=[pb.Item(id=item, score=0.5, title=f"T {item}") for item in request.item_ids],
            depth=request.depth if request.HasField("depth") else 12,
            reason=int(request.timestamps[0]) if request.timestamps else pb.DEPTH_REASON_SIMPLE,
            why=str(request.filter).replace("\n", " ").strip(),
            complexity={"without": None, "zero": 0.0}.get(request.profile, 0.25),
            history_used=request.k,
            unknown_items=1,
            timings=pb.Timings(select_us=1, queue_us=2, engine_us=3, retrieval_us=4, total_us=10),
            bundle_version="abc",
        )

    def RecommendBatch(self, request, context):  # type: ignore[no-untyped-def]
        results = [pb.RecommendResult(response=self.Recommend(each, context)) for each in request.requests]
        if request.requests[0].request_id:
            return pb.RecommendBatchResponse(results=results)
        failures = [(3, "bad"), (5, "none"), (8, "full"), (14, "draining"), (13, "odd"), (99, "odder")]
        results += [pb.RecommendResult(error=pb.RecommendError(code=code, message=text)) for code, text in failures]
        return pb.RecommendBatchResponse(results=results)

    def GetBundle(self, request, context):  # type: ignore[no-untyped-def]  # noqa: ARG002
        quality = {"ndcg@10": pb.QualityInterval(value=0.1, low=0.05, high=0.15)}
        return pb.GetBundleResponse(
            name="tiny",
            transport="http2",
            depths=[pb.DepthQuality(depth=4, quality=quality), pb.DepthQuality(depth=8)],
            profiles=[pb.ProfileInfo(name="cloud-cpu", tier="cloud", depths=[4, 8])],
        )


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    recommender_pb2_grpc.add_RecommenderServicer_to_server(Echo(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target) as opened:
        yield opened


def test_an_answer_is_a_plain_value(client: Client) -> None:
    assert client.recommend(["a", "b"], k=7, depth=8, request_id="r") == Recommendation(
        items=(Item("a", 0.5, "T a"), Item("b", 0.5, "T b")),
        depth=8,
        reason="simple",
        why="",
        complexity=0.25,
        history_used=7,
        unknown_items=1,
        timings=Timings(1, 2, 3, 4, 10),
        bundle_version="abc",
        request_id="r",
    )


def test_depth_0_and_strictness_are_sent() -> None:
    message = Query(["a"], depth=0, strict=True).message()
    assert (message.HasField("depth"), message.depth, message.strict) == (True, 0, True)
    assert not Query(["a"]).message().HasField("depth")
    with pytest.raises(InvalidRequestError, match="strict is 1"):
        Query(["a"], strict=1).message()  # type: ignore[arg-type]


def test_complexity_is_none_where_the_server_did_not_look(client: Client) -> None:
    assert client.recommend(["a"], profile="without").complexity is None
    assert client.recommend(["a"], profile="zero").complexity == 0


def test_filters_travel(client: Client) -> None:
    answer = client.recommend(["a"], include_seen=True, exclude=["x"], allow={"y"}, categories=("z",))
    assert answer.why == 'include_seen: true exclude_item_ids: "x" allow_item_ids: "y" categories: "z"'
    message = Query(["a", "b"], event_types=("view", ""), seen_types={"purchase"}).message()
    assert (message.event_types, message.filter.seen_types) == (["view", ""], ["purchase"])


def test_rules_ranges_and_block_lists_travel() -> None:
    rules = Rules({2: "a"}, [Boost(0.5, item_id="b"), Boost(-1, category="c")], {"": 3, "d": 0}, 0.25)
    message = Query(
        ["x"], ranges=[Range("price", at_most=30), Range("year", 1990)], block_lists={"recalled"}, rules=rules
    ).message()
    assert message.filter == pb.Filter(
        ranges=[pb.Range(attribute="price", at_most=30), pb.Range(attribute="year", at_least=1990)],
        block_lists=["recalled"],
    )
    assert message.rules == pb.Rules(
        pins=[pb.Pin(item_id="a", position=2)],
        boosts=[pb.Boost(item_id="b", amount=0.5), pb.Boost(category="c", amount=-1)],
        caps=[pb.Cap(at_most=3), pb.Cap(category="d", at_most=0)],
        diversity=0.25,
    )
    assert Query(["x"], rules=Rules()).message().HasField("rules")
    assert not Query(["x"]).message().HasField("rules")


def test_a_reason_of_a_newer_server_is_a_number(client: Client) -> None:
    assert client.recommend(["a"], timestamps=[77]).reason == "77"


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        ("INVALID_ARGUMENT", InvalidRequestError, "two lines"),
        ("NOT_FOUND", NotFoundError, "two lines"),
        ("DEADLINE_EXCEEDED", DeadlineError, "{target}: two lines"),
        ("CANCELLED", OverloadError, "{target}: the call was refused before it was read (two lines); try again later"),
        ("RESOURCE_EXHAUSTED", OverloadError, "two lines"),
        ("UNAVAILABLE", ConnectError, "{target}: no answer: two lines"),
        ("INTERNAL", ConnectError, "{target}: INTERNAL: two lines"),
        ("UNIMPLEMENTED", ConnectError, "{target}: UNIMPLEMENTED: two lines"),
    ],
)
def test_each_status_is_one_of_our_errors_in_one_line(
    client: Client, status: str, kind: type[FathomError], text: str
) -> None:
    with pytest.raises(kind) as caught:
        client.recommend(["a"], profile=status)
    assert str(caught.value) == text.format(target=client.target)


def test_a_full_server_is_asked_again_when_it_says_so_but_not_for_ever(client: Client) -> None:
    assert client.recommend(["a"], profile="FULL", k=3, request_id="third").items
    assert asked["third"] == 3
    with pytest.raises(OverloadError, match="full") as caught:
        client.recommend(["a"], profile="FULL", k=9, request_id="never")
    assert asked["never"] == 4
    assert caught.value.retry_after_s == 0.003


def test_a_batch_gives_an_answer_or_an_error_for_each(client: Client) -> None:
    results = client.recommend_many([Query(["a"]), Query(["b"])])
    answers = [each for each in results if isinstance(each, Recommendation)]
    assert [answer.items[0].id for answer in answers] == ["a", "b"]
    assert [type(each) for each in results[2:]] == [
        InvalidRequestError,
        NotFoundError,
        OverloadError,
        UnavailableError,
        ConnectError,
        ConnectError,
    ]


def numbered(read: list[int]) -> Iterator[Query]:
    """Queries without end."""
    for number in count():
        read.append(number)
        yield Query([f"item-{number}"], request_id=str(number))


def test_any_number_of_queries_is_answered_in_order_and_read_as_answers_are_taken(client: Client) -> None:
    read: list[int] = []
    answers = client.recommend_all(numbered(read))
    taken = [answer for answer in islice(answers, 100) if isinstance(answer, Recommendation)]
    assert [answer.request_id for answer in taken] == [str(number) for number in range(100)]
    assert [answer.items[0].id for answer in taken] == [f"item-{number}" for number in range(100)]
    assert len(read) <= 100 + 3 * 32
    answers.close()  # type: ignore[attr-defined]
    assert list(client.recommend_all([])) == []


def test_many_queries_end_with_the_error_of_the_whole_message(client: Client) -> None:
    queries = [Query(["a"], request_id="1", profile="UNAVAILABLE" if number == 70 else "") for number in range(100)]
    answers = client.recommend_all(queries)
    assert len(list(islice(answers, 64))) == 64
    with pytest.raises(ConnectError, match="two lines"):
        next(answers)
    for wrong in (5, "ab", [Query(["a"]), "b"]):
        with pytest.raises(InvalidRequestError, match="queries"):
            list(client.recommend_all(wrong))  # type: ignore[arg-type]


def test_the_bundle_is_a_plain_value(client: Client) -> None:
    bundle = client.bundle()
    assert isinstance(bundle, BundleInfo)
    assert (bundle.name, bundle.depths, bundle.profiles) == ("tiny", (4, 8), ("cloud-cpu",))
    assert bundle.transport == "http2"
    assert bundle.quality == {4: {"ndcg@10": Interval(0.1, 0.05, 0.15)}, 8: {}}


LISTS = ("items", "exclude", "allow", "categories")
NO_LISTS = st.one_of(
    st.text(), st.binary(), st.binary().map(bytearray), st.integers(), st.dictionaries(st.text(), st.text(), min_size=1)
)
NO_TEXTS = st.one_of(st.integers(), st.floats(), st.binary(), st.booleans(), st.none(), st.lists(st.text()))


@given(st.sampled_from([*LISTS, "timestamps"]), NO_LISTS)
def test_what_is_no_list_is_refused_wherever_a_list_is_wanted(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field} ") as caught:
        Query(**{"items": ["a"], field: value}).message()  # type: ignore[arg-type]
    assert one_line(caught.value)


@given(st.sampled_from(LISTS), st.lists(st.text(), max_size=3), NO_TEXTS, st.sampled_from([list, tuple, iter]))
def test_what_is_no_text_is_refused_wherever_ids_are_wanted(
    field: str, texts: list[str], value: object, kind: Callable[[list[object]], object]
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field} has ") as caught:
        Query(**{field: kind([*texts, value])}).message()  # type: ignore[arg-type]
    assert one_line(caught.value)


@given(
    st.sampled_from(["user_id", "request_id", "bundle", "profile"]), st.integers() | st.binary() | st.lists(st.text())
)
def test_a_name_that_is_no_text_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field} has .* ids and names are text"):
        Query(["a"], **{field: value}).message()  # type: ignore[arg-type]


@given(
    st.lists(st.text("ab1", min_size=1)), st.sampled_from([list, tuple, iter, np.array, lambda ids: (i for i in ids)])
)
def test_whatever_can_be_gone_through_is_a_list(ids: list[str], kind: Callable[[list[str]], object]) -> None:
    message = Query(kind(ids), exclude=kind(ids), allow=set(ids), categories=dict.fromkeys(ids).keys()).message()  # type: ignore[arg-type]
    assert list(message.item_ids) == list(message.filter.exclude_item_ids) == ids
    assert set(message.filter.allow_item_ids) == set(message.filter.categories) == set(ids)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"items": {"a", "b"}}, "items is a set; give a list"),
        ({"items": ["a"], "exclude": [172]}, 'exclude has 172 (int); ids and names are text, as "172"'),
        ({"items": ["a"], "exclude": "172"}, "exclude is a single text, 172; give a list, as ['172']"),
        ({"items": ["a"], "k": -1}, "not a request: Value out of range: -1"),
        ({"items": ["a"], "k": 2.0}, "k has 2.0 (float); give a whole number"),
        ({"items": ["a"], "k": True}, "k has True (bool); give a whole number"),
        ({"items": ["a"], "depth": "4"}, "depth has 4 (str); give a whole number"),
        ({"items": ["a"], "timestamps": [2**63]}, "not a request: Value out of range"),
        ({"items": ["a"], "timestamps": [1.5]}, "timestamps has 1.5 (float)"),
        ({"items": ["a"], "rules": {"diversity": 1}}, "rules is {'diversity': 1} (dict); give a Rules object"),
        ({"items": ["a"], "rules": Rules(pins=["b"])}, "pins is ['b'] (list); give a dict"),
        ({"items": ["a"], "rules": Rules(pins={0: 7})}, 'pins has 7 (int); ids and names are text, as "7"'),
        ({"items": ["a"], "rules": Rules(pins={-1: "b"})}, "not a request: Value out of range: -1"),
        ({"items": ["a"], "rules": Rules(boosts=[Boost(1)])}, "a boost is for an item_id or for a category; give one"),
        ({"items": ["a"], "rules": Rules(boosts=[0.5])}, "boosts has 0.5 (float); give a list of Boost objects"),
        ({"items": ["a"], "rules": Rules(caps={"c": "2"})}, "caps has 2 (str); give a whole number"),
        ({"items": ["a"], "rules": Rules(diversity="much")}, "diversity is much (str); give a finite number"),
        ({"items": ["a"], "ranges": [("price", 1)]}, "ranges has ('price', 1) (tuple); give a list of Range objects"),
        ({"items": ["a"], "ranges": [Range("price", "1")]}, "at_least is 1 (str); give a finite number"),
        ({"items": ["a"], "block_lists": "recalled"}, "block_lists is a single text"),
        ({"items": ["a"], "titles": "no"}, "titles is no (str); give True or False"),
        ({"items": ["\ud800"]}, "not a request: "),
        ({"items": ["a"], "exclude": ["\ud800"]}, "not a request: "),
        ({"items": ["a"], "timeout_s": 0}, "timeout_s is 0; give a positive number of seconds"),
        ({"items": ["a"], "timeout_s": float("nan")}, "timeout_s is nan"),
        ({"items": ["a"], "timeout_s": "5"}, "timeout_s is 5"),
    ],
)
async def test_what_cannot_be_sent_is_an_invalid_request(
    client: Client, target: str, bad: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.recommend(**bad)  # type: ignore[arg-type]
    assert str(caught.value).startswith(says)
    assert one_line(caught.value)
    async with AsyncClient(target) as other:
        with pytest.raises(InvalidRequestError) as again:
            await other.recommend(**bad)  # type: ignore[arg-type]
    assert str(again.value) == str(caught.value)


def test_the_other_methods_check_what_they_are_given(client: Client) -> None:
    for call, says in (
        (lambda: client.recommend_many(["a"]), "queries has a (str); give a list of Query objects"),  # type: ignore[list-item]
        (lambda: client.recommend_many("a"), "queries is a single text"),  # type: ignore[arg-type]
        (lambda: client.append_events(7, []), "user_id has 7 (int)"),  # type: ignore[arg-type]
        (lambda: client.append_events("u", [("e", "i", 1)]), "events has ('e', 'i', 1) (tuple)"),  # type: ignore[list-item]
        (lambda: client.append_events("u", [Event("e", 5, 1)]), "item_id has 5 (int)"),  # type: ignore[arg-type]
        (lambda: client.append_events("u", [Event("e", "i", 1.5)]), "timestamp has 1.5 (float)"),  # type: ignore[arg-type]
        (lambda: client.delete_user(7), "user_id has 7 (int)"),  # type: ignore[arg-type]
        (lambda: client.bundle(7), "name has 7 (int)"),  # type: ignore[arg-type]
        (lambda: client.reload(["a"]), "name has ['a'] (list)"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequestError) as caught:
            call()
        assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "localhost",
        "localhost:",
        "h:0",
        "h:65536",
        "h:-1",
        "h:abc",
        "http://h:1",
        "::1:50051",
        "[h]:1",
        "h h:1",
        "h:1\n",
    ],
)
def test_a_target_that_names_no_server_is_refused_in_one_line(target: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError, match=r"give host:port|is not host:port|no port") as caught:
            kind(target)
        assert one_line(caught.value)


@pytest.mark.parametrize(
    "target", ["h:1", "a.b-c.d:65535", "[::1]:50051", "dns:///h:1", "unix:/tmp/s", "ipv4:1.2.3.4:5"]
)
def test_names_that_grpc_knows_are_targets(target: str) -> None:
    assert Connection(target).target == target


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"certificate": b"x"}, "a client's certificate and its key belong together"),
        ({"certificate": b"x", "key": b"x"}, "only shown over TLS"),
        ({"tls": "nowhere.pem"}, "nowhere.pem: no such file"),
        ({"tls": "."}, ".: no such file"),
        ({"tls": b"rubbish"}, "it holds no certificate in PEM format"),
        ({"tls": True, "certificate": b"-----BEGIN CERTIFICATE-----", "key": b"x"}, "it holds no private key in PEM"),
        ({"metadata": {"a b": "c"}}, "metadata has the key 'a b'"),
        ({"metadata": {"grpc-timeout": "c"}}, "metadata has the key 'grpc-timeout'"),
        ({"metadata": {"a-bin": "c"}}, "metadata has the key 'a-bin'"),
        ({"metadata": {"a": "secr\u00e9t"}}, "the value of a in metadata is not printable ASCII"),
        ({"metadata": "secret"}, "metadata is a str; give a mapping of texts"),
        ({"metadata": {1: "c"}}, "metadata has the key"),
        ({"tls": 5}, "a PEM cannot be of type int"),
        ({"channels": 0}, "channels is 0; it must be at least 1"),
    ],
)
async def test_a_connection_that_cannot_be_is_refused_in_one_line(options: dict[str, object], says: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError) as caught:
            kind("127.0.0.1:1", **options)
        assert says in str(caught.value)
        assert "secr" not in str(caught.value)
        assert one_line(caught.value)


def test_a_server_that_comes_back_is_not_kept_waiting_for(target: str) -> None:
    given: dict[str, object] = {}

    class Noted(Connection):
        def channel(self, options=()):  # type: ignore[no-untyped-def]
            given.update(options)
            return super().channel(options)

    with Client.over(Noted(target)) as client:
        assert client.recommend(["a"]).items
    assert given["grpc.initial_reconnect_backoff_ms"] == 100
    assert given["grpc.max_reconnect_backoff_ms"] == 2_000


def test_nobody_there_is_a_connect_error_of_one_line() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ConnectError, match=r"^127\.0\.0\.1:1: no answer: [^\n]*$"):
        client.recommend(["a"])


async def test_the_async_client_is_the_same(target: str) -> None:
    async with AsyncClient(target) as client:
        assert (await client.recommend(["a"], depth=4)).depth == 4
        assert len(await client.recommend_many([Query(["a"])])) == 7
        assert (await client.bundle()).name == "tiny"
        queries = [Query(["a"], request_id=str(number)) for number in range(80)]
        answers = [answer async for answer in client.recommend_all(queries)]
        assert [answer.request_id for answer in answers] == [query.request_id for query in queries]  # type: ignore[union-attr]
        with pytest.raises(NotFoundError):
            await client.recommend(["a"], profile="NOT_FOUND")


def test_the_client_loads_neither_the_runtime_nor_numpy() -> None:
    program = "import sys, fathom.client; print(*(m for m in sys.modules if m.startswith(('fathom.', 'numpy'))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.split(".")[1] if name.startswith("fathom.") else "numpy" for name in done.stdout.split()}
    assert loaded == {"client", "connection", "errors", "protos"}
