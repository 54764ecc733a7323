"""Models of tables, graphs and actions, and Fathom's own recommender."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fathom.benchmarks.experiments.own_models.sources import packages, table
from fathom.benchmarks.experiments.own_models.subjects import Batch, Ready, fit, parts
from fathom.errors import DataError
from fathom.importance.tasks.single_label import Classification, ReinforcementLearning
from fathom.training.batches import pad_histories
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.model import ElasticModel
from fathom.training.splits import Cases, split

WIDTH, LAYERS = 64, 6
#: What `fathom build ml-100k --out build/ml-100k/bundle` leaves.
BUILT = Path("build/ml-100k")


class Residual(nn.Module):
    """x + W2 relu(W1 norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.outer(self.inner(self.norm(hidden)).relu())
        return out


class Mlp(nn.Module):
    """Residual layers over the columns of a table."""

    def __init__(self, columns: int, answers: int) -> None:
        super().__init__()
        self.enter = nn.Linear(columns, WIDTH)
        self.layers = nn.Sequential(*(Residual(WIDTH) for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, answers)

    def forward(self, columns: Tensor) -> Tensor:
        """(rows, columns) to logits (rows, answers)."""
        out: Tensor = self.head(self.layers(self.enter(columns)))
        return out


def adult() -> Ready:
    """Residual layers, trained here, say from a census record whether a person earns more than 50,000 dollars."""
    found = table("adult")
    words = [name for name, kind in found.schema.items() if kind == pl.String and name != "income"]
    numbers = [name for name in found.columns if name not in (*words, "income")]
    values = found.select(numbers).to_torch().float()
    values = (values - values.mean(0)) / values.std(0)
    columns = torch.cat((values, found.select(words).to_dummies().to_torch().float()), 1)
    torch.manual_seed(0)
    labels = torch.tensor((found["income"] == ">50K").to_list()).long()
    heal, rank, test = parts({"columns": columns, "labels": labels}, 256, 30_000, 1_000, 10_000)
    return Ready(fit(Mlp(columns.shape[1], 2), Classification(), heal, epochs=3, rate=2e-3), heal, rank, test)


def cartpole() -> Ready:
    """Residual layers, trained here, imitate a controller of gymnasium's CartPole-v1."""
    packages()
    game = importlib.import_module("gymnasium").make("CartPole-v1")
    rng = np.random.default_rng(0)
    seen: list[NDArray[np.float32]] = []
    done: list[int] = []
    state, _ = game.reset(seed=0)
    while len(seen) < 12_000:
        action = int(state @ np.array([0.1, 0.3, 1.0, 0.5]) > 0)
        seen.append(np.asarray(state, np.float32))
        done.append(action)
        # What is done by mistake shows how to come back.
        state, _, fallen, over, _ = game.step(int(rng.integers(2)) if rng.random() < 0.3 else action)
        if fallen or over:
            state, _ = game.reset()
    torch.manual_seed(0)
    named = {"columns": torch.from_numpy(np.stack(seen)), "labels": torch.tensor(done)}
    heal, rank, test = parts(named, 128, 9_000, 500, 2_500)
    return Ready(fit(Mlp(4, 2), ReinforcementLearning(), heal, epochs=4, rate=2e-3), heal, rank, test)


class Molecules(nn.Module):
    """Message passing along the bonds of molecules (GIN, Xu et al. 2019, arXiv 1810.00826), with residuals."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, hidden: Tensor, edges: Tensor) -> Tensor:
            normed = self.norm(hidden)
            heard = normed.index_add(0, edges[1], normed[edges[0]])
            out: Tensor = hidden + self.outer(self.inner(heard).relu())
            return out

    def __init__(self, features: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(features, WIDTH), nn.Linear(WIDTH, 2)
        self.steps = nn.ModuleList(self.Step() for _ in range(LAYERS))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Atoms (n, features), bonds (2, m), the molecule of each atom (n,) to logits (molecules, 2)."""
        hidden = self.enter(x)
        for step in self.steps:
            hidden = step(hidden, edge_index)
        molecules = int(batch.max()) + 1
        sums = hidden.new_zeros(molecules, WIDTH).index_add(0, batch, hidden)
        atoms = hidden.new_zeros(molecules, 1).index_add(0, batch, torch.ones_like(hidden[:, :1]))
        out: Tensor = self.head(sums / atoms)
        return out


def molecules() -> Ready:
    """Message passing, trained here, says of molecules whether they pass from blood to brain (B3DB)."""
    folder = packages()
    chemistry: Any = importlib.import_module("rdkit.Chem")
    importlib.import_module("rdkit.RDLogger").DisableLog("rdApp.*")
    found = pl.read_csv(folder / "B3DB/B3DB_classification.tsv", separator="\t", infer_schema=False)
    rows = found.select("SMILES", "BBB+/BBB-").sample(fraction=1, shuffle=True, seed=0)
    known: list[tuple[Tensor, Tensor, int]] = []
    for smiles, label in rows.iter_rows():
        molecule = chemistry.MolFromSmiles(smiles)
        if molecule is None or molecule.GetNumBonds() == 0:
            continue
        atoms = torch.stack([_atom(atom) for atom in molecule.GetAtoms()])
        bonds = torch.tensor([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]).T
        known.append((atoms, torch.cat((bonds, bonds.flip(0)), 1), int(label == "BBB+")))
    heal, rank, test = (
        [_joined(known[start : min(start + 64, last)]) for start in range(first, last, 64)]
        for first, last in ((0, 5_500), (5_500, 6_000), (6_000, len(known)))
    )
    torch.manual_seed(0)
    model = Molecules(known[0][0].shape[1])
    return Ready(fit(model, Classification(), heal, epochs=8, rate=2e-3), heal, rank, test)


def _atom(atom: Any) -> Tensor:
    kinds = (6, 7, 8, 16, 9, 17, 35, 15, 53, 1)
    kind = F.one_hot(torch.tensor(kinds.index(number) if (number := atom.GetAtomicNum()) in kinds else 10), 11)
    said = [atom.GetDegree(), atom.GetFormalCharge(), atom.GetTotalNumHs(), atom.GetIsAromatic(), atom.IsInRing()]
    return torch.cat((kind.float(), torch.tensor(said, dtype=torch.float)))


def _joined(molecules: list[tuple[Tensor, Tensor, int]]) -> Batch:
    sizes = torch.tensor([len(atoms) for atoms, _, _ in molecules])
    starts = sizes.cumsum(0) - sizes
    return {
        "x": torch.cat([atoms for atoms, _, _ in molecules]),
        "edge_index": torch.cat([bonds + start for (_, bonds, _), start in zip(molecules, starts, strict=True)], 1),
        "batch": torch.repeat_interleave(torch.arange(len(molecules)), sizes),
        "labels": torch.tensor([label for _, _, label in molecules]),
    }


class Scores(nn.Module):
    """Fathom's own network as a module that scores all items, read at its deepest exit."""

    def __init__(self, model: ElasticModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor) -> Tensor:
        """Histories (n, length) to scores (n, items)."""
        depth = self.model.depths[-1]
        user = self.model.read_exit(depth, self.model.hidden(items, depths=[depth])[depth][:, -1])
        out: Tensor = user @ self.model.item_vectors().T / self.model.config.temperature
        return out


def recommender() -> Ready:
    """Fathom's own network on MovieLens-100K, 16 layers, at its deepest exit."""
    if not (BUILT / "checkpoint").exists():
        raise DataError(f"{BUILT}: no checkpoint; run `fathom build ml-100k --out {BUILT}/bundle` first")
    checkpoint, dataset = Checkpoint.load(BUILT / "checkpoint"), Dataset.load(BUILT / "dataset")
    cut = split(dataset, checkpoint.config.split)
    rng = np.random.default_rng(0)
    heal = []
    for _ in range(120):
        histories: list[Tensor] = []
        targets: list[int] = []
        for owner in rng.permutation(len(cut.train.lengths)):
            items = cut.train[owner]
            if len(items) > 1 and len(histories) < 64:
                end = int(rng.integers(1, len(items)))
                histories.append(torch.from_numpy(items[max(0, end - 50) : end].astype(np.int64)) + 1)
                targets.append(int(items[end]))
        padded = [F.pad(history, (50 - len(history), 0)) for history in histories]
        heal.append({"items": torch.stack(padded), "labels": torch.tensor(targets)})
    model = Scores(checkpoint.model).eval()
    return Ready(model, heal, _histories(cut.validation, 256), _histories(cut.test, len(cut.test)))


def _histories(cases: Cases, count: int) -> list[Batch]:
    rows = np.random.default_rng(0).permutation(len(cases))[:count]
    return [
        {"items": pad_histories(cases.histories, part, 50)[0], "labels": torch.from_numpy(cases.targets[part]).long()}
        for part in np.array_split(rows, -(-len(rows) // 64))
    ]
