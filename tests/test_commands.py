"""Each stage by its own command, from a csv file to a bundle that answers and is load-tested."""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import in_process
import pytest

from fathom import show
from fathom.artefacts import REPORT_FOLDER, check_output
from fathom.cli import main
from fathom.commands.rank import show_ranking
from fathom.errors import BundleError, ConfigError
from fathom.exporter.certification import routing_report
from fathom.exporter.planning.plan import DepthPlan
from fathom.files import sha256_bytes, write_json
from fathom.importance.layer_ranking import LayerRanking, MethodScores
from fathom.importance.registry import method_names
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import CERTIFICATE_FILE, MANIFEST_NAME, FileEntry, content_version, sealed
from fathom.runtime.manifest_file import read_manifest
from fathom.selector.certificate import KINDS


def fathom(*arguments: str | Path) -> str:
    """What the command prints on stdout; it must succeed."""
    return in_process.fathom(*arguments).stdout


def check_tables(*arguments: str | Path, widths: Iterable[int] = (60, 80, 120, show.PLAIN_WIDTH)) -> None:
    """Every heading and every cell of the command's tables is on the terminal, whatever its width."""
    real = show.table
    for width in widths:
        cells: list[str] = []

        def table(title: str, rows: Sequence[Sequence[str]], cells: list[str] = cells) -> None:
            cells += [cell for row in rows for cell in row]
            real(title, rows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(show, "table", table)
            patch.setattr(show.out, "width", width)
            printed = fathom(*arguments)
        assert cells
        assert max(map(len, printed.splitlines())) <= width
        assert set(printed.split()) >= {word for cell in cells for word in cell.split()}


@pytest.fixture(scope="module")
def dataset(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "dataset"
    printed = fathom("data", "prepare", tiny_csv, "--timestamp-column", "timestamp", "--out", folder)
    assert "60 users" in printed
    assert "time       known" in printed
    assert "malformed  0 of" in printed
    return folder


def test_from_a_dataset_to_a_bundle_stage_by_stage(dataset: Path) -> None:
    folder = dataset.parent
    short = ["--set", "train.grow_epochs=1", "--set", "train.epochs=1"]
    printed = fathom("train", dataset, "--out", folder / "checkpoint", "--preset", "tiny", "--seed", "3", *short)
    assert "NDCG@10 depth 16" in printed
    report = json.loads(fathom("evaluate", folder / "checkpoint", "--data", dataset, "--json"))
    assert {"depth 0", "depth 4", "depth 16", "popularity", "EASE", "transitions"} <= set(report["systems"])
    ranking = folder / "ranking.json"
    methods = ["--methods", "block_influence,ablation", "--users", "20", "--plot", folder / "ranking.png"]
    methods += ["--page", folder / "ranking.html"]
    printed = fathom("rank", folder / "checkpoint", "--data", dataset, "--out", ranking, *methods)
    assert "ablation and block_influence" in printed or "block_influence and ablation" in printed
    assert "critical" in printed
    assert (folder / "ranking.png").stat().st_size > 10_000
    other = folder / "other.json"
    ranking.rename(other)
    sampled = ["--lattice", folder / "lattice", "--lattice-orders", "2", "--workers", "2"]
    printed = fathom("rank", folder / "checkpoint", "--data", dataset, "--out", ranking, *methods, *sampled)
    assert "tau with the Shapley values" in printed
    assert re.search("Grades against [0-9]+ of 65,536 subsets of layers, sampled", printed)
    assert not re.search("every subset|regret|nan", printed)
    assert json.loads(ranking.read_bytes())["grades"]["loss"].keys() == {"ablation", "block_influence", "consensus"}
    assert "sampled. Without every subset" in (folder / "ranking.html").read_text()
    assert "top 4 shared" in fathom("stability", ranking, other)
    alike = json.loads(fathom("stability", ranking, other, "--json"))
    assert alike["methods"]["ablation"] == alike["consensus"] == {"mean": 1.0, "lowest": 1.0, "overlap": 1.0}
    chosen = ["--methods", "auto", "--budget", "2s", "--users", "20", "--out", folder / "auto.json"]
    fathom("rank", folder / "checkpoint", "--data", dataset, *chosen)
    assert 0 < len(json.loads((folder / "auto.json").read_bytes())["methods"]) < len(method_names())
    plan = folder / "plan.json"
    printed = fathom("plan", ranking, "--strategy", "nested", "--depths", "2,16", "--out", plan)
    assert "nested plan" in printed
    healing = ["--out", folder / "healed", "--set", "train.heal_epochs=1"]
    assert "heal" in fathom("heal", folder / "checkpoint", plan, "--data", dataset, *healing)
    bundle = folder / "bundle"
    fathom("export", folder / "healed", plan, "--data", dataset, "--out", bundle, "--name", "clicks")
    manifest = json.loads(fathom("bundle", "inspect", bundle, "--json"))
    assert (manifest["name"], manifest["strategy"], list(manifest["depths"])) == ("clicks", "nested", ["2", "16"])
    assert "NDCG@10" in fathom("bundle", "quality", bundle)
    assert "contents" in fathom("bundle", "verify", bundle)


def test_plans_are_compared_by_a_lattice_and_made_from_it(dataset: Path, tmp_path: Path) -> None:
    shape = ["--set", "model.layers=4", "--set", "model.depths=2,3,4", "--set", "train.epochs=1"]
    fathom("train", dataset, "--out", tmp_path / "checkpoint", "--preset", "tiny", "--seed", "3", *shape)
    ranking, lattice = tmp_path / "ranking.json", ["--lattice", tmp_path / "lattice"]
    measured = ["--methods", "block_influence,ablation", "--users", "20"]
    fathom("rank", tmp_path / "checkpoint", "--data", dataset, "--out", ranking, *measured, *lattice)
    asked = ["plan", ranking, *lattice, "--depths", "2,3,4"]
    printed = fathom(*asked, "--compare")
    for expected in ("NDCG@10", "log p", "best", "greedy_elimination", "on 20 users"):
        assert expected in printed
    check_tables(*asked, "--compare")
    found = json.loads(fathom(*asked, "--compare", "--json"))
    assert "fathom rank --methods greedy_elimination,block_influence,ablation" in found["left_out"]["greedy"]
    predicted = found["predictions"]["log_p"]
    # Which order the layers of this small network are ranked in differs between machines.
    permuted = DepthPlan.make(LayerRanking.load(ranking), "permuted-prefix", (2, 3, 4)).paths.values()
    held = all(path == tuple(sorted(path)) for path in permuted)
    assert list(predicted) == ["prefix", "nested", *(["permuted-prefix"] if held else []), "lattice", "best"]
    assert set(found["left_out"]) == {"greedy"} | (set() if held else {"permuted-prefix"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "lattice", "ranking.json"]
    printed = fathom(*asked, "--strategy", "lattice", "--out", tmp_path / "plan.json")
    assert "lattice plan" in printed
    plan = json.loads((tmp_path / "plan.json").read_bytes())
    assert plan["paths"] == {depth: figures["layers"] for depth, figures in predicted["lattice"].items()}


def test_many_methods_are_shown_with_their_mean_agreement_and_those_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"method_{number}" for number in range(7)]
    scores = MethodScores((0.5, 0.1), (0.4, 0.0), (0.6, 0.2), (1, 2), 1.0)
    tau = {a: {b: 1.0 if a == b else 0.5 for b in names} for a in names}
    left_out = {"conductance": "captum is not installed; run: pip install 'fathom-recommender[importance]'"}
    ranking = LayerRanking(
        2, None, None, 9, 0, dict.fromkeys(names, scores), tau, (1.0, 0.0), (0, 1), left_out=left_out
    )
    ranking.save(tmp_path / "ranking.json")
    show_ranking(tmp_path / "ranking.json")
    printed = capsys.readouterr().out
    assert "mean with the others: method_0 +0.50, method_1 +0.50" in printed
    assert f"left out     conductance: {left_out['conductance']}" in printed


def no_report(*_: object) -> None:
    raise ConfigError("no report today")


def test_a_bundle_is_certified_as_far_as_its_users_allow(
    tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, report = tmp_path / "bundle", tmp_path / "report"
    shutil.copytree(tiny_build / "bundle", bundle)
    asked = ["certify", bundle, "--data", tiny_build / "dataset"]
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["fathom", *map(str, asked), "--eps", "0.001", *more])
        with pytest.raises(SystemExit) as ended:
            main()
        shown, error = capsys.readouterr()
        assert ended.value.code == 2
        assert re.search(r"error: .* nothing is certified, so it is unchanged: .*--eps$", error, re.MULTILINE)
        # Three deepest depths, with depth 0 and without, and two kinds.
        assert shown.count('"routing": null' if more else "not certified") == 12
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    assert "eps is 5.0" in in_process.fathom("certify", "nowhere", "--data", "nowhere", "--eps", "5", code=2).stderr
    report.mkdir()
    (report / "notes.txt").write_text("mine")
    enough = ["--profile", "cloud", "--eps", "0.9", "--delta", "0.2"]
    with monkeypatch.context() as patch:
        patch.setattr(routing_report, "make_report", no_report)
        in_process.fathom(*asked, *enough, "--report", report, code=2)
    # The certificate is written before the report.
    assert "certificate.json" in fathom("bundle", "verify", bundle)
    printed = fathom(*asked, *enough, "--report", report)
    assert "depth 4" in printed
    assert "bounds that hold together" in printed
    assert sorted(path.name for path in report.iterdir()) == [
        "notes.txt",
        "routing.html",
        "routing.json",
        "routing.png",
    ]
    check_output(report, REPORT_FOLDER)
    assert (report / "notes.txt").read_text() == "mine"
    again = in_process.fathom(*asked, *enough, "--json")
    assert "was certified before: delta holds for one certification" in again.stderr
    found = json.loads(again.stdout)
    claims = [(claim["kind"], claim["depths"]) for claim in found["claims"]]
    assert claims == [(kind, depths) for kind in KINDS for depths in ([0, 4, 8, 12, 16], [4, 8, 12, 16])]
    assert sum(found["claims"][0]["routing"]["shares"]) == pytest.approx(1)
    assert found["promises"]["quality"]["merged"] + found["claims"][0]["users"] == 60


def test_a_certificate_that_cannot_be_read_is_replaced_and_nothing_else_is(tiny_build: Path, tmp_path: Path) -> None:
    bundle, broken = tmp_path / "bundle", b'{"schema_version": 99}'
    shutil.copytree(tiny_build / "bundle", bundle)
    manifest = read_manifest(bundle)
    files = {**manifest.files, CERTIFICATE_FILE: FileEntry(bytes=len(broken), sha256=sha256_bytes(broken))}
    (bundle / CERTIFICATE_FILE).write_bytes(broken)
    write_json(bundle / MANIFEST_NAME, sealed(manifest.model_copy(update={"files": files})).model_dump(mode="json"))
    with pytest.raises(BundleError, match=r"certificate\.json: .*newer"):
        Bundle.open(bundle)
    asked = [
        "certify",
        bundle,
        "--data",
        tiny_build / "dataset",
        "--profile",
        "cloud",
        "--eps",
        "0.9",
        "--delta",
        "0.2",
    ]
    assert "all that it holds is replaced" in in_process.fathom(*asked).stderr
    assert Bundle.open(bundle).certificate is not None
    (bundle / "items" / "vectors.npy").write_bytes(b"")
    in_process.fathom(*asked, code=2)


def test_recorded_requests_certify_agreement(tiny_build: Path, tmp_path: Path) -> None:
    bundle, log = tmp_path / "bundle", tmp_path / "log"
    shutil.copytree(tiny_build / "bundle", bundle)
    opened = Bundle.open(bundle)
    content, items = content_version(opened.manifest), opened.catalogue.ids
    lines = [
        {"schema_version": 1, "content": content, "items": [items[(start + step * n) % len(items)] for n in range(5)]}
        for start in range(len(items))
        for step in range(1, 11)
    ]
    log.mkdir()
    (log / "requests-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["certify", bundle, "--from-log", log]
    assert "with --from-log give --kind agreement" in in_process.fathom(*asked, code=2).stderr
    assert "--report, need --data" in in_process.fathom(*asked, "--kind", "agreement", "--report", log, code=2).stderr
    assert "give --data or --from-log" in in_process.fathom("certify", bundle, code=2).stderr
    enough = ["--kind", "agreement", "--profile", "cloud", "--eps", "0.9", "--floor", "0.1", "--below", "0.9"]
    found = json.loads(in_process.fathom(*asked, *enough, "--json").stdout)
    assert found["promises"]["agreement"]["part"] == "recorded requests"
    assert {claim["kind"] for claim in found["claims"]} == {"agreement"}
    assert any(claim["routing"] for claim in found["claims"])
    # What `fathom build` has certified stays.
    assert set(Bundle.open(bundle).certificate.promises) == {"quality", "agreement"}


def test_every_table_is_whole_on_narrow_and_wide_terminals(tiny_csv: Path, tiny_build: Path, tmp_path: Path) -> None:
    bundle = tiny_build / "bundle"
    check_tables("build", tiny_csv, "--preset", "tiny", "--out", bundle)
    check_tables("bundle", "inspect", bundle)
    check_tables("bundle", "quality", bundle)
    check_tables("profiles", "list")
    shutil.copytree(bundle, tmp_path / "bundle")
    asked = ["--profile", "cloud", "--eps", "0.9", "--delta", "0.2"]
    check_tables("certify", tmp_path / "bundle", "--data", tiny_build / "dataset", *asked, widths=[60])


def test_a_server_is_asked_and_load_tested_from_the_shell(tiny_build: Path, tmp_path: Path) -> None:
    with running_server(tiny_build / "bundle") as server:
        target = server.address
        answer = json.loads(fathom("recommend", "--target", target, "--items", "i1,i4,nobody", "-k", "3", "--json"))
        assert len(answer["items"]) == 3
        assert answer["unknown_items"] == 1
        told = fathom("recommend", "--target", target, "--items", "i1", "--depth", "4")
        assert told.count("depth 4") == 1
        rules = ["--diversity", "0.5", "--cap", "3", "-k", "2", "--json"]
        assert len(json.loads(fathom("recommend", "--target", target, "--items", "i1", *rules))["items"]) == 2
        trace = ["--trace", tiny_build / "dataset", "--rate", "50", "--duration", "1", "--profile", "edge"]
        report = json.loads(fathom("loadtest", "--target", target, *trace, "--out", tmp_path / "load.json", "--json"))
    assert report["statuses"] == {"OK": report["requests"]}
    assert set(report["depths"]) <= {"0", "4", "8", "12"}
    assert json.loads((tmp_path / "load.json").read_bytes())["requests"] == report["requests"]
    assert (tmp_path / "load.png").stat().st_size > 10_000
