"""How close an engine comes to what the machine can do: GFLOP/s at depth 16, and where the time goes.

Engines of untrained models of both block kinds and three widths, history 200, one thread, batch 1 and 32. A FLOP is a
multiplication or an addition of a matrix product that the engine really does: 15 layers for all positions, the exit's
for the last one. The peak is the faster of numpy's and onnxruntime's product of two large fp32 matrices, on one thread
too, measured in turn with the engines. The shares of operators come from onnxruntime's profiler, in a run of their own.
"""

import json
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from fathom.benchmarks.interleaved import interleaved
from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.untrained import untrained
from fathom.exporter.bundle.export import export
from fathom.exporter.engines.engine_set import SegmentSpec, segment_specs
from fathom.exporter.engines.segments import IR_VERSION
from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.engines.segment import READ_EXIT
from fathom.training.model import ModelConfig

DEPTH = 16
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


def layer_flops(block: str, width: int, length: int) -> tuple[int, int]:
    """Of one history, in the matrix products of a layer: for all positions, and for the last one alone."""
    into, out = 4 * width * width, width * width
    fed = 7 * width * width if block == "gated" else 0
    attention = 2 * length * width
    full = length * (into + out + fed + attention)
    # The last position asks, all positions have keys and values.
    last = length * into // 2 + into // 2 + out + fed + attention
    return 2 * full, 2 * last


def flops(config: ModelConfig, spec: SegmentSpec, length: int) -> int:
    """Of a history of so many items, in the matrix products of a segment's layers.

    Its exit is computed where no segment follows.
    """
    full, last = layer_flops(config.block, config.width, length)
    return len(spec.full_layers) * full + (0 if spec.feeds_next else last)


class Chain:
    """Depth 16 of an untrained model, exported into a folder and opened as a server opens it."""

    def __init__(self, folder: Path, block: str, width: int) -> None:
        shape = {"block": block, "width": width, "max_history": HISTORY, "span": HISTORY}
        checkpoint, dataset = untrained(items=ITEMS, **shape)
        export(checkpoint, dataset, folder, name="efficiency")
        bundle = Bundle.open(folder)
        self._files = {name: bundle.read(name) for name in bundle.segments(DEPTH)}
        self._vectors = bundle.vectors
        self._engine = open_engine(bundle)
        config = checkpoint.model.config
        self.flops = sum(flops(config, spec, HISTORY) for spec in segment_specs(config.paths))

    def run(self, batch: int) -> None:
        """Once."""
        self._engine.run(_histories(batch), None, DEPTH)

    def operators(self, batch: int) -> dict[str, float]:
        """Operator -> its share of the time that all take, as many histories at once as the runtime runs (8 of 32)."""
        items = _histories(min(batch, 8))
        vectors = self._vectors.padded(items)
        spent: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            sessions = [session(data, Path(folder) / Path(name).stem) for name, data in self._files.items()]
            for _ in range(10):
                feeds: dict[str, Any] = {"items": items, "item_vectors": vectors, READ_EXIT: np.array(False)}
                for each in sessions[:-1]:
                    feeds["hidden_in"] = each.run(["hidden_out"], _read(each, feeds))[0]
                sessions[-1].run(["user_vector"], _read(sessions[-1], feeds))
            for each in sessions:
                for event in json.loads(Path(each.end_profiling()).read_bytes()):
                    if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                        spent[event["args"]["op_name"]] += event["dur"]
        total = sum(spent.values())
        return {name: round(took / total, 3) for name, took in spent.most_common(8)}


def _histories(batch: int) -> Any:
    return np.arange(batch * HISTORY).reshape(batch, HISTORY) % ITEMS + 1


def _read(opened: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    names = [each.name for each in (*opened.get_inputs(), *opened.get_overridable_initializers())]
    return {name: feeds[name] for name in names}


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
    limit_blas_threads(1)
    work: dict[tuple[Any, ...], tuple[float, Callable[[], object]]] = {
        ("peak", name): (2.0 * SIDE**3, call) for name, call in products().items()
    }
    with tempfile.TemporaryDirectory() as folder:
        chains = {kind: Chain(Path(folder) / "-".join(map(str, kind)), *kind) for kind in product(BLOCKS, WIDTHS)}
        for (kind, chain), batch in product(chains.items(), BATCHES):
            work[*kind, batch] = (batch * chain.flops, partial(chain.run, batch))
        took = interleaved({key: call for key, (_, call) in work.items()}, rounds)
        speed = {key: work[key][0] / took[key] / 1e9 for key in work}
        peak = max(value for key, value in speed.items() if key[0] == "peak")
        rows = [
            {
                "block": block,
                "width": width,
                "batch": batch,
                "ms": round(took[block, width, batch] * 1e3, 2),
                "gflops": round(speed[block, width, batch], 1),
                "share_of_peak": round(speed[block, width, batch] / peak, 3),
                "operators": chains[block, width].operators(batch),
            }
            for block, width, batch in product(BLOCKS, WIDTHS, BATCHES)
        ]
    return {"peak_gflops": round(peak, 1), "rows": rows}


def _section(run: StoredRun) -> str:
    rows = [
        {**row, "where": [f"{name} {share:.0%}" for name, share in row["operators"].items()][:5]}
        for row in run["result"]["rows"]
    ]
    return paragraphs(
        "## How close engines come to the machine",
        f"Depth 16, history {run['config']['history']}, fp32, one thread. The peak is that of a large matrix"
        f" product on the same core: {run['result']['peak_gflops']:.0f} GFLOP/s.",
        table_of(
            rows,
            "blocks={block} | width={width} | batch={batch} | ms={ms:.1f} | GFLOP/s={gflops:.0f}"
            " | of the peak={share_of_peak:.0%} | where the time goes={where}",
        ),
    )


def _measure(options: Namespace) -> list[Run]:
    config = {"depth": DEPTH, "history": HISTORY, "threads": 1, "precision": "fp32", "rounds": options.rounds}
    return [Run(config, measure(options.rounds), SEED)]


BENCHMARK = Benchmark(__doc__, "10 min, no bundle", {"--rounds": 20}, _measure, of_runs(_section, "efficiency"))
