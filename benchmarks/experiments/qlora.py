"""What four-bit weights with healed adapters save, and what they keep: NF4 and QLoRA against the fp32 network.

Sizes are those of files that are written; NDCG@10 on the test users at every depth, as the share that is lost against
the fp32 network (paired over users), before healing and after it, healed with every seed. The research project that
Fathom began from claims 69.4 % smaller weights that keep 64.7 % of the quality.
"""

import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fathom.benchmarks.markdown import paragraphs, table, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.exporter.engines.reduced_quality import losses
from fathom.exporter.planning.heal import heal
from fathom.exporter.planning.plan import DepthPlan
from fathom.runtime.manifest import MetricInterval
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.evaluate import evaluate_model
from fathom.training.model import ElasticModel
from fathom.training.nf4 import linear_layers, pack, round_to_nf4
from fathom.training.presets import apply_settings
from fathom.training.scorer import depth_name
from fathom.training.splits import split
from fathom.training.tuning import RANKS, restrict


def copy_of(model: ElasticModel) -> ElasticModel:
    """The same weights, to be changed."""
    return ElasticModel.of(model.config, model.state_dict()).eval()


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of a safetensors file with these."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
        return path.stat().st_size


def sizes(model: ElasticModel) -> dict[str, int]:
    """Bytes of the blocks' weights and of the whole network, in each form."""
    linears = {f"{name}.weight": linear.weight for name, linear in linear_layers(model).items()}
    packed = {f"{name}.{part}": value for name in linears for part, value in pack(linears[name]).items()}
    adapted = copy_of(model)
    restrict(adapted, "qlora")
    adapters = {name: value for name, value in adapted.state_dict().items() if ".lora_" in name}
    halves = {name: value.half() for name, value in adapters.items()}
    rest = {name: value for name, value in model.state_dict().items() if name not in linears}
    return {
        "weights_fp32": file_bytes(linears),
        "weights_nf4": file_bytes(packed),
        "weights_nf4_and_adapters": file_bytes(packed | adapters),
        "weights_nf4_and_fp16_adapters": file_bytes(packed | halves),
        "network_fp32": file_bytes(linears | rest),
        "network_nf4_and_adapters": file_bytes(packed | adapters | rest),
        "network_nf4_and_fp16_adapters": file_bytes(packed | halves | rest),
    }


def weight_error(model: ElasticModel) -> dict[str, float]:
    """Size of what NF4 changes, relative to the weights of each layer."""
    rounded = copy_of(model)
    round_to_nf4(rounded)
    pairs = zip(linear_layers(rounded).values(), linear_layers(model).values(), strict=True)
    with torch.no_grad():
        errors = [float((other.weight - linear.weight).norm() / linear.weight.norm()) for other, linear in pairs]
    return {"mean": round(float(np.mean(errors)), 4), "largest": round(max(errors), 4)}


def measure(checkpoint: Checkpoint, dataset: Dataset, seeds: int) -> dict[str, Any]:
    """Sizes, errors, and the quality of every way."""
    model = checkpoint.model
    cut = split(dataset, checkpoint.config.split)
    full = evaluate_model(model, dataset, cut, baselines=())

    def lost(other: ElasticModel) -> dict[int, MetricInterval]:
        return losses(full, evaluate_model(other.eval(), dataset, cut, baselines=()), model.depths)

    rounded = copy_of(model)
    round_to_nf4(rounded)
    before = lost(rounded)
    healed = []
    plan = DepthPlan(model.config.strategy, model.config.layers, model.config.paths)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            config = apply_settings(checkpoint.config.train, ["train.heal_tune=qlora", f"train.seed={seed}"])
            healed.append(lost(heal(checkpoint, plan, dataset, out=Path(folder) / str(seed), config=config).model))
    quality = full.systems
    return {
        "bytes": sizes(model),
        "weight_error": weight_error(model),
        "rank": RANKS["qlora"],
        "rows": [
            {
                "depth": depth,
                "ndcg@10": round(quality[depth_name(depth)].metrics["ndcg@10"].value, 4),
                "lost_before_healing": before[depth].model_dump(),
                "lost_after_healing": [each[depth].model_dump() for each in healed],
            }
            for depth in model.depths
        ],
    }


def _section(run: StoredRun) -> str:
    config, result, model = run["config"], run["result"], run["config"]["model"]
    forms = {
        "fp32": "fp32",
        "NF4": "nf4",
        f"NF4, adapters of rank {result['rank']} in fp32": "nf4_and_adapters",
        f"NF4, adapters of rank {result['rank']} in fp16": "nf4_and_fp16_adapters",
    }
    files = [
        [name, *(_file(result["bytes"], part, form) for part in ("weights", "network"))] for name, form in forms.items()
    ]
    return paragraphs(
        "## Four-bit weights with healed adapters",
        f"{config['data']}, {model['block']} blocks, width {model['width']}. Of the weights NF4 changes"
        f" {result['weight_error']['mean']:.1%} of their size (at most {result['weight_error']['largest']:.1%} in a"
        " layer).",
        table(["form", "weights of the blocks, KB", "whole network, KB"], files),
        "Lost: the share of NDCG@10 on the test items against fp32, in %, paired over users; healed with"
        f" {config['seeds']} seeds.",
        table_of(
            result["rows"],
            "depth={depth} | NDCG@10 in fp32={ndcg@10:decimal}"
            " | lost before healing={lost_before_healing:percent}"
            " | lost after healing, per seed={lost_after_healing:percent}",
        ),
    )


def _file(sizes: Mapping[str, int], part: str, form: str) -> str:
    if f"{part}_{form}" not in sizes:
        return ""
    size, whole = sizes[f"{part}_{form}"], sizes[f"{part}_fp32"]
    return f"{size / 1e3:,.0f}" + ("" if form == "fp32" else f" ({1 - size / whole:.1%} smaller)")


def _measure(options: Namespace) -> list[Run]:
    torch.set_num_threads(2)
    checkpoint, dataset = Checkpoint.load(options.checkpoint), Dataset.load(options.data)
    model = checkpoint.model.config.model_dump(mode="json", exclude={"paths"})
    config = {"data": dataset.meta["name"], "model": model, "seeds": options.seeds}
    return [Run(config, measure(checkpoint, dataset, options.seeds), 0)]


BENCHMARK = Benchmark(
    __doc__,
    "1 hour, a checkpoint and its data",
    {"checkpoint": Path, "--data": Path, "--seeds": 3},
    _measure,
    of_runs(_section, "qlora"),
)
