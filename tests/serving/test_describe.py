from pathlib import Path

import pytest

import fathom.edge_profiles
from fathom.errors import ConfigError
from fathom.runtime.bundle import Bundle
from fathom.serving.describe import DeploymentInfo, ServerInfo, own_profile, served_profiles

PROFILES = Path(fathom.edge_profiles.__path__[0])


def test_every_shipped_profile_and_tier_that_shares_a_depth_with_the_bundle_is_served(synthetic_bundle: Path) -> None:
    profiles = served_profiles(Bundle.open(synthetic_bundle))
    assert {"cloud-cpu", "phone-low", "jetson-nano"} <= profiles.keys()
    assert {tier: profiles[tier].name for tier in ("mobile", "edge", "cloud")} == {
        "mobile": "phone-high",
        "edge": "jetson-orin-nano",
        "cloud": "cloud-cpu",
    }


def test_a_profile_without_a_depth_in_the_bundle_is_refused(synthetic_bundle: Path, tmp_path: Path) -> None:
    text = (PROFILES / "cloud-cpu.yaml").read_text()
    for old, new in (
        ("name: cloud-cpu", "name: six"),
        ("[0, 4, 8, 12, 16]", "[0, 6]"),
        ("shallow: 12", "shallow: 6"),
        ("deep: 16", "deep: 6"),
    ):
        text = text.replace(old, new)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"allows depths 0, 6, but .* has 4, 8, 12, 16; choose another --profile$"):
        own_profile(str(tmp_path / "mine.yaml"), Bundle.open(synthetic_bundle))


def test_the_ready_line_says_where_and_what() -> None:
    bundle = DeploymentInfo("ml-100k", "abc", 1682, (4, 8), "cloud-cpu", "onnxruntime-cpu", "always depth 8")
    info = ServerInfo("[::1]:5", "[::1]:6", (bundle,), 0.31)
    assert str(info) == (
        "ready on [::1]:5: bundle ml-100k abc (1682 items), profile cloud-cpu, depths 4, 8, always depth 8,"
        " onnxruntime-cpu, metrics http://[::1]:6/metrics (warmed up in 0.3 s)"
    )
