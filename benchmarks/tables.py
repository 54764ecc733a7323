"""Writes docs/results.md, and the figures of README.md, from the stored runs in results/ and nothing else.

python -m fathom.benchmarks.tables
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fathom.benchmarks.record import RESULTS, run
from fathom.errors import ArtefactError
from fathom.files import write_bytes

BEGIN, END = "<!-- begin: written by `make bench` -->", "<!-- end -->"
DATA = "ml_100k"
METRICS = ("hr@10", "ndcg@10", "mrr")

Run = Mapping[str, Any]


def results_page(folder: Path = RESULTS) -> str:
    """docs/results.md as text; raises ArtefactError when a run is missing."""
    quality = _quality(folder)
    parts = [
        "# Results\n\nWritten by `make bench` from the stored runs in `results/`; each names its command, config, seed,"
        " commit and machine. Quality: full ranking, seen items left out, 95 % bootstrap intervals over users.",
        *(_quality_section(each) for each in quality),
        _depth_section(quality),
        _parity_section(_load(folder, "parity")),
        _engine_section(_load(folder, "engine_depth")),
        _selector_section(_load(folder, "selector_latency")),
        _server_section(_load(folder, "server_start"), _load(folder, "grpc_echo")),
    ]
    return "\n\n".join(parts) + "\n"


def readme_block(folder: Path = RESULTS) -> str:
    """The figures that README.md shows, between its markers."""
    quality = _quality(folder)
    systems = ["depth 4", "depth 8", "depth 12", "depth 16", "transitions", "EASE", "popularity"]
    rows = []
    for name in systems:
        found = [each["result"]["evaluation"]["systems"][name]["metrics"] for each in quality]
        rows.append([name, *(_decimal(mean(f[m]["value"] for f in found)) for m in METRICS)])
    echo, start = _load(folder, "grpc_echo")["result"], _load(folder, "server_start")["result"]["median"]
    parity = _load(folder, "parity")["result"]["rows"]
    depth_4, depth_16 = (_engine(folder, depth) for depth in (4, 16))
    decisions = [r for r in _load(folder, "selector_latency")["result"]["rows"] if r["history"] == 200]
    facts = [
        f"engines against torch, history 1 to 200: largest error of a user vector"
        f" {max(r['max_abs_error'] for r in parity):.1e}; the same top 10 for"
        f" {min(r['identical_share'] for r in parity):.1%} of {parity[0]['users']} users",
        f"one request inside the engine, history 50, one thread: {depth_4['median_us'] / 1e3:.2f} ms at depth 4,"
        f" {depth_16['median_us'] / 1e3:.2f} ms at depth 16: {depth_4['share_of_deepest']:.2f} of it",
        f"one decision of the selector, history 200: median {max(r['median_us'] for r in decisions):.0f} µs,"
        f" p99 {max(r['p99_us'] for r in decisions):.0f} µs",
        f"requests per second at depth 4 and concurrency 32, against a bare gRPC echo of the same messages:"
        f" {echo['ratio_requests_per_s']:.2f}",
        f"`fathom serve` is ready after {start['ready_s']:.1f} s and holds {start['served_mb']:.0f} MB",
    ]
    table = _table([f"ML-100K, test item, mean of {len(quality)} seeds", *(m.upper() for m in METRICS)], rows)
    return table + "\n\n" + "\n".join(f"- {fact}" for fact in facts)


def _quality_section(quality: Run) -> str:
    evaluation, plans = quality["result"]["evaluation"], quality["result"]["plans"]
    deepest = evaluation["reference"]
    rows = []
    for name, system in evaluation["systems"].items():
        difference = "" if name == deepest else _interval(system["difference"]["ndcg@10"])
        cells = [_interval(system["metrics"][metric]) for metric in METRICS]
        rows.append([name, *cells, f"{system['coverage@10']:.3f}", difference])
    head = ["test item", *(metric.upper() for metric in METRICS), "coverage@10", f"NDCG@10 less {deepest}"]
    names = list(plans["evidence"])
    figures = list(dict.fromkeys(key for found in plans["evidence"].values() for key in found))
    plan_rows = [[key, *(_interval(plans["evidence"][n].get(key)) for n in names)] for key in figures]
    minutes = sum(quality["result"]["stage_seconds"].values()) / 60
    title = f"## MovieLens-100K, seed {quality['seed']}"
    note = f"`fathom build` took {minutes:.1f} minutes. Plans on the validation item; `{plans['winner']}` was shipped:"
    return "\n\n".join([title, _table(head, rows), note, _table(["validation item", *names], plan_rows)])


def _depth_section(quality: Sequence[Run]) -> str:
    found = []
    for each in quality:
        shallow = each["result"]["evaluation"]["systems"]["depth 4"]["difference"]["ndcg@10"]
        turned = {"value": -shallow["value"], "low": -shallow["high"], "high": -shallow["low"]}
        found.append([f"seed {each['seed']}", _interval(turned)])
    return "\n\n".join(["## NDCG@10 of depth 16 less depth 4", _table(["ML-100K, test item", "difference"], found)])


def _parity_section(parity: Run) -> str:
    low, high = parity["config"]["history_lengths"]
    rows = [
        [str(r["depth"]), f"{r['max_abs_error']:.1e}", f"{r['identical_share']:.2%}", str(r["users"])]
        for r in parity["result"]["rows"]
    ]
    head = ["depth", "largest error of the user vector", "identical top 10", "users"]
    return f"## Engines against torch, history {low} to {high}\n\n" + _table(head, rows)


def _engine_section(engine: Run) -> str:
    rows = [
        [
            str(r["history"]),
            str(r["depth"]),
            f"{r['median_us']:,.0f}",
            f"{r['p90_us']:,.0f}",
            f"{r['share_of_deepest']:.2f}",
        ]
        for r in engine["result"]["rows"]
    ]
    head = ["history", "depth", "median µs", "p90 µs", "share of the deepest"]
    return "## One request inside the engine, one thread\n\n" + _table(head, rows)


def _selector_section(selector: Run) -> str:
    rows = [
        [f"{r['items']:,}", str(r["history"]), f"{r['median_us']:.1f}", f"{r['p99_us']:.1f}", f"{r['p999_us']:.1f}"]
        for r in selector["result"]["rows"]
    ]
    head = ["items", "history", "median µs", "p99 µs", "p99.9 µs"]
    return "## One decision of the selector, features included\n\n" + _table(head, rows)


def _server_section(start: Run, echo: Run) -> str:
    rows = []
    for concurrency in (1, 32):
        for side, figures in echo["result"][f"concurrency_{concurrency}"].items():
            numbers = [f"{figures[key]:,.2f}" for key in ("p50_ms", "p99_ms", "requests_per_s", "server_cpu_us")]
            rows.append([f"{side}, concurrency {concurrency}", *numbers])
    low, high = echo["result"]["ratio_range"]
    median = start["result"]["median"]
    return "\n\n".join(
        [
            "## The server, depth 4, against a bare grpc.aio echo of the same messages",
            _table(["", "p50 ms", "p99 ms", "requests/s", "server CPU µs per request"], rows),
            f"Requests/s at concurrency 32, server over echo: {echo['result']['ratio_requests_per_s']:.3f}"
            f" ({low:.3f} to {high:.3f} over the repetitions). Start to ready {median['ready_s']:.2f} s;"
            f" resident memory {median['ready_mb']:.0f} MB when ready, {median['served_mb']:.0f} MB after"
            f" {start['config']['requests']:,} requests.",
        ]
    )


def _quality(folder: Path) -> list[Run]:
    found = [json.loads(path.read_bytes()) for path in sorted(folder.glob(f"quality_{DATA}_seed_*.json"))]
    if not found:
        raise ArtefactError(f"{folder}: no run of {DATA} is stored; make bench measures one")
    return found


def _load(folder: Path, name: str) -> Run:
    path = folder / f"{name}.json"
    if not path.exists():
        raise ArtefactError(f"{path}: no such run; make bench measures it")
    value: Run = json.loads(path.read_bytes())
    return value


def _engine(folder: Path, depth: int) -> Run:
    rows: list[Run] = _load(folder, "engine_depth")["result"]["rows"]
    return next(row for row in rows if row["history"] == 50 and row["depth"] == depth)


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{_decimal(value['value'])} [{_decimal(value['low'])}, {_decimal(value['high'])}]"


def _decimal(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_block(page: str, block: str) -> str:
    """The page with the block between its markers; raises ArtefactError when a marker is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ArtefactError(f"README.md: the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main() -> None:
    """Write both pages."""
    readme = Path("README.md")
    write_bytes(Path("docs/results.md"), results_page().encode())
    write_bytes(readme, with_block(readme.read_text(encoding="utf-8"), readme_block()).encode())
    print("wrote docs/results.md and the figures of README.md")


if __name__ == "__main__":
    run(main)
