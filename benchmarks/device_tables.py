"""The part of docs/results.md about engines on devices: precision, memory, efficiency, retrieval."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fathom.benchmarks.markdown import decimal, interval, percent, table
from fathom.training.metrics import Interval

Run = Mapping[str, Any]


def device_sections(folder: Path) -> list[str]:
    """A section for each run that is stored."""
    sections: list[tuple[str, Callable[[Run], str]]] = [
        ("precision", _precision),
        ("precision-wide", _precision),
        ("memory", _memory),
        ("qlora", _qlora),
        ("efficiency", _efficiency),
        ("retrieval", _retrieval),
        ("gpu", _gpu),
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
            "## Precision" if model["width"] == 64 else f"### At width {model['width']}",
            f"{run['config']['data']}, {model['block']} blocks, width {model['width']}, one thread. Peak: of a process"
            f" that opens the engines of this depth and runs them; before it opens any it holds"
            f" {run['result']['rows'][0]['process_mb']:.0f} MB. Times: inside the engine, one request. Lost: the share"
            " of NDCG@10 on the test items, against fp32, paired over users.",
            table(head, rows),
            f"Peak with all depths together, and times that of depth 16 alone: {all_depths}.",
        ]
    )


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


def _qlora(run: Run) -> str:
    result, model = run["result"], run["config"]["model"]
    sizes = result["bytes"]
    forms = [
        ("fp32", "weights_fp32", "network_fp32"),
        ("NF4", "weights_nf4", None),
        (f"NF4, adapters of rank {result['rank']} in fp32", "weights_nf4_and_adapters", "network_nf4_and_adapters"),
        (
            f"NF4, adapters of rank {result['rank']} in fp16",
            "weights_nf4_and_fp16_adapters",
            "network_nf4_and_fp16_adapters",
        ),
    ]
    files = [
        [name, *(_file(sizes, form, base) for form, base in ((part, "weights_fp32"), (whole, "network_fp32")))]
        for name, part, whole in forms
    ]
    quality = [
        [
            str(row["depth"]),
            decimal(row["ndcg@10"]),
            percent(Interval(**row["lost_before_healing"])),
            ", ".join(percent(Interval(**each)) for each in row["lost_after_healing"]),
        ]
        for row in result["rows"]
    ]
    return "\n\n".join(
        [
            "## Four-bit weights with healed adapters",
            f"{run['config']['data']}, {model['block']} blocks, width {model['width']}. Of the weights NF4 changes"
            f" {result['weight_error']['mean']:.1%} of their size (at most {result['weight_error']['largest']:.1%} in a"
            " layer).",
            table(["form", "weights of the blocks, KB", "whole network, KB"], files),
            "Lost: the share of NDCG@10 on the test items against fp32, in %, paired over users; healed with"
            f" {run['config']['seeds']} seeds.",
            table(["depth", "NDCG@10 in fp32", "lost before healing", "lost after healing, per seed"], quality),
        ]
    )


def _file(sizes: Mapping[str, int], form: str | None, base: str) -> str:
    if form is None:
        return ""
    smaller = "" if form == base else f" ({1 - sizes[form] / sizes[base]:.1%} smaller)"
    return f"{sizes[form] / 1e3:,.0f}{smaller}"


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
