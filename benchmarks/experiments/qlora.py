"""Packed four-bit weights with healed adapters: what they save, and what they keep, against the fp32 network.

Sizes are those of engine files and item vectors as bundles hold them, for every precision of the weights. NDCG@10 on
the test items at every depth, as the share that is lost against the fp32 network (paired over users): weights rounded
without healing, and with adapters healed with every seed. The research project that Fathom began from claims 69.4 %
smaller weights that keep 64.7 % of the quality.
"""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from fathom.benchmarks.markdown import paragraphs, table, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.exporter.engines.adapted import packed
from fathom.exporter.engines.engine_set import EngineSet
from fathom.exporter.engines.optional_exit import with_optional_exit
from fathom.exporter.engines.precision import reduce_engines, same_bits
from fathom.exporter.engines.reduced_quality import losses
from fathom.exporter.engines.segments import export_segments
from fathom.exporter.planning.heal import heal
from fathom.exporter.planning.plan import DepthPlan
from fathom.runtime.manifest import MetricInterval
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.evaluate import evaluate_model
from fathom.training.model import ElasticModel
from fathom.training.nbits import bits_per_weight, linear_layers, round_weights
from fathom.training.presets import apply_settings
from fathom.training.scorer import depth_name
from fathom.training.splits import split
from fathom.training.tuning import RANKS

#: Of the research project: the share of the weights' size that is saved, and of the quality that is kept.
CLAIMED = {"smaller": 0.694, "kept": 0.647}
RANK = RANKS["qlora"]
#: What adapters are beside: widths whose sizes are worked out too.
WIDTHS = (64, 128, 256, 512)


def adapted(model: ElasticModel) -> ElasticModel:
    """The same network in four bits beside random adapters, for its size: equal ones would be stored once."""
    config = model.config.model_copy(update={"adapter_rank": RANK})
    with torch.random.fork_rng(devices=[]):
        made = ElasticModel(config).eval()
        for name, value in made.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(value, std=0.01)
    made.load_state_dict(model.state_dict(), strict=False)
    round_weights(made, 4)
    return made


def engine_bytes(model: ElasticModel, dataset: Dataset) -> dict[str, int]:
    """Precision -> bytes of all engine files."""

    def total(engines: EngineSet) -> int:
        return sum(map(len, engines.converted(with_optional_exit).files.values()))

    traced = export_segments(model)
    reduced = reduce_engines(traced, same_bits(model, "int4"), dataset.sequences, model.config.max_history)
    return {
        "fp32": total(traced),
        "int4": total(reduced),
        "int4+lora": total(export_segments(adapted(model)).converted(packed)),
    }


def weight_share(model: ElasticModel, width: int) -> float:
    """Four-bit weights and adapters in 16 bits over the fp32 weights, of the blocks alone, at another width."""
    weights = adapters = 0.0
    for linear in linear_layers(model).values():
        outputs, inputs = (side * width // model.config.width for side in linear.weight.shape)
        weights += outputs * inputs
        adapters += RANK * (outputs + inputs)
    return (weights * bits_per_weight(4) + adapters * 16) / (weights * 32)


def measure(checkpoint: Checkpoint, dataset: Dataset, seeds: int) -> dict[str, Any]:
    """Sizes, and the quality of every way."""
    model = checkpoint.model
    cut = split(dataset, checkpoint.config.split)
    full = evaluate_model(model, dataset, cut, baselines=())

    def lost(other: ElasticModel) -> dict[int, MetricInterval]:
        return losses(full, evaluate_model(other.eval(), dataset, cut, baselines=()), model.depths)

    rounded = ElasticModel.of(model.config, model.state_dict())
    round_weights(rounded, 4)
    before = lost(rounded)
    healed = []
    plan = DepthPlan(model.config.strategy, model.config.layers, model.config.paths)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            config = apply_settings(checkpoint.config.train, ["train.heal_tune=qlora", f"train.seed={seed}"])
            healed.append(lost(heal(checkpoint, plan, dataset, out=Path(folder) / str(seed), config=config).model))
    return {
        "engines_bytes": engine_bytes(model, dataset),
        "vector_bytes": {
            "fp32": 4 * dataset.n_items * model.config.width,
            "int8": dataset.n_items * model.config.width,
        },
        "weight_shares": {str(width): round(weight_share(model, width), 4) for width in WIDTHS},
        "rank": RANK,
        "rows": [
            {
                "depth": depth,
                "ndcg@10": round(full.systems[depth_name(depth)].metrics["ndcg@10"].value, 4),
                "lost_before_healing": before[depth].model_dump(),
                "lost_after_healing": [each[depth].model_dump() for each in healed],
            }
            for depth in model.depths
        ],
    }


def _section(run: StoredRun) -> str:
    config, result, model = run["config"], run["result"], run["config"]["model"]
    engines, vectors = result["engines_bytes"], result["vector_bytes"]
    whole = engines["fp32"], engines["fp32"] + vectors["fp32"]
    rows = []
    for precision, size in engines.items():
        items = "fp32" if precision == "fp32" else "int8"
        together = size + vectors[items]
        cells = [_of(size, whole[0]), items, _of(together, whole[1])]
        rows.append([precision, *cells])
    shares = ", ".join(f"{share:.1%} at width {width}" for width, share in result["weight_shares"].items())
    wide = model["width"] != 64
    return paragraphs(
        f"### With adapters at width {model['width']}" if wide else "## Four-bit weights with healed adapters",
        f"{config['data']}, {model['block']} blocks, width {model['width']}. int4+lora: weights in four bits, packed"
        f" (MatMulNBits, blocks of 32), and adapters of rank {result['rank']} beside them in fp16. The research project"
        f" that Fathom began from claims weights {CLAIMED['smaller']:.1%} smaller that keep {CLAIMED['kept']:.1%} of"
        " the quality.",
        table(["precision", "engines, KB (of fp32)", "item vectors", "with item vectors, KB (of fp32)"], rows),
        f"The packed weights and adapters alone, without graphs, norms and exits, are {shares} of the fp32 weights.",
        "Lost: the share of NDCG@10 on the test items against fp32, in %, paired over users; healed with"
        f" {config['seeds']} seeds.",
        table_of(
            result["rows"],
            "depth={depth} | NDCG@10 in fp32={ndcg@10:decimal}"
            " | lost before healing={lost_before_healing:percent}"
            " | lost after healing, per seed={lost_after_healing:percent}",
        ),
    )


def _of(size: int, whole: int) -> str:
    return f"{size / 1e3:,.0f} ({size / whole:.1%})"


def _measure(options: Namespace) -> list[Run]:
    torch.set_num_threads(2)
    checkpoint, dataset = Checkpoint.load(options.checkpoint), Dataset.load(options.data)
    model = checkpoint.model.config.model_dump(mode="json", exclude={"paths"})
    config = {"data": dataset.meta["name"], "model": model, "seeds": options.seeds}
    return [Run(config, measure(checkpoint, dataset, options.seeds), 0, options.name)]


BENCHMARK = Benchmark(
    __doc__,
    "10 min, a checkpoint and its data",
    {"checkpoint": Path, "--data": Path, "--seeds": 3, "--name": "qlora"},
    _measure,
    of_runs(_section, "qlora", "qlora-wide"),
)
