"""Fisher information of each layer's parameters, per sample."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.importance.interface import Batch, LayeredModel, run_skipping


class Fisher:
    """How strongly the model's predictions depend on a layer's parameters.

    Formula     sum over the layer's parameters of E_x E_{y ~ p(y|x)} [(d log p(y|x) / d theta)^2]: the trace of the
                layer's Fisher information. One y per sample, drawn from the model itself: with the true labels it is
                the "empirical Fisher", which is another quantity. Each sample's gradient is squared before anything is
                averaged: the square of a batch's gradient is not Fisher information.
    Reference   Amari 1998, Natural gradient works efficiently in learning; Kunstner et al. 2019, arXiv 1905.12558
    Cost        one forward and one per-sample backward pass, and a forward pass to draw the labels
    Cannot see  what happens when a layer is removed (it looks at infinitesimal changes only); a decisive layer of a
                model that is already certain has almost no Fisher information; larger layers have larger sums;
                rescaling a layer's parameters changes it, although the function stays the same.
    """

    per_sample_gradients = True

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
        """Per sample: the squared gradient of log p(y), summed over each layer's parameters, (samples, layers)."""
        return torch.cat([self._batch(model, batch, generator) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            labels = model.sample_labels(batch, run_skipping(model, batch), generator)
        gradients = model.layer_gradients(batch, labels)
        columns = []
        for layer in range(len(model.layers)):
            squares = [gradient.square().flatten(1).sum(1) for gradient in gradients[layer].values()]
            columns.append(torch.stack(squares).sum(0))
        return torch.stack(columns, dim=1)
