"""The part of docs/results.md about engines on devices: precision, memory, efficiency, retrieval."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fathom.benchmarks.experiments import efficiency, precision, qlora
from fathom.benchmarks.markdown import table

Run = Mapping[str, Any]


def device_sections(folder: Path) -> list[str]:
    """A section for each run that is stored."""
    sections: list[tuple[str, Callable[[Run], str]]] = [
        ("precision", precision.section),
        ("precision-wide", precision.section),
        ("memory", _memory),
        ("qlora", qlora.section),
        ("efficiency", efficiency.section),
        ("retrieval", _retrieval),
        ("gpu", _gpu),
    ]
    stored = [(folder / f"{name}.json", section) for name, section in sections]
    return [section(json.loads(path.read_bytes())) for path, section in stored if path.exists()]


def _memory(run: Run) -> str:
    rows = [
        [
            f"{row['items']:,}",
            row["profile"],
            row["precision"],
            row["item_precision"],
            ", ".join(map(str, row["depths"])),
            f"{row['peak_mb']:,.1f}",
            str(row["enough_mb"]),
            f"{row['deepest_alone_mb']:,.1f}",
            f"{row['times_the_deepest']:.2f}",
            f"{row['bundle_mb']:.0f}",
        ]
        for row in run["result"]["rows"]
    ]
    head = [
        "items",
        "profile",
        "layers",
        "vectors",
        "depths",
        "peak MB",
        "at most",
        "deepest alone",
        "times that",
        "bundle MB",
    ]
    return "\n\n".join(
        [
            "## Memory on a device",
            "The most resident memory of a process without a server that opens a bundle as the profile says and answers"
            " at every depth; width 64, histories up to 200 items. «At most» is the aim for 12,000 items.",
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


def _gpu(run: Run) -> str:
    result, config = run["result"], run["config"]
    engines = [
        [
            f"{row['width']}, {row['precision']}{'' if row['captured'] else ', no graphs'}",
            str(row["depth"]),
            str(row["batch"]),
            str(row["history"]),
            f"{row['gpu_ms']:.2f}",
            f"{row['thread_ms']:.2f}" if "thread_ms" in row else "",
            f"{row['cores_ms']:.1f}",
            f"{row['max_abs_error']:.0e}",
        ]
        for row in result["engines"]
    ]
    rates = [
        [
            row["bundle"],
            "captured" if row["captured"] else "",
            str(row["depth"]),
            *(f"{row[f'{engine}_per_s']:,}" for engine in ("gpu", "thread")),
        ]
        for row in result["pipeline"]
    ]
    searches = [
        [
            f"{row['items']:,}",
            str(row["batch"]),
            f"{row['gpu_ms']:.2f}",
            f"{row['thread_ms']:.2f}",
            f"{row['cores_ms']:.2f}",
            f"{row['same_answers']:.0%}",
        ]
        for row in result["search"]
    ]
    cores = run["machine"]["cores"]
    head = ["width, precision", "depth", "batch", "history", "GPU ms", "one thread ms", f"{cores} cores ms", "error"]
    return "\n\n".join(
        [
            "## On a GPU",
            f"{run['machine']['gpu']}, onnxruntime {run['versions']['onnxruntime-gpu']}; the processor is that of the"
            " same machine. Histories go to the GPU and user vectors come back within the time. Error: the largest of a"
            " user vector, against the processor with the same engines.",
            table(head, engines),
            f"Requests a second through the pipeline, without gRPC, history 50, {config['in_flight']} in flight:",
            table(["bundle", "graphs", "depth", "GPU", "one thread"], rates),
            f"The best {config['best']} by exact search, width 64, without 50 items that each has seen:",
            table(["items", "batch", "GPU ms", "one thread ms", f"{cores} cores ms", "same answers"], searches),
        ]
    )
