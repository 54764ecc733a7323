"""Conductance: how much of the prediction flows through each layer's update."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from fathom.errors import optional
from fathom.importance.interface import Batch, LayeredModel

STEPS = 16
POINTS_AT_ONCE = 9
"""Points of the path in memory together; two neighbouring runs share one, so 8 of 9 are new."""


class LayerConductance:
    """How much of log p(true label), gained on the way from an empty history to the sample's, flows through a layer.

    Formula     E_x [sum over real positions and features of the integral of dF/du du], where F = log p(true label),
                u = x_out - x_in is the layer's update, and the embedding goes from a baseline to that of x on a
                straight line, in 16 steps of the trapezoid rule. What flows through the update and what flows past it
                add up to F(x) - F(baseline), for each layer; so the score is the layer's share of that gain, negative
                when what flows through it harms. The shares of layers that follow each other overlap and do not add
                up. The baseline has the mean embedding of all samples at every real position: a history that tells
                nothing. Not zeros: normalisation makes a state of zeros and one of any small size two different things,
                so that the whole change would fall into the first step.
    Reference   Dhamdhere et al. 2018, arXiv 1805.12233; computed by captum, there and back, because it takes the
                gradient at the start of every step
    Cost        36 times two forward passes and a backward one, for all layers together
    Cannot see  removal: it follows the flow in the complete model; flows of opposite sign within a layer, which cancel;
                whether what flows past the layer could do without it; samples whose embedding is the baseline.
    """

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Per sample: the conductance of each layer's update, in nats (samples, layers).

        Raises MissingExtraError without captum.
        """
        baseline = mean_embedding(model, batches)
        return torch.cat([self._batch(model, batch, baseline) for batch in batches])

    def _batch(self, model: LayeredModel, batch: Batch, baseline: Tensor) -> Tensor:
        conductance = optional("captum.attr", "importance").LayerConductance
        real = model.real_positions(batch)[..., None]
        with torch.no_grad():
            embedding = torch.where(real, model.embed(batch), 0.0)
        predict = Prediction(model, batch)
        attribute = partial(
            conductance(predict, predict.updates).attribute,
            n_steps=STEPS,
            # The default leaves out a little at both ends.
            method="riemann_trapezoid",
            internal_batch_size=POINTS_AT_ONCE * len(embedding),
        )
        start = torch.where(real, baseline, 0.0)
        flow = embedding.new_zeros(len(embedding), len(model.layers))
        both_ways = zip(attribute(embedding, start), attribute(start, embedding), strict=True)
        for layer, (there, back) in zip(model.layers, both_ways, strict=True):
            flow[:, layer] = torch.where(real, (there - back).detach() / 2, 0.0).sum((1, 2))
        return flow


class Prediction(nn.Module):
    """log p(true label) of embeddings (points x samples, positions, width), (points x samples,): see ``forward``."""

    def __init__(self, model: LayeredModel, batch: Batch) -> None:
        super().__init__()
        self.updates = nn.Identity()
        self._run, self._losses, self._layers = model.run_layer, model.losses, model.layers
        self._batch, self._samples = batch, model.samples(batch)

    def forward(self, embedding: Tensor) -> Tensor:
        """Captum batches many points of a path; here each runs as the batch that the model knows. (points x samples,).

        It also wants what it is to attribute to as the output of one module, called once, and takes gradients there.
        So all updates are computed first and pass through ``updates`` as a tuple; then each layer runs again, and
        (update - its own value), which is 0, is added to its output: values stay, gradients arrive.
        """
        points = self._apart(embedding.detach())
        with torch.no_grad():
            found = [torch.cat(parts) for parts in zip(*map(self._updates_of, points), strict=True)]
        channels = [update - update.detach() for update in self.updates(tuple(found))]
        predictions = []
        for point, *own in zip(points, *map(self._apart, channels), strict=True):
            hidden = point
            for layer, channel in zip(self._layers, own, strict=True):
                hidden = self._run(self._batch, layer, hidden) + channel
            predictions.append(-self._losses(self._batch, hidden))
        return torch.cat(predictions)

    def _apart(self, points: Tensor) -> tuple[Tensor, ...]:
        return points.reshape(-1, self._samples, *points.shape[1:]).unbind()

    def _updates_of(self, hidden: Tensor) -> list[Tensor]:
        updates = []
        for layer in self._layers:
            after = self._run(self._batch, layer, hidden)
            updates.append(after - hidden)
            hidden = after
        return updates


def mean_embedding(model: LayeredModel, batches: Iterable[Batch]) -> Tensor:
    """The mean of the embeddings at all real positions of all samples, (width,)."""
    total, count = torch.zeros(()), 0
    with torch.no_grad():
        for batch in batches:
            embedding = model.embed(batch)
            real = model.real_positions(batch)
            total = total.to(embedding.device) + embedding[real].double().sum(0)
            count += int(real.sum())
    return (total / count).to(embedding.dtype)
