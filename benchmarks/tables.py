"""Writes docs/results.md, its pictures, and the figures of README.md, from the stored runs in results/ alone.

python -m fathom.benchmarks.tables
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.benchmarks import registry
from fathom.benchmarks.experiments import efficiency, parity, precision, qlora, routing, training_throughput
from fathom.benchmarks.experiments.drawing import svg
from fathom.benchmarks.experiments.importance_tables import PICTURE, importance_section, lattice_figure, load_measured
from fathom.benchmarks.experiments.quality import plots
from fathom.benchmarks.experiments.quality.stored import Pool, pools
from fathom.benchmarks.experiments.quality.tables import (
    counting_facts,
    depth_facts,
    mean_hr,
    page_order,
    quality_sections,
    seeds,
)
from fathom.benchmarks.experiments.routing_tables import routing_sections
from fathom.benchmarks.markdown import decimal, table
from fathom.benchmarks.record import RESULTS, run
from fathom.errors import ArtefactError
from fathom.files import write_bytes

BEGIN, END = "<!-- begin: written by `make results` -->", "<!-- end -->"
README = "README.md"

Run = Mapping[str, Any]


def documents(readme: str, folder: Path = RESULTS) -> dict[str, bytes]:
    """All that is written, by its path in the repository.

    Raises ArtefactError when a run or a marker is missing, or a run was measured with code that nobody can look up.
    """
    check_committed(folder)
    found, engine = sorted(pools(folder), key=lambda pool: page_order(pool.dataset)), _load(folder, "engine_depth")
    pictures = {name: svg(figure) for name, figure in plots.figures(found, engine).items()}
    measured = load_measured(folder)
    more = {PICTURE: svg(lattice_figure(measured))} if measured else {}
    if routed := routing.load_routed(folder):
        more[routing.PICTURE] = svg(routing.areas_figure(routed))
    return {
        **{f"docs/figures/{name}.svg": picture for name, picture in (pictures | more).items()},
        "docs/results.md": results_page(folder, found, pictures).encode(),
        README: with_block(readme, readme_block(folder, found)).encode(),
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


def results_page(folder: Path, quality: Sequence[Pool], pictures: Iterable[str]) -> str:
    """docs/results.md as text."""
    engine = _load(folder, "engine_depth")
    parts = [
        "# Results\n\nWritten by `make results` from the stored runs in `results/`; each names its command, config,"
        " seed, commit and machine. Quality: full ranking, seen items left out, 95 % intervals over users and seeds"
        " (crossed random effects), differences user by user over the seeds that both sides have.",
        *quality_sections(quality, engine, pictures),
        importance_section(load_measured(folder)),
        *routing_sections(folder),
        *(
            [training_throughput.section(_load(folder, path.stem))]
            if (path := folder / "training_throughput.json").exists()
            else []
        ),
        parity.section(_load(folder, "parity")),
        *_system_sections(folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _system_sections(folder: Path) -> list[str]:
    sections = {name: registry.load(name).section(folder) for name in registry.names()}
    memory, retrieval, gpu = (sections.pop(name) for name in ("memory", "retrieval", "gpu"))
    return [
        *sections.values(),
        registry.of_runs(precision.section, "precision", "precision-wide")(folder),
        memory,
        registry.of_runs(qlora.section, "qlora")(folder),
        registry.of_runs(efficiency.section, "efficiency")(folder),
        retrieval,
        gpu,
    ]


def readme_block(folder: Path, quality: Sequence[Pool]) -> str:
    """The figures that README.md shows, between its markers."""
    by_name = {pool.dataset: pool for pool in quality}
    echo, start = _load(folder, "grpc_echo")["result"], _load(folder, "server_start")["result"]["median"]
    compared = _load(folder, "parity")["result"]["rows"]
    depth_4, depth_16 = (_engine(folder, depth) for depth in (4, 16))
    decisions = [r for r in _load(folder, "selector_latency")["result"]["rows"] if r["history"] == 200]
    facts = [
        *_large_fact(by_name.get("ml-1m")),
        *depth_facts(quality),
        *counting_facts(quality),
        *certified_fact(folder),
        f"engines against torch, history 1 to 200: largest error of a user vector"
        f" {max(r['max_abs_error'] for r in compared):.1e}; the same top 10 for"
        f" {min(r['identical_share'] for r in compared):.1%} of {compared[0]['users']} users",
        f"one request inside the engine, history 50, one thread: {depth_4['median_us'] / 1e3:.2f} ms at depth 4,"
        f" {depth_16['median_us'] / 1e3:.2f} ms at depth 16: {depth_4['share_of_deepest']:.2f} of it",
        f"one decision of the selector, history 200: median {max(r['median_us'] for r in decisions):.0f} µs,"
        f" p99 {max(r['p99_us'] for r in decisions):.0f} µs",
        f"requests per second at depth 4 and concurrency 32, against a bare gRPC echo of the same messages:"
        f" {echo['ratio_requests_per_s']:.2f}",
        f"`fathom serve` is ready after {start['ready_s']:.1f} s and holds {start['served_mb']:.0f} MB",
    ]
    listed = "\n".join(f"- {fact}" for fact in facts)
    return "\n\n".join(part for part in (_small_table(by_name.get("ml-100k")), listed) if part)


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
    claims = _load(folder / "routing", "ml-100k-seed-0")["result"]["claims"]
    claim = next(claim for claim in claims if claim["policy"] == "mixture")
    asked = f"ML-100K, {claim['users']:,} test users, at most {claim['eps']:.0%} of depth 16's NDCG@10 to be lost"
    if claim["routing"] is None:
        needed = f"about {claim['needed']:,} users are needed" if claim["needed"] else "too much is lost"
        return [f"{asked}: nothing is certified, {needed}"]
    return [f"{asked}: certified for {claim['routing']}, {claim['saved']:.0%} of the engines' time saved"]


def _figures(pool: Pool | None, wanted: Sequence[tuple[str, str]]) -> list[list[str]]:
    """System, HR@10 and NDCG@10 of those that were run."""
    found = [] if pool is None else [(pool, arm, name, pool.mean((arm, name))) for arm, name in wanted]
    return [[name, decimal(mean_hr(of, arm, name)), decimal(ndcg.value)] for of, arm, name, ndcg in found if ndcg]


def _load(folder: Path, name: str) -> Run:
    path = folder / f"{name}.json"
    if not path.exists():
        raise ArtefactError(f"{path}: no such run; make bench measures it")
    value: Run = json.loads(path.read_bytes())
    return value


def _engine(folder: Path, depth: int) -> Run:
    rows: list[Run] = _load(folder, "engine_depth")["result"]["rows"]
    return next(row for row in rows if row["history"] == 50 and row["depth"] == depth)


def with_block(page: str, block: str) -> str:
    """The page with the block between its markers; raises ArtefactError when a marker is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ArtefactError(f"README.md: the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main() -> None:
    """Write all documents, and say which."""
    written = documents(Path(README).read_text(encoding="utf-8"))
    for path, content in written.items():
        write_bytes(Path(path), content)
    print(f"wrote {', '.join(written)}")


if __name__ == "__main__":
    run(main)
