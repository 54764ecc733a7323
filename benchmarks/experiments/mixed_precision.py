"""Bits by importance against uniform bits at the same size: layers that matter keep more bits, the others fewer.

Weights are rounded as MatMulNBits holds them, in blocks of 32 that share a scale of 16 bits. A size is spent on the
same bits in every layer, or on more bits for the layers that the ranking puts first, that run first, that the ranking
puts last, or that are drawn at random. Quality is NDCG@10 on the test items and the share of the fp32 network's ten
items that is kept: means over the depths and networks, paired over users.
"""

import copy
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.errors import ConfigError
from fathom.exporter.engines.reduced_quality import relative_loss
from fathom.importance.layer_ranking import LayerRanking
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.metrics import Floats, interval, ndcg, paired_difference, ranks, top_items
from fathom.training.model import ElasticModel
from fathom.training.nbits import bits_per_weight, linear_layers, rounded
from fathom.training.scorer import exit_scorer
from fathom.training.splits import Cases, split

#: Bits of every layer -> those that layers get instead at the same size, fewest first. Engines have 2, 4, 8 and 16;
#: 3 and 6 are rounded alike, but no engine stores them.
SIZES: dict[int, tuple[int, ...]] = {3: (2, 4), 4: (2, 4, 8), 6: (4, 8), 8: (4, 8, 16)}
RANDOM_ORDERS = 3
TOP = 10
SEED = 0


@dataclass(frozen=True)
class Answers:
    """Of every test user, the mean over depths: NDCG@10 (users,), and ten items at each depth (depths, users, 10)."""

    ndcg: Floats
    top: NDArray[np.int64]

    def kept(self, reference: "Answers") -> Floats:
        """The share of the reference's ten items that are here too, (depths, users)."""
        same = (self.top[..., :, None] == reference.top[..., None, :]).any(-1)
        return np.asarray(same.mean(axis=2), dtype=np.float64)


def cost(bits: int) -> float:
    """Bits of a weight; 16 has no scale."""
    return 16.0 if bits == 16 else bits_per_weight(bits)


def spend(order: Sequence[int], ladder: Sequence[int], budget: float) -> dict[int, int]:
    """Layer -> its bits, of a mean cost up to ``budget``: as many layers as possible get the most, in this order."""
    chosen = dict.fromkeys(order, ladder[0])
    left = (budget - cost(ladder[0])) * len(order)
    for bits in reversed(ladder[1:]):
        for layer in order:
            more = cost(bits) - cost(chosen[layer])
            if 0 < more <= left:
                chosen[layer], left = bits, left - more
    return chosen


def ways(bits: int, order: Sequence[int], seed: int) -> dict[str, list[dict[int, int]]]:
    """Every way to spend the size of ``bits`` in each layer; ``order``: layers, most important first."""
    rng = np.random.default_rng(seed)
    ladder, budget = SIZES[bits], cost(bits)
    drawn = [rng.permutation(order).tolist() for _ in range(RANDOM_ORDERS)]
    return {
        "uniform": [dict.fromkeys(order, bits)],
        "important first": [spend(order, ladder, budget)],
        "first to run": [spend(sorted(order), ladder, budget)],
        "random": [spend(each, ladder, budget) for each in drawn],
        "important last": [spend(order[::-1], ladder, budget)],
    }


def with_bits(model: ElasticModel, bits: Mapping[int, int]) -> ElasticModel:
    """A copy whose layers are rounded to their bits."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, linear in linear_layers(made).items():
            each = bits[int(name.split(".")[1])]
            linear.weight.copy_(linear.weight.half() if each == 16 else rounded(linear.weight, each))
    return made


def answers(model: ElasticModel, cases: Cases, n_items: int) -> Answers:
    """What a network gives the test users."""
    gain = np.zeros(len(cases))
    top = np.empty((len(model.depths), len(cases), TOP), dtype=np.int64)
    score = exit_scorer(model)
    for rows in cases.chunks(n_items):
        histories = cases.histories.select(rows)
        for depth, scores in enumerate(score(histories).values()):
            scores[histories.owners, histories.items] = -np.inf
            gain[rows] += ndcg(ranks(scores, cases.targets[rows]), TOP) / len(model.depths)
            top[depth, rows] = top_items(scores, TOP)
    return Answers(gain, top)


@dataclass(frozen=True)
class Network:
    """A network and its layers, most important first."""

    model: ElasticModel
    order: tuple[int, ...]


def measure(networks: Sequence[Network], cases: Cases, n_items: int) -> dict[str, Any]:
    """A row per size and way."""
    full = [answers(each.model, cases, n_items) for each in networks]
    reference = np.mean([each.ndcg for each in full], axis=0)
    rows: list[dict[str, Any]] = []
    for bits in SIZES:
        found: dict[str, list[tuple[Floats, Floats, float]]] = {}
        for seed, (network, exact) in enumerate(zip(networks, full, strict=True)):
            for way, choices in ways(bits, network.order, seed).items():
                for chosen in choices:
                    got = answers(with_bits(network.model, chosen), cases, n_items)
                    spent = float(np.mean([cost(each) for each in chosen.values()]))
                    found.setdefault(way, []).append((got.ndcg, got.kept(exact), spent))
        uniform = _means(found["uniform"])
        for way, each in found.items():
            gain, kept, spent = _means(each)
            row = {"bits": bits, "way": way, "bits_per_weight": round(float(spent), 3)}
            row |= {"loss": relative_loss(reference, gain).model_dump(), "kept": interval(kept.mean(axis=0)).as_dict()}
            row["kept_deepest"] = interval(kept[-1]).as_dict()
            if way != "uniform":
                row["ndcg_less_uniform"] = paired_difference(gain, uniform[0]).as_dict()
                row["kept_less_uniform"] = paired_difference(kept.mean(axis=0), uniform[1].mean(axis=0)).as_dict()
            rows.append({"ndcg_less_uniform": None, "kept_less_uniform": None} | row)
    return {"ndcg@10": interval(reference).as_dict(), "users": len(cases), "rows": rows}


def _means(found: Sequence[tuple[Floats, Floats, float]]) -> tuple[Floats, Floats, float]:
    gains, kept, spent = zip(*found, strict=True)
    return np.mean(gains, axis=0), np.mean(kept, axis=0), float(np.mean(spent))


def _section(run: StoredRun) -> str:
    config, result = run["config"], run["result"]
    model = config["model"]
    return paragraphs(
        "## Bits by importance",
        f"{config['data']}, {model['block']} blocks, width {model['width']}, {config['networks']} networks trained with"
        f" different seeds, {result['users']} test users. A size is that of so many bits in every layer, with the"
        " scales; the other rows spend it on few layers with many bits: those that the layer ranking puts first,"
        f" those that run first, {RANDOM_ORDERS} random orders, or those that the ranking puts last. Lost: the share of"
        f" the fp32 network's NDCG@10 ({result['ndcg@10']['value']:.4f}), in %. Kept: the share of its ten items,"
        " in %. All are means over the depths and networks, with intervals over users. 3 and 6 bits are computed by"
        " rounding alone: onnxruntime has no such engine.",
        table_of(
            result["rows"],
            "size, bits={bits} | more bits={way} | bits a weight={bits_per_weight:.2f} | lost, %={loss:percent}"
            " | NDCG@10 less uniform={ndcg_less_uniform:+interval} | kept, %={kept:percent}"
            " | kept less uniform, %={kept_less_uniform:+percent} | kept at the deepest, %={kept_deepest:percent}",
        ),
    )


def _measure(options: Namespace) -> list[Run]:
    torch.set_num_threads(2)
    if len(options.rankings) != len(options.checkpoints):
        raise ConfigError(f"{len(options.checkpoints)} checkpoints need as many --rankings")
    dataset = Dataset.load(options.data)
    checkpoints = [Checkpoint.load(path) for path in options.checkpoints]
    networks = []
    for path, checkpoint, ranking in zip(options.checkpoints, checkpoints, options.rankings, strict=True):
        loaded = LayerRanking.load(ranking)
        if loaded.checkpoint != checkpoint.sha256:
            raise ConfigError(f"{ranking}: is not the ranking of {path}")
        networks.append(Network(checkpoint.model, loaded.consensus_order))
    first = checkpoints[0]
    model = first.model.config.model_dump(mode="json", exclude={"paths"})
    config = {"data": dataset.meta["name"], "model": model, "networks": len(networks), "random": RANDOM_ORDERS}
    cases = split(dataset, first.config.split).test
    return [Run(config, measure(networks, cases, dataset.n_items), SEED)]


BENCHMARK = Benchmark(
    __doc__,
    "5 min a network, checkpoints with their rankings, and their data",
    {"checkpoints": (Path,), "--rankings": (Path,), "--data": Path},
    _measure,
    of_runs(_section, "mixed_precision"),
)
