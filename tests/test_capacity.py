"""`fathom capacity`: costs are measured on a real server, and cores, machines and money follow from them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fathom.cli import app
from fathom.edge_profiles.profile import load_profile
from fathom.errors import ArtefactError, ConfigError, FathomError
from fathom.tools.capacity import measure as measuring
from fathom.tools.capacity import plan as planning
from fathom.tools.capacity import scheduling
from fathom.tools.capacity.costs import CellCost, Load, MeasuredCosts
from fathom.tools.capacity.measure import Questions, _cell, _Found, measure
from fathom.tools.capacity.plan import HOURS_A_MONTH, CoreModel, Plan, Wish, plan
from fathom.tools.capacity.report import measured_facts, plan_facts

PROFILE = load_profile("cloud")
LONGEST = 32


def cell(depth: int, history: int, fixed_us: float, each_us: float) -> CellCost:
    loads = (Load(batch=1, cpu_us=fixed_us + each_us),)
    return CellCost(depth=depth, history=history, fixed_us=fixed_us, each_us=each_us, engine_share=0.7, loads=loads)


COSTS = MeasuredCosts(
    bundle="made-up",
    bundle_version="1",
    profile="cloud",
    machine="none",
    created="2026-01-01T00:00:00Z",
    mix={4: 0.5, 16: 0.5},
    histories=(10, 16, 20, 32),
    histories_of="made up",
    cells=tuple(cell(depth, n, 50 * depth + 200, 60 + 2.5 * depth * n) for depth in (4, 16) for n in (0, 16, 32)),
    count_us=100.0,
    choosing_us=20.0,
    spread=0.0,
    jitter=(0.9, 1.1),
    delays_us=(20.0, 20.0, 1000.0),
    stalls_per_s=0.0,
    stalls_us=(0.0,),
    wire_us=50.0,
    mixes=True,
    process_mb=256.0,
    cache_mb=64.0,
    event_bytes=100.0,
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "REQUESTS", 1000)
    monkeypatch.setattr(scheduling, "LOOP_S", 0.05)
    monkeypatch.setattr(scheduling, "WAKES", 20)
    monkeypatch.setattr(measuring, "ROUTED", 100)


def planned(**changes: Any) -> Plan:
    return plan(Wish(**{"users": 5e6, "requests_per_day": 20, **changes}), COSTS, PROFILE, LONGEST)


@pytest.fixture(scope="module")
def measured(synthetic_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    measure(synthetic_bundle, "cloud", Questions.of(synthetic_bundle, "cloud", [], ""), 0.05, lambda _: None).save(path)
    return path


def test_a_server_is_measured_at_every_depth_and_length(measured: Path) -> None:
    costs = MeasuredCosts.load(measured)
    assert costs.depths == (0, 4, 8, 12, 16)
    assert {(each.depth, each.history) for each in costs.cells} == {(d, n) for d in (4, 8, 12, 16) for n in (0, 20)}
    assert all(each.loads[0].batch == 1 and each.fixed_us + each.each_us > 50 for each in costs.cells)
    assert sum(costs.mix.values()) == pytest.approx(1)
    assert set(costs.histories) == {20}
    assert sum(costs.jitter) / len(costs.jitter) == pytest.approx(1, abs=0.01)
    assert 0 < min(costs.delays_us) <= max(costs.delays_us) < 1e6
    assert 0 < costs.spread < 1
    assert costs.process_mb > costs.cache_mb >= 0
    assert 50 < costs.event_bytes < 2000


def test_the_line_goes_through_loads_that_lie_on_one() -> None:
    loads = tuple(Load(batch=n, cpu_us=250 + 600 / n) for n in (1.0, 2.2, 5.6))
    found = _cell(4, 50, _Found(loads, 0.5, [], 0.0))
    assert (found.fixed_us, found.each_us) == (pytest.approx(600, abs=0.1), pytest.approx(250, abs=0.1))
    remembered = _cell(4, 0, _Found(tuple(Load(batch=1, cpu_us=us) for us in (600, 400, 300)), 0.5, [], 0.0))
    assert (remembered.fixed_us, remembered.each_us) == (250, 350)


def test_the_command_plans_from_what_was_measured(synthetic_bundle: Path, measured: Path) -> None:
    options = ["--users", "2M", "--requests-per-day", "10", "--price-per-hour", "0.4"]
    command = ["capacity", str(synthetic_bundle), *options, "--costs", str(measured)]
    found = CliRunner().invoke(app, [*command, "--json"])
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)
    assert values["peak_per_s"] == pytest.approx(2e6 * 10 / 86_400 * 3)
    assert values["price_per_month"] == pytest.approx((values["machines"] + 1) * 0.4 * HOURS_A_MONTH)
    shown = CliRunner().invoke(app, command).stdout
    assert "requests/s (2,000,000 users" in shown
    assert "per million requests" in shown
    assert "Processor time of a batch of n requests" in shown


def test_costs_of_another_bundle_or_profile_are_refused(synthetic_bundle: Path, measured: Path) -> None:
    asked = ["--users", "2M", "--requests-per-day", "10"]
    command = ["capacity", str(synthetic_bundle), *asked, "--costs", str(measured), "--profile", "edge"]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, FathomError)
    assert "was measured of version" in str(error)


def test_without_costs_the_command_says_how_to_get_them(synthetic_bundle: Path, tmp_path: Path) -> None:
    command = ["capacity", str(synthetic_bundle), "--users", "2M", "--requests-per-day", "10"]
    error = CliRunner().invoke(app, [*command, "--costs", str(tmp_path / "none.json")]).exception
    assert isinstance(error, ConfigError)
    assert "no costs were measured yet; add --measure" in str(error)


def test_damaged_costs_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS.model_dump(mode="json") | {"process_mb": "much"}))
    with pytest.raises(ArtefactError, match="process_mb: Input should be a valid number"):
        MeasuredCosts.load(path)


def test_twice_the_users_take_twice_the_cores() -> None:
    one, two = planned(), planned(users=1e7)
    assert two.core == one.core
    assert two.cores == pytest.approx(2 * one.cores, abs=1)
    assert one.machines == -(-one.cores // 4)


def test_headroom_and_peaks_take_more_cores() -> None:
    least = planned(headroom=0.0, peak_factor=1.0)
    assert planned(headroom=0.5, peak_factor=1.0).cores == pytest.approx(2 * least.cores, abs=1)
    assert planned(headroom=0.0, peak_factor=3.0).cores == pytest.approx(3 * least.cores, abs=2)


def test_costs_that_were_not_the_same_each_time_let_a_core_bear_less() -> None:
    steady, unsteady = (
        CoreModel(COSTS.model_copy(update={"spread": spread}), PROFILE, LONGEST, Wish(1, 1)) for spread in (0.0, 0.1)
    )
    rate = steady.capacity().per_s
    assert unsteady.costs_range == pytest.approx((1 / 1.2214, 1.2214), rel=1e-3)
    assert 0.75 * rate < unsteady.capacity().per_s < 0.9 * rate
    low, middle, high = (unsteady.at(rate, factor).quantile_s(0.99) for factor in (0.8, 1.0, 1.2))
    assert low < middle < high


def test_costs_of_a_machine_that_was_not_idle_are_said_to_be_such() -> None:
    for spread, said in ((0.02, False), (0.2, True)):
        costs = COSTS.model_copy(update={"spread": spread})
        found = plan(Wish(5e6, 20), costs, PROFILE, LONGEST)
        assert ["measure again" in text for text in (str(plan_facts(found, costs)), str(measured_facts(costs)))] == (
            [said, said]
        )


def test_choosing_depths_is_work_too() -> None:
    free, dear = (
        CoreModel(COSTS.model_copy(update={"choosing_us": us}), PROFILE, LONGEST, Wish(1, 1)) for us in (0.0, 100.0)
    )
    assert dear.capacity().per_s < 0.9 * free.capacity().per_s


def test_a_core_bears_more_at_a_shallower_depth_and_with_remembered_histories() -> None:
    deep, shallow = (planned(depth=depth, deadline_ms=None).core.per_s for depth in (16, 4))
    remembered = planned(depth=16, deadline_ms=None, cache_hits=0.9).core.per_s
    assert shallow > 1.5 * deep
    assert remembered > 1.5 * deep


def test_what_a_core_bears_grows_with_the_time_that_answers_may_take() -> None:
    strict, loose = (planned(depth=16, deadline_ms=None, p99_ms=p99_ms).core for p99_ms in (8.0, 100.0))
    assert strict.per_s < loose.per_s
    assert strict.p99_ms <= 8.0
    assert strict.binds == "p99"


def test_a_p99_below_a_single_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="p99 stands in the way"):
        planned(depth=16, deadline_ms=None, p99_ms=0.1)


def test_memory_binds_where_a_machine_holds_fewer_processes_than_cores() -> None:
    roomy, tight = planned(), planned(memory_gb=0.6)
    assert (roomy.processes_per_machine, tight.processes_per_machine) == (4, 2)
    assert (tight.binds, tight.machines) == ("memory", -(-roomy.cores // 2))
    stored = planned(memory_gb=8.0, history_events=1000)
    assert stored.memory_gb_per_machine <= 8.0
    assert stored.history_gb_per_machine * stored.machines == pytest.approx(5e6 * 1000 * 100 / 2**30)
    with pytest.raises(ConfigError, match=r"a process takes 0\.25 GB"):
        planned(memory_gb=0.2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"users": 0.0}, "users is 0; it must be above 0 and at most 1e+11"),
        ({"headroom": 1.0}, "headroom is 1; it must be at least 0 and below 1"),
        ({"cache_hits": 1.5}, "cache_hits is 1.5; it must be at least 0 and at most 1"),
        ({"p99_ms": float("nan")}, "p99_ms is nan"),
    ],
)
def test_an_impossible_wish_is_refused(option: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        planned(**option)


def test_a_depth_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="depth 8 is not among the depths that were measured: 0, 4, 16"):
        planned(depth=8)
