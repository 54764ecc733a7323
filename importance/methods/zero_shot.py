"""Zero-shot: what the weights alone say of a layer."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fathom.errors import NotApplicableError
from fathom.importance.interface import Batch, LayeredModel


class ZeroShot:
    """How strongly a layer's weight matrices pass on what goes through them, judged without any data.

    Formula     the geometric mean over the layer's weight matrices of ||W||_F / sqrt(rows): the root mean square of
                W x for an x whose entries are uncorrelated with variance 1, as behind a normalisation. A mean of logs
                and not of norms, for matrices act one after another: a layer whose last matrix is 0 adds nothing.
    Reference   Martin, Peng and Mahoney 2021, arXiv 2002.06716 (log norms of weights, no access to data)
    Cost        none: the weights are read once, and the samples only counted
    Cannot see  data, so every sample has the same row and the interval has no width; gates, biases and gains, which
                are not matrices; which matrices follow each other and which lie side by side, or that a table of
                biases is no map; which directions the inputs use; scales that other parameters take back.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample the same: the mean gain of each layer's matrices, (samples, layers).

        Raises NotApplicableError when a layer has no weight matrix.
        """
        gains = torch.stack([self._gain(model, layer) for layer in range(len(model.layers))])
        return gains.repeat(sum(model.samples(batch) for batch in batches), 1)

    def _gain(self, model: LayeredModel, layer: int) -> Tensor:
        # Kernels count as matrices of (outputs, everything else); (heads, 1, 1) is a row of gains.
        wide = [value.flatten(1) for value in model.layer_parameters(layer).values() if value.dim() > 1]
        gains = [matrix.norm() / len(matrix) ** 0.5 for matrix in wide if matrix.shape[1] > 1]
        if not gains:
            raise NotApplicableError(f"the zero_shot method needs weight matrices; layer {layer} has none")
        return torch.stack(gains).log().mean().exp()
