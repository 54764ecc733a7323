"""What the console answers: to its page all that the server says, to others nothing; the server stays as it is."""

import re
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from started import Started, running

from fathom import console as package
from fathom.client import Client, Event
from fathom.connection import Connection
from fathom.console import gateway as gateway_module
from fathom.console.gateway import Gateway
from fathom.console.question import Question
from fathom.console.run import listen
from fathom.errors import ConfigError, NotFoundError
from fathom.local import running_server
from fathom.protos.fathom.v1 import recommender_pb2_grpc

HISTORY = ["item-3", "item-10", "item-20"]
PAGES = Path(package.__file__).parent / "pages"
CHANGES = ("append_events", "AppendEvent", "delete_user", "DeleteUser", "upsert", "Upsert", "remove_items", "reload(")


@pytest.fixture(scope="module")
def client(server: Started) -> Any:
    with Client(server.told["address"]) as opened:
        yield opened


def test_every_depth_answers_as_the_server_answers_a_client(console: Started, client: Client) -> None:
    told = console.ask("/api/recommend", body={"items": HISTORY, "k": 5}).json
    assert [each["asked"] for each in told["answers"]] == [None, 0, 4, 8, 12, 16]
    assert told["deepest"] == 16
    deepest = {item.id for item in client.recommend(HISTORY, k=5, depth=16).items}
    for answer in told["answers"][1:]:
        expected = client.recommend(HISTORY, k=5, depth=answer["asked"])
        assert [(each["id"], each["title"]) for each in answer["items"]] == [
            (item.id, item.title) for item in expected.items
        ]
        assert [each["score"] for each in answer["items"]] == pytest.approx([item.score for item in expected.items])
        shared = {item.id for item in expected.items} & deepest
        assert answer["agreement"] == {"shared": len(shared), "of": 5}
        assert {each["id"] for each in answer["items"] if each["in_deepest"]} == shared
        assert (answer["reason"], answer["depth"]) == ("fixed", answer["asked"])
    served = told["answers"][0]
    assert served["depth"] in (4, 8, 12, 16)
    assert served["why"]
    assert served["timings"]["total_us"] > 0


def test_titles_of_the_history_come_from_the_server(console: Started, hostile_title: str) -> None:
    told = console.ask("/api/recommend", body={"items": ["item-3", "item-7", "nowhere"], "k": 1}).json
    assert told["history"] == [
        {"id": "item-3", "title": hostile_title},
        {"id": "item-7", "title": ""},
        {"id": "nowhere", "title": ""},
    ]
    assert told["answers"][0]["unknown_items"] == 1


def test_filters_and_profiles_reach_the_server(console: Started) -> None:
    question = {"items": HISTORY, "k": 50, "categories": ["space"], "exclude": ["item-2"], "profile": "mobile"}
    told = console.ask("/api/recommend", body=question).json
    for answer in told["answers"]:
        assert answer["items"]
        assert all({int(each["id"][5:]) % 4, int(each["id"][5:]) // 4 % 4} & {2} for each in answer["items"])
        assert "item-2" not in {each["id"] for each in answer["items"]}
    wrong = console.ask("/api/recommend", body={"items": HISTORY, "profile": "mainframe"}).json
    assert all("mainframe" in answer["error"] for answer in wrong["answers"])


def test_a_user_of_the_server_is_asked_for_by_id(console: Started, client: Client) -> None:
    client.append_events("reader", [Event(item, item, 1_700_000_000 + i) for i, item in enumerate(HISTORY)])
    told = console.ask("/api/recommend", body={"user_id": "reader", "k": 5}).json
    expected = client.recommend(HISTORY, k=5, depth=8)
    assert [each["id"] for each in told["answers"][3]["items"]] == [item.id for item in expected.items]
    assert {answer["history_used"] for answer in told["answers"]} == {3}
    reasons = console.ask("/api/reasons", body={"user_id": "reader", "k": 1, "depth": 0}).json["items"]
    assert {due["item_id"] for each in reasons for due in each["reasons"]} <= set(HISTORY)


def test_reasons_are_those_of_a_client_with_titles(console: Started, client: Client, hostile_title: str) -> None:
    told = console.ask("/api/reasons", body={"items": HISTORY, "k": 5, "depth": 16}).json["items"]
    expected = client.recommend(HISTORY, k=5, depth=16, reasons=True).items
    assert [(each["id"], [due["item_id"] for due in each["reasons"]]) for each in told] == [
        (item.id, [due.item_id for due in item.reasons]) for item in expected
    ]
    titles = {due["item_id"]: due["title"] for each in told for due in each["reasons"]}
    assert titles["item-3"] == hostile_title


def test_items_are_found_by_words_of_their_titles_and_by_their_ids(console: Started, hostile_title: str) -> None:
    told = console.ask("/api/items?text=title%201").json
    assert (told["searched"], told["complete"]) == (50, True)
    assert told["items"][0]["title"].startswith("Title 1")
    assert all("title" in each["title"].lower() and "1" in each["title"] for each in told["items"][:5])
    assert console.ask("/api/items?text=item-7").json["items"] == [{"id": "item-7", "title": ""}]
    assert console.ask("/api/items?text=SCRIPT").json["items"] == [{"id": "item-3", "title": hostile_title}]
    assert console.ask("/api/items?text=").json["items"] == []


def test_a_bundle_is_told_as_the_server_tells_it(console: Started, client: Client) -> None:
    told, expected = console.ask("/api/bundle").json, client.bundle()
    assert (told["version"], told["routing"]["policy"]) == (expected.version, expected.policy)
    assert [each["depth"] for each in told["depths"]] == [0, 4, 8, 12, 16]
    assert told["depths"][1]["quality"]["ndcg@10"]["high"] == expected.quality[4]["ndcg@10"].high
    assert console.ask("/api/bundle?name=films").status == 404


@pytest.mark.parametrize(("page", "most", "found"), [(20, 10_000, 50), (25, 10_000, 50), (20, 40, 40)])
async def test_items_are_read_page_by_page_up_to_a_limit(
    server: Started, monkeypatch: pytest.MonkeyPatch, page: int, most: int, found: int
) -> None:
    monkeypatch.setattr(gateway_module, "PAGE", page)
    monkeypatch.setattr(gateway_module, "MOST_ITEMS", most)
    async with Gateway(Connection(server.told["address"])) as gateway:
        index = await gateway.index("")
        assert (len(index), index.complete) == (found, found == 50)
        assert await gateway.index("") is index


async def test_a_bundle_that_cannot_be_searched_says_so_and_still_answers(uncounted_bundle: Path) -> None:
    with running_server(uncounted_bundle) as server:
        async with Gateway(Connection(server.address)) as gateway:
            with pytest.raises(NotFoundError, match="cannot be searched; give ids instead"):
                await gateway.index("")
            told = await gateway.compare(Question(items=("item-1",), k=3))
    assert [answer["asked"] for answer in told["answers"]] == [None, 4, 8, 12, 16]
    assert all(len(answer["items"]) == 3 for answer in told["answers"])
    assert told["history"] == [{"id": "item-1", "title": "Title 1"}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"items": ["item-1"], "k": 0}, "k: "),
        ({"items": ["item-1"], "deadline_ms": -1}, "deadline_ms: "),
        ({"items": ["item-1"], "depth": "4"}, "depth: "),
        ({"items": [1]}, "items.0: "),
        ({"reload": True}, "reload: "),
        ([], "the request: "),
    ],
)
def test_a_bad_question_gets_one_line(console: Started, body: object, words: str) -> None:
    answer = console.ask("/api/recommend", body=body)
    assert answer.status == 400
    assert answer.json["error"].startswith(words)
    assert "\n" not in answer.json["error"]


def test_what_is_no_question_at_all_is_refused(console: Started) -> None:
    question = '{"items": ["item-1"]}'
    assert console.ask("/api/recommend", method="POST", body=question, content_type="text/plain").status == 400
    assert console.ask("/api/recommend", method="POST", body="{", content_type="application/json").status == 400
    large = {"items": ["x" * 2**20]}
    assert console.ask("/api/recommend", body=large).status == 413
    missed = console.ask("/api/recommend", body={"user_id": "nobody", "strict": True}).json
    assert all(answer["error"] for answer in missed["answers"])


def test_other_names_and_other_sites_are_refused(console: Started) -> None:
    host = console.told["url"].removeprefix("http://").rstrip("/")
    port = host.rpartition(":")[2]
    for path in ("/", "/main.js", "/api/bundle"):
        assert console.ask(path, Host=f"evil.example:{port}").status == 403
        assert console.ask(path, Host="").status == 403
        assert console.ask(path, Host=f"localhost:{port}").status == 200
        assert console.ask(path, Sec_Fetch_Site="same-origin").status == 200
        assert console.ask(path, Sec_Fetch_Site="cross-site").status == 403
        assert console.ask(path, Origin="https://evil.example").status == 403
        assert console.ask(path, Origin="null").status == 403
    assert console.ask("/api/bundle", Origin=f"http://{host}").status == 200
    # A link on another site may open the page, and nothing else.
    assert console.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200
    assert console.ask("/api/bundle", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 403


def test_every_answer_forbids_foreign_script_and_sharing(console: Started) -> None:
    paths = ["/", *(f"/{file.name}" for file in PAGES.iterdir()), "/api/bundle", "/nowhere", "/../run.py"]
    for path in paths:
        answer = console.ask(path)
        assert answer.status == (404 if path in paths[-2:] else 200)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not {name.lower() for name in answer.headers} & {"access-control-allow-origin", "server", "set-cookie"}


def test_nothing_can_be_changed(console: Started, client: Client) -> None:
    before = client.bundle()
    for path in ("/", "/main.js", "/api/bundle", "/api/items", "/api/recommend", "/api/reasons", "/api/live"):
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            assert console.ask(path, method=method).status == 405
    console.ask("/api/recommend", body={"user_id": "somebody"})
    assert client.recommend(user_id="somebody").history_used == 0
    assert client.bundle() == before
    source = "".join(file.read_text() for file in Path(package.__file__).parent.glob("*.py"))
    assert [call for call in CHANGES if call in source] == []


class Recorded(recommender_pb2_grpc.RecommenderServicer):
    """Keeps the metadata of calls."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}

    def GetBundle(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        self.metadata = {each.key: each.value for each in context.invocation_metadata()}
        context.abort(grpc.StatusCode.NOT_FOUND, "there are no bundles")


def test_a_token_goes_to_the_server_and_nowhere_else(token: str, tmp_path: Path) -> None:
    seen = Recorded()
    served = grpc.server(futures.ThreadPoolExecutor(1))
    recommender_pb2_grpc.add_RecommenderServicer_to_server(seen, served)  # type: ignore[no-untyped-call]
    target = f"127.0.0.1:{served.add_insecure_port('127.0.0.1:0')}"
    served.start()
    log = tmp_path / "log"
    with running(log, "console", "--target", target, "--port", "0", FATHOM_TOKEN=token) as console:
        told = [console.ask(path) for path in ("/api/bundle", "/api/server", "/", "/api/live", "/api/items?text=a")]
        assert seen.metadata["authorization"] == f"Bearer {token}"
        assert [each.status for each in told[:4]] == [404, 200, 200, 404]
        assert told[0].json == {"error": "there are no bundles"}
        served.stop(0).wait()
        gone = console.ask("/api/bundle")
        assert (gone.status, target in gone.json["error"], "\n" in gone.json["error"]) == (502, True, False)
        shown = [*(each.body + repr(each.headers).encode() for each in [*told, gone]), repr(console.told).encode()]
    assert not any(token.encode() in text for text in shown)
    assert log.read_text() == ""


def test_a_token_that_cannot_be_sent_is_refused_without_being_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(AssertionError), running(log, "console", "--port", "0", FATHOM_TOKEN="sécret"):
        pass
    assert log.read_text().startswith("error: the value of authorization in metadata is not printable ASCII text")
    assert "cret" not in log.read_text()


def test_only_this_machine_is_listened_to_unless_that_is_wanted() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="--insecure opens it to a network"):
            listen(host, 0, insecure=False)
    with listen("0.0.0.0", 0, insecure=True) as opened, listen("localhost", 0, insecure=False):
        port = opened.getsockname()[1]
        with pytest.raises(ConfigError, match=re.escape(f"0.0.0.0:{port} cannot be used: ")):
            listen("0.0.0.0", port, insecure=True)
    with pytest.raises(ConfigError, match="cannot be used"):
        listen("192.0.2.1", 0, insecure=True)
