"""ElasticModel seen as a LayeredModel, and ``rank_checkpoint``: the only file here that knows fathom.training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import ArtefactError, ConfigError
from fathom.importance.interface import LayerTensors, per_sample_gradients
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.rank import Progress, rank_layers
from fathom.importance.registry import ALL, load_methods
from fathom.training.batches import pad_histories
from fathom.training.blocks import Context
from fathom.training.checkpoint import Checkpoint
from fathom.training.dataset import Dataset
from fathom.training.model import ElasticModel
from fathom.training.splits import Cases, split

POSITIONS_PER_BATCH = 1600
"""Padded positions of a batch; with more, attention over 200 items leaves the processor's caches."""
GRADIENT_VALUES_PER_BATCH = 2**25
"""Per-sample gradient values of a batch (128 MB), whatever the model's size."""


def rank_checkpoint(
    checkpoint: Checkpoint,
    dataset: Dataset,
    methods: Sequence[str] = (ALL,),
    *,
    users: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> LayerRanking:
    """Rank the layers of a checkpoint on the validation cases of ``users`` users, drawn by ``seed``.

    Raises ConfigError for unknown methods, fewer than two layers or layers that no exit uses; ArtefactError when the
    checkpoint was trained on another dataset or its activations are not finite; DataError without validation cases.
    """
    chosen = load_methods(methods)
    if dataset.sha256 != checkpoint.config.dataset:
        raise ArtefactError("this checkpoint was trained on another dataset; give the one it was trained on")
    model = ElasticLayers(checkpoint.model)
    layers = checkpoint.model.config.layers
    if len(model.layers) < layers:
        raise ConfigError(
            f"the deepest exit runs {len(model.layers)} of {layers} layers; train with depth {layers} too"
        )
    batches = validation_batches(model, split(dataset, checkpoint.config.split).validation, users=users, seed=seed)
    return rank_layers(
        model,
        batches,
        chosen,
        seed=seed,
        progress=progress,
        checkpoint=checkpoint.sha256,
        dataset=dataset.sha256,
    )


@dataclass(frozen=True)
class Histories:
    """One batch: input ids int64 (B, L), padded on the left with 0; timestamps int64 seconds (B, L) or None;
    labels int64 (B,), the index of the item that followed; context, which all layers share.
    """

    items: Tensor
    timestamps: Tensor | None
    labels: Tensor
    context: Context


class ElasticLayers:
    """The deepest path of an ElasticModel, read at its exit after the newest item (a LayeredModel).

    The loss is the cross entropy over the whole catalogue. The model is put into evaluation mode.
    """

    def __init__(self, model: ElasticModel) -> None:
        self._model = model.eval()
        self._depth = model.depths[-1]

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
    def batch(self, items: Tensor, timestamps: Tensor | None, labels: Tensor) -> Histories:
        """Make a batch on the model's device, see Histories for the shapes."""
        device = self._model.embedding.weight.device
        items, labels = items.to(device), labels.to(device)
        # A model that ignores time gets none, so that it is not copied about.
        timestamps = timestamps.to(device) if timestamps is not None and self._model.uses_timestamps else None
        return Histories(items, timestamps, labels, self._model.context(items, timestamps))

    def embed(self, batch: Histories) -> Tensor:
        """Hidden states (B, L, width) before the first layer."""
        return self._model.embed(batch.items)

    def run_layer(self, batch: Histories, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states (B, L, width) after one layer."""
        return self._model.run_layer(layer, hidden, batch.context)

    def losses(self, batch: Histories, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Cross entropy (B,) of the item that follows the newest one."""
        return F.cross_entropy(self._logits(hidden), batch.labels if labels is None else labels, reduction="none")

    def sample_labels(self, batch: Histories, hidden: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Item indices (B,) drawn from the softmax over the catalogue."""
        probabilities = self._logits(hidden).softmax(dim=-1).cpu()
        # NaN would make multinomial stop with its own error; the driver finds it and names the layer.
        drawn = torch.multinomial(probabilities.nan_to_num(nan=1.0), 1, generator=generator).squeeze(1)
        return drawn.to(hidden.device)

    def real_positions(self, batch: Histories) -> Tensor:
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
        return _logits(self._model, self._model.read_exit(self._depth, hidden[:, -1]))


def validation_batches(model: ElasticLayers, cases: Cases, *, users: int, seed: int) -> list[Histories]:
    """Batches of at most ``users`` cases in all, drawn without replacement; similar history lengths together."""
    histories = cases.histories
    drawn = np.random.default_rng(seed).permutation(len(cases))[:users]
    lengths = np.minimum(histories.lengths[drawn], model.max_history)
    longest_first = np.argsort(-lengths, kind="stable")
    drawn, lengths = drawn[longest_first], lengths[longest_first]
    most = GRADIENT_VALUES_PER_BATCH // model.parameter_count
    batches, start = [], 0
    while start < len(drawn):
        size = max(1, min(most, POSITIONS_PER_BATCH // int(lengths[start])))
        rows = drawn[start : start + size]
        items, timestamps = pad_histories(histories, rows, model.max_history)
        batches.append(model.batch(items, timestamps, torch.from_numpy(cases.targets[rows]).long()))
        start += size
    return batches


class _OneLoss(nn.Module):
    """The loss of a single history, as a module, so that functional_call can put other parameters in."""

    def __init__(self, model: ElasticModel, depth: int) -> None:
        super().__init__()
        self.model = model
        self.depth = depth

    def forward(self, label: Tensor, items: Tensor, timestamps: Tensor | None = None) -> Tensor:
        times = None if timestamps is None else timestamps[None]
        user = self.model.user_vectors(items[None], times, depth=self.depth)
        return F.cross_entropy(_logits(self.model, user)[0], label)


def _path(layer: int, name: str) -> str:
    """Where _OneLoss keeps a parameter of a layer."""
    return f"model.layers.{layer}.{name}"


def _logits(model: ElasticModel, users: Tensor) -> Tensor:
    return users @ model.item_vectors().T / model.config.temperature
