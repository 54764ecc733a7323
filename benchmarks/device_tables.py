"""The part of docs/results.md about engines on devices: precision, memory, efficiency, retrieval."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fathom.benchmarks.markdown import interval, percent, table
from fathom.training.metrics import Interval

Run = Mapping[str, Any]


def device_sections(folder: Path) -> list[str]:
    """A section for each run that is stored."""
    sections: list[tuple[str, Callable[[Run], str]]] = [
        ("precision", _precision),
        ("efficiency", _efficiency),
        ("retrieval", _retrieval),
    ]
    stored = [(folder / f"{name}.json", section) for name, section in sections]
    return [section(json.loads(path.read_bytes())) for path, section in stored if path.exists()]


def _precision(run: Run) -> str:
    rows = [
        [
            row["precision"],
            str(row["depth"]),
            f"{row['engines_kb']:,}",
            f"{row['peak_mb']:.0f}",
            f"{row['history_50_ms']:.2f}",
            f"{row['history_200_ms']:.2f}",
            interval(Interval(**row["ndcg@10"])),
            percent(Interval(**row["loss"])) if row["loss"] else "",
        ]
        for row in run["result"]["rows"]
    ]
    head = ["precision", "depth", "engines KB", "peak MB", "history 50, ms", "history 200, ms", "NDCG@10", "lost, %"]
    model, together = run["config"]["model"], run["result"]["all_depths_peak_mb"]
    alone = {row["precision"]: row["peak_mb"] for row in run["result"]["rows"] if row["depth"] == 16}
    all_depths = ", ".join(f"{name} {peak:.0f} MB ({peak / alone[name]:.2f} x)" for name, peak in together.items())
    return "\n\n".join(
        [
            "## Precision",
            f"{run['config']['data']}, {model['block']} blocks, width {model['width']}, one thread. Peak: of a process"
            f" that opens the engines of this depth and runs them; before it opens any it holds"
            f" {run['result']['rows'][0]['process_mb']:.0f} MB. Times: inside the engine, one request. Lost: the share"
            " of NDCG@10 on the test items, against fp32, paired over users.",
            table(head, rows),
            f"Peak with all depths together, and times that of depth 16 alone: {all_depths}.",
        ]
    )


def _efficiency(run: Run) -> str:
    rows = [
        [
            row["block"],
            str(row["width"]),
            str(row["batch"]),
            f"{row['ms']:.1f}",
            f"{row['gflops']:.0f}",
            f"{row['share_of_peak']:.0%}",
            ", ".join(f"{name} {share:.0%}" for name, share in list(row["operators"].items())[:5]),
        ]
        for row in run["result"]["rows"]
    ]
    head = ["blocks", "width", "batch", "ms", "GFLOP/s", "of the peak", "where the time goes"]
    return "\n\n".join(
        [
            "## How close engines come to the machine",
            f"Depth 16, history {run['config']['history']}, fp32, one thread. The peak is that of a large matrix"
            f" product on the same core: {run['result']['peak_gflops']:.0f} GFLOP/s.",
            table(head, rows),
        ]
    )


def _retrieval(run: Run) -> str:
    result, config = run["result"], run["config"]
    rows = [
        [row["search"], str(row["batch"]), f"{row['median_ms']:.1f}", f"{row['of_faiss']:.2f}"]
        for row in result["rows"]
    ]
    shares = [
        [
            f"{row['items']:,}",
            str(row["depth"]),
            f"{row['engine_ms']:.2f}",
            f"{row['retrieval_ms']:.2f}",
            f"{row['retrieval_share']:.0%}",
        ]
        for row in result["share_of_a_request"]
    ]
    return "\n\n".join(
        [
            f"## The best {config['best']} of {config['items']:,} items",
            f"Exact, width {config['width']}, one thread; {result['same_items_as_faiss']:.2%} of the items are those"
            " that faiss finds.",
            table(["search", "batch", "ms", "times faiss"], rows),
            "What part of a request of 50 items it is, by the size of the catalogue:",
            table(["items", "depth", "engine ms", "retrieval ms", "retrieval's part of the request"], shares),
        ]
    )
