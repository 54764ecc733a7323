"""The memory of four depths: one Fathom server, beside a server by hand that holds four models.

Each model by hand is a depth exported alone, with weights of its own, in plain onnxruntime behind grpc.aio; the four
have a table of item vectors each, or share one. The same server by hand also runs Fathom's chain, whose depths share
their weights: what is between that and `fathom serve` is what Fathom's server holds beside engines and vectors. Fathom
is measured as it is, and without the prefix cache, for whose incremental inference it has further engines. Memory is
that of the process after histories of 10, 50 and 200 items at every depth: PSS, which counts what processes share in
parts, and USS, which leaves it out. A bundle with the checkpoint that `fathom build` left beside it (else
--checkpoint), then untrained networks, of which only the size matters.
"""

import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import psutil

from fathom.benchmarks.markdown import paragraphs, table_of
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import METHOD, started, started_module
from fathom.benchmarks.systems import four_models_server
from fathom.benchmarks.systems.four_models_server import MODELS, FourModels
from fathom.benchmarks.systems.front import Side
from fathom.benchmarks.untrained import untrained
from fathom.errors import ArtefactError, ConfigError, FathomError
from fathom.exporter.bundle.export import export
from fathom.exporter.engines.engine_set import segment_specs
from fathom.exporter.engines.pieces import Pieces
from fathom.exporter.engines.segments import assemble
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.training.checkpoint import Checkpoint
from fathom.training.model import ElasticModel

WIDTHS, CATALOGUES = (128, 256), (12_000, 100_000)
LENGTHS = (10, 50, 200)
#: Of each depth and length, so many of them at once.
REQUESTS, AT_ONCE = 24, 8
STARTS = 3
SEED = 0
#: Of components of a user vector, between a model by hand and the chain.
MOST_ERROR = 1e-4
CHAIN, EACH, SHARED = "Fathom's chain by hand", "four models by hand, a table each", "four models by hand, one table"
MB = 2**20


def alone(model: ElasticModel, depth: int) -> bytes:
    """One depth as an engine of its own."""
    (spec,) = segment_specs({depth: model.config.paths[depth]})
    return assemble(Pieces(model), spec)


def write_models(bundle: Bundle, model: ElasticModel, folder: Path) -> dict[str, Path]:
    """A folder for each side by hand; raises ConfigError for a network that reads timestamps."""
    if bundle.manifest.model.uses_timestamps:
        raise ConfigError(f"{bundle.manifest.name}: the server by hand knows no timestamps")
    engines = {depth: alone(model, depth) for depth in bundle.depths}
    found = {name: folder / str(number) for number, name in enumerate((EACH, SHARED, CHAIN))}
    for name, path in found.items():
        path.mkdir(parents=True)
        depths = {}
        for depth in bundle.depths:
            files = {f"depth-{depth}.onnx": engines[depth]}
            if name == CHAIN:
                files = {Path(file).name: bundle.read(file) for file in bundle.segments(depth)}
            for file, data in files.items():
                (path / file).write_bytes(data)
            table = f"vectors-{depth}.npy" if name == EACH else "vectors.npy"
            np.save(path / table, bundle.vectors.rows)
            depths[depth] = {"engines": [*files], "table": table}
        longest, ids = bundle.manifest.model.max_history, bundle.catalogue.ids
        (path / MODELS).write_text(json.dumps({"depths": depths, "ids": ids, "longest": longest}))
    return found


def check_same(folders: Mapping[str, Path], depths: Sequence[int], items: int) -> None:
    """Raises FathomError where a model by hand gives another user vector than the chain."""
    rng = np.random.default_rng(SEED)
    chain, apart = FourModels(folders[CHAIN]), FourModels(folders[SHARED])
    for depth, length in product(depths, LENGTHS):
        history = rng.integers(0, items, length)
        error = float(np.abs(chain.user(depth, history) - apart.user(depth, history)).max())
        if error > MOST_ERROR:
            raise FathomError(
                f"depth {depth}, history {length}: the model by hand differs from the chain by {error:.1e}"
            )


def ask(address: str, ids: Sequence[str], depths: Sequence[int]) -> None:
    """Histories of all LENGTHS at every depth, AT_ONCE at a time."""
    rng = np.random.default_rng(SEED)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD, pb.RecommendRequest.SerializeToString, pb.RecommendResponse.FromString)
        for depth, length, _ in product(depths, LENGTHS, range(REQUESTS // AT_ONCE)):
            histories = [[ids[item] for item in rng.integers(0, len(ids), length)] for _ in range(AT_ONCE)]
            waiting = [call.future(pb.RecommendRequest(item_ids=each, depth=depth), timeout=60) for each in histories]
            for each in waiting:
                each.result()


def memory_mb(side: Side, ids: Sequence[str], depths: Sequence[int]) -> dict[str, float]:
    """Of a new server, once it has answered."""
    with side() as server:
        ask(server.address, ids, depths)
        found = psutil.Process(server.pid).memory_full_info()
        return {f"{name}_mb": getattr(found, name) / MB for name in ("pss", "uss", "rss")}


def disk_mb(folder: Path) -> float:
    """Of all files."""
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MB, 2)


def case_of(name: str, path: Path, model: ElasticModel, starts: int) -> dict[str, Any]:
    """All sides of one bundle, in turns."""
    with tempfile.TemporaryDirectory() as folder, Bundle.open(path) as bundle:
        depths, ids = bundle.depths, bundle.catalogue.ids
        folders = write_models(bundle, model, Path(folder))
        check_same(folders, depths, len(ids))
        sides: dict[str, Side] = {
            "Fathom": partial(started, path),
            "Fathom without a prefix cache": partial(started, path, "--reuse-mb", "0"),
        }
        sides |= {each: partial(started_module, four_models_server.__name__, str(at)) for each, at in folders.items()}
        taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(starts):
            for side, start in sides.items():
                taken[side].append(memory_mb(start, ids, depths))
        return {
            "name": name,
            "width": bundle.vectors.width,
            "items": len(ids),
            "depths": depths,
            "sides": {
                side: {**_middle(rows), "disk_mb": disk_mb(folders.get(side, path))} for side, rows in taken.items()
            },
        }


def _middle(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    pss = [row["pss_mb"] for row in rows]
    middle = {key: round(median(row[key] for row in rows), 1) for key in rows[0]}
    return {**middle, "pss_range_mb": [round(min(pss), 1), round(max(pss), 1)]}


def trained(options: Namespace) -> tuple[str, ElasticModel]:
    """Name and network of the bundle; raises ArtefactError for a checkpoint that it was not exported from."""
    with Bundle.open(options.bundle) as bundle:
        name, strategy, exported = bundle.manifest.name, bundle.manifest.strategy, bundle.manifest.source.checkpoint
    path = options.checkpoint or options.bundle.parent / "healed" / strategy
    checkpoint = Checkpoint.load(path)
    if checkpoint.sha256 != exported:
        raise ArtefactError(f"{options.bundle}: was exported from another checkpoint than {path}")
    return name, checkpoint.model.merged()


def measure(options: Namespace) -> Iterator[Run]:
    """The bundle, then an untrained network of each size."""
    name, model = trained(options)
    cases = [case_of(name, options.bundle, model, options.starts)]
    for width, items in product(options.widths, options.items):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, dataset = untrained(items=items, width=width)
            path, name = Path(folder) / "bundle", f"untrained, width {width}, {items:,} items"
            export(checkpoint, dataset, path, name="four-models")
            cases.append(case_of(name, path, checkpoint.model, options.starts))
    config = {
        "depths": ", ".join(map(str, cases[0]["depths"])),
        "lengths": LENGTHS,
        "requests": REQUESTS,
        "at_once": AT_ONCE,
        "starts": options.starts,
    }
    yield Run(config, {"cases": cases}, SEED)


def render(run: StoredRun) -> str:
    """A table for each case."""
    config, parts = run["config"], []
    for case in run["result"]["cases"]:
        rows = [{"side": side, **row} for side, row in case["sides"].items()]
        parts += [
            f"{case['name']} (width {case['width']}, {case['items']:,} items):",
            table_of(
                rows,
                "server={side} | PSS MB={pss_mb:,.1f} ({pss_range_mb[0]:,.1f} to {pss_range_mb[1]:,.1f})"
                " | USS MB={uss_mb:,.1f} | RSS MB={rss_mb:,.1f} | disk MB={disk_mb:,.1f}",
            ),
        ]
    return paragraphs(
        "## Four depths in one server, beside four models",
        f"Memory of the server's process after {config['requests']} histories of each of"
        f" {', '.join(map(str, config['lengths']))} items at depths {config['depths']}, medians of {config['starts']}"
        " starts, in brackets the range. By hand is plain onnxruntime behind grpc.aio; disk is what the server opens.",
        *parts,
    )


BENCHMARK = Benchmark(
    __doc__,
    "15 min, a bundle and its checkpoint",
    {"bundle": Path, "--checkpoint": None, "--widths": WIDTHS, "--items": CATALOGUES, "--starts": STARTS},
    measure,
    of_runs(render, "four_models"),
)
