"""Activation: how much each layer writes into the hidden state."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.importance.interface import Batch, LayeredModel, inputs_and_outputs


class Activation:
    """How large a layer's activity, that which it adds to the hidden state, is beside what it finds there.

    Formula     E_x [RMS(x_out - x_in) / RMS(x_in)], both over the sample's real positions; 0 and more. The root mean
                square and not the mean activation: a residual layer adds values of both signs, whose mean is near 0
                however large they are; no unit is ever exactly 0, so counting dead units says nothing; and a variance
                leaves out what the layer adds to every sample alike, which is lost too when the layer goes. Relative
                to the input, because the state grows with depth and later layers normalise what they read.
    Reference   Molchanov et al. 2017, arXiv 1611.06440 (activation as a criterion); Csordas et al. 2025,
                arXiv 2505.13898 (what each layer adds, relative to the residual stream)
    Cost        one forward pass
    Cannot see  the loss, or whether later layers read what was added; whether the layer turns the state or only
                stretches it; a small write that decides the prediction.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample: the size of what each layer adds, relative to its input, (samples, layers)."""
        with torch.no_grad():
            return torch.cat([self._batch(model, batch) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch) -> Tensor:
        activity: dict[int, Tensor] = {}
        for layer, given, left, real in inputs_and_outputs(model, batch):
            # Padding may hold anything, NaN included, so it is replaced and not multiplied by zero.
            given, left = (torch.where(real[..., None], state, 0.0) for state in (given, left))
            activity[layer] = _norm(left - given) / _norm(given)
        return torch.stack([activity[layer] for layer in sorted(activity)], dim=1)


def _norm(state: Tensor) -> Tensor:
    """The length of each sample's state, (samples,), never quite 0."""
    length: Tensor = state.flatten(1).norm(dim=1)
    return length.clamp(min=torch.finfo(state.dtype).tiny)
