"""Gradient flow: how much of the loss's gradient arrives at each layer."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.importance.interface import Batch, LayeredModel, states_and_gradients


class GradientFlow:
    """How strongly the loss answers to a small change of what the layer hands on.

    Formula     E_x ||dL(x) / dx_out||, the length of the gradient with respect to the layer's output at all real
                positions together, with L = -log p(true label)
    Reference   Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks
                (back-propagated gradients by layer); He et al. 2016, arXiv 1603.05027, equation 5 (residual layers)
    Cost        one forward and one backward pass, no per-sample gradients of parameters
    Cannot see  what the layer itself does: a layer that is the identity gets the score of the layer before it, for
                the gradient passes through it unchanged; removal, for it looks at infinitesimal changes only; the
                scale of the state: ahead of a normalisation, twice the state has half the gradient.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample: the length of the loss's gradient at each layer's output, (samples, layers)."""
        return torch.cat([self._batch(model, batch) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch) -> Tensor:
        _, gradients = states_and_gradients(model, batch)
        flow = gradients[0].new_zeros(model.samples(batch), len(model.layers))
        for layer, gradient in zip(model.layers, gradients, strict=True):
            real = model.real_positions(batch, layer)[..., None]
            flow[:, layer] = torch.where(real, gradient, 0.0).flatten(1).norm(dim=1)
        return flow
