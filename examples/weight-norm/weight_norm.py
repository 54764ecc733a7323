"""An importance method of your own: `pip install ./examples/weight-norm`, then `fathom rank --methods weight_norm`."""

import torch


class WeightNorm:
    """The Euclidean norm of each layer's parameters; it sees neither data nor what the model makes of a layer."""

    def scores(self, model, batches, generator):
        """A single row, for it is not a mean over users: (1, layers)."""
        parameters = [model.layer_parameters(layer).values() for layer in range(len(model.layers))]
        return torch.stack([torch.cat([p.flatten() for p in own]).norm() for own in parameters])[None]
