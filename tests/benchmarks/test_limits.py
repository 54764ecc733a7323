"""A small twin of the measurement against the physical limit: a real server and real echoes, few requests."""

from pathlib import Path

import pytest

from fathom.benchmarks.experiments.drawing import svg
from fathom.benchmarks.experiments.efficiency import layer_flops
from fathom.benchmarks.http2_load import closed
from fathom.benchmarks.record import load_run, save_run
from fathom.benchmarks.systems import limits, stages
from fathom.benchmarks.systems.c_echo import PROGRAMS, program_of, started_c_echo
from fathom.errors import UnavailableError
from fathom.runtime.bundle import Bundle


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds, and few histories, which may come twice."""
    for name, value in {"ROUNDS": 2, "REPEATED": 5, "MOST_PER_S": dict.fromkeys(limits.DEPTHS, 1_000)}.items():
        monkeypatch.setattr(limits, name, value)


@pytest.mark.usefixtures("quick")
def test_every_stage_of_every_depth_is_measured_beside_its_limit_and_drawn(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    result = limits.compare(synthetic_bundle, seconds=1.0, turns=1)
    assert [(row["depth"], row["stage"]) for row in result["rows"]] == [
        (depth, stage) for depth in limits.DEPTHS for stage in limits.STAGES
    ]
    spent = {(row["depth"], row["stage"]): row for row in result["rows"]}
    for depth in limits.DEPTHS:
        assert spent[depth, "transport"]["cpu_us"] > 0
        assert (spent[depth, "engine"]["least_us"] > 0) is (depth > 0)
    assert result["echoes_us"][limits.ECHO] > 0
    config = {"bundle": "b", "history": 50, "in_flight": 32, "turns": 1, "left_out": limits.left_out()}
    save_run("limits", config=config, result=result, folder=tmp_path)
    assert "Depth 16: " in limits.BENCHMARK.section(tmp_path)
    picture = svg(limits.limits_figure(load_run(tmp_path / "limits.json"))).decode()
    for name in ("depth 0", "depth 16", "limit", *limits.STAGES):
        assert name in picture


def test_all_that_stages_tell_is_in_one_stage_of_the_page() -> None:
    told = {*stages.LOOP_STAGES, *stages.ENGINE_STAGES, stages.POLLER, stages.GRPC_THREADS}
    shown = [part for parts in limits.STAGES.values() for part in parts]
    assert sorted(shown) == sorted(told)
    assert sum(limits.stage_us(dict.fromkeys(told, 1.0)).values()) == len(told)


def test_the_least_of_each_stage_follows_from_what_the_core_can_do(synthetic_bundle: Path) -> None:
    can = {"gflops": 1.0, "read_gb_s": 0.001}
    with Bundle.open(synthetic_bundle) as bundle:
        full, last = layer_flops("hstu", bundle.vectors.width, bundle.manifest.model.max_history)
        assert bundle.counting is not None
        counted = sum(int(bundle.counting.offsets[item + 1] - bundle.counting.offsets[item]) for item in (1, 2))
        deep, none = (limits.least_us(bundle, depth, [[1, 2]], can) for depth in (4, 0))
        size = bundle.vectors.rows.nbytes
    assert deep["engine"] == pytest.approx((3 * full + last) / 1e3)
    # To read a byte takes a microsecond here, and a batch of 32 reads the vectors once.
    assert deep["search"] == pytest.approx(size / limits.IN_FLIGHT)
    # It adds nothing to the scores of the synthetic bundle's exits.
    assert deep["counting"] == 0
    assert none == {"engine": 0, "search": 0, "counting": pytest.approx(8 * counted)}


def test_a_limit_without_an_echo_in_c_is_left_open() -> None:
    spent = {(0, stage): [2.0, 4.0] for stage in limits.STAGES}
    can = {"protobuf_us": 1.0}
    least = {0: dict.fromkeys(("engine", "search", "counting"), 0.5)}
    for echoed, floor in (({limits.ECHO: 150.0}, None), ({limits.ECHO: 150.0, "nginx": 9.0, "nghttpd": 3.0}, 3.0)):
        rows = limits.summary(spent, least, echoed, can)["rows"]
        assert {row["stage"]: row["least_us"] for row in rows}["transport"] == floor
        assert rows[0]["cpu_us"] == 3.0
        (shown,) = limits.by_depth({"result": {"rows": rows}}).values()
        everything = limits.totals(shown)
        # Of engine, search, counting, messages and queue, and of the transport where its least is known.
        assert everything["cpu_us"] == 18
        assert everything["least_us"] == 2.5 + (floor or 0)
        assert everything["left_us"] == (15 if floor is None else 18) - everything["least_us"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_server_in_c_answers_every_call_with_the_message(name: str) -> None:
    if program_of(name) is None:
        pytest.skip(f"{name} is not installed")
    answer = b"an answer\0with any bytes"
    with started_c_echo(name, answer) as server:
        report = closed(server.address, [b"a call"], 8, 1, 0.1, keep=True)
    assert report.counts() == {"OK": len(report.answers)}
    assert set(report.answers) == {answer}


def test_a_server_in_c_that_is_not_there_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.benchmarks.systems.c_echo.program_of", lambda _: None)
    monkeypatch.setattr(limits, "program_of", lambda _: None)
    with pytest.raises(UnavailableError, match="apt install nghttp2-server"), started_c_echo("nghttpd", b""):
        pass
    assert limits.left_out() == "Not installed here: nghttpd (nghttp2-server), nginx (nginx-light)."
