"""The Triton repository: whole on disk, and in a real Triton it answers what Fathom's own server answers."""

import json
import platform
import shutil
import sys
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from shared import kept

from fathom.benchmarks.systems import triton as benchmark
from fathom.benchmarks.systems.peers.adapters import TRITON, triton_of
from fathom.benchmarks.systems.peers.environments import Environment, environment
from fathom.benchmarks.triton_server import StartedTriton, Triton, started_triton
from fathom.client import Client
from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError, UnavailableError
from fathom.exporter.formats.ort import convert_to_ort
from fathom.exporter.formats.triton import write_triton
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.manifest import MANIFEST_NAME, version_of

CLOUD = load_profile("cloud")
HERE = sys.platform == "linux" and platform.machine() == "x86_64"


def test_a_repository_has_one_model_whose_batches_triton_makes(bundle_path: Path, tmp_path: Path) -> None:
    assert write_triton(bundle_path, tmp_path / "repository", CLOUD) == "fathom"
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["fathom"]
    config = (tmp_path / "repository/fathom/config.pbtxt").read_text()
    assert f"max_batch_size: {CLOUD.max_batch}\ndynamic_batching {{ }}\n" in config
    with Bundle.open(tmp_path / "repository/fathom/1/bundle") as copy, Bundle.open(bundle_path) as bundle:
        assert copy.manifest == bundle.manifest


def test_a_bundle_of_an_older_schema_can_be_opened_in_its_repository(bundle_path: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(bundle_path, older)
    manifest = json.loads((older / MANIFEST_NAME).read_text())
    manifest["schema_version"] = 7
    del manifest["retrieval"]
    manifest["version"] = version_of(manifest)
    (older / MANIFEST_NAME).write_text(json.dumps(manifest))
    write_triton(older, tmp_path / "repository", CLOUD)
    with Bundle.open(tmp_path / "repository/fathom/1/bundle") as copy:
        assert copy.depths == (4, 8, 12, 16)


def test_what_triton_cannot_serve_is_refused_in_one_line(bundle_path: Path, tmp_path: Path) -> None:
    convert_to_ort(bundle_path, tmp_path / "phone")
    with pytest.raises(ConfigError, match="its engines are ort; Triton needs onnx"):
        write_triton(tmp_path / "phone", tmp_path / "repository", CLOUD)
    other = CLOUD.model_copy(update={"depths": (0, 5)})
    with pytest.raises(ConfigError, match="it has no depth that profile cloud-cpu allows"):
        write_triton(bundle_path, tmp_path / "repository", other)
    assert not (tmp_path / "repository").exists()


def made(folder: Path) -> Environment:
    """The environment of Triton's models, made or found there."""
    try:
        return environment("triton", TRITON, folder)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest) -> Triton:
    """Triton in an environment of its own, which is kept."""
    if not HERE:
        pytest.skip("there is a tritonserver for x86-64 Linux only")
    about = repr((TRITON, sys.version)).encode()
    folder = kept(request, "triton", about, made)
    return triton_of(made(folder))


@pytest.fixture
def triton(installed: Triton, counting_bundle: Path, tmp_path: Path) -> Iterator[StartedTriton]:
    """A Triton that serves the bundle."""
    write_triton(counting_bundle, tmp_path / "repository", CLOUD)
    with started_triton(installed, tmp_path / "repository") as server:
        yield server


def test_triton_answers_the_same_items_as_our_server(triton: StartedTriton, counting_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    with Bundle.open(counting_bundle) as bundle:
        ids, depths, counting = bundle.catalogue.ids, bundle.depths, bundle.counting
        assert counting is not None
    with running_server(counting_bundle) as server, Client(server.address) as client:
        seen = set()
        for number in range(100):
            length = int(rng.integers(1, 30))
            history = [ids[i] for i in rng.integers(0, len(ids), length)]
            times = (1_600_000_000 + np.cumsum(rng.integers(60, 90_000, length))).tolist()
            depth = None if number % 2 else depths[number % len(depths)]
            ours = client.recommend(history, k=7, timestamps=times, depth=depth, profile="cloud")
            fixed = {} if depth is None else {"depth": [depth]}
            theirs = triton.infer(item_ids=history, timestamps=times, k=[7], **fixed)
            assert theirs["recommended"] == [item.id for item in ours.items]
            assert theirs["scores"] == pytest.approx([item.score for item in ours.items], abs=1e-5)
            assert theirs["depth_used"] == [ours.depth]
            assert theirs["why"] == [ours.why]
            seen.add(ours.depth)
        check_a_crowd(triton, client, ids)
        everything = [item.id for item in client.recommend(ids[:1], k=1_000).items]
        assert triton.infer(item_ids=ids[:1], k=[1_000])["recommended"] == everything
        counted, _ = counting.best(np.arange(3), 10, ItemFilter(exclude=np.arange(3)))
        at_0 = triton.infer(item_ids=ids[:3], depth=[0])
        assert (at_0["recommended"], at_0["depth_used"]) == ([ids[item] for item in counted], [0])
        popular, _ = counting.best(np.arange(0), 10, ItemFilter())
        stranger = triton.infer(item_ids=["nothing known"])
        assert (stranger["recommended"], stranger["depth_used"]) == ([ids[item] for item in popular], [0])
    assert len(seen) > 1
    for wrong, words in (
        ({"item_ids": ["nothing known"], "depth": [4]}, "no item of the history is in the catalogue"),
        ({"item_ids": [ids[0]], "k": [0]}, "k is 0, at least 1 and at most 1000"),
        ({"item_ids": [ids[0]], "timestamps": [1, 2]}, "timestamps has 2 values for 1 items"),
        ({"item_ids": [ids[0]], "depth": [5]}, "depth 5 is not served here"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            triton.infer(**wrong)
        assert words in refused.value.read().decode()
    assert len(triton.infer(item_ids=[ids[0]])["recommended"]) == 10


def check_a_crowd(triton: StartedTriton, client: Client, ids: tuple[str, ...]) -> None:
    """Histories of all lengths at once share batches, a wrong one among them; and several histories in one request."""
    rng = np.random.default_rng(1)
    histories = [[ids[i] for i in rng.integers(0, len(ids), 1 + number % 29)] for number in range(120)]
    histories[50] = ["nothing known"]

    def asked(history: list[str]) -> list[str] | None:
        try:
            found: list[str] = triton.infer(item_ids=history, depth=[8])["recommended"]
            return found
        except urllib.error.HTTPError:
            return None

    requests, batches = triton.runs()
    with ThreadPoolExecutor(24) as callers:
        found = list(callers.map(asked, histories))
    after, ran = triton.runs()
    assert after - requests > 2 * (ran - batches)
    assert found.pop(50) is None
    del histories[50]
    assert found == [[item.id for item in client.recommend(history, depth=8).items] for history in histories]
    rows = [history for history in histories if len(history) == 12][:3]
    together = triton.infer(item_ids=rows, k=[[3], [5], [2]], depth=[[4], [8], [0]])
    assert together["depth_used"] == [4, 8, 0]
    named = np.array(together["recommended"]).reshape(3, 5)
    for row, history, k, depth in zip(named.tolist(), rows, (3, 5, 2), (4, 8, 0), strict=True):
        ours = [item.id for item in client.recommend(history, k=k, depth=depth).items]
        assert row == ours + [""] * (5 - k)


def test_the_benchmark_measures_both_models_and_makes_a_page(installed: Triton, counting_bundle: Path) -> None:
    with Bundle.open(counting_bundle) as bundle:
        cases = [bundle.catalogue.ids[:length] for length in (3, 7, 12)]
        depths = (bundle.depths[0], bundle.depths[-1])
    found = benchmark.compare(installed, counting_bundle, cases, seconds=0.1, turns=1)
    models = [(row["depth"], row["model"]) for row in found["rows"]]
    assert sorted(set(models)) == [(depth, model) for depth in depths for model in ("by-hand", "fathom")]
    page = benchmark.render({"config": {"bundle": "b", "mean_history": 7.3, "turns": 1}, "result": found})
    assert page.count("| by-hand |") == page.count("| fathom |") == 4
