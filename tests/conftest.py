"""Shared fixtures: a small real Bundle whose engines are written by hand to the engine contract."""

import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared import common_folder, made_once
from traced_once import program, share_if_loaded

from fathom.files import sha256_file, write_json
from fathom.runtime.manifest import (
    CATALOGUE_FILE,
    MANIFEST_NAME,
    NEIGHBOURS_FILE,
    OFFSETS_FILE,
    POPULARITY_FILE,
    RECENT_FILE,
    SELECTOR_FILE,
    TRANSITIONS_FILE,
    VECTORS_FILE,
    WEIGHTS_FILE,
    CountingInfo,
    DepthInfo,
    FileEntry,
    Manifest,
    MetricInterval,
    ModelInfo,
    Parity,
    Provenance,
    sealed,
    version_of,
)

# No test adds to the runs that are kept where the tests are run.
os.environ["FATHOM_RUNS"] = ""
ITEMS, WIDTH, MAX_HISTORY, DEPTHS = 50, 8, 20, (4, 8, 12, 16)
CATEGORIES = ("comedy", "drama", "space", "western")


def pytest_collection_finish() -> None:
    """What has been imported stays until the end: looking through it again and again for garbage takes minutes."""
    gc.freeze()


MakeBundle = Callable[..., Path]


def _unit_rows(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def _segment(vectors: np.ndarray | None, depth: int, *, first: bool, last: bool, timestamps: bool) -> bytes:
    """hidden = item vectors, or what came in, mixed by this segment's matrix (zero where padded);
    user = unit(mean over the history + newest position [+ a little of the newest timestamp])."""
    from onnx import TensorProto, checker, helper, numpy_helper

    rng = np.random.default_rng(depth)
    node, info = helper.make_node, helper.make_tensor_value_info
    constants: dict[str, np.ndarray] = {
        "mix": (np.eye(WIDTH) + rng.normal(0, 0.2, (WIDTH, WIDTH))).astype(np.float32),
        "zero": np.array(0, np.int64),
        "last": np.array(-1, np.int64),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "scale": np.array(1e-9, np.float32),
    }
    inputs = [info("items", TensorProto.INT64, ["batch", "history"])]
    nodes = [
        node("Greater", ["items", "zero"], ["known"]),
        node("Cast", ["known"], ["mask_2d"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask_2d", "axis_2"], ["mask"]),
    ]
    if timestamps:
        inputs.append(info("timestamps", TensorProto.INT64, ["batch", "history"]))
    if first and vectors is not None:
        constants["table"] = np.vstack([np.zeros((1, WIDTH), np.float32), vectors])
        nodes.append(node("Gather", ["table", "items"], ["hidden"], axis=0))
    else:
        name = "item_vectors" if first else "hidden_in"
        inputs.append(info(name, TensorProto.FLOAT, ["batch", "history", WIDTH]))
        nodes.append(node("Identity", [name], ["hidden"]))
    nodes += [
        node("MatMul", ["hidden", "mix"], ["mixed"]),
        node("Tanh", ["mixed"], ["bent"]),
        node("Mul", ["bent", "mask"], ["hidden_next"]),
        node("ReduceSum", ["hidden_next", "axis_1"], ["total"], keepdims=0),
        node("ReduceSum", ["mask", "axis_1"], ["count"], keepdims=0),
        node("Div", ["total", "count"], ["mean"]),
        node("Gather", ["hidden_next", "last"], ["newest"], axis=1),
        node("Add", ["mean", "newest"], ["raw"]),
    ]
    raw = "raw"
    if timestamps:
        nodes += [
            node("Gather", ["timestamps", "last"], ["when"], axis=1),
            node("Cast", ["when"], ["when_f"], to=TensorProto.FLOAT),
            node("Mul", ["when_f", "scale"], ["when_small"]),
            node("Unsqueeze", ["when_small", "axis_1"], ["when_column"]),
            node("Add", ["raw", "when_column"], ["timed"]),
        ]
        raw = "timed"
    nodes.append(node("LpNormalization", [raw], ["user_vector"], axis=-1, p=2))
    outputs = [info("user_vector", TensorProto.FLOAT, ["batch", WIDTH])]
    if not last:
        nodes.append(node("Identity", ["hidden_next"], ["hidden_out"]))
        outputs.append(info("hidden_out", TensorProto.FLOAT, ["batch", "history", WIDTH]))
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        f"depth-{depth:02d}",
        inputs,
        outputs,
        [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def _transitions(items: int) -> np.ndarray:
    entropy = np.linspace(0, 3, items, dtype=np.float32)
    entropy[::7] = np.nan
    return entropy


def _selector(vectors: np.ndarray, popularity: np.ndarray) -> dict[str, Any]:
    from fathom.runtime.item_vectors import ItemVectors
    from fathom.selector.complexity import ComplexityModel
    from fathom.selector.features import SelectorTables, measure

    tables = SelectorTables.build(popularity, ItemVectors(vectors), _transitions(len(popularity)))
    rng = np.random.default_rng(3)
    lengths = np.repeat(np.arange(1, MAX_HISTORY + 1), 5)
    rows = np.array([measure(rng.integers(0, ITEMS, n), None, tables) for n in lengths])
    # The longer a history, the more the shallowest depth gets wrong.
    disagreement, everybody = lengths / MAX_HISTORY, np.ones(len(rows), dtype=np.bool_)
    return ComplexityModel.fit(rows, disagreement, np.arange(len(rows)), everybody, 0.05).to_json()


def _write_counting(path: Path, popularity: np.ndarray, weight: float) -> CountingInfo:
    """Item i was followed by the next three, the nearest most often; ``weight``: in the scores of every depth."""
    (path / "counting").mkdir()
    np.save(path / OFFSETS_FILE, np.arange(0, 3 * ITEMS + 1, 3, dtype=np.int64))
    np.save(path / NEIGHBOURS_FILE, np.array([(i + n) % ITEMS for i in range(ITEMS) for n in (1, 2, 3)], np.int32))
    np.save(path / WEIGHTS_FILE, np.tile(np.array([1, 0.5, 0.25], np.float32), ITEMS))
    np.save(path / RECENT_FILE, (popularity / popularity.sum()).astype(np.float32))
    quality = {"ndcg@10": MetricInterval(value=0.09, low=0.08, high=0.1)}
    return CountingInfo(
        window=5,
        decay=0.5,
        max_lag=3,
        backward=0.0,
        source_power=0.0,
        target_power=0.0,
        neighbours=3,
        half_life_days=None,
        weights=dict.fromkeys(DEPTHS, weight),
        quality=quality,
    )


def _write_bundle(
    path: Path, *, strategy: str, timestamps: bool, looks_up: bool, counting_weight: float | None
) -> Path:
    rng = np.random.default_rng(1)
    vectors = _unit_rows(rng.normal(size=(ITEMS, WIDTH)))
    popularity = np.sort(rng.integers(1, 500, ITEMS))[::-1].astype(np.int64)
    for folder in ("engines", "items", "selector"):
        (path / folder).mkdir(parents=True)
    depths = {}
    chain = strategy != "nested"
    for d in DEPTHS:
        name = f"engines/depth-{d:02d}.onnx"
        first, last = not chain or d == DEPTHS[0], not chain or d == DEPTHS[-1]
        (path / name).write_bytes(
            _segment(vectors if looks_up else None, d, first=first, last=last, timestamps=timestamps)
        )
        segments = tuple(f"engines/depth-{e:02d}.onnx" for e in DEPTHS if e <= d) if chain else (name,)
        depths[d] = DepthInfo(
            segments=segments,
            layers=tuple(range(d)),
            parity=Parity(max_abs_error=1e-6, top10_agreement=1.0, histories=100),
            quality={"ndcg@10": MetricInterval(value=0.1 + d / 1000, low=0.09, high=0.13)},
        )
    np.save(path / VECTORS_FILE, vectors)
    np.save(path / POPULARITY_FILE, popularity)
    np.save(path / TRANSITIONS_FILE, _transitions(len(popularity)))
    catalogue = {
        "ids": [f"item-{i}" for i in range(ITEMS)],
        "titles": [f"Title {i}" if i % 7 else "" for i in range(ITEMS)],
        "categories": [[CATEGORIES[i % 4], CATEGORIES[(i // 4) % 4]] if i % 5 else [] for i in range(ITEMS)],
    }
    write_json(path / CATALOGUE_FILE, catalogue)
    write_json(path / SELECTOR_FILE, _selector(vectors, popularity))
    counting = None if counting_weight is None else _write_counting(path, popularity, counting_weight)
    files = {
        f.relative_to(path).as_posix(): FileEntry(bytes=f.stat().st_size, sha256=sha256_file(f))
        for f in sorted(path.rglob("*"))
        if f.is_file()
    }
    manifest = Manifest.model_validate(
        {
            "name": "synthetic",
            "version": "",
            "created": "2026-11-22T00:00:00Z",
            "strategy": strategy,
            "strategy_evidence": {},
            "precision": "fp32",
            "format": "onnx",
            "model": ModelInfo(
                block="hstu",
                layers=16,
                width=WIDTH,
                heads=2,
                max_history=MAX_HISTORY,
                uses_timestamps=timestamps,
            ),
            "items": ITEMS,
            "depths": depths,
            "counting": counting,
            "files": files,
            "source": Provenance(dataset="0" * 64, checkpoint="1" * 64, plan="2" * 64, fathom="0.1.0", commit=None),
        }
    )
    write_json(path / MANIFEST_NAME, sealed(manifest).model_dump(mode="json"))
    return path


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """A function that writes a fresh small bundle: ``make_bundle(strategy="nested", timestamps=True)``.

    ``looks_up``: with first segments as before schema 4, which look the items' vectors up themselves.
    ``counting_weight``: of the counting exit in the scores of every depth; None for a bundle without one.
    """

    def make(
        *,
        strategy: str = "prefix",
        timestamps: bool = False,
        looks_up: bool = False,
        counting_weight: float | None = 0.0,
    ) -> Path:
        folder = tmp_path_factory.mktemp("bundle") / "bundle"
        return _write_bundle(
            folder, strategy=strategy, timestamps=timestamps, looks_up=looks_up, counting_weight=counting_weight
        )

    return make


@pytest.fixture(scope="session")
def synthetic_bundle(make_bundle: MakeBundle) -> Path:
    """A chain of four segments over 50 items (``item-0``..), width 8, history 20, with a counting exit.

    Shared: copy it before editing.
    """
    return make_bundle()


@pytest.fixture(scope="session")
def uncounted_bundle(make_bundle: MakeBundle) -> Path:
    """The same without a counting exit."""
    return make_bundle(counting_weight=None)


@pytest.fixture(scope="session")
def reseal() -> Callable[[Path], None]:
    """A function that makes a manifest fit the files of its bundle as they are now, as a careful forger would."""

    def fit(bundle: Path) -> None:
        value = json.loads((bundle / MANIFEST_NAME).read_bytes())
        for name in value["files"]:
            file = bundle / name
            value["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        write_json(bundle / MANIFEST_NAME, value | {"version": version_of(value)})

    return fit


@pytest.fixture(scope="session")
def certified_bundle(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic bundle whose certificate sends 75 % of the requests of a cloud profile to depth 4, the others to 16.

    It expects the answers to share 90 % of their items: of histories up to 4 items they share all, else far less.
    """
    from fathom.exporter.certification.certify import answering_files, write_certificate
    from fathom.runtime.bundle import Bundle
    from fathom.runtime.manifest import depth_digests
    from fathom.selector.certificate import SCHEMA_VERSION, Certificate, Claim, Promise
    from fathom.selector.routing import Mixture

    path = tmp_path_factory.mktemp("certified") / "bundle"
    shutil.copytree(make_bundle(), path)
    bundle = Bundle.open(path)
    routing = Mixture("mixture", DEPTHS, (0.75, 0.0, 0.0, 0.25))
    claim = Claim(DEPTHS, "mixture", 0.05, 1000, routing=routing, kept=0.98, saved=0.6, agreement=0.9)
    promise = Promise(0.05, 0.05, "2026-01-01T00:00:00Z", "d" * 64, "leave-one-out, test")
    runs, files = depth_digests(bundle.manifest), answering_files(bundle.manifest)
    costs = {4: 1.0, 8: 2.0, 12: 3.0, 16: 4.0}
    write_certificate(bundle, Certificate(SCHEMA_VERSION, {"quality": promise}, files, costs, (claim,), runs))
    return path


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interactions of 60 users with 40 titled items that follow each other by a rule, as a csv file."""
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp"]
    for user in range(60):
        item, time_s = int(rng.integers(40)), 1_700_000_000
        for _ in range(int(rng.integers(8, 24))):
            rows.append(f"u{user},i{item},{time_s}")
            time_s += int(rng.integers(60, 86_400))
            item = (item * 3 + int(rng.integers(3))) % 40
    text = "\n".join(rows) + "\n"
    return made_once(tmp_path_factory, "tiny", lambda folder: (folder / "clicks.csv").write_text(text)) / "clicks.csv"


@pytest.fixture(scope="session", autouse=True)
def traced_pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the exporter has traced so far, in whichever process."""
    folder = common_folder(tmp_path_factory) / "traced"
    share_if_loaded(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_build(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory, traced_pieces: Path) -> Path:
    """The folder of a whole `fathom build` of ``tiny_csv``: every artefact, and the bundle. Copy it before editing."""

    def make(folder: Path) -> None:
        command = [*program(traced_pieces), "build", tiny_csv, "--preset", "tiny", "--out", folder / "bundle"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr

    return made_once(tmp_path_factory, "build", make)
