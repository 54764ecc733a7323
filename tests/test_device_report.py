"""What a device did is written to a file that can be shared, and read into a profile."""

import json
import shutil
from pathlib import Path

import pytest
from in_process import fathom

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.tools import energy
from fathom.tools.device_report import DeviceReport, merge, read_report
from fathom.tools.energy import Meter, Reading, find_meter


@pytest.fixture(scope="module")
def report(synthetic_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the machine that runs the tests, under a phone's profile."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(synthetic_bundle, folder / "bundle")
    fathom("profiles", "check", folder / "bundle", "phone-low", "--report", folder / "phone.json")
    return folder / "phone.json"


def test_a_report_says_what_was_measured_on_what_and_with_what(report: Path) -> None:
    found = read_report(report)
    assert (found.device_profile, found.tier, found.memory_limit_mb) == ("phone-low", "mobile", 100)
    assert found.peak_mb is not None
    assert 40 < found.peak_mb < 100
    assert {figure.depth for figure in found.figures} == {0, 4, 8}
    assert all(0 < figure.p50_ms <= figure.p99_ms for figure in found.figures)
    assert (found.energy_source is None) == all(figure.energy_mj is None for figure in found.figures)
    assert {"python", "onnxruntime", "numpy", "grpcio"} <= found.versions.keys()
    assert "cores" in found.machine


def test_a_report_becomes_a_profile_that_says_what_was_measured(report: Path, tmp_path: Path) -> None:
    out, found = tmp_path / "my-phone.yaml", read_report(report)
    fathom("profiles", "merge", "phone-low", report, "--out", out)
    made = load_profile(out)
    assert found.peak_mb is not None
    assert made.name == "my-phone"
    assert found.peak_mb < made.memory_limit_mb <= found.peak_mb * 1.1 + 1
    slowest = max(found.figures, key=lambda figure: figure.p99_ms)
    assert slowest.p99_ms <= made.latency_budget_ms <= slowest.p99_ms + 1
    assert made.basis("memory_limit_mb") == f"measured: {found.on}"
    assert made.basis("latency_budget_ms").startswith(f"measured: depth {slowest.depth}, ")
    assert made.basis("threads") == "chosen"
    before = load_profile("phone-low")
    changed = {"name", "memory_limit_mb", "latency_budget_ms", "measured"}
    assert made.model_dump(exclude=changed) == before.model_dump(exclude=changed)
    shown = fathom("profiles", "show", out).stdout
    assert "(measured: " in shown
    assert "(chosen)" in shown
    fathom("profiles", "merge", "phone-low", report, "--out", out)


def test_the_worst_of_several_reports_counts_and_others_are_refused(report: Path) -> None:
    phone, one = load_profile("phone-low"), read_report(report)
    figures = tuple(figure.model_copy(update={"p99_ms": 33.2}) for figure in one.figures)
    other = one.model_copy(update={"peak_mb": 70.0, "figures": figures, "machine": "another"})
    largest = one.model_copy(update={"peak_mb": 90.0})
    made = merge(phone, [largest, other], name="both")
    assert (made.memory_limit_mb, made.latency_budget_ms) == (99, 34.0)
    assert "another" in made.basis("latency_budget_ms")
    assert "another" not in made.basis("memory_limit_mb")
    with pytest.raises(ConfigError, match="a report is of profile phone-low, not of cloud-cpu"):
        merge(load_profile("cloud"), [one], name="mine")
    empty = one.model_copy(update={"peak_mb": None, "figures": (), "words": "the server did not start"})
    with pytest.raises(ConfigError, match="has measured nothing: the server did not start"):
        merge(phone, [empty], name="mine")
    enormous = one.model_copy(update={"peak_mb": 9000.0})
    with pytest.raises(ConfigError, match="memory_limit_mb would be 9900"):
        merge(phone, [enormous], name="mine")


def test_what_is_no_report_is_refused_in_one_line(report: Path, tmp_path: Path) -> None:
    values = json.loads(report.read_text())
    (tmp_path / "odd.json").write_text(json.dumps(values | {"peak_mb": "much"}))
    said = fathom("profiles", "merge", "phone-low", tmp_path / "odd.json", "--out", tmp_path / "a.yaml", code=2).stderr
    assert "odd.json: not a device report: peak_mb" in said
    assert not (tmp_path / "a.yaml").exists()
    fathom("profiles", "check", report, "--report", tmp_path / "b.json", code=2)
    assert DeviceReport.model_validate(values).schema_version == 1


def put(file: Path, value: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")
    return file


def test_a_counter_of_energy_is_preferred_to_power_and_may_begin_anew(tmp_path: Path) -> None:
    assert find_meter(tmp_path) is None
    battery = put(tmp_path / "class/power_supply/BAT0/power_now", 5_000_000)
    meter = find_meter(tmp_path)
    assert meter is not None
    assert (meter.counts, meter.files) == (False, (battery,))
    assert meter.between_mj(Reading(1.0, (4_000_000,)), Reading(3.0, (6_000_000,))) == pytest.approx(10_000)
    zone = tmp_path / "class/powercap/intel-rapl:0"
    put(zone / "energy_uj", 900)
    put(zone / "max_energy_range_uj", 1_000)
    put(tmp_path / "class/powercap/intel-rapl:0:0/energy_uj", 400)
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.source == "class/powercap: intel-rapl:0/energy_uj"
    before = meter.read()
    put(zone / "energy_uj", 100)
    assert meter.between_mj(before, meter.read()) == pytest.approx(0.2)


def test_a_device_that_tells_of_energy_has_it_in_its_report(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supply = put(tmp_path / "sys/class/power_supply/BAT0/power_now", 2_000_000)
    monkeypatch.setattr("fathom.tools.device_check.find_meter", lambda: Meter("a battery", (supply,), counts=False))
    shutil.copytree(synthetic_bundle, tmp_path / "bundle")
    fathom("profiles", "check", tmp_path / "bundle", "phone-low", "--report", tmp_path / "phone.json")
    found = read_report(tmp_path / "phone.json")
    assert found.energy_source == "a battery"
    # Two watts for at least as long as the requests took inside the server.
    assert all(figure.energy_mj and figure.energy_mj > figure.p50_ms for figure in found.figures)
    assert Path("/sys") == energy.SYS
