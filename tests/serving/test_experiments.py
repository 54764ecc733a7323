"""Experiments in a real server: arms, logs, shadows, canaries, and what becomes of an arm that fails."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fathom.client import AsyncClient, Event, ExperimentInfo, Outcome, Query
from fathom.errors import ConfigError, InvalidRequestError, NotFoundError
from fathom.experiments.exposures import read_log
from fathom.experiments.report import report_of
from fathom.exporter.bundle.derive import derive_bundle
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import ContextInfo
from fathom.serving.config import ServerSettings
from fathom.serving.experiments.states import Phase, States
from fathom.serving.experiments.treatment import NO_CHANGE, Change, capped
from fathom.serving.server import Server

HISTORY = ["item-1", "item-2"]
ARMS = {"control": {"share": 0.5}, "shallow": {"share": 0.5, "max_depth": 4}}
PRIMARY = {"outcome": "click"}


def experiment(**more: Any) -> dict[str, Any]:
    return {"unit": "session", "arms": ARMS, "primary": PRIMARY, **more}


def write(path: Path, **experiments: Any) -> Path:
    # JSON is YAML, and has no aliases.
    path.write_text(json.dumps({"salt": "a-salt-of-tests", "experiments": experiments}))
    return path


class Running:
    """A server, a client for it, and its logs."""

    def __init__(self, server: Server, client: AsyncClient, logs: Path) -> None:
        self.server, self.client, self.logs = server, client, logs

    async def ask(self, count: int, **options: Any) -> list[Any]:
        found: list[Any] = []
        for low in range(0, count, 10):
            visits = [f"visit-{n}" for n in range(low, min(low + 10, count))]
            asked = [self.client.recommend(HISTORY, session_id=visit, **options) for visit in visits]
            found += await asyncio.gather(*asked)
        return found

    async def stands(self, name: str) -> ExperimentInfo:
        (found,) = [each for each in await self.client.experiments() if each.name == name]
        return found

    async def until(self, true: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(20):
            while not await true():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running(path: Path, file: Path, **settings: Any) -> AsyncIterator[Running]:
    logs = file.parent / "logs"
    chosen = {"port": 0, "experiments": file, "experiments_log": logs, "history": "memory", "policy": "deepest"}
    async with Server(ServerSettings(**chosen | settings), path) as server:
        info = await server.start()
        async with AsyncClient(info.address) as client:
            yield Running(server, client, logs)


async def test_units_keep_their_arm_and_everything_is_logged_and_reported(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "experiments.yaml", shallower=experiment())
    async with running(synthetic_bundle, file) as it:
        assert (await it.stands("shallower")).phase == "stopped"
        assert (await it.ask(1))[0].experiments == {}
        assert (await it.client.change_experiment("shallower", "start")).phase == "running"
        answers = await it.ask(60)
        again = await it.ask(60)
        arms = [each.experiments["shallower"] for each in answers]
        assert arms == [each.experiments["shallower"] for each in again]
        assert {arm: each.depth for arm, each in zip(arms, answers, strict=True)} == {"control": 16, "shallow": 4}
        assert len({each.request_id for each in answers}) == 60
        assert (await it.ask(1, depth=8))[0].experiments == {}
        assert (await it.client.recommend(HISTORY)).experiments == {}
        clicks = [Outcome(each.request_id, "click", item_id=each.items[0].id) for each in answers[:20]]
        assert await it.client.report_outcomes(clicks) == 20
        assert await it.client.report_outcomes([Outcome(answers[0].request_id, "glance")]) == 0
        stands = await it.stands("shallower")
        counts = Counter(arms)
        assert {arm: each.requests for arm, each in stands.arms.items()} == {arm: 2 * n for arm, n in counts.items()}
    log = read_log(tmp_path / "logs" / "shallower")
    rows = log.exposures.to_dicts()
    assert len(rows) == 120
    assert {(row["arm"], row["depth"]) for row in rows} == {("control", 16), ("shallow", 4)}
    assert all(row["propensity"] == 0.5 and len(row["items"]) == 10 and row["latency_ms"] > 0 for row in rows)
    assert len({row["unit"] for row in rows}) == 60
    assert "visit" not in str(rows)
    assert len(log.outcomes) == 20
    report = report_of(log)
    assert {arm.name: arm.users for arm in report.arms} == counts


async def test_a_user_is_a_unit_and_its_events_before_the_start_are_a_covariate(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "experiments.yaml", shallower=experiment(unit="user"))
    async with running(synthetic_bundle, file) as it:
        await it.client.append_events("ann", [Event(str(n), f"item-{n}", 1_000 + n) for n in range(4)])
        await it.client.change_experiment("shallower", "start")
        answer = await it.client.recommend(user_id="ann", request_id="mine")
        assert (answer.request_id, list(answer.experiments)) == ("mine", ["shallower"])
        (result,) = await it.client.recommend_many([Query(user_id="ann")])
        assert not isinstance(result, Exception)
        assert result.experiments == answer.experiments
    (row, _) = read_log(tmp_path / "logs" / "shallower").exposures.to_dicts()
    assert (row["request_id"], row["covariate"]) == ("mine", 4.0)
    assert "ann" not in row["unit"]


async def test_an_experiment_is_promoted_for_everybody_and_stopped_for_all(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "experiments.yaml", shallower=experiment())
    async with running(synthetic_bundle, file) as it:
        promoted = await it.client.change_experiment("shallower", "promote", arm="shallow")
        assert (promoted.phase, promoted.arm) == ("promoted", "shallow")
        assert {(each.depth, *each.experiments) for each in await it.ask(20)} == {(4,)}
        await it.client.change_experiment("shallower", "stop")
        assert {each.depth for each in await it.ask(20)} == {16}
        with pytest.raises(NotFoundError, match="has no arm 'nothing'"):
            await it.client.change_experiment("shallower", "promote", arm="nothing")
        with pytest.raises(NotFoundError, match="'other' is not in the server's file; there: shallower"):
            await it.client.change_experiment("other", "start")
        await it.client.change_experiment("shallower", "promote", arm="shallow")
    async with running(synthetic_bundle, file) as it:
        assert {each.depth for each in await it.ask(5)} == {4}


async def test_another_server_and_a_changed_file_are_followed(synthetic_bundle: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "experiments.yaml", shallower=experiment())
    async with running(synthetic_bundle, file) as one, running(synthetic_bundle, file) as other:
        await one.client.change_experiment("shallower", "start")

        async def runs() -> bool:
            return bool((await other.ask(1))[0].experiments)

        await other.until(runs)
        more = {"control": {"share": 0.0, "up_to": 0.5}, "shallow": {"share": 0.5, "max_depth": 8}}
        write(tmp_path / "new.yaml", shallower=experiment(arms=more)).replace(file)

        async def changed() -> bool:
            return {each.depth for each in await one.ask(20) if each.experiments} == {8}

        await one.until(changed)
        file.write_text("salt: x")
        assert (await one.stands("shallower")).phase == "running"


async def test_arms_may_have_bundles_policies_and_rules(
    synthetic_bundle: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    for name, path in (("shop", synthetic_bundle), ("next", make_bundle(strategy="nested"))):
        shutil.copytree(path, tmp_path / "bundles" / name / "1")
    arms = {
        "control": {"share": 0.2},
        "next": {"share": 0.2, "bundle": "next"},
        "rule": {"share": 0.2, "policy": "rule"},
        "pinned": {"share": 0.2, "rules": {"pins": [{"itemId": "item-40", "position": 1}]}},
        "fixed": {"share": 0.2, "depth": 8},
    }
    file = write(tmp_path / "experiments.yaml", many=experiment(arms=arms))
    async with running(tmp_path / "bundles", file, default_bundle="shop") as it:
        await it.client.change_experiment("many", "start")
        by_arm = {each.experiments["many"]: each for each in await it.ask(60)}
        versions = {each.name: each.version for each in it.server.bundles}
        assert by_arm.keys() == arms.keys()
        assert {arm: each.bundle_version for arm, each in by_arm.items()} == {
            arm: versions["next" if arm == "next" else "shop"] for arm in arms
        }
        assert by_arm["rule"].reason in ("simple", "complex")
        assert by_arm["pinned"].items[0].id == "item-40"
        assert by_arm["fixed"].depth == 8
        assert (await it.ask(1, bundle="shop"))[0].experiments == {}


async def test_an_arm_that_cannot_answer_costs_nobody_an_answer_and_is_rolled_back(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    arms = {"control": {"share": 0.5}, "broken": {"share": 0.5, "bundle": "missing"}}
    canary = {"arm": "broken", "min_requests": 10, "min_minutes": 0}
    file = write(tmp_path / "experiments.yaml", broken=experiment(arms=arms, canary=canary))
    async with running(synthetic_bundle, file) as it:
        await it.client.change_experiment("broken", "start")
        answers = [each for _ in range(4) for each in await it.ask(40)]
        assert all(len(each.items) == 10 for each in answers)
        assert {arm for each in answers for arm in each.experiments.values()} == {"control"}
        stands = await it.stands("broken")
        assert (stands.phase, stands.arm) == ("rolled back", "broken")
        assert "of its requests failed" in stands.reason
        assert stands.arms["broken"].failed == stands.arms["broken"].requests > 0
        assert not any(each.experiments for each in await it.ask(20))
    rows = read_log(tmp_path / "logs" / "broken").exposures.to_dicts()
    assert {(row["arm"], row["error"]) for row in rows} == {("control", False), ("broken", True)}
    assert States(tmp_path / "logs").read("broken").phase is Phase.ROLLED_BACK


async def test_what_an_arms_bundle_cannot_be_asked_is_no_mistake_of_the_caller(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(synthetic_bundle, tmp_path / "bundles" / "next" / "1")
    context = ContextInfo(features={"country": 0})
    with Bundle.open(synthetic_bundle) as bundle:
        (tmp_path / "bundles" / "main").mkdir()
        derive_bundle(bundle, tmp_path / "bundles" / "main" / "1", {}, context=context)
    arms = {"control": {"share": 0.5}, "next": {"share": 0.5, "bundle": "next"}}
    file = write(tmp_path / "experiments.yaml", e=experiment(arms=arms))
    async with running(tmp_path / "bundles", file, default_bundle="main") as it:
        await it.client.change_experiment("e", "start")
        answers = await it.ask(40, context={"country": "DE"})
        assert all(len(each.items) == 10 for each in answers)
        stands = (await it.stands("e")).arms
        assert stands["next"].failed == stands["next"].requests > 0
        assert stands["control"].failed == 0
        before = stands["next"].requests
        with pytest.raises(InvalidRequestError, match="this bundle's are: country"):
            await it.ask(10, context={"weather": "rain"})
        assert (await it.stands("e")).arms["next"].requests == before


async def test_a_canary_that_agrees_too_little_is_rolled_back_although_it_answers(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    arms = {"control": {"share": 0.2}, "other": {"share": 0.8, "depth": 4}}
    canary = {"arm": "other", "min_agreement": 0.95, "max_error_rate": None}
    file = write(tmp_path / "experiments.yaml", canary=experiment(arms=arms, canary=canary))
    async with running(synthetic_bundle, file) as it:
        await it.client.change_experiment("canary", "start")

        async def rolled_back() -> bool:
            assert {len(each.items) for each in await it.ask(8)} == {10}
            return (await it.stands("canary")).phase == "rolled back"

        await it.until(rolled_back)
        assert "it lacks" in (await it.stands("canary")).reason


async def test_a_callers_own_mistakes_roll_nothing_back(synthetic_bundle: Path, tmp_path: Path) -> None:
    arms = {"control": {"share": 0.5}, "next": {"share": 0.5, "max_depth": 4}}
    canary = {"arm": "next", "min_requests": 10, "min_minutes": 0}
    file = write(tmp_path / "experiments.yaml", e=experiment(arms=arms, canary=canary))
    async with running(synthetic_bundle, file) as it:
        await it.client.change_experiment("e", "start")
        for n in range(60):
            with pytest.raises(NotFoundError):
                await it.client.recommend(HISTORY, session_id=f"v{n}", profile="nope")
        assert (await it.stands("e")).phase == "running"


async def test_a_file_with_a_mistake_keeps_nobody_from_stopping_and_rolling_back(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    arms = {"control": {"share": 0.5}, "broken": {"share": 0.5, "bundle": "missing"}}
    file = write(tmp_path / "experiments.yaml", one=experiment(), two=experiment(arms=arms, canary={"arm": "broken"}))
    async with running(synthetic_bundle, file) as it:
        for name in ("one", "two"):
            await it.client.change_experiment(name, "start")
        file.write_text("salt: [")
        assert (await it.client.change_experiment("one", "stop")).phase == "stopped"
        answers = [each for _ in range(10) for each in await it.ask(40)]
        assert all(len(each.items) == 10 and "one" not in each.experiments for each in answers)
        assert (await it.stands("two")).phase == "rolled back"


async def test_a_ramp_up_keeps_the_rows_that_wait_to_be_written(synthetic_bundle: Path, tmp_path: Path) -> None:
    small = {"control": {"share": 0.1, "up_to": 0.5}, "shallow": {"share": 0.1, "up_to": 0.5, "max_depth": 4}}
    large = {name: {**arm, "share": 0.5} for name, arm in small.items()}
    file = write(tmp_path / "experiments.yaml", e=experiment(arms=small))
    async with running(synthetic_bundle, file) as it:
        await it.client.change_experiment("e", "start")
        before = {n: each.experiments for n, each in enumerate(await it.ask(100)) if each.experiments}
        write(tmp_path / "new.yaml", e=experiment(arms=large)).replace(file)

        async def grown() -> bool:
            return all(each.experiments for each in await it.ask(100))

        await it.until(grown)
        after = await it.ask(100)
        assert all(after[n].experiments == arms for n, arms in before.items())
        counted = sum(arm.requests for arm in (await it.stands("e")).arms.values())
    assert len(read_log(tmp_path / "logs" / "e").exposures) == counted


async def test_what_shadows_leave_in_the_cache_goes_with_its_user(tiny_build: Path, tmp_path: Path) -> None:
    shadow = {"unit": "user", "arms": {"control": {"share": 1.0}}, "shadows": {"same": {"share": 1.0}}}
    file = write(tmp_path / "experiments.yaml", e=shadow)
    async with running(tiny_build / "bundle", file) as it:
        pipeline = it.server.bundles.choose("").pipeline
        warmed_up = pipeline.cached
        await it.client.change_experiment("e", "start")
        await it.client.append_events("ann", [Event(str(n), f"i{n}", 1_000 + n) for n in range(12)])

        async def copied() -> bool:
            await it.client.recommend(user_id="ann")
            return (await it.stands("e")).arms["same"].requests > 0

        await it.until(copied)
        assert pipeline.cached > warmed_up
        await it.client.delete_user("ann")
        assert pipeline.cached == warmed_up


async def test_shadows_answer_copies_that_nobody_waits_for(synthetic_bundle: Path, tmp_path: Path) -> None:
    shadows = {"shallow": {"share": 1.0, "depth": 4}, "same": {"share": 1.0}}
    arms = {"control": {"share": 1.0}}
    shadow = {"unit": "session", "arms": arms, "shadows": shadows}
    file = write(tmp_path / "experiments.yaml", shadow=shadow)
    async with running(synthetic_bundle, file) as it:
        await it.client.change_experiment("shadow", "start")
        for n in range(12):
            answer = await it.client.recommend(HISTORY, session_id=f"v{n}")
            assert (answer.depth, answer.experiments) == (16, {"shadow": "control"})

        async def copied() -> bool:
            arms = (await it.stands("shadow")).arms
            return min(arms["shallow"].requests, arms["same"].requests) >= 5

        await it.until(copied)
    rows = read_log(tmp_path / "logs" / "shadow").exposures
    by_arm = {row["arm"]: row for row in rows.to_dicts()}
    assert "control" in by_arm


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome("", "click"), "request_id has 0 bytes"),
        (Outcome("r", ""), "kind has 0 bytes"),
        (Outcome("r", "click", float("inf")), "value is inf"),
        (Outcome("r", "click", timestamp=-1), "a timestamp is negative"),
    ],
)
async def test_an_outcome_that_is_none_is_refused(
    synthetic_bundle: Path, tmp_path: Path, outcome: Outcome, reason: str
) -> None:
    async with running(synthetic_bundle, write(tmp_path / "experiments.yaml", e=experiment())) as it:
        with pytest.raises(InvalidRequestError, match=reason):
            await it.client.report_outcomes([outcome])
        with pytest.raises(InvalidRequestError, match="send 1 to 1000"):
            await it.client.report_outcomes([])


async def test_a_server_without_experiments_says_so(synthetic_bundle: Path) -> None:
    async with Server(ServerSettings(port=0), synthetic_bundle) as server:
        info = await server.start()
        async with AsyncClient(info.address) as client:
            for call in (client.experiments(), client.report_outcomes([Outcome("r", "click")])):
                with pytest.raises(InvalidRequestError, match="this server runs no experiments"):
                    await call


async def test_a_file_that_is_wrong_keeps_the_server_from_starting(synthetic_bundle: Path, tmp_path: Path) -> None:
    rules = {"control": {"share": 0.5}, "odd": {"share": 0.5, "rules": {"pinz": []}}}
    for file, reason in (
        (write(tmp_path / "rules.yaml", e=experiment(arms=rules)), r"rules\.yaml: e\.odd: rules: .*pinz"),
        (tmp_path / "missing.yaml", "no such file"),
    ):
        settings = ServerSettings(port=0, experiments=file, experiments_log=tmp_path / "logs")
        async with Server(settings, synthetic_bundle) as server:
            with pytest.raises(ConfigError, match=reason):
                await server.start()


def test_changes_of_several_layers_come_together_and_the_first_wins() -> None:
    one, two = Change(bundle="a", depth=4), Change(bundle="b", policy="rule")
    assert Change.together([NO_CHANGE, one, two]) == Change(bundle="a", depth=4, policy="rule")
    request = pb.RecommendRequest(bundle="own", rules=pb.Rules())
    assert Change(bundle="a", rules=pb.Rules(diversity=1)).prepared(request) == request


def test_a_capped_profile_keeps_its_rule_within_its_depths() -> None:
    from fathom.edge_profiles.profile import load_profile

    cloud = load_profile("cloud")
    found = capped(cloud, 8)
    assert max(found.depths) == 8
    assert found.shallow in found.depths
    assert found.deep in found.depths
    with pytest.raises(NotFoundError, match="no depth up to 1"):
        capped(cloud, 1)
