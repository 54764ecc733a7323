"""Writes docs/results.md, its pictures, docs/leaderboard.md and the figures of README.md from the stored runs alone.

docs/benchmarks.md gets the list of all benchmarks, and docs/capacity.md the plan of the benchmark `capacity`.

python -m fathom.benchmarks.tables
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.benchmarks import leaderboard, registry
from fathom.benchmarks.__main__ import listing
from fathom.benchmarks.experiments import agreement, routing
from fathom.benchmarks.experiments.counting_quality import counting_exit_summary
from fathom.benchmarks.experiments.drawing import svg
from fathom.benchmarks.experiments.importance_tables import PICTURE, lattice_figure, load_measured
from fathom.benchmarks.experiments.quality import plots
from fathom.benchmarks.experiments.quality.stored import Pool, pools
from fathom.benchmarks.experiments.quality.tables import counting_facts, depth_facts, mean_hr, seeds
from fathom.benchmarks.leaderboard_sources import SOURCES
from fathom.benchmarks.markdown import decimal, paragraphs, table
from fathom.benchmarks.record import RESULTS, load_run, run
from fathom.benchmarks.systems import capacity, limits, saving, scaling_tables
from fathom.errors import ArtefactError
from fathom.files import write_bytes

BEGIN, END = "<!-- begin: written by `make results` -->", "<!-- end -->"


def documents(root: Path, folder: Path = RESULTS) -> dict[str, bytes]:
    """All that is written, by its path in the repository at ``root``.

    Raises ArtefactError when a run or a marker is missing, or a run was measured with code that nobody can look up.
    """
    check_committed(folder)
    found = pools(folder)
    figures = plots.figures(found, load_run(folder / "engine_depth.json"))
    if measured := load_measured(folder):
        figures[PICTURE] = lattice_figure(measured)
    if routed := routing.load_routed(folder):
        figures[routing.PICTURE] = routing.areas_figure(routed)
    if scaled := scaling_tables.load_scaling(folder):
        figures[scaling_tables.PICTURE] = scaling_tables.scaling_figure(scaled)
    if (folder / "limits.json").exists():
        figures[limits.PICTURE] = limits.limits_figure(load_run(folder / "limits.json"))
    blocks = {"README.md": readme_block(folder, found), "docs/benchmarks.md": listing()}
    blocks["docs/capacity.md"] = capacity.plan_block(folder)
    return {
        **{f"docs/figures/{name}.svg": svg(figure) for name, figure in figures.items()},
        "docs/results.md": results_page(folder).encode(),
        "docs/leaderboard.md": leaderboard.page(folder, SOURCES).encode(),
        **{page: with_block(root / page, block).encode() for page, block in blocks.items()},
    }


def check_committed(folder: Path) -> None:
    """Raises ArtefactError, which names the file, unless the code of every stored run was committed."""
    for path in sorted(folder.rglob("*.json")):
        try:
            commit = json.loads(path.read_bytes())["commit"]
        except (ValueError, TypeError, KeyError):
            raise ArtefactError(f"{path}: not a stored run; remove it") from None
        if not re.fullmatch("[0-9a-f]{40}", str(commit)):
            raise ArtefactError(
                f"{path}: measured with code that was not committed, so nothing of it is published; commit the code and"
                " run the benchmark again, or remove the file"
            )


def results_page(folder: Path) -> str:
    """docs/results.md as text."""
    intro = (
        "# Results\n\nWritten by `make results` from the stored runs in `results/`; each names its command, config,"
        " seed, commit and machine. Quality: full ranking, seen items left out, 95 % intervals over users and seeds"
        " (crossed random effects), differences user by user over the seeds that both sides have."
    )
    return paragraphs(intro, *(registry.load(name).section(folder) for name in registry.names())) + "\n"


def readme_block(folder: Path, quality: Sequence[Pool]) -> str:
    """The figures that README.md shows, between its markers."""
    by_name = {pool.dataset: pool for pool in quality}
    start = _result(folder, "server_start")["median"]
    compared = _result(folder, "parity")["rows"]
    depth_4, depth_16 = (_engine(folder, depth) for depth in (4, 16))
    decisions = [r for r in _result(folder, "selector_latency")["rows"] if r["history"] == 200]
    facts = [
        *_large_fact(by_name.get("ml-1m")),
        *depth_facts(quality),
        *counting_facts(quality),
        *counting_exit_summary(folder),
        *certified_fact(folder),
        *agreement.fact(folder),
        *saving.fact(folder),
        f"engines against torch, history 1 to 200: largest error of a user vector"
        f" {max(r['max_abs_error'] for r in compared):.1e}; the same top 10 for"
        f" {min(r['identical_share'] for r in compared):.1%} of {compared[0]['users']} users",
        f"one request inside the engine, history 50, one thread: {depth_4['median_us'] / 1e3:.2f} ms at depth 4,"
        f" {depth_16['median_us'] / 1e3:.2f} ms at depth 16: {depth_4['share_of_deepest']:.2f} of it",
        f"one decision of the selector, history 200: median {max(r['median_us'] for r in decisions):.0f} µs,"
        f" p99 {max(r['p99_us'] for r in decisions):.0f} µs",
        *front_fact(folder),
        f"`fathom serve` is ready after {start['ready_s']:.1f} s and holds {start['served_mb']:.0f} MB",
    ]
    listed = "\n".join(f"- {fact}" for fact in facts)
    return paragraphs(_small_table(by_name.get("ml-100k")), listed)


def _small_table(pool: Pool | None) -> str:
    wanted = [("ladder", f"depth {depth}") for depth in (4, 8, 12, 16)]
    wanted += [("baselines", name) for name in ("transitions", "EASE", "popularity")]
    rows = _figures(pool, wanted)
    if pool is None or not rows:
        return ""
    return table([f"ML-100K, test item, mean of {seeds(len(pool.of('ladder')))}", "HR@10", "NDCG@10"], rows)


def _large_fact(pool: Pool | None) -> list[str]:
    rows = _figures(pool, [("ladder", "depth 4"), ("ladder", "depth 16")])
    if pool is None or not rows:
        return []
    said = ", ".join(f"{hr}/{ndcg} at {name}" for name, hr, ndcg in rows)
    return [f"ML-1M, test item, HR@10/NDCG@10, mean of {seeds(len(pool.of('ladder')))}: {said}"]


def certified_fact(folder: Path) -> list[str]:
    """What the mixture is certified for on the data set that `make bench` measures."""
    if not (folder / "routing" / "ml-100k-seed-0.json").exists():
        return []
    claims = _result(folder, "routing/ml-100k-seed-0")["claims"]
    claim = next(claim for claim in claims if claim["policy"] == "mixture")
    asked = f"ML-100K, {claim['users']:,} test users, at most {claim['eps']:.0%} of depth 16's NDCG@10 to be lost"
    if claim["routing"] is None:
        needed = f"about {claim['needed']:,} users are needed" if claim["needed"] else "too much is lost"
        return [f"{asked}: nothing is certified, {needed}"]
    return [f"{asked}: certified for {claim['routing']}, {claim['saved']:.0%} of the engines' time saved"]


def front_fact(folder: Path) -> list[str]:
    """What the server answers beside an echo."""
    if not (folder / "front.json").exists():
        return []
    found = _result(folder, "front")["depth_4"]["http2"]
    return [
        f"requests per second at depth 4 with 32 in flight, against a bare gRPC echo of the same messages:"
        f" {found['of_echo']:.2f}"
    ]


def _figures(pool: Pool | None, wanted: Sequence[tuple[str, str]]) -> list[list[str]]:
    """System, HR@10 and NDCG@10 of those that were run."""
    found = [] if pool is None else [(pool, arm, name, pool.mean((arm, name))) for arm, name in wanted]
    return [[name, decimal(mean_hr(of, arm, name)), decimal(ndcg.value)] for of, arm, name, ndcg in found if ndcg]


def _result(folder: Path, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = load_run(folder / f"{name}.json")["result"]
    return found


def _engine(folder: Path, depth: int) -> Mapping[str, Any]:
    rows: list[Mapping[str, Any]] = _result(folder, "engine_depth")["rows"]
    return next(row for row in rows if row["history"] == 50 and row["depth"] == depth)


def with_block(page: Path, block: str) -> str:
    """The page with the block between its markers; raises ArtefactError when a marker is missing."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ArtefactError(f"{page}: the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main() -> None:
    """Write all documents, and say which."""
    written = documents(Path())
    for path, content in written.items():
        write_bytes(Path(path), content)
    print(f"wrote {', '.join(written)}")


if __name__ == "__main__":
    run(main)
