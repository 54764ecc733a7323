"""A small twin of the soak: real servers, exchanged bundles, a killed worker."""

import asyncio
from itertools import islice
from pathlib import Path

import pytest

from fathom.benchmarks.record import save_run
from fathom.benchmarks.server import started
from fathom.benchmarks.systems import soak
from fathom.benchmarks.systems.disturber import Disturber, moments, publish_version, workers_of
from fathom.client import AsyncClient
from fathom.errors import ConfigError
from fathom.runtime.manifest_file import read_manifest


def test_a_server_is_watched_minute_by_minute(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WARM_UP_S": 0.1, "MINUTE_S": 0.5, "REST_S": 0.0, "PROBES": 40}.items():
        monkeypatch.setattr(soak, name, value)
    histories = [[f"item-{number}" for number in range(length)] for length in (3, 5, 8)]
    with started(synthetic_bundle, "--history", "memory") as server:
        disturber = Disturber(server.pid, synthetic_bundle, tmp_path)
        result = asyncio.run(soak.minute_by_minute(server, histories, 2, disturber, (0.0, 0.0)))
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
        soak.Ended(9.9, 10.1, "UnavailableError"),
        soak.Ended(10.5, 10.6, "UnavailableError"),
        soak.Ended(12.0, 12.1, "UnavailableError"),
        soak.Ended(9.9, 10.1, "OK"),
    ]
    found = soak.failures(ended, disturber)
    assert (found["failed"], found["failed_without_a_kill"]) == (3, 1)


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
