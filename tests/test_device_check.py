"""`fathom profiles check BUNDLE PROFILE`: a bundle is served within a device's memory, and what it took is kept."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fathom.cli import app
from fathom.client import Client
from fathom.errors import UnavailableError
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest_file import read_manifest

PROFILE = """
name: small-box
tier: mobile
description: A device of {limit} MB
depths: [0, 4, 8]
shallow: 4
deep: 8
threshold: 0.5
precision: fp32
memory_limit_mb: {limit}
latency_budget_ms: 50
threads: 1
max_batch: 2
max_batch_tokens: 512
source: made up for a test
"""


@pytest.fixture
def bundle(synthetic_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_bundle, tmp_path / "bundle"))


def profile(folder: Path, limit: int) -> str:
    path = folder / f"box-{limit}.yaml"
    path.write_text(PROFILE.format(limit=limit))
    return str(path)


def test_a_bundle_that_fits_says_what_it_takes_and_is_served(bundle: Path, tmp_path: Path) -> None:
    before = read_manifest(bundle)
    found = CliRunner().invoke(app, ["profiles", "check", str(bundle), profile(tmp_path, 400), "--json"])
    assert found.exit_code == 0, found.output
    fit = json.loads(found.stdout)
    assert fit["fits"]
    assert 50 < fit["peak_mb"] < 400
    longest = before.model.max_history
    asked = sorted({min(length, longest) for length in (50, 200)})
    assert [(row["depth"], row["history"]) for row in fit["latency"]] == [(d, n) for d in (0, 4, 8) for n in asked]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in fit["latency"])
    with Bundle.open(bundle) as after:
        assert after.manifest.fits["small-box"].peak_mb == fit["peak_mb"]
        assert after.manifest.version != before.version


def test_a_bundle_that_does_not_fit_is_refused_until_it_is_forced(bundle: Path, tmp_path: Path) -> None:
    tight = profile(tmp_path, 40)
    found = CliRunner().invoke(app, ["profiles", "check", str(bundle), tight])
    assert found.exit_code == 2
    assert "does not fit small-box" in found.output
    assert " of 40 MB" in found.output
    assert "p99 within 50 ms" in found.output
    with (
        pytest.raises(UnavailableError, match=r"profile small-box took \d+\.\d MB of 40 MB; slice it"),
        running_server(bundle, "--profile", tight),
    ):
        pass
    with running_server(bundle, "--profile", tight, "--force"):
        pass
    # A larger limit under the same name has not been tried yet.
    with running_server(bundle, "--profile", profile(tmp_path, 400)):
        pass


def test_a_bundle_that_was_never_checked_is_measured_before_the_server_answers(bundle: Path, tmp_path: Path) -> None:
    tight = profile(tmp_path, 40)
    with (
        pytest.raises(UnavailableError, match=r"profile small-box took \d+\.\d MB of 40 MB; slice it"),
        running_server(bundle, "--profile", tight),
    ):
        pass
    with running_server(bundle, "--profile", tight, "--force"):
        pass


def test_a_bundle_whose_shallowest_depth_is_too_slow_for_the_profile_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "hasty.yaml"
    path.write_text(PROFILE.format(limit=400).replace("latency_budget_ms: 50", "latency_budget_ms: 0.001"))
    words = r"take up to \d+\.\d ms at depth 4 on this machine, and profile small-box allows 0\.001 ms"
    with pytest.raises(UnavailableError, match=words), running_server(bundle, "--profile", str(path)):
        pass
    with running_server(bundle, "--profile", str(path), "--force") as server, Client(server.address) as client:
        with Bundle.open(bundle) as opened:
            ids = opened.catalogue.ids
        answer = client.recommend(ids[:5])
        assert answer.depth == 4
        assert client.recommend(ids[:5], depth=8).depth == 8


def test_a_bundle_that_does_not_even_start_is_refused_with_its_own_words(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fathom.tools.device_check.SET_ASIDE_MB", 0)
    found = CliRunner().invoke(app, ["profiles", "check", str(bundle), profile(tmp_path, 30), "--json"])
    assert found.exit_code == 2
    fit = json.loads(found.stdout)
    assert (fit["fits"], fit["peak_mb"], fit["latency"]) == (False, None, [])
    assert fit["words"].startswith("the server did not start: ")
