"""The lattice: how good a model is with every subset of its layers, the truth that importance methods are graded by.

A subset keeps its layers in execution order; the others are the identity. Subsets that begin alike share their hidden
states: walking the tree of decisions "with the layer or without it" depth first takes 2^L - 1 passes through single
layers where one subset after the other takes L 2^(L-1).

The work is cut into shards: one batch, and one choice of the first layers. Any number of processes or machines give
the same bits (see ``distribution``), and a shard that is done is kept when the run is interrupted.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import accumulate, product
from operator import or_
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.artefacts import LATTICE, LATTICE_SHARDS, check_output, expect, lattice_shards
from fathom.errors import ArtefactError, ConfigError
from fathom.files import new_folder, read_json, remove_folder, write_bytes, write_json
from fathom.importance.distribution import in_one_thread
from fathom.importance.interface import Batch, LayeredModel
from fathom.importance.statistics import Floats
from fathom.pieces import PieceRunner, one_after_the_other

SCHEMA_VERSION = 1
#: The whole lattice is measured up to here (a million subsets); a deeper model is sampled.
MOST_LAYERS = 20
MOST_SAMPLED = 62
#: Every shard decides about so many layers beforehand.
DECIDED = 3

METRICS = ("loss", "ndcg@10")

Masks = NDArray[np.int64]


@dataclass(frozen=True)
class Lattice:
    """Measured subsets of layers.

    masks: int64 (subsets,), ascending; bit i is layer i. losses: float32 (users, subsets), -log p(true label); places:
    int32 (users, subsets), that of the true label, from 0. about: where it came from, for the reader of the file.
    executed: the layers in the order in which they ran.
    """

    layers: int
    masks: Masks
    losses: NDArray[np.float32]
    places: NDArray[np.int32]
    about: dict[str, Any]
    executed: tuple[int, ...]

    @property
    def in_original_order(self) -> bool:
        """Whether the layers ran in the order of their index."""
        return list(self.executed) == sorted(self.executed)

    @property
    def is_whole(self) -> bool:
        """Whether every subset is there, so that entry m is subset m."""
        return len(self.masks) == 1 << self.layers

    def utilities(self, metric: str) -> NDArray[np.float32]:
        """What each user gains, (users, subsets), higher is better: "loss" is log p, "ndcg@10" 1 / log2(place + 2)."""
        match metric:
            case "loss":
                return -self.losses
            case "ndcg@10":
                gains = np.append(1 / np.log2(np.arange(2, 12)), 0).astype(np.float32)
                return gains[np.minimum(self.places, 10)]
        raise ConfigError(f"unknown metric {metric!r} of a lattice; use loss or ndcg@10")

    def mean(self, metric: str) -> Floats:
        """The utility of each subset, (subsets,)."""
        mean: Floats = self.utilities(metric).mean(0, dtype=np.float64)
        return mean

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all."""
        with new_folder(folder, LATTICE) as new:
            for name in ("masks", "losses", "places"):
                np.save(new / f"{name}.npy", getattr(self, name))
            head = {"schema_version": SCHEMA_VERSION, "layers": self.layers, "executed": self.executed}
            write_json(new / "lattice.json", {**head, **self.about})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the folder; raises ArtefactError, in one line, when it holds no whole lattice."""
        expect(folder, LATTICE)
        about = read_json(folder / "lattice.json", kind="lattice", schema_version=SCHEMA_VERSION)
        try:
            masks, losses, places = (np.load(folder / f"{name}.npy") for name in ("masks", "losses", "places"))
            layers, executed = int(about.pop("layers")), tuple(map(int, about.pop("executed")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{folder}: not a lattice: {error}; measure it again") from None
        if losses.shape != places.shape or losses.shape[1:] != masks.shape:
            raise ArtefactError(f"{folder}: losses, places and masks do not fit together; measure the lattice again")
        about.pop("schema_version")
        return cls(layers, masks, losses, places, about, executed)


def all_masks(layers: int) -> Masks:
    """Every subset of the layers, (2^layers,); raises ConfigError where they are too many."""
    if layers > MOST_LAYERS:
        raise ConfigError(f"{layers} layers have 2^{layers} subsets; a lattice is whole up to {MOST_LAYERS}: sample it")
    return np.arange(2**layers, dtype=np.int64)


def random_orders(layers: int, count: int, *, seed: int) -> list[list[int]]:
    """Random orders of the layers."""
    random = np.random.default_rng(seed)
    return [random.permutation(layers).tolist() for _ in range(count)]


def masks_on_the_way(orders: Iterable[Sequence[int]]) -> Masks:
    """The subsets (n,) on the way from no layer to all, adding layers in these orders and the reverse of each.

    Raises ConfigError for more layers than a mask has bits.
    """
    found = {0}
    for order in orders:
        for way in (order, order[::-1]):
            found |= set(accumulate((1 << layer for layer in way), or_))
    if max(found).bit_length() > MOST_SAMPLED:
        raise ConfigError(f"a lattice is sampled up to {MOST_SAMPLED} layers, not {max(found).bit_length()}")
    return np.array(sorted(found), dtype=np.int64)


def judge_subsets(model: LayeredModel, batch: Batch, masks: Masks) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The loss and the place of every sample under each of the subsets ``masks``, both (samples, subsets)."""
    with torch.no_grad():
        start = model.embed(batch)
    # Arrays from the start: thousands of small tensors between large ones that are freed would tear memory to pieces.
    losses = np.empty((len(start), len(masks)), dtype=np.float32)
    places = np.empty((len(start), len(masks)), dtype=np.int32)

    def visit(place: int, hidden: Tensor, rows: NDArray[np.intp]) -> None:
        if place == len(model.layers):
            loss, rank = model.judge(batch, hidden)
            losses[:, rows[0]], places[:, rows[0]] = loss.float().cpu().numpy(), rank.int().cpu().numpy()
            return
        layer = model.layers[place]
        runs = (masks[rows] >> layer) & 1 == 1
        if not runs.all():
            visit(place + 1, hidden, rows[~runs])
        if runs.any():
            rows = rows[runs]
            later = sum(1 << other for other in model.layers[place + 1 :])
            run = model.run_layer if (masks[rows] & later).any() else model.run_last_layer
            visit(place + 1, run(batch, layer, hidden), rows)

    with torch.no_grad():
        visit(0, start, np.arange(len(masks)))
    return losses, places


@dataclass(frozen=True)
class Shard:
    """The part of the work on one batch whose subsets agree about the first layers."""

    batch: int
    decision: int
    masks: Masks

    @property
    def name(self) -> str:
        return f"{self.batch:04d}-{self.decision:02d}"


@dataclass(frozen=True)
class LatticeProgress:
    """So many of the shards are done; ``seconds_left`` is None before there is an estimate."""

    done: int
    total: int
    seconds_left: float | None


def measure_lattice(
    model: LayeredModel,
    batches: Sequence[Batch],
    out: Path,
    *,
    masks: Masks | None = None,
    about: dict[str, Any],
    runner: PieceRunner = one_after_the_other,
    progress: Callable[[LatticeProgress], None] = lambda _: None,
) -> Lattice:
    """Measure subsets of the layers, masks (subsets,) or all of them, on some batches and write the lattice to ``out``.

    Shards are kept beside ``out`` until it is whole, and a run with equal ``about`` goes on from them. Raises
    ArtefactError where a loss is not finite.
    """
    layers = len(model.layers)
    if masks is None:
        masks = all_masks(layers)
    shards = list(_shards(model, len(batches), masks))
    check_output(out, LATTICE)
    kept = lattice_shards(out)
    head = {"schema_version": SCHEMA_VERSION, "layers": layers, "subsets": len(masks)}
    _open(kept, {**head, "batches": [model.samples(batch) for batch in batches], **about})
    missing = [shard for shard in shards if not (kept / shard.name).exists()]
    started, before = time.monotonic(), len(shards) - len(missing)
    for done, (shard, data) in enumerate(runner(partial(in_one_thread, compute), (model, batches), missing), 1):
        write_bytes(kept / shard.name, data)
        left = (len(missing) - done) * (time.monotonic() - started) / done
        progress(LatticeProgress(before + done, len(shards), left))
    lattice = Lattice(layers, masks, *_joined(kept, shards), about, tuple(model.layers))
    if not np.isfinite(lattice.losses).all():
        raise ArtefactError("the loss of some subset of layers is NaN or infinite; the model cannot be ranked")
    lattice.save(out)
    remove_folder(kept, LATTICE_SHARDS)
    return lattice


def _shards(model: LayeredModel, batches: int, masks: Masks) -> Iterator[Shard]:
    first = model.layers[:DECIDED]
    choice = sum(((masks >> layer) & 1) << place for place, layer in enumerate(first))
    for batch, decision in product(range(batches), range(2 ** len(first))):
        chosen = masks[choice == decision]
        if len(chosen):
            yield Shard(batch, decision, chosen)


def _open(kept: Path, about: dict[str, Any]) -> None:
    """Make the folder for shards, empty unless it holds shards of the same work."""
    note = kept / "about.json"
    if not (note.exists() and read_json(note, kind="lattice", schema_version=SCHEMA_VERSION) == about):
        remove_folder(kept, LATTICE_SHARDS)
        write_json(note, about)


def compute(work: tuple[LayeredModel, Sequence[Batch]], shard: Shard) -> bytes:
    """One shard as the bytes of its file."""
    model, batches = work
    losses, places = judge_subsets(model, batches[shard.batch], shard.masks)
    data = BytesIO()
    np.savez(data, losses=losses, places=places)
    return data.getvalue()


def _joined(kept: Path, shards: Sequence[Shard]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """All shards as (users, subsets), users in the order of the batches, subsets ascending."""
    rows: dict[int, list[Shard]] = {}
    for shard in shards:
        rows.setdefault(shard.batch, []).append(shard)
    losses, places = [], []
    for parts in rows.values():
        ascending = np.argsort(np.concatenate([part.masks for part in parts]))
        files = [np.load(kept / part.name) for part in parts]
        losses.append(np.concatenate([file["losses"] for file in files], axis=1)[:, ascending])
        places.append(np.concatenate([file["places"] for file in files], axis=1)[:, ascending])
    return np.concatenate(losses), np.concatenate(places)
