"""ElasticModel seen as a LayeredModel, and ``rank_checkpoint``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fathom.errors import ArtefactError, ConfigError
from fathom.importance.choice import Graded, choose_methods, forward_seconds
from fathom.importance.interface import LayerTensors, per_sample_gradients
from fathom.importance.lattice.lattice import Lattice, LatticeProgress, masks_on_the_way, measure_lattice, random_orders
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.rank import Progress, rank_layers
from fathom.importance.registry import ALL, DEFAULT, load_methods
from fathom.pieces import PieceRunner, one_after_the_other
from fathom.training.batches import pad_histories
from fathom.training.blocks import Context
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.model import ElasticModel
from fathom.training.splits import Cases, split
from fathom.training.train import keep_freed_memory

POSITIONS_PER_BATCH = 1600
"""Padded positions of a batch; with more, attention over 200 items leaves the processor's caches."""
GRADIENT_VALUES_PER_BATCH = 2**25
"""Per-sample gradient values of a batch (128 MB), whatever the model's size."""


def rank_checkpoint(
    checkpoint: Checkpoint,
    dataset: Dataset,
    methods: Sequence[str] = DEFAULT,
    *,
    budget_seconds: float | None = None,
    users: int = 256,
    seed: int = 0,
    lattice: Lattice | None = None,
    runner: PieceRunner = one_after_the_other,
    progress: Progress | None = None,
) -> LayerRanking:
    """Rank the layers of a checkpoint on the validation cases of ``users`` users, drawn by ``seed``.

    ``lattice``, of the same checkpoint, users and seed, grades the methods. Of ``all`` methods, one that does not apply
    to this model or this installation is left out. With ``budget_seconds``, only those of ``methods`` run that are
    expected to predict the truth best together within that time on one core, see ``choice``.
    Raises ConfigError for unknown methods, fewer than two layers or layers that no exit uses; ArtefactError when the
    checkpoint was trained on another dataset or its activations are not finite; DataError without validation cases.
    """
    chosen = load_methods(methods)
    model, batches = validation_users(checkpoint, dataset, users=users, seed=seed)
    if budget_seconds is not None:
        best = choose_methods(Graded.load(), chosen, forward_seconds(model, batches), budget_seconds)
        chosen = {name: chosen[name] for name in best}
    if lattice is not None and not _about(checkpoint, dataset, batches, seed).items() <= lattice.about.items():
        raise ArtefactError("the lattice was measured on another checkpoint, data set or users; measure it again")
    return rank_layers(
        model,
        batches,
        chosen,
        seed=seed,
        skip_inapplicable=ALL in methods,
        runner=runner,
        progress=progress,
        lattice=lattice,
        checkpoint=checkpoint.sha256,
        dataset=dataset.sha256,
    )


def measure_checkpoint(
    checkpoint: Checkpoint,
    dataset: Dataset,
    out: Path,
    *,
    users: int = 256,
    seed: int = 0,
    orders: int = 0,
    runner: PieceRunner = one_after_the_other,
    progress: Callable[[LatticeProgress], None] = lambda _: None,
) -> Lattice:
    """Measure every subset of the layers on the users that ``rank_checkpoint`` measures on, unless ``out`` holds it.

    With ``orders``, only the subsets on the way through so many random orders and their reverses. An interrupted run
    goes on where it was. Raises as rank_checkpoint and measure_lattice do.
    """
    model, batches = validation_users(checkpoint, dataset, users=users, seed=seed)
    about = _about(checkpoint, dataset, batches, seed)
    masks = None
    if orders:
        about["orders"] = random_orders(len(model.layers), orders, seed=seed)
        masks = masks_on_the_way(about["orders"])
    if (out / "lattice.json").exists() and (kept := Lattice.load(out)).about == about:
        return kept
    return measure_lattice(model, batches, out, masks=masks, about=about, runner=runner, progress=progress)


def _about(checkpoint: Checkpoint, dataset: Dataset, batches: list["Histories"], seed: int) -> dict[str, Any]:
    """Names what a lattice was measured on."""
    users = sum(len(batch.labels) for batch in batches)
    return {"users": users, "seed": seed, "checkpoint": checkpoint.sha256, "dataset": dataset.sha256}


def validation_users(
    checkpoint: Checkpoint, dataset: Dataset, *, users: int, seed: int
) -> tuple["ElasticLayers", list["Histories"]]:
    """A checkpoint's layers and the batches on which they are ranked; raises as rank_checkpoint does."""
    if dataset.sha256 != checkpoint.config.dataset:
        raise ArtefactError("this checkpoint was trained on another dataset; give the one it was trained on")
    keep_freed_memory()
    model = ElasticLayers(checkpoint.model)
    layers = checkpoint.model.config.layers
    if len(model.layers) < layers:
        raise ConfigError(
            f"the deepest exit runs {len(model.layers)} of {layers} layers; train with depth {layers} too"
        )
    return model, validation_batches(model, split(dataset, checkpoint.config.split).validation, users=users, seed=seed)


@dataclass(frozen=True)
class Histories:
    """One batch: input ids int64 (B, L), padded on the left with 0; timestamps int64 seconds (B, L) or None;
    labels int64 (B,), the index of the item that followed; seen int64 (B, S), indices of the other items that the user
    has had and is not offered again, each once, then -1; context, which all layers share.
    """

    items: Tensor
    timestamps: Tensor | None
    labels: Tensor
    seen: Tensor
    context: Context


class ElasticLayers:
    """The deepest path of an ElasticModel, read at its exit after the newest item (a LayeredModel).

    The loss is the cross entropy over the whole catalogue. The model is put into evaluation mode.
    """

    def __init__(self, model: ElasticModel) -> None:
        self._model = model.eval()
        self._depth = model.depths[-1]
        with torch.no_grad():
            self._vectors = model.item_vectors()
            self._answers = (self._vectors / model.config.temperature).T.contiguous()

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the deepest path, in execution order."""
        return self._model.config.paths[self._depth]

    @property
    def max_history(self) -> int:
        """The longest history, in items, that a batch may hold."""
        return self._model.config.max_history

    @property
    def parameter_count(self) -> int:
        """Values in the parameters of all layers."""
        return sum(value.numel() for layer in self.layers for value in self.layer_parameters(layer).values())

    @torch.no_grad()
    def batch(self, items: Tensor, timestamps: Tensor | None, labels: Tensor, seen: Tensor | None = None) -> Histories:
        """Make a batch on the model's device, items (B, L): see Histories; without ``seen``, it is what items hold."""
        device = self._model.embedding.weight.device
        if seen is None:
            seen = seen_items([row[row != 0].numpy() - 1 for row in items.cpu()], labels.cpu().numpy())
        items, labels, seen = items.to(device), labels.to(device), seen.to(device)
        # A model that ignores time gets none, so that it is not copied about.
        timestamps = timestamps.to(device) if timestamps is not None and self._model.uses_timestamps else None
        return Histories(items, timestamps, labels, seen, self._model.context(items, timestamps))

    def samples(self, batch: Histories) -> int:
        """How many histories there are."""
        return len(batch.labels)

    def embed(self, batch: Histories) -> Tensor:
        """Hidden states (B, L, width) before the first layer."""
        return self._model.embed(batch.items)

    def run_layer(self, batch: Histories, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states (B, L, width) after one layer."""
        return self._model.run_layer(layer, hidden, batch.context)

    def losses(self, batch: Histories, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Cross entropy (B,) of the item that follows the newest one."""
        return F.cross_entropy(self._logits(hidden), batch.labels if labels is None else labels, reduction="none")

    def log_probabilities(self, batch: Histories, hidden: Tensor) -> Tensor:  # noqa: ARG002
        """Log softmax over the catalogue, (B, items)."""
        return self._logits(hidden).log_softmax(-1)

    def run_last_layer(self, batch: Histories, layer: int, hidden: Tensor) -> Tensor:
        """The hidden state (B, 1, width) of the newest item after a layer."""
        return self._model.run_layer(layer, hidden, batch.context, last_only=True)

    def judge(self, batch: Histories, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy over the catalogue, the right item's place among those that the user has not had, (B,) each."""
        logits = self._logits(hidden)
        own = logits.gather(1, batch.labels[:, None])
        had = (logits.gather(1, batch.seen.clamp(min=0)) >= own) & (batch.seen >= 0)
        place = (logits >= own).sum(1) - 1 - had.sum(1)
        # Vectors of unit norm: no score is large enough to overflow.
        return logits.exp().sum(1).log() - own[:, 0], place

    @torch.no_grad()
    def targets(self, batch: Histories) -> Tensor:
        """The vector of the item that followed, (B, width)."""
        return self._vectors[batch.labels]

    @torch.no_grad()
    def attention(self, batch: Histories, layer: int, hidden: Tensor) -> Tensor:
        """The block's attention weights, (B, heads, L, L), each real row scaled to sum to 1."""
        weights = self._model.block(layer).attention_weights(hidden, batch.context).abs()
        weights = torch.where(batch.items[:, None, None] != 0, weights, 0.0)
        return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)

    def sample_labels(self, batch: Histories, hidden: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Item indices (B,) drawn from the softmax over the catalogue."""
        probabilities = self._logits(hidden).softmax(dim=-1).cpu()
        # NaN would make multinomial stop with its own error; the driver finds it and names the layer.
        drawn = torch.multinomial(probabilities.nan_to_num(nan=1.0), 1, generator=generator).squeeze(1)
        return drawn.to(hidden.device)

    def input_of(self, batch: Histories, layer: int, hidden: Tensor) -> Tensor:  # noqa: ARG002
        """The state that the layer before leaves."""
        return hidden

    def real_positions(self, batch: Histories, layer: int | None = None) -> Tensor:  # noqa: ARG002
        """Positions that hold an item, bool (B, L)."""
        return batch.items != 0

    def layer_parameters(self, layer: int) -> LayerTensors:
        """The parameters of one block."""
        return {name: value.detach() for name, value in self._model.block(layer).named_parameters()}

    def layer_gradients(self, batch: Histories, labels: Tensor | None = None) -> Mapping[int, LayerTensors]:
        """Per-sample gradients of the cross entropy, layer -> name -> (B, *shape)."""
        names = {layer: self.layer_parameters(layer) for layer in self.layers}
        parameters = {_path(layer, name): value for layer in self.layers for name, value in names[layer].items()}
        one_loss = _OneLoss(self._model, self._depth)
        times = () if batch.timestamps is None else (batch.timestamps,)

        def loss(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
            value: Tensor = torch.func.functional_call(one_loss, parameters, sample)
            return value

        samples = (batch.labels if labels is None else labels, batch.items, *times)
        gradients = per_sample_gradients(loss, parameters, samples)
        return {layer: {name: gradients[_path(layer, name)] for name in names[layer]} for layer in self.layers}

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._model.read_exit(self._depth, hidden[:, -1]) @ self._answers


def validation_batches(model: ElasticLayers, cases: Cases, *, users: int, seed: int) -> list[Histories]:
    """Batches of at most ``users`` cases in all, drawn without replacement; similar history lengths together."""
    batches = []
    for rows, longest in drawn_cases(model, cases, users=users, seed=seed):
        items, timestamps = pad_histories(cases.histories, rows, longest)
        targets = cases.targets[rows]
        seen = seen_items([cases.histories[row] for row in rows], targets)
        batches.append(model.batch(items, timestamps, torch.from_numpy(targets).long(), seen))
    return batches


def drawn_cases(
    model: ElasticLayers, cases: Cases, *, users: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Rows (B,) of ``cases`` by batch, and the longest history in it."""
    drawn = np.random.default_rng(seed).permutation(len(cases))[:users]
    lengths = np.minimum(cases.histories.lengths[drawn], model.max_history)
    longest_first = np.argsort(-lengths, kind="stable")
    drawn, lengths = drawn[longest_first], lengths[longest_first]
    most, start = GRADIENT_VALUES_PER_BATCH // model.parameter_count, 0
    while start < len(drawn):
        size = max(1, min(most, POSITIONS_PER_BATCH // int(lengths[start])))
        yield drawn[start : start + size], int(lengths[start])
        start += size


def seen_items(histories: Sequence[NDArray[Any]], labels: NDArray[Any]) -> Tensor:
    """The ``seen`` of a batch from item indices (B sequences of any length) and labels (B,)."""
    had = [np.setdiff1d(history, label) for history, label in zip(histories, labels, strict=True)]
    seen = np.full((len(had), max(map(len, had))), -1, dtype=np.int64)
    for row, items in zip(seen, had, strict=True):
        row[: len(items)] = items
    return torch.from_numpy(seen)


class _OneLoss(nn.Module):
    """The loss of a single history, as a module, so that functional_call can put other parameters in."""

    def __init__(self, model: ElasticModel, depth: int) -> None:
        super().__init__()
        self.model = model
        self.depth = depth

    def forward(self, label: Tensor, items: Tensor, timestamps: Tensor | None = None) -> Tensor:
        times = None if timestamps is None else timestamps[None]
        user = self.model.user_vectors(items[None], times, depth=self.depth)
        return F.cross_entropy((user @ self.model.item_vectors().T / self.model.config.temperature)[0], label)


def _path(layer: int, name: str) -> str:
    """Where _OneLoss keeps a parameter of a layer."""
    return f"model.layers.{layer}.{name}"
