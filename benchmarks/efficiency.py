"""How close an engine comes to what the machine can do: GFLOP/s at depth 16, and where the time goes.

    python -m fathom.benchmarks.efficiency

Engines of untrained models of both block kinds and three widths, history 200, one thread, batch 1 and 32. A FLOP is a
multiplication or an addition of a matrix product that the engine really does: 15 layers for all positions, the exit's
for the last one. The peak is the faster of numpy's and onnxruntime's product of two large fp32 matrices, measured in
turn with the engines. The shares of operators come from onnxruntime's profiler, in a run of their own. Writes
results/efficiency.json.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

from fathom.benchmarks.record import run, save_run
from fathom.exporter.segments import IR_VERSION, SegmentSpec, export_segments, segment_specs
from fathom.training.model import ElasticModel, ModelConfig

HISTORY = 200
BATCHES = (1, 32)
WIDTHS = (64, 128, 256)
BLOCKS = ("hstu", "gated")
ITEMS = 2_000
SIDE = 1_024
SEED = 0


def session(model: bytes, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """As the runtime opens an engine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def flops(config: ModelConfig, spec: SegmentSpec) -> int:
    """Of one history, in the matrix products of a segment's layers; its exit is computed where no segment follows."""
    width, length = config.width, HISTORY
    into, out = 4 * width * width, width * width
    fed = 7 * width * width if config.block == "gated" else 0
    attention = 2 * length * width
    full = length * (into + out + fed + attention)
    # The last position asks, all positions have keys and values.
    last = length * into // 2 + into // 2 + out + fed + attention
    return 2 * (len(spec.full_layers) * full + (0 if spec.feeds_next else last))


class Chain:
    """The engines of depth 16 of an untrained model."""

    def __init__(self, block: str, width: int) -> None:
        torch.manual_seed(SEED)
        shape = {"block": block, "width": width, "heads": 2, "items": ITEMS, "max_history": HISTORY, "span": HISTORY}
        model = ElasticModel(ModelConfig.model_validate(shape)).eval()
        self.specs, self.files = segment_specs(model.config.paths), export_segments(model)
        self.flops = sum(flops(model.config, spec) for spec in self.specs)
        self.sessions = [session(self.files[spec.file]) for spec in self.specs]

    def run(self, batch: int, sessions: list[onnxruntime.InferenceSession] | None = None) -> None:
        """Once, as the runtime does it."""
        feeds: dict[str, Any] = {"items": np.arange(batch * HISTORY).reshape(batch, HISTORY) % ITEMS + 1}
        for spec, each in zip(self.specs, sessions or self.sessions, strict=True):
            wanted = "hidden_out" if spec.feeds_next else "user_vector"
            read = {one.name: feeds[one.name] for one in each.get_inputs()}
            feeds["hidden_in"] = each.run([wanted], read)[0]

    def operators(self, batch: int) -> dict[str, float]:
        """Operator -> its share of the time that all take."""
        spent: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            sessions = [session(self.files[spec.file], Path(folder) / str(spec.depth)) for spec in self.specs]
            for _ in range(10):
                self.run(batch, sessions)
            for each in sessions:
                for event in json.loads(Path(each.end_profiling()).read_bytes()):
                    if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                        spent[event["args"]["op_name"]] += event["dur"]
        total = sum(spent.values())
        return {name: round(took / total, 3) for name, took in spent.most_common(8)}


def products() -> dict[str, Callable[[], object]]:
    """Large matrix products, SIDE cubed."""
    rng = np.random.default_rng(SEED)
    a, b = (rng.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in ("a", "y")]
    weights = [helper.make_tensor("b", TensorProto.FLOAT, b.shape, b.tobytes(), raw=True)]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "product", info[:1], info[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=IR_VERSION)
    opened = session(model.SerializeToString())
    return {"numpy": lambda: a @ b, "onnxruntime": lambda: opened.run(None, {"a": a})}


def measure(rounds: int) -> dict[str, Any]:
    """GFLOP/s of every engine and of the peak, in turn."""
    chains = {(block, width): Chain(block, width) for block in BLOCKS for width in WIDTHS}
    work: dict[tuple[Any, ...], tuple[float, Callable[[], object]]] = {
        ("peak", name): (2.0 * SIDE**3, product) for name, product in products().items()
    }
    for key, chain in chains.items():
        for batch in BATCHES:
            work[*key, batch] = (batch * chain.flops, lambda chain=chain, batch=batch: chain.run(batch))  # type: ignore[misc]
    took = _interleaved({key: call for key, (_, call) in work.items()}, rounds)
    speed = {key: work[key][0] / took[key] / 1e9 for key in work}
    peak = max(value for key, value in speed.items() if key[0] == "peak")
    rows = []
    for (block, width), chain in chains.items():
        for batch in BATCHES:
            rows.append(
                {
                    "block": block,
                    "width": width,
                    "batch": batch,
                    "ms": round(took[block, width, batch] * 1e3, 2),
                    "gflops": round(speed[block, width, batch], 1),
                    "share_of_peak": round(speed[block, width, batch] / peak, 3),
                    "operators": chain.operators(batch),
                }
            )
            print(rows[-1], flush=True)
    return {"peak_gflops": round(peak, 1), "rows": rows}


def _interleaved(calls: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Median seconds of each, all of them in a new random order in every round."""
    rng = np.random.default_rng(SEED)
    keys = list(calls)
    spent = np.empty((len(keys), rounds))
    for turn in range(-1, rounds):
        for number in rng.permutation(len(keys)):
            begin = perf_counter()
            calls[keys[number]]()
            if turn >= 0:
                spent[number, turn] = perf_counter() - begin
    return dict(zip(keys, np.median(spent, axis=1).tolist(), strict=True))


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    result = measure(chosen.rounds)
    config = {"depth": 16, "history": HISTORY, "threads": 1, "precision": "fp32", "rounds": chosen.rounds}
    print(f"peak {result['peak_gflops']} GFLOP/s")
    print(f"stored in {save_run('efficiency', config=config, result=result, seed=SEED)}")


if __name__ == "__main__":
    run(main)
