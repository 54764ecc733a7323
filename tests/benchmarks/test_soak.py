"""A small twin of the soak: real servers, exchanged bundles, a killed worker."""

import asyncio
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fathom.benchmarks.record import save_run
from fathom.benchmarks.server import catalogue_ids, started
from fathom.benchmarks.systems import soak
from fathom.benchmarks.systems.soak import mixed, run
from fathom.benchmarks.systems.soak.disturber import Disturber, moments, publish_version, workers_of
from fathom.benchmarks.systems.soak.judgement import Check, judge
from fathom.benchmarks.systems.soak.page import verdict
from fathom.benchmarks.systems.soak.processes import Used, memory_by_role
from fathom.client import AsyncClient
from fathom.errors import ArtefactError, ConfigError
from fathom.runtime.manifest_file import read_manifest

HISTORIES = [[f"item-{number}" for number in range(length)] for length in (3, 5, 8)]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of half a second."""
    for name, value in {"WARM_UP_S": 0.1, "MINUTE_S": 0.5, "REST_S": 0.0, "PROBES": 40}.items():
        monkeypatch.setattr(run, name, value)


@pytest.mark.usefixtures("short")
def test_a_server_is_watched_minute_by_minute(synthetic_bundle: Path, tmp_path: Path) -> None:
    with started(synthetic_bundle, "--history", "memory") as server:
        disturber = Disturber(server.pid, synthetic_bundle, tmp_path)
        result = asyncio.run(run.minute_by_minute(server, HISTORIES, run.Plan(2), disturber))
    assert result["statuses"].keys() == {"OK"}
    assert result["failed"] == result["kills"] == result["exchanged"] == 0
    assert result["before"]["rss_mb"] > 0
    assert result["transport"] in ("http2", "aio")
    config = {"minutes": 2, "workers": 1, "reloads": 0, "kills": 0}
    save_run("soak", config=config, result=result, folder=tmp_path / "results")
    assert "2 minutes at half of the capacity" in soak.BENCHMARK.section(tmp_path / "results")


def test_a_bundle_is_exchanged_and_the_oldest_worker_is_killed(synthetic_bundle: Path, tmp_path: Path) -> None:
    publish_version(synthetic_bundle, tmp_path, 1)

    async def exchange(disturber: Disturber) -> None:
        async with AsyncClient(server.address) as client:
            await disturber.exchange(client)

    with started(tmp_path, "--workers", "2") as server:
        disturber = Disturber(server.pid, synthetic_bundle, tmp_path)
        asyncio.run(exchange(disturber))
        oldest = min(each.create_time() for each in workers_of(server.pid))
        disturber.kill()
        while any(each.create_time() == oldest for each in workers_of(server.pid)):
            pass
    assert disturber.exchanged == 1
    assert disturber.errors == []
    assert len(disturber.kills_s) == 1


def test_only_calls_that_a_killed_worker_had_or_may_have_had_are_explained_by_it(tmp_path: Path) -> None:
    disturber = Disturber(0, tmp_path, tmp_path)
    disturber.kills_s = [10.0]
    ended = [
        run.Ended(9.9, 10.1, "UnavailableError"),
        run.Ended(10.5, 10.6, "UnavailableError"),
        run.Ended(12.0, 12.1, "UnavailableError"),
        run.Ended(9.9, 10.1, "OK"),
        # No rule refuses a call with a wrong answer, and no killed worker gives one.
        run.Ended(9.9, 10.1, "WrongAnswerError"),
        run.Ended(20.0, 20.1, run.REFUSED),
    ]
    found = run.failures(ended, disturber)
    assert (found["failed"], found["failed_without_a_kill"], found["refused"]) == (4, 2, 1)


def test_reloads_and_kills_come_at_even_distances() -> None:
    assert list(islice(moments(2, 1), 4)) == [(900, "reload"), (900, "kill"), (900, "reload"), (1_800, "reload")]
    assert list(moments(0, 0)) == []


def test_a_copy_has_a_version_of_its_own(synthetic_bundle: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        publish_version(synthetic_bundle, tmp_path, number)
    versions = {read_manifest(path).version for path in (synthetic_bundle, tmp_path / "shop/1", tmp_path / "shop/2")}
    assert len(versions) == 3


def test_kills_need_somebody_who_replaces_the_killed() -> None:
    with pytest.raises(ConfigError, match="--workers 2"):
        soak.check(workers=1, kills=1.0)


def test_the_load_is_a_share_of_the_capacity() -> None:
    for load in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="--load"):
            soak.check(workers=1, kills=0.0, load=load)


@pytest.mark.usefixtures("short")
def test_calls_of_all_kinds_are_answered_while_bundles_are_exchanged_and_a_worker_is_killed(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("polars")
    monkeypatch.setattr(run, "MINUTE_S", 2.0)
    monkeypatch.setattr(run, "PROBES", 200)
    # Every kind as often as any other, so that none is missing in so short a time; and what expires does so in it.
    monkeypatch.setattr(mixed, "SHARES", dict.fromkeys(mixed.SHARES, 1))
    monkeypatch.setattr(mixed, "LEFT_S", 3.0)
    repository = tmp_path / "repository"
    publish_version(synthetic_bundle, repository, 1)
    with started(repository, *soak.server_options(tmp_path, 2, mixed=True)) as server:
        disturber = Disturber(server.pid, synthetic_bundle, repository, kills_newest=True)
        plan, known = run.Plan(3, 0.3, reloads=1_200, kills=600), catalogue_ids(synthetic_bundle)
        result = asyncio.run(run.minute_by_minute(server, HISTORIES, plan, disturber, known))
    # Here other tests keep the machine busy, and a call may be late; the soak itself forgives none.
    assert result["failed_without_a_kill"] <= result["requests"] // 500, result["first_errors"]
    assert result["kinds"].keys() == mixed.SHARES.keys()
    assert all(found["statuses"].get("OK") for found in result["kinds"].values()), result["kinds"]
    assert all(result["called"].values()), result["called"]
    assert result["exchanged"] >= 1
    assert result["exchange_errors"] == []
    assert result["kills"] == 1
    assert result["memory"]["parent"]["first_mb"] > 0
    assert result["memory"]["never_killed"]["workers"] == 1
    assert result["alarms"]["changed"]["answers"] > 0
    config = {"minutes": 3, "workers": 2, "load": 0.3, "reloads": 1_200, "kills": 600, "mixed": True}
    result["checks"] = [each.to_json() for each in judge(config, result)]
    save_run("soak-mixed", config=config, result=result, folder=tmp_path / "results")
    section = soak.BENCHMARK.section(tmp_path / "results")
    assert "3 minutes at 30% of the capacity, all kinds of calls, with reloads and kills" in section
    failed = result["failed_without_a_kill"]
    assert f"| calls that failed, refused by no rule and in no killed worker | {failed} | ≤ 0 |" in section


def good_run() -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the result of a run that passes."""
    config = {"minutes": 3, "workers": 2, "load": 0.6, "reloads": 40.0, "kills": 20.0, "mixed": True}
    row = {"statuses": {"OK": 10}, "p50_ms": 1.0, "p99_ms": 2.0, "rss_mb": 100.0, "threads": 30, "files": 80}
    grown = {"first_mb": 100.0, "last_mb": 101.0, "grown": 0.01}
    result = {
        "requests": 30,
        "refused": 0,
        "failed_without_a_kill": 0,
        "exchanged": 2,
        "exchange_errors": [],
        "kills": 1,
        "kinds": {kind: {"statuses": {"OK": 1}} for kind in mixed.SHARES},
        "called": dict.fromkeys(mixed.METHODS, 1),
        "rows": [{"minute": minute, **row} for minute in range(3)],
        "memory": {"parent": grown, "never_killed": {"workers": 1, **grown}, "replaced": []},
        "p99_ms_first_third": 2.0,
        "p99_ms_last_third": 2.1,
        "client_cpu": 0.3,
        "alarms": {"certified": True, "new": {"alarm": 3, "recertified": 1}},
    }
    return config, result


def test_a_run_without_a_fault_passes_every_check() -> None:
    checks = judge(*good_run())
    assert [each.what for each in checks if not each.passed] == []
    assert verdict(checks) == f"**Passed**: all {len(checks)} checks."


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("failed_without_a_kill", 1, "calls that failed"),
        ("refused", 1, "refused by rule"),
        ("kinds.items.statuses", {"ConnectError": 5}, "kinds of calls"),
        ("called.DeleteUser", 0, "methods"),
        ("rows", [], "minutes measured"),
        ("exchange_errors", ["refused"], "reloads that failed"),
        ("exchanged", 0, "bundles exchanged"),
        ("kills", 0, "workers killed"),
        ("memory.parent.grown", 0.021, "parent"),
        ("memory.parent.grown", float("nan"), "parent"),
        ("memory.never_killed", None, "never killed"),
        ("p99_ms_last_third", 3.0, "p99"),
        ("client_cpu", 0.9, "client"),
        ("alarms.new.alarm", 0, "alarm"),
        ("alarms.new.recertified", 0, "certified anew"),
    ],
)
def test_each_fault_fails_its_check(path: str, value: object, what: str) -> None:
    config, result = good_run()
    *parents, last = path.split(".")
    changed: Any = result
    for name in parents:
        changed[name] = deepcopy(changed[name])
        changed = changed[name]
    changed[last] = value
    if path == "rows":
        result["rows"] = good_run()[1]["rows"][:2]
    (failed,) = [each for each in judge(config, result) if not each.passed]
    assert what in failed.what
    assert failed.what in verdict([failed])


def test_a_figure_that_is_missing_or_is_no_number_fails() -> None:
    assert not Check("growth", None, 1.0).passed
    assert not Check("growth", float("nan"), 1.0).passed
    assert not Check("count", float("nan"), 1.0, at_least=True).passed
    assert Check("count", 1.0, 1.0, at_least=True).passed


def test_a_stored_verdict_that_its_figures_do_not_give_is_refused(tmp_path: Path) -> None:
    config, result = good_run()
    result["checks"] = [each.to_json() for each in judge(config, result)]
    result["failed_without_a_kill"] = 1
    levels = {"rss_mb": 100.0, "threads": 30, "files": 80}
    rest = {"transport": "http2", "offered_per_s": 10.0, "statuses": {"OK": 30}, "failed": 1, "rss_grown": 0.0}
    result |= {**rest, "before": levels, "after": levels, "threads": [30], "files": [80]}
    save_run("soak-mixed", config=config, result=result, folder=tmp_path)
    with pytest.raises(ArtefactError, match="not those that its figures give"):
        soak.BENCHMARK.section(tmp_path)


def used(pid: int, rss_mb: float, age_s: float) -> Used:
    return Used(pid, pid != 1, age_s, rss_mb, 10, 20)


def test_memory_is_compared_like_with_like_whoever_is_killed() -> None:
    """Three minutes of one reading: worker 2 stays, worker 3 is killed and 4 takes its place, small at first."""
    minutes = [
        [[used(1, 50, 100), used(2, 100, 90), used(3, 80, 70)]],
        [[used(1, 50, 160), used(2, 100, 150), used(4, 20, 5)]],
        [[used(1, 51, 220), used(2, 110, 210), used(4, 84, 65)]],
    ]
    found = memory_by_role(minutes, parent=1)
    assert found["parent"] == {"first_mb": 50, "last_mb": 51, "grown": 0.02}
    assert found["never_killed"] == {"workers": 1, "first_mb": 100, "last_mb": 110, "grown": 0.1}
    assert found["replaced"] == [
        {"age_min": 1, "workers": [1, 1], "first_mb": 80, "last_mb": 84, "grown": 0.05},
    ]


def test_where_every_worker_was_killed_nobody_is_said_to_have_stayed() -> None:
    minutes = [[[used(1, 50, 100), used(2, 100, 90)]], [[used(1, 50, 160), used(3, 20, 30)]]]
    found = memory_by_role(minutes, parent=1)
    assert found["never_killed"] is None
    assert found["replaced"] == []
