"""`fathom build`, as a whole: it ends in a bundle that serves, runs only what changed, and survives kill -9."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

import pytest
from in_process import fathom
from traced_once import traced_shape

from fathom.building import build as building
from fathom.building.build import exported
from fathom.client import Client
from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import derive_bundle, rewrite
from fathom.exporter.bundle.sign import make_keys, sign_bundle
from fathom.exporter.certification.certify import answering_files, write_certificate
from fathom.exporter.engines import pieces
from fathom.exporter.planning.plan import DepthPlan
from fathom.files import sha256_tree
from fathom.importance.layer_ranking import LayerRanking
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import CERTIFICATE_FILE, DeviceCheck, depth_digests
from fathom.selector.certificate import SCHEMA_VERSION, Certificate, Claim, Promise
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset

KILLS = 8
#: Four layers: as many stages, files and renames as with sixteen.
SMALL = ("model.layers=4", "model.depths=2,3,4")
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


def arguments(source: Path, out: Path, *settings: str) -> list[str]:
    options = ["--preset", "tiny", "--out", str(out), "--json"]
    return ["build", str(source), *options, *(part for setting in settings for part in ("--set", setting))]


def build(source: Path, out: Path, *settings: str) -> list[str]:
    """The names of the stages that ran."""
    ran = json.loads(fathom(*arguments(source, out, *settings)).stdout)["ran"]
    assert isinstance(ran, list)
    return ran


#: Each build is a process of its own, forked from one that has loaded torch already: a start costs no seconds.
FORKED = get_context("forkserver")
COMMAND = """
import os, sys
os.dup2(stderr.fileno(), 2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
from traced_once import share
share(traced)
sys.argv = ["fathom", *arguments]
from fathom.cli import main
main()
"""


@contextmanager
def begun(source: Path, out: Path, traced: Path) -> Iterator[tuple[BaseProcess, TextIO]]:
    """A build that has begun, and what it says on stderr; killed at the end of the block, if it is still there."""
    FORKED.set_forkserver_preload(["fathom.training", "fathom.building.build", "fathom.commands.build"])
    said, stderr = FORKED.Pipe(duplex=False)
    given = {"stderr": stderr, "arguments": arguments(source, out, *SMALL), "traced": traced}
    process = FORKED.Process(target=exec, args=(COMMAND, given))
    process.start()
    stderr.close()
    with said, open(said.fileno(), closefd=False) as lines:
        try:
            yield process, lines
        finally:
            process.kill()
            process.join()


def visible(folder: Path) -> list[tuple[str, Path]]:
    """The artefacts that a later command would find; a name with a leading dot is nobody's."""
    found = [(pattern, path) for pattern in LOADERS for path in sorted(folder.glob(pattern))]
    return [(pattern, path) for pattern, path in found if not path.name.startswith(".")]


def check_artefacts(folder: Path) -> None:
    for pattern, path in visible(folder):
        LOADERS[pattern](path)


def test_without_a_preset_the_settings_follow_from_the_data_which_is_said_and_kept(
    tiny_csv: Path, tmp_path: Path
) -> None:
    baskets = tmp_path / "baskets.csv"
    baskets.write_text(re.sub(r"\d{6}$", "000000", tiny_csv.read_text(), flags=re.MULTILINE))
    # All that tracing depends on is given, as `tiny_build` has it: it takes most of the time of a small build.
    shape = [f"model.{name}={value}" for name, value in traced_shape().items()]
    settings = (*SMALL, *shape, "train.grow_epochs=1", "train.epochs=1", "train.heal_epochs=1")
    given = [*(part for setting in settings for part in ("--set", setting)), "--no-certify", "--json"]
    out = fathom("build", str(baskets), "--out", str(tmp_path / "bundle"), *given)
    built = json.loads(out.stdout)
    assert built["chosen"]["statistics"]["users"] == 60
    model, training, judging = built["chosen"]["reasons"]
    assert all(line in out.stderr for line in (model, training, judging))
    assert built["ran"][:2] == ["prepare", "train"]
    config = Checkpoint.load(tmp_path / "checkpoint").config.train
    assert (config.train.targets_ahead, config.train.epochs) == (20, 1)
    assert json.loads(fathom("build", str(baskets), "--out", str(tmp_path / "bundle"), *given).stdout)["ran"] == []


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_only_whole_artefacts(tiny_csv: Path, tmp_path: Path, traced_pieces: Path) -> None:
    rng = random.Random(7)
    for _ in range(KILLS):
        with begun(tiny_csv, tmp_path / "bundle", traced_pieces) as (process, lines):
            # A line says that a stage has begun or ended: from there a random while, so that the kills spread over all.
            for _ in range(rng.randint(1, 3)):
                if "export" in (line := lines.readline()):
                    break
            process.join(rng.uniform(0.0, 1.2))
        check_artefacts(tmp_path)
        if "export" in line:  # nothing else is left to do: begin again with the half that writes most
            shutil.rmtree(tmp_path / "healed")
    with begun(tiny_csv, tmp_path / "bundle", traced_pieces) as (process, lines):
        while process.is_alive() and not list(tmp_path.glob(".bundle*")):
            process.join(0.001)
        assert process.is_alive(), lines.read()
    assert not (tmp_path / "bundle").exists()
    check_artefacts(tmp_path)
    build(tiny_csv, tmp_path / "bundle", *SMALL)
    assert {pattern for pattern, _ in visible(tmp_path)} == set(LOADERS)
    check_artefacts(tmp_path)


def add(bundle: Path) -> None:
    """What `certify`, `profiles check` and `bundle sign` put into a bundle."""
    with Bundle.open(bundle) as opened:
        manifest, depths = opened.manifest, opened.depths
        files, runs = answering_files(manifest), depth_digests(manifest)
        claim = Claim(depths, "mixture", 0.05, 60, needed=500)
        promise = Promise(0.05, 0.05, "2026-01-01T00:00:00Z", "d" * 64, "leave-one-out, test")
        costs = {4: 1.0, 16: 4.0}
        write_certificate(opened, Certificate(SCHEMA_VERSION, {"quality": promise}, files, costs, (claim,), runs))
    fit = DeviceCheck(memory_limit_mb=500, threads=1, peak_mb=100.0, machine="m", created="2026-01-01T00:00:00Z")
    with Bundle.open(bundle) as opened:
        rewrite(opened, fits={"edge-cpu": fit})
    make_keys(bundle.parent / "private.pem", bundle.parent / "public.pem")
    sign_bundle(bundle, bundle.parent / "private.pem")


def test_a_second_build_redoes_and_loses_nothing_and_says_what_a_new_export_drops(
    tiny_csv: Path, tiny_build: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_build, folder)
    add(folder / "bundle")
    before = sha256_tree(folder)
    result = fathom(*arguments(tiny_csv, folder / "bundle"))
    printed, said = json.loads(result.stdout), " ".join(result.stderr.split())
    assert printed["ran"] == []
    assert sha256_tree(folder) == before
    assert "too few" in printed["verdict"]

    engine = folder / "bundle/engines/depth-16.onnx"
    engine.write_bytes(engine.read_bytes()[:-1])
    result = fathom(*arguments(tiny_csv, folder / "bundle"))
    printed, said = json.loads(result.stdout), " ".join(result.stderr.split())
    assert printed["ran"] == ["export", "certify"]
    assert said.count("so its fit for a profile and signature no longer held and went") == 1

    for key in folder.glob("*.pem"):
        key.unlink()
    add(folder / "bundle")
    engine.write_bytes(engine.read_bytes()[:-1])
    result = fathom(*arguments(tiny_csv, folder / "bundle"), "--no-certify")
    printed, said = json.loads(result.stdout), " ".join(result.stderr.split())
    assert printed["ran"] == ["export"]
    assert said.count("so its certificate and fit for a profile and signature no longer held and went") == 1
    assert f"fathom certify {folder / 'bundle'} --data {folder / 'dataset'};" in said
    with Bundle.open(folder / "bundle") as bundle:
        assert bundle.certificate is None


def test_a_bundle_that_was_edited_or_sealed_by_hand_is_not_current(tiny_build: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_build / "bundle", tmp_path / "bundle")
    first = exported(tmp_path / "bundle")
    with Bundle.open(tmp_path / "bundle") as bundle:
        rewrite(bundle, name="another")
    assert exported(tmp_path / "bundle") not in ("", first)
    file = tmp_path / "bundle/items/popularity.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert exported(tmp_path / "bundle") == ""


def test_the_same_build_elsewhere_gives_the_same_bundle(
    tiny_csv: Path, tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_traced", {})  # which is done again too
    build(tiny_csv, tmp_path / "bundle")
    assert len({exported(path / "bundle") for path in (tiny_build, tmp_path)}) == 1
    # Its certificate says when it was made, and what answers cost then.
    tested = [
        [(claim.depths, claim.level, claim.users) for claim in Bundle.open(path / "bundle").certificate.claims]
        for path in (tiny_build, tmp_path)
    ]
    assert tested[0] == tested[1]
    assert set(Bundle.open(tiny_build / "bundle").certificate.promises) == {"quality", "agreement"}


def without_certificate(build: Path, copy: Path) -> Path:
    """A copy of a build, and in it of its bundle."""
    shutil.copytree(build, copy)
    bundle = copy / "bundle"
    with Bundle.open(bundle) as opened:
        derive_bundle(opened, copy / "other", drop={CERTIFICATE_FILE})
    shutil.rmtree(bundle)
    (copy / "other").rename(bundle)
    return bundle


def test_too_few_users_certify_nothing_and_the_build_says_what_it_would_take(
    tiny_csv: Path, tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fathom.commands.build.EPS", 1e-4)
    bundle = without_certificate(tiny_build, tmp_path / "copy")
    said = fathom("build", tiny_csv, "--preset", "tiny", "--out", bundle).stdout
    with Bundle.open(bundle) as opened:
        assert opened.certificate is not None
        assert not opened.certificate.certified
        needed = min((claim.needed for claim in opened.certificate.claims if claim.needed), default=None)
    would = "more users would not help" if needed is None else f"that would take about {needed:,} test users"
    assert re.search(f"nothing is certified[:,] (and )?{would}", said)
    again = fathom("build", tiny_csv, "--preset", "tiny", "--out", bundle)
    assert "nothing has changed" in again.stderr
    rows = json.loads(fathom(*arguments(tiny_csv, bundle)).stdout)["routing"]
    assert [row["routing"] for row in rows] == [f"not certified: depth {depth}" for depth in (8, 12, 16)]


def test_a_bundle_without_a_certificate_is_certified_by_the_next_build_and_then_left_alone(
    tiny_csv: Path, tiny_build: Path, tmp_path: Path
) -> None:
    bundle = without_certificate(tiny_build, tmp_path / "copy")
    assert json.loads(fathom(*arguments(tiny_csv, bundle), "--no-certify").stdout)["ran"] == []
    assert "nothing is certified: run `fathom certify" in fathom("bundle", "inspect", bundle).stdout
    assert build(tiny_csv, bundle) == ["certify"]
    own = ["certify", bundle, "--data", tmp_path / "copy" / "dataset", "--profile", "cloud"]
    fathom(*own, "--eps", "0.9", "--delta", "0.2")
    assert build(tiny_csv, bundle) == []
    (tmp_path / "copy" / "stages.json").write_bytes((tiny_build / "stages.json").read_bytes().replace(b"certify", b"-"))
    assert build(tiny_csv, bundle) == ["certify"]
    with Bundle.open(bundle) as opened:
        assert opened.certificate is not None
        assert opened.certificate.promises["quality"].eps == 0.9


def test_where_there_is_nothing_to_choose_from_a_build_is_not_certified_and_does_not_ask_again(
    tiny_csv: Path, tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "depth_sets", refuse)
    shutil.copytree(tiny_build, tmp_path / "copy")
    bundle = tmp_path / "copy" / "bundle"
    engine = bundle / "engines/depth-16.onnx"
    engine.write_bytes(engine.read_bytes()[:-1])
    result = fathom(*arguments(tiny_csv, bundle))
    assert json.loads(result.stdout)["ran"] == ["export", "certify"]
    assert result.stderr.count("not certified: there is nothing to choose from\n") == 1
    assert build(tiny_csv, bundle) == []


def refuse(_: Bundle, __: object) -> list[tuple[int, ...]]:
    raise ConfigError("there is nothing to choose from")


@pytest.mark.parametrize("is_certified", [True, False])
def test_the_bundle_serves_every_tier_as_certified_or_at_its_deepest_depth(
    tiny_build: Path, tmp_path: Path, is_certified: bool
) -> None:
    bundle = tiny_build / "bundle" if is_certified else without_certificate(tiny_build, tmp_path / "copy")
    with running_server(bundle) as server, Client(server.address) as client:
        assert client.bundle().depths == (0, 4, 8, 12, 16)
        for tier, depth in {"mobile": 8, "edge": 12, "cloud": 16}.items():
            answer = client.recommend(["i1", "i4", "i13"], k=5, profile=tier)
            assert answer.reason == ("certified" if is_certified else "deepest")
            assert answer.depth <= depth if is_certified else answer.depth == depth
            assert len(answer.items) == 5
            assert not {item.id for item in answer.items} & {"i1", "i4", "i13"}
            assert str(answer.depth) in answer.why


PHONE = """
name: small-phone
tier: mobile
description: A phone that ships what it says
depths: [0, 4, 8]
shallow: 4
deep: 8
threshold: 0.5
precision: int8
item_precision: int8
max_loss: 0.99
memory_limit_mb: 100
latency_budget_ms: 1000
threads: 1
max_batch: 1
max_batch_tokens: 512
source: made up for a test
"""


@pytest.mark.parametrize("precision", ["int8", "int4+lora"])
def test_a_build_for_a_profile_lies_beside_the_whole_one_and_is_what_the_profile_says(
    tiny_csv: Path, tiny_build: Path, tmp_path: Path, precision: str
) -> None:
    heals = []
    if precision == "int4+lora":
        pytest.importorskip("peft", reason="the extra peft is not installed")
        heals = ["heal as int4+lora"]
    shutil.copytree(tiny_build, tmp_path / "copy")
    phone, profile = tmp_path / "copy" / "phone", tmp_path / "phone.yaml"
    profile.write_text(PHONE.replace("precision: int8\nitem", f"precision: {precision}\nitem"))
    command = [*arguments(tiny_csv, phone), "--profile", str(profile)]
    assert json.loads(fathom(*command).stdout)["ran"] == [*heals, "export for small-phone", "certify for small-phone"]
    assert json.loads(fathom(*command).stdout)["ran"] == []
    assert build(tiny_csv, tmp_path / "copy" / "bundle") == []
    with Bundle.open(phone) as bundle:
        manifest, certificate = bundle.manifest, bundle.certificate
    assert (manifest.precision, manifest.item_precision, manifest.profile) == (precision, "int8", "small-phone")
    assert manifest.served_depths == (0, 4, 8)
    assert all(info.loss is not None for info in manifest.depths.values())
    assert certificate is not None
    assert {claim.depths for claim in certificate.claims} == {(0, 4, 8), (4, 8)}
    with running_server(phone, "--profile", str(profile)) as server, Client(server.address) as client:
        assert client.recommend(["i1", "i4"], k=5).depth <= 8


def test_every_plan_was_compared_and_the_manifest_says_so(tiny_build: Path) -> None:
    with Bundle.open(tiny_build / "bundle") as bundle:
        assert set(bundle.manifest.strategy_evidence) == {"prefix", "nested", "permuted-prefix"}
        for info in bundle.manifest.depths.values():
            assert info.parity.max_abs_error <= 1e-4
            assert info.parity.top10_agreement >= 0.999


def test_demo_asks_real_users_under_every_tier(tiny_build: Path) -> None:
    answers = json.loads(fathom("demo", tiny_build / "bundle", "--users", "1", "--json").stdout)
    assert [answer["tier"] for answer in answers] == ["mobile", "edge", "cloud"]
    assert all(answer["round_trip_ms"] * 1000 > answer["answer"]["timings"]["total_us"] for answer in answers)
