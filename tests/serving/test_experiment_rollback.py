"""A rollback while the experiments' files are read, replaced or cannot be written."""

import asyncio
import json
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fathom.client import AsyncClient
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.principal import ANYBODY_MAY
from fathom.serving.config import ServerSettings
from fathom.serving.experiments import states
from fathom.serving.experiments.running import RunningExperiments
from fathom.serving.experiments.shadows import Shadows
from fathom.serving.experiments.states import Phase, States
from fathom.serving.experiments.trial import Trial
from fathom.serving.server import Server
from fathom.serving.workers import Notice

ARMS = {"control": {"share": 0.5}, "next": {"share": 0.5, "bundle": "missing"}}
CANARY = {"arm": "next", "min_minutes": 0}


def written(path: Path, **more: Any) -> Path:
    found = {"unit": "request", "arms": ARMS, "primary": {"outcome": "click"}, "canary": CANARY, **more}
    path.write_text(json.dumps({"salt": "a-salt-of-tests", "experiments": {"e": found}}))
    return path


@pytest.fixture
async def experiments(tmp_path: Path) -> RunningExperiments:
    """One experiment with a canary, started."""
    bundles = Server(ServerSettings(), tmp_path).bundles
    found = RunningExperiments(
        written(tmp_path / "experiments.yaml"), tmp_path / "logs", Shadows(bundles), tell_workers=alone
    )
    await found.registry.load()
    await found.registry.change("e", Phase.RUNNING)
    return found


async def alone(*_: object) -> int:
    return 0


def phase(of: RunningExperiments) -> str:
    (found,) = of.registry.statuses()
    return found.phase


def trial_of(arm: str, of: RunningExperiments) -> Trial:
    """A request that has just got this arm."""
    while True:
        trial = of.begin(pb.RecommendRequest(item_ids=["item-1"]), ANYBODY_MAY, None)
        assert trial is not None, "nobody gets an arm"
        if trial.arms[0].arm == arm:
            return trial


def fail_until_rolled_back(of: RunningExperiments) -> None:
    """Requests of the canary fail, as many as it takes."""
    while phase(of) == "running":
        trial = trial_of("next", of)
        trial.observer.failed(trial, ValueError("no such bundle"), 1.0)
    assert phase(of) == "rolled back"


async def test_states_that_were_read_before_a_rollback_do_not_undo_it(
    experiments: RunningExperiments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, read = asyncio.get_running_loop(), States.read

    async def roll_back() -> None:
        fail_until_rolled_back(experiments)

    def read_just_before(self: States, name: str) -> states.ExperimentState:
        state = read(self, name)
        monkeypatch.setattr(States, "read", read)
        asyncio.run_coroutine_threadsafe(roll_back(), loop).result(10)
        return state

    monkeypatch.setattr(States, "read", read_just_before)
    # The file with the definitions has changed too, so all experiments are replaced.
    written(tmp_path / "experiments.yaml", alpha=0.04)
    await experiments.registry.load()
    assert phase(experiments) == "rolled back"
    assert experiments.begin(pb.RecommendRequest(item_ids=["item-1"]), ANYBODY_MAY, None) is None
    await experiments.close()
    assert States(tmp_path / "logs").read("e").phase is Phase.ROLLED_BACK


async def test_other_workers_follow_a_rollback_and_a_start_at_once(tmp_path: Path) -> None:
    file = written(tmp_path / "experiments.yaml")
    bundles = Server(ServerSettings(), tmp_path).bundles
    workers: list[RunningExperiments] = []

    async def tell(what: str, name: str) -> int:
        assert (what, name) == ("experiments", "e")
        for each in workers:
            await each.registry.follow()
        return 0

    for _ in range(2):
        workers.append(RunningExperiments(file, tmp_path / "logs", Shadows(bundles), tell_workers=tell, workers=2))
        await workers[-1].registry.load()
    one, other = workers
    await one.registry.change("e", Phase.RUNNING)
    assert phase(other) == "running"
    fail_until_rolled_back(one)
    await one.close()
    assert phase(other) == "rolled back"
    await other.close()


async def test_a_server_follows_what_another_worker_has_changed_as_soon_as_it_is_told(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    file, logs = written(tmp_path / "experiments.yaml"), tmp_path / "logs"
    async with Server(ServerSettings(port=0, experiments=file, experiments_log=logs), synthetic_bundle) as server:
        info = await server.start()
        async with AsyncClient(info.address) as client:
            await client.change_experiment("e", "start")
            States(logs).write("e", Phase.ROLLED_BACK, "next", "slow")
            told = server.notice(Notice(1, "experiments", "e"))
            assert told is not None
            await told
            (found,) = await client.experiments()
            assert found.phase == "rolled back"


async def test_a_rollback_that_cannot_be_written_holds_until_the_experiment_is_started_again(
    experiments: RunningExperiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(states, "write_json", broken)
        fail_until_rolled_back(experiments)
        await experiments.close()
    await experiments.registry.load()
    assert phase(experiments) == "rolled back"
    await experiments.registry.change("e", Phase.RUNNING)
    await experiments.registry.load()
    assert phase(experiments) == "running"
    await experiments.close()


async def test_a_canary_that_is_judged_by_a_request_from_before_a_reload_is_rolled_back_in_what_was_loaded(
    experiments: RunningExperiments,
) -> None:
    trial = trial_of("next", experiments)
    await experiments.registry.load()
    while phase(experiments) == "running":
        trial.observer.failed(trial, ValueError("no such bundle"), 1.0)
    assert phase(experiments) == "rolled back"
    await experiments.close()


async def test_what_has_been_started_anew_is_not_rolled_back_for_what_it_did_before(
    experiments: RunningExperiments, tmp_path: Path
) -> None:
    before = experiments.registry.experiments["e"]
    await experiments.registry.load()
    States(tmp_path / "logs", lambda: 1.0).write("e", Phase.RUNNING)
    await experiments.registry.load()
    experiments.registry.roll_back(before, "slow")
    assert phase(experiments) == "running"
    await experiments.close()


def broken(*_: object) -> None:
    raise OSError("no room")


def test_of_a_rollback_and_a_restart_by_another_process_the_restart_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = States(tmp_path, lambda: 1.0), States(tmp_path, lambda: 2.0)
    started, read = one.write("e", Phase.RUNNING), States.read
    restart = Thread(target=other.write, args=("e", Phase.RUNNING))

    def read_then_restart(self: States, name: str) -> states.ExperimentState:
        state = read(self, name)
        restart.start()
        # It has to wait until the rollback is written, else it is done before.
        restart.join(0.2)
        return state

    monkeypatch.setattr(States, "read", read_then_restart)
    one.roll_back("e", "next", "slow", started.since_s)
    restart.join(10)
    assert not restart.is_alive()
    assert read(one, "e").phase is Phase.RUNNING
