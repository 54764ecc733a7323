"""A log is written whole, read again, and reported: numbers, alarms and a verdict."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from in_process import fathom

from fathom.errors import ArtefactError, ConfigError, MissingExtraError, OutputError
from fathom.experiments import exposures
from fathom.experiments.config import Arm, Experiment, Guard, Metric, Unit
from fathom.experiments.exposures import Exposure, LogWriter, Outcome, read_log, with_outcomes
from fathom.experiments.report import Report, report_of
from fathom.experiments.samples import units_of

CLICKS = Metric(outcome="click")
BASE = Experiment(
    arms={"control": Arm(share=0.5), "new": Arm(share=0.5)},
    primary=CLICKS,
    guards={"latency": Guard(measured="latency_ms", margin=0.1)},
    expected_users=2_000,
)


def exposure(user: int, arm: str, visit: int = 0, *, day: float = 0.0, **more: object) -> Exposure:
    row = Exposure(
        *(1e9 + 86_400 * day, "one", "=one", arm, 0.5, f"u{user}", f"r{user}-{visit}", "shop", "807c09c85f00", 4),
        items=["a", "b"],
        latency_ms=10.0,
    )
    return replace(row, **more)  # type: ignore[arg-type]


def filled(folder: Path, experiment: Experiment = BASE, *, users: int = 2_000, gain: float = 0.0, share: float = 0.5):
    """A log of users with two visits each, whose clicks depend on what was known of them."""
    random, writer = np.random.default_rng(0), LogWriter(folder, "one", experiment)
    for user in range(users):
        arm = "new" if random.random() < share else "control"
        taste = random.random()
        for visit in range(2):
            day = 3 * random.random() + visit
            writer.expose(exposure(user, arm, visit, day=day, covariate=taste, latency_ms=10 + random.random()))
            if random.random() < 0.1 + 0.5 * taste + (gain if arm == "new" else 0):
                writer.report(Outcome(1e9 + 86_400 * day + 60, f"r{user}-{visit}", "click"))
    writer.flush()
    return folder


def reported(folder: Path) -> Report:
    return report_of(read_log(folder))


def test_a_better_arm_is_found_and_its_guard_is_kept(tmp_path: Path) -> None:
    found = reported(filled(tmp_path / "log", gain=0.15))
    control, new = found.arms
    assert control.users + new.users == 2_000
    assert control.requests + new.requests == 4_000
    assert new.low is not None
    assert new.low > 0
    assert new.low < 0.3 < (new.high or 0)
    assert [(guard.name, guard.state) for guard in new.guards] == [("latency", "kept")]
    assert found.verdict == "new is better; promote it."


def test_equal_arms_are_undecided_and_few_users_are_too_early(tmp_path: Path) -> None:
    assert reported(filled(tmp_path / "same")).verdict == "new is undecided; wait."
    found = reported(filled(tmp_path / "few", users=100))
    assert found.verdict == "Too early: every arm needs 100 users."
    assert found.arms[1].low is None
    assert reported(filled(tmp_path / "none", users=0)).arms[0].mean is None


def test_users_in_the_wrong_proportion_discredit_everything(tmp_path: Path) -> None:
    found = reported(filled(tmp_path / "log", gain=0.15, share=0.4))
    assert found.mismatch_p < 1e-6
    assert found.verdict.startswith("Believe nothing here")


def test_a_broken_guard_stops_the_arm(tmp_path: Path) -> None:
    folder = filled(tmp_path / "log", gain=0.15)
    writer = LogWriter(folder, "one", BASE, writer="second")
    arms = dict(units_of(read_log(folder)).table.select("unit", "arm").iter_rows())
    for user in range(2_000):
        if arms[f"u{user}"] == "new":
            writer.expose(exposure(user, "new", 7, day=5, latency_ms=30.0))
    writer.flush()
    assert reported(folder).verdict == "Stop new: latency got worse by more than allowed."


def test_each_form_of_a_metric_counts_what_it_says(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log", "one", BASE)
    for user, clicks in enumerate(([2.0, 1.0], [0.0, 0.0], [1.0, 0.0])):
        for visit, value in enumerate(clicks):
            latency = None if user == 1 else 10.0 * (visit + 1)
            writer.expose(exposure(user, "new", visit, latency_ms=latency))
            if value:
                writer.report(Outcome(1e9, f"r{user}-{visit}", "click", value))
    writer.flush()
    units = units_of(read_log(tmp_path / "log"))

    def sums(**metric: object) -> tuple[list[float], list[float] | None]:
        sample = units.sample("new", Metric(**metric))  # type: ignore[arg-type]
        return sample.totals.tolist(), None if sample.counts is None else sample.counts.tolist()

    assert sums(outcome="click") == ([3, 0, 1], None)
    assert sums(outcome="click", value="any") == ([1, 0, 1], None)
    assert sums(outcome="click", value="per_request") == ([3, 0, 1], [2, 2, 2])
    assert sums(measured="latency_ms") == ([30, 30], [2, 2])
    assert sums(measured="latency_ms", above=15.0) == ([1, 1], [2, 2])


def test_a_window_counts_each_user_once_and_what_happened_within_it(tmp_path: Path) -> None:
    experiment = BASE.model_copy(update={"window_days": 2.0})
    writer = LogWriter(tmp_path / "log", "one", experiment)
    for user, days in enumerate(([0.0, 1.0, 5.0], [4.0])):
        for visit, day in enumerate(days):
            writer.expose(exposure(user, "new", visit, day=day))
            writer.report(Outcome(1e9 + 86_400 * day, f"r{user}-{visit}", "click"))
    writer.flush()
    units = units_of(read_log(tmp_path / "log"))
    assert units.sample("new", CLICKS).totals.tolist() == [2]
    assert units.waiting == 1


def test_retries_count_once_and_a_user_who_moved_counts_for_the_first_arm(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log", "one", BASE)
    for row in (exposure(1, "new"), exposure(1, "new"), exposure(1, "control", 1, day=1)):
        writer.expose(row)
    for _ in range(2):
        writer.report(Outcome(1e9, "r1-0", "click"))
    writer.report(Outcome(1e9, "elsewhere", "click"))
    writer.flush()
    found = reported(tmp_path / "log")
    assert [(row.name, row.users, row.requests, row.mean) for row in found.arms] == [
        ("control", 0, 0, None),
        ("new", 1, 2, 1.0),
    ]
    assert (found.moved, found.unmatched) == (1, 1)


def test_parts_are_read_by_polars_with_what_off_policy_evaluation_needs(tmp_path: Path) -> None:
    folder = filled(tmp_path / "log", users=20)
    (part,) = folder.glob("exposures-*.parquet")
    table = pl.read_parquet(part)
    assert table.columns == list(Exposure.__dataclass_fields__)
    joined = with_outcomes(read_log(folder))
    assert joined["outcome_click"].sum() == len(read_log(folder).outcomes)
    assert joined["propensity"].unique().to_list() == [0.5]
    assert joined["items"][0].to_list() == ["a", "b"]


def test_a_restart_continues_the_parts_and_a_writer_says_when_there_is_enough_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposures, "ROWS_PER_PART", 2)
    for start in (0, 10):
        writer = LogWriter(tmp_path / "log", "one", BASE)
        for user in range(start, start + 3):
            assert writer.is_due == (user - start >= 2)
            writer.expose(exposure(user, "new"))
        writer.flush()
        writer.flush()
    assert len(list((tmp_path / "log").glob("exposures-0-*.parquet"))) == 2
    assert len(read_log(tmp_path / "log").exposures) == 6


def test_a_part_that_cannot_be_written_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(tmp_path / "log", "one", BASE)
    writer.expose(exposure(1, "new"))

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(OSError, match="no space left"):
            writer.flush()
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["experiment.json"]
    writer.flush()
    assert len(read_log(tmp_path / "log").exposures) == 1


def test_what_is_no_log_or_another_ones_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "log", users=20)
    with pytest.raises(ArtefactError, match="holds the log of experiment one, not two"):
        LogWriter(folder, "two", BASE)
    with pytest.raises(ConfigError, match="give letters"):
        LogWriter(folder, "one", BASE, writer="../x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an experiment's log"):
        LogWriter(tmp_path / "mine", "one", BASE)
    (part,) = folder.glob("outcomes-*.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_log(folder)
    pl.DataFrame({"a": [1]}).write_parquet(part)
    with pytest.raises(ArtefactError, match="schema_version None"):
        read_log(folder)
    head = folder / "experiment.json"
    head.write_text(json.dumps({"schema_version": 1, "name": "one", "experiment": {"arms": {}}}))
    with pytest.raises(ArtefactError, match="not an experiment's log: arms"):
        read_log(folder)
    monkeypatch.setattr("fathom.errors.import_module", _missing)
    with pytest.raises(MissingExtraError, match="train"):
        LogWriter(tmp_path / "other", "one", BASE)


def _missing(name: str) -> None:
    raise ImportError(name)


@pytest.mark.parametrize(("unit", "words"), [("user", "click, per user"), ("session", "click, per session")])
def test_a_report_says_what_is_counted(tmp_path: Path, unit: Unit, words: str) -> None:
    log = read_log(filled(tmp_path / "log", BASE.model_copy(update={"unit": unit}), users=10))
    assert report_of(log).metric == words


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    folder = filled(tmp_path / "log", gain=0.15)
    printed = fathom("experiments", "report", folder).stdout
    assert "new: latency" in printed
    assert "new is better; promote it." in printed
    found = json.loads(fathom("experiments", "report", folder, "--json").stdout)
    assert found["arms"][1]["name"] == "new"
    assert found["arms"][1]["guards"][0]["state"] == "kept"
