"""Block influence: how far each layer turns its input."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fathom.importance.interface import Batch, LayeredModel, inputs_and_outputs


class BlockInfluence:
    """How much a layer changes the direction of the hidden state: a layer that changes nothing is redundant.

    Formula     1 - E[cos(x_in, x_out)], the mean over each sample's real positions, then over samples; 0 to 2
    Reference   Men et al. 2024, ShortGPT, arXiv 2403.03853
    Cost        one forward pass
    Cannot see  the loss: a layer may turn the state a great deal to no use, or hardly at all where it decides the
                prediction; a change of length alone; whether later layers read what was changed.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample: 1 - the mean cosine between each layer's input and output, (samples, layers)."""
        with torch.no_grad():
            return torch.cat([self._batch(model, batch) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch) -> Tensor:
        influence: dict[int, Tensor] = {}
        for layer, given, left, real in inputs_and_outputs(model, batch):
            turned = 1 - cosine_similarity(given, left, dim=-1)
            influence[layer] = torch.where(real, turned, 0.0).sum(1) / real.sum(1)
        return torch.stack([influence[layer] for layer in sorted(influence)], dim=1)
