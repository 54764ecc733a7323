"""What the documents show is what the stored runs say."""

import json
import re
from pathlib import Path

import pytest

from fathom.benchmarks.experiments import training_throughput
from fathom.benchmarks.tables import BEGIN, END, certified_fact, documents, with_block
from fathom.errors import ArtefactError

ROOT = Path(__file__).parents[2]


def test_every_document_is_the_one_that_the_stored_runs_give() -> None:
    written = documents(ROOT, ROOT / "results")
    assert [path for path, content in written.items() if (ROOT / path).read_bytes() != content] == []
    pictures = {f"docs/figures/{path.name}" for path in (ROOT / "docs" / "figures").glob("*.svg")}
    assert pictures == {path for path in written if path.endswith(".svg")}
    for path in pictures:  # more decimals would depend on the processor
        assert not re.search(rb"<[^>]*\d\.\d{3}[^>]*>", written[path]), path


def test_without_runs_or_markers_there_is_an_error_and_no_page(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no quality run"):
        documents(ROOT, tmp_path)
    (tmp_path / "README.md").write_text(f"no end {BEGIN}")
    with pytest.raises(ArtefactError, match="markers"):
        with_block(tmp_path / "README.md", "figures")


def test_what_is_certified_is_said_as_far_as_it_was_measured(tmp_path: Path) -> None:
    assert certified_fact(tmp_path) == []
    (tmp_path / "routing").mkdir()
    claim = {"policy": "mixture", "eps": 0.05, "users": 943, "routing": None, "needed": 12_345}
    for change, said in (
        ({}, "nothing is certified, about 12,345 users are needed"),
        ({"needed": None}, "nothing is certified, too much is lost"),
        ({"routing": "all at depth 4", "saved": 0.61}, "certified for all at depth 4, 61% of the engines' time saved"),
    ):
        run = {"schema_version": 1, "result": {"claims": [{"policy": "rule"}, claim | change]}}
        (tmp_path / "routing" / "ml-100k-seed-0.json").write_text(json.dumps(run))
        (fact,) = certified_fact(tmp_path)
        assert fact == f"ML-100K, 943 test users, at most 5% of depth 16's NDCG@10 to be lost: {said}"


@pytest.mark.parametrize("commit", ["0" * 40 + "+changes", None, "main"])
def test_a_run_of_code_that_was_not_committed_is_named_and_nothing_is_published(
    tmp_path: Path, commit: str | None
) -> None:
    (tmp_path / "routing").mkdir()
    (tmp_path / "routing" / "ml-1m.json").write_text(json.dumps({"commit": commit}))
    with pytest.raises(ArtefactError, match=r"routing/ml-1m\.json: measured with code that was not committed"):
        documents(ROOT, tmp_path)
    (tmp_path / "routing" / "ml-1m.json").write_text("[]")
    with pytest.raises(ArtefactError, match=r"routing/ml-1m\.json: not a stored run"):
        documents(ROOT, tmp_path)


#: What looks like a measurement: a number with a unit, a metric's value, or a share in words.
MEASUREMENT = re.compile(
    r"\d[\d.,]*\s?(?:%|ms|µs|us|s|MB|GB|KB|GFLOP/s|requests/s|x|times)(?![\w-])|(?<![\w.])0?\.\d{3,}"
    r"|\b(?:half|a third|a quarter|twice|\w+ times) (?:of )?(?:the|as|less|more|faster|smaller) "
)
#: Settings and definitions that look like one.
CHOSEN = {
    "README.md": set[str](),
    "CHANGELOG.md": {"95 %", "60s", "four times the ", "a third of the "},
    "CONTRIBUTING.md": set[str](),
    "docs/architecture.md": {"four times the ", "a third of the "},
    "docs/benchmarks.md": {"80 %"},
}


@pytest.mark.parametrize("page", CHOSEN)
def test_figures_stand_only_where_they_are_generated_from_stored_runs(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    text = before + rest.partition(END)[2] if begin else text
    # What is indented or fenced is what the programs printed once, and the page says so.
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^ {4,}.*$", "", prose, flags=re.MULTILINE)
    assert {found.group() for found in MEASUREMENT.finditer(prose)} <= CHOSEN[page]


@pytest.mark.parametrize(
    "claim",
    ["takes half the time", "8.7 times less", "9 to 24 % at depth 16", "in about 20 µs", "NDCG@10 of .1288", "137 MB"],
)
def test_a_figure_in_prose_would_be_noticed(claim: str) -> None:
    assert MEASUREMENT.search(claim)


def test_what_a_remembered_history_is_said_to_take_is_what_was_measured() -> None:
    run = json.loads((ROOT / "results" / "returning.json").read_bytes())
    kept_kb = next(row["kept_kb"] for row in run["result"]["rows"] if row["depth"] == 16)
    layer, whole = int(kept_kb / 16 + 0.5), round(kept_kb, -2)
    said = f"A remembered history takes {layer} KB per layer at width 64 (about {whole:.0f} KB at depth 16)"
    assert said in " ".join((ROOT / "docs" / "operating.md").read_text(encoding="utf-8").split())


def test_speed_of_training_is_shown_when_it_was_measured(tmp_path: Path) -> None:
    assert training_throughput.BENCHMARK.section(tmp_path) == ""
    speeds = {"straightforward": 1000, "same batches": 1250, "fathom": 2500}
    row = {"preset": "tiny", "stage": "grow", "events_per_s": speeds, "ratio": 2.5, "ratio_same_batches": 2.0}
    result = {"peak_gflops": 90, "rows": [{**row, "achieved_gflops": 30.5, "share_of_peak": 0.339}]}
    (tmp_path / "training_throughput.json").write_text(json.dumps({"schema_version": 1, "result": result}))
    page = training_throughput.BENCHMARK.section(tmp_path)
    assert "| tiny | grow | 1,000 | 1,250 | 2,500 | 2.5 | 2.0 | 30.5 | 0.339 |" in page
    assert "product on the same machine: 90 GFLOP/s" in page
