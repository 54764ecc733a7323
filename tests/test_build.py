"""`fathom build`, as a whole: it ends in a bundle that serves, runs only what changed, and survives kill -9."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fathom.client import Client
from fathom.exporter.plan import DepthPlan
from fathom.importance.layer_ranking import LayerRanking
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset

KILLS = 20
LOADERS: dict[str, Callable[[Path], object]] = {
    "dataset": Dataset.load,
    "checkpoint": Checkpoint.load,
    "ranking.json": LayerRanking.load,
    "plans/*.json": DepthPlan.load,
    "healed/*": Checkpoint.load,
    "comparison.json": lambda path: json.loads(path.read_bytes())["winner"],
    "evaluation.json": lambda path: json.loads(path.read_bytes())["systems"],
    "stages.json": lambda path: json.loads(path.read_bytes())["stages"],
    "bundle": lambda path: Bundle.open(path).close(),
}


def build(source: Path, out: Path, *settings: str) -> subprocess.Popen[str]:
    options = ["--preset", "tiny", "--out", str(out), "--json"]
    options += [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "fathom", "build", str(source), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> list[str]:
    """The names of the stages that ran."""
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    ran = json.loads(stdout)["ran"]
    assert isinstance(ran, list)
    return ran


def visible(folder: Path) -> list[tuple[str, Path]]:
    """The artefacts that a later command would find; a name with a leading dot is nobody's."""
    found = [(pattern, path) for pattern in LOADERS for path in sorted(folder.glob(pattern))]
    return [(pattern, path) for pattern, path in found if not path.name.startswith(".")]


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_only_whole_artefacts(tiny_csv: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    killed = 0
    while killed < KILLS:
        process = build(tiny_csv, tmp_path / "bundle")
        assert process.stderr is not None
        # A line says that a stage has begun or ended: from there a random while, so that the kills spread over all.
        for _ in range(rng.randint(1, 3)):
            process.stderr.readline()
        try:
            process.wait(timeout=rng.uniform(0.0, 1.2))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.communicate()
        for pattern, path in visible(tmp_path):
            LOADERS[pattern](path)
        if process.returncode == 0:  # it got through: begin again with the half that writes most
            shutil.rmtree(tmp_path / "healed")
            shutil.rmtree(tmp_path / "bundle")
    finish(build(tiny_csv, tmp_path / "bundle"))
    assert {pattern for pattern, _ in visible(tmp_path)} == set(LOADERS)
    for pattern, path in visible(tmp_path):
        LOADERS[pattern](path)


def test_a_second_build_runs_nothing_and_a_changed_setting_only_what_depends_on_it(
    tiny_csv: Path, tiny_build: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_build, folder)
    assert finish(build(tiny_csv, folder / "bundle")) == []
    shutil.rmtree(folder / "bundle")
    assert finish(build(tiny_csv, folder / "bundle")) == ["export"]


def test_the_same_build_elsewhere_gives_the_same_bundle(tiny_csv: Path, tiny_build: Path, tmp_path: Path) -> None:
    finish(build(tiny_csv, tmp_path / "bundle"))
    versions = {json.loads((path / "bundle/manifest.json").read_bytes())["version"] for path in (tiny_build, tmp_path)}
    assert len(versions) == 1


def test_the_bundle_serves_every_tier_at_its_own_depths(tiny_build: Path) -> None:
    with running_server(tiny_build / "bundle") as server, Client(server.address) as client:
        assert client.bundle().depths == (4, 8, 12, 16)
        for tier, depths in {"mobile": {4, 8}, "edge": {8, 12}, "cloud": {12, 16}}.items():
            answer = client.recommend(["i1", "i4", "i13"], k=5, profile=tier)
            assert answer.depth in depths
            assert len(answer.items) == 5
            assert not {item.id for item in answer.items} & {"i1", "i4", "i13"}
            assert str(answer.depth) in answer.why


def test_every_plan_was_compared_and_the_manifest_says_so(tiny_build: Path) -> None:
    with Bundle.open(tiny_build / "bundle") as bundle:
        assert set(bundle.manifest.strategy_evidence) == {"prefix", "nested", "permuted-prefix"}
        for info in bundle.manifest.depths.values():
            assert info.parity.max_abs_error <= 1e-4
            assert info.parity.top10_agreement >= 0.999


def test_demo_asks_real_users_under_every_tier(tiny_build: Path) -> None:
    command = [sys.executable, "-m", "fathom", "demo", str(tiny_build / "bundle"), "--users", "1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = json.loads(result.stdout)
    assert [answer["tier"] for answer in answers] == ["mobile", "edge", "cloud"]
    assert all(answer["round_trip_ms"] * 1000 > answer["answer"]["timings"]["total_us"] for answer in answers)
