"""First-order Taylor importance of each layer's parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.importance.interface import Batch, LayeredModel


class Gradient:
    """How much the loss would change, to first order, if each parameter of a layer were set to zero by itself.

    Formula     sum over the layer's parameters of E_x |theta * dL(x)/dtheta|, with the true labels. Per sample: the
                absolute value is taken of every sample's own gradient, before the mean, so that gradients which point
                in opposite directions for two users do not cancel (as they would per batch).
    Reference   Molchanov et al. 2017, arXiv 1611.06440, and 2019, arXiv 1906.10771
    Cost        one forward and one per-sample backward pass
    Cannot see  parameters acting together (each is set to zero alone, and the absolute values are added up);
                curvature: a layer that is decisive but saturated has no gradient; larger layers have larger sums.
    """

    per_sample_gradients = True

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample: |theta * dL/dtheta| summed over each layer's parameters, (samples, layers)."""
        return torch.cat([self._batch(model, batch) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch) -> Tensor:
        gradients = model.layer_gradients(batch)
        columns = []
        for layer in range(len(model.layers)):
            parameters = model.layer_parameters(layer)
            products = [(gradients[layer][name] * value).abs().flatten(1).sum(1) for name, value in parameters.items()]
            columns.append(torch.stack(products).sum(0))
        return torch.stack(columns, dim=1)
