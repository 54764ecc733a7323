"""Small twins of the measurements of the server beside an echo: real servers, few requests."""

from pathlib import Path

import pytest

from fathom.benchmarks import record
from fathom.benchmarks.http2_load import closed
from fathom.benchmarks.load import made_up
from fathom.benchmarks.peer_servers import by_hand
from fathom.benchmarks.server import ThreadTime, catalogue_ids, on_core, started, started_module, threads_of
from fathom.benchmarks.systems import front
from fathom.errors import FathomError, UnavailableError
from fathom.protos.fathom.v1 import recommender_pb2 as pb


def test_all_sides_take_turns_and_a_page_can_be_made_of_it(synthetic_bundle: Path, tmp_path: Path) -> None:
    result = front.compare(synthetic_bundle, seconds=0.1, turns=1)
    assert result["engine_ms"] > 0
    assert result["engine_rested_ms"] > 0
    for load in ("depth_4", "depth_16", "alone"):
        by_hand = [front.BY_HAND] if load == "alone" else []
        assert list(result[load]) == [*front.TRANSPORTS, *by_hand, "echo"]
        for figures in result[load].values():
            assert figures["requests_per_s"] > 0
            assert figures["cpu_us"] == pytest.approx(sum(figures[f"{part}_us"] for part in front.PARTS), abs=0.01)
        assert result[load]["echo"]["of_echo"] == 1
        assert result[load]["echo"]["engine_us"] == 0
    config = {"history": 50, "in_flight": 32, "turns": 1}
    record.save_run("front", config=config, result=result, folder=tmp_path)
    page = front.BENCHMARK.section(tmp_path)
    assert "| echo |" in page


def test_processor_time_is_split_by_what_threads_do() -> None:
    before = {1: ThreadTime("python", 1.0), 2: ThreadTime("python", 1.0), 3: ThreadTime("event_engine", 0.5)}
    after = {
        1: ThreadTime("python", 1.5),
        2: ThreadTime("python", 3.0),
        3: ThreadTime("event_engine", 0.75),
        4: ThreadTime("python", 0.25),
    }
    assert front.split(before, after, 1, engine=True) == {"engine": 2.0, "loop": 0.5, "poller": 0.25, "grpc": 0.25}
    assert front.split(before, after, 1, engine=False) == {"engine": 0.0, "loop": 0.5, "poller": 2.25, "grpc": 0.25}


def test_a_server_by_hand_gives_the_same_items_and_a_call_without_an_answer_ends_the_measurement(
    synthetic_bundle: Path,
) -> None:
    messages = made_up(catalogue_ids(synthetic_bundle), 4, 20, "a seed")
    answers = []
    with started(synthetic_bundle) as server, started_module(by_hand.__name__, str(synthetic_bundle)) as bare:
        for side in (server, bare):
            report = front.checked(closed(side.address, messages, 4, 1, 0.05, keep=True), "it")
            answers.append([[item.id for item in pb.RecommendResponse.FromString(raw).items] for raw in report.answers])
        bad = [pb.RecommendRequest(k=10_000, depth=4).SerializeToString()]
        with pytest.raises(FathomError, match="it: too many calls were not answered"):
            front.checked(closed(server.address, bad, 4, 1, 0.05), "it")
        assert threads_of(bare.pid)[bare.pid].cpu_s > 0
    both = min(map(len, answers))
    assert both
    assert answers[0][:both] == answers[1][:both]


def test_a_process_has_the_core_it_was_started_on() -> None:
    with on_core(0):
        first = record.machine()["cores"]
    assert first == 1
    assert record.machine()["cores"] >= 1


def test_a_module_that_ends_before_it_serves_is_an_error() -> None:
    with pytest.raises(UnavailableError, match="did not start"), started_module("stat"):
        pass
