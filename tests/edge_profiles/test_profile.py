"""Profiles: the shipped ones hold together, and every mistake in one is shown with its line."""

import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from fathom.edge_profiles import profile as profile_module
from fathom.edge_profiles.profile import (
    FIGURES,
    TIER_DEFAULTS,
    TIER_LIMITS_MB,
    DeviceProfile,
    check,
    load_profile,
    profile_names,
)
from fathom.errors import ConfigError

GOOD = """\
name: my-box
tier: edge
description: A box under the desk
device:
  model: Box 3000
  cpu_cores: 4
  memory_mb: 8192
  peak_tops: 10
  peak_kind: int8
depths: [4, 8, 12]
shallow: 8
deep: 12
threshold: 0.5
precision: fp32
memory_limit_mb: 1024
latency_budget_ms: 20
threads: 2
max_batch: 8
max_batch_tokens: 2048
source: the label on the box
"""
TIER_DEPTHS = {"mobile": (4, 8), "edge": (8, 12), "cloud": (12, 16)}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_eleven_devices_ship() -> None:
    assert profile_names() == (
        "cloud-cpu",
        "cloud-h100",
        "cloud-l4",
        "cloud-t4",
        "jetson-agx-orin",
        "jetson-nano",
        "jetson-orin-nano",
        "jetson-orin-nx",
        "phone-high",
        "phone-low",
        "raspberry-pi-5",
    )


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_is_named_after_its_file_and_says_where_its_figures_come_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.device is not None
    assert (profile.shallow, profile.deep) == TIER_DEPTHS[profile.tier]
    assert profile.depths[0] == 0
    assert profile.memory_limit_mb <= TIER_LIMITS_MB[profile.tier]
    assert not profile.measured
    facts, choices = profile.source.split("Chosen by Fathom, not measured: ")
    assert facts.strip()
    ours = set(DeviceProfile.model_fields) - {"name", "tier", "description", "device", "measured", "source"}
    assert set(choices.rstrip(".").split(", ")) == ours == set(FIGURES)
    assert {profile.basis(figure) for figure in FIGURES} == {"chosen"}


@pytest.mark.parametrize(("tier", "name"), TIER_DEFAULTS.items())
def test_a_tier_stands_for_its_default_profile(tier: str, name: str) -> None:
    profile = load_profile(tier)
    assert (profile.name, profile.tier) == (name, tier)


def test_a_profile_of_your_own_is_read_by_path(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load_profile(path) == load_profile(str(path)) == check(path)
    assert load_profile(path).depths == (4, 8, 12)
    counting = write(tmp_path, GOOD.replace("[4, 8, 12]", "[0, 4, 8, 12]"))
    assert load_profile(counting).depths == (0, 4, 8, 12)


@pytest.mark.parametrize("name", ["jetson-nano", "edge"])
def test_a_profile_of_your_own_cannot_take_the_name_of_one_of_ours(tmp_path: Path, name: str) -> None:
    found = check(write(tmp_path, GOOD.replace("name: my-box", f"name: {name}")))
    assert found == [f"{tmp_path / 'mine.yaml'}:1: name: {name} is one of Fathom's own profiles; choose another"]


def test_a_plain_copy_of_one_of_ours_may_keep_its_name(tmp_path: Path) -> None:
    copied = Path(profile_module.__file__).with_name("jetson-nano.yaml").read_text(encoding="utf-8")
    assert check(write(tmp_path, copied)) == load_profile("jetson-nano")


def test_a_figure_says_on_what_it_was_measured(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD + "measured:\n  memory_limit_mb: a Box 3000\n"))
    assert profile.basis("memory_limit_mb") == "measured: a Box 3000"
    assert profile.basis("latency_budget_ms") == "chosen"
    assert DeviceProfile.model_validate_json(profile.model_dump_json()) == profile
    hash(profile)
    assert check(write(tmp_path, GOOD + "measured:\n  threads: a Box 3000\n")) == [
        f"{tmp_path / 'mine.yaml'}:21: measured is {{'threads': 'a Box 3000'}}; threads cannot be measured;"
        " memory_limit_mb and latency_budget_ms can"
    ]


def test_the_device_may_be_left_out(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("device:")] + GOOD[GOOD.index("depths:") :]
    assert load_profile(write(tmp_path, text)).device is None


def test_a_profile_cannot_be_changed_after_it_was_read() -> None:
    profile = load_profile("edge")
    with pytest.raises(ValidationError):
        profile.threshold = 0.9


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean jetson-orin-nano"):
        load_profile("jetson-orin-nan")
    with pytest.raises(ConfigError, match="there are cloud-cpu, "):
        load_profile("zzz")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("threshold: 0.5", "treshold: 0.5", 13, "unknown key treshold; did you mean threshold?"),
        ("threshold: 0.5", "qqq: 1", 13, "unknown key qqq; known keys: name, tier"),
        ("  cpu_cores: 4", "  cpu_core: 4", 6, "unknown key device.cpu_core; did you mean cpu_cores?"),
        ("threshold: 0.5", "threshold: 1.01", 13, "threshold is 1.01; it must be less than or equal to 1"),
        ("threshold: 0.5", "threshold: -0.1", 13, "threshold is -0.1; it must be greater than or equal to 0"),
        ("threshold: 0.5", "threshold: .nan", 13, "threshold is nan; it must be a finite number"),
        ("threshold: 0.5", "threshold: half", 13, "threshold is 'half'; it must be a valid number"),
        ("threads: 2", "threads: 0", 17, "threads is 0; it must be greater than or equal to 1"),
        ("threads: 2", "threads: 2.5", 17, "threads is 2.5; it must be a valid integer"),
        ("threads: 2", 'threads: "2"', 17, "threads is '2'; it must be a valid integer"),
        ("threads: 2", "threads: yes", 17, "threads is True; it must be a valid integer"),
        ("threads: 2", "threads:", 17, "threads is empty; it must be a valid integer"),
        ("threads: 2", "threads: 5", 17, "threads is 5; the device has only 4 (cpu_cores)"),
        ("memory_limit_mb: 1024", "memory_limit_mb: -1", 15, "memory_limit_mb is -1; it must be greater"),
        ("memory_limit_mb: 1024", "memory_limit_mb: 9000", 15, "the device has only 8192 (memory_mb)"),
        ("latency_budget_ms: 20", "latency_budget_ms: 0", 16, "latency_budget_ms is 0; it must be greater than 0"),
        ("latency_budget_ms: 20", "latency_budget_ms: .inf", 16, "latency_budget_ms is inf; it must be a finite"),
        ("max_batch: 8", "max_batch: 0", 18, "max_batch is 0; it must be greater than or equal to 1"),
        ("[4, 8, 12]", "[8, 4, 12]", 10, "depths is [8, 4, 12]; it must be ascending"),
        ("[4, 8, 12]", "[4, 8, 8, 12]", 10, "depths is [4, 8, 8, 12]; it must be ascending"),
        ("[4, 8, 12]", "[]", 10, "depths is []; it must be ascending"),
        ("[4, 8, 12]", "[-1, 8, 12]", 10, "depths is -1; it must be greater than or equal to 0"),
        ("[4, 8, 12]", "[0, 0, 8, 12]", 10, "depths is [0, 0, 8, 12]; it must be ascending"),
        ("[4, 8, 12]", "[0]", 11, "shallow is 8; it must be one of depths (0)"),
        ("shallow: 8", "shallow: 0", 11, "shallow is 0; it must be greater than or equal to 1"),
        ("[4, 8, 12]", "[8, 12, 33]", 10, "depths is 33; it must be less than or equal to 32"),
        ("[4, 8, 12]", "12", 10, "depths is 12; it must be a list, as in"),
        ("shallow: 8", "shallow: 6", 11, "shallow is 6; it must be one of depths (4, 8, 12)"),
        ("deep: 12", "deep: 16", 12, "deep is 16; it must be one of depths (4, 8, 12)"),
        ("deep: 12", "deep: 4", 12, "deep is 4; it must not be below shallow (8)"),
        ("tier: edge", "tier: fog", 2, "tier is 'fog'; it must be 'mobile', 'edge' or 'cloud'"),
        ("name: my-box", "name: My Box", 1, "name is 'My Box'; it must be lower-case"),
        ("name: my-box", "name: no", 1, "name is False; it must be text; put it in quotes"),
        ("precision: fp32", "precision: fp64", 14, "precision is 'fp64'; it must be 'fp32'"),
        ("  peak_kind: int8", "  power_w: 5", 4, "device.peak_kind is empty; peak_tops and"),
        ("name: my-box", "name: ''", 1, "name is ''; it must be lower-case"),
        ("description: A box under the desk", "description: ''", 3, "description is ''; it must not be empty"),
        ("threads: 2", "threads: 0x" + "f" * 5000, 17, "threads is a huge number; it must be less than"),
        ("threshold: 0.5", "threshold: 0x" + "f" * 5000, 13, "threshold is a huge number; "),
        ("threads: 2", "threads: " + "9" * 5000, 17, "threads cannot be read: "),
        ("max_batch: 8", "threads: 2", 18, "threads is given twice (first on line 17)"),
        ("  cpu_cores: 4", "  model: 4", 6, "model is given twice (first on line 5)"),
        ("source: the label on the box", "", 1, "source is missing; add it"),
        ("  memory_mb: 8192\n", "", 4, "device.memory_mb is missing; add it"),
        ("threads: 2", "threads: 2026-13-45", 17, "threads cannot be read: not a value of its type"),
        ("threads: 2", "threads: !!python/object/apply:os.getpid []", 17, "threads cannot be read: could not"),
        ("threads: 2", "[threads]: 2", 17, "a key must be a plain word"),
        ("threads: 2", "threads: 2: 3", 17, "not YAML: mapping values are not allowed here"),
        ("threads: 2", "threads: [2", 18, "not YAML: "),
        ("threads: 2", "threads: *two", 17, "not YAML: aliases (*name) are not allowed"),
        ("threads: 2", "threads: {a: 1}", 17, "threads is {'a': 1}; it must be a valid integer"),
        ("threads: 2", "1: 2", 17, "unknown key 1; "),
        ("threads: 2", "threads: 2\x07", 17, "not YAML: "),
    ],
)
def test_a_mistake_is_shown_where_it_is(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert GOOD.count(old) == 1
    path = write(tmp_path, GOOD.replace(old, new))
    problems = check(path)
    assert isinstance(problems, list)
    assert any(problem.startswith(f"{path}:{line}: ") and says in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(problems[0])


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just words\n", "42\n", "null\n"])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=":1: not a mapping"):
        load_profile(path)


def test_two_documents_in_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        load_profile(write(tmp_path, f"{GOOD}---\n{GOOD}"))


def test_bytes_that_are_not_utf8_are_shown_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(GOOD.encode().replace(b"under", b"\xff\xfe"))
    with pytest.raises(ConfigError, match=r"mine\.yaml:3: not UTF-8"):
        load_profile(path)


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_profile(tmp_path / "none.yaml")
    for other in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="not a regular file; this is not a profile"):
            load_profile(other)
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_profile(tmp_path / "fifo.yaml")
    with pytest.raises(ConfigError, match="longer than 65536 bytes"):
        load_profile(write(tmp_path, GOOD + "#" * 70_000))


@pytest.mark.parametrize("where", ["source: *x", "depths: [*x, *x]", "<<: *x", "device: {<<: *x}"])
def test_aliases_are_refused_wherever_they_are(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml:22: not YAML: aliases \(\*name\) are not allowed"):
        load_profile(write(tmp_path, f"{GOOD}other: &x {{a: b}}\n{where}\n"))


def test_every_mistake_is_listed_and_the_error_counts_them(tmp_path: Path) -> None:
    text = (
        GOOD.replace("threads: 2", "threads: 0").replace("tier: edge", "teir: edge").replace("shallow: 8", "shallow: 5")
    )
    path = write(tmp_path, text)
    problems = check(path)
    assert isinstance(problems, list)
    lines = [int(problem.split(":")[1]) for problem in problems]
    assert lines == sorted(lines)
    assert len(problems) == 3  # teir, shallow, threads: a misspelt key is not also missing
    with pytest.raises(ConfigError, match=r"and 2 more: fathom profiles check"):
        load_profile(path)


def test_a_profile_made_in_python_follows_the_same_rules() -> None:
    values = load_profile("edge").model_dump()
    assert DeviceProfile(**values) == load_profile("edge")
    with pytest.raises(ValidationError, match="threshold"):
        DeviceProfile(**{**values, "threshold": math.nan})


def test_the_docs_show_every_profile_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text(encoding="utf-8")
    for profile in map(load_profile, profile_names()):
        row = (
            f"| {profile.name} | {profile.tier} | {profile.shallow} / {profile.deep} | {profile.threshold:g}"
            f" | {profile.precision} | {profile.memory_limit_mb} | {profile.latency_budget_ms:g} | {profile.threads}"
            f" | {profile.max_batch} x {profile.max_batch_tokens} |"
        )
        assert row in page
    for key in DeviceProfile.model_fields:
        assert f"`{key}`" in page
