"""The loss that each layer prevents: skip it and measure."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.importance.interface import Batch, LayeredModel, hidden_states, run_layers


class Ablation:
    """How much worse the model predicts when one layer is replaced by the identity and all others are kept.

    Formula     E_x [L(x without the layer) - L(x)], with L = -log p(true label); negative when the layer harms
    Reference   Veit et al. 2016, arXiv 1605.06431 (deleting single layers of residual networks)
    Cost        L/2 forward passes: the hidden states before the skipped layer are re-used
    Cannot see  layers that stand in for each other (each is harmless alone, not together), and what healing would
                repair: the other layers are not retrained.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample: the rise of its loss when each layer is skipped, (samples, layers)."""
        with torch.no_grad():
            return torch.cat([self._batch(model, batch) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch) -> Tensor:
        states = hidden_states(model, batch)
        complete = model.losses(batch, states[-1])
        rises = complete.new_zeros(len(complete), len(model.layers))
        for place, layer in enumerate(model.layers):
            without = run_layers(model, batch, states[place], model.layers[place + 1 :])
            rises[:, layer] = model.losses(batch, without) - complete
        return rises
