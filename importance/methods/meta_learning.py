"""Meta-learning: importance as learned from models whose layers' exact importance is known."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.errors import ArtefactError, ConfigError, DataError, MissingExtraError, NotApplicableError
from fathom.files import read_json
from fathom.importance.interface import Batch, ImportanceMethod, LayeredModel, states_and_gradients
from fathom.importance.jackknife import centred_pseudo_values, without_each_fold
from fathom.importance.methods.activation import Activation
from fathom.importance.methods.attention import Attention
from fathom.importance.methods.block_influence import BlockInfluence
from fathom.importance.methods.zero_shot import ZeroShot
from fathom.importance.statistics import Floats

SCHEMA_VERSION = 1
TRAINED = Path(__file__).with_name("meta_learning.json")
FEATURES = (
    "place",  # in execution order
    "distance_from_middle",  # of that order
    "block_influence",
    "update",  # Activation
    "attention",
    "weights",  # ZeroShot
    "taylor",  # the rise of the loss without the update, to first order
    "absolute_taylor",
    "lens",  # how much better the model answers when read after the layer than before it
)
"""What a layer is judged by; a model for which one of them does not exist has 0 there for all layers."""
PENALTIES = tuple(10.0**power for power in range(-1, 5))


class MetaLearning:
    """What layers like this one turned out to be worth in models that were measured in full.

    Formula     c + sum over features of w f, where f is the rank of the layer's feature among those of its model, -1
                to 1, and w a ridge regression on the ranks of exact Shapley values; ranks, because scales mean
                different things in different models. Features: place, distance from the middle, block influence, size
                of the update, share of the attention moved, gain of the weights, gradient times update with and
                without its sign, and how much better the model answers when read after the layer.
    Reference   Spearman 1904 (ranks); Hoerl and Kennard 1970 (ridge regression); the exact values are those of lattices
    Cost        four forward passes and a backward one. Rows are jackknife pseudo-values over 10 folds of samples,
                shifted so that their mean is the prediction on all samples; ranks jump, so the interval is a rough one.
    Cannot see  anything its features do not: above all what happens when several layers go. How models differ from
                those it was trained on; a layer is compared with its neighbours only, never with another model's.
    """

    def __init__(self, trained: Path = TRAINED) -> None:
        self._trained = trained

    def scores(self, model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
        """Per fold: the pseudo-values of each layer's predicted rank, -1 to 1 for most, (folds, layers) float64.

        Raises NotApplicableError when nothing has been learned yet, DataError for fewer than 2 samples.
        """
        weights, constant = _learned(self._trained)
        rows = _rows(model, batches, generator)
        if len(rows) < 2:
            raise DataError(f"the meta_learning method needs at least 2 samples, not {len(rows)}")

        def predict(samples: Tensor) -> Tensor:
            return torch.from_numpy(ranks(samples.mean(0).numpy()) @ weights + constant)

        without = [predict(rows[kept]) for kept in without_each_fold(len(rows))]
        return centred_pseudo_values(predict(rows), torch.stack(without))


def features(model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Floats:
    """The FEATURES of each layer as ranks among the layers of its model, -1 to 1, (layers, features)."""
    return ranks(_rows(model, batches, generator).mean(0).numpy())


def ranks(values: Floats) -> Floats:
    """The ranks of each column of ``values`` (layers, ...), from -1 for the lowest to 1; equal values share theirs."""
    others = max(len(values) - 1, 1)
    above: Floats = np.sign(values[:, None] - values[None, :]).sum(1) / others
    return above


def train_on(examples: Sequence[tuple[Floats, Floats]], names: Sequence[str]) -> dict[str, Any]:
    """Learn from models: each one's ``features`` (layers, FEATURES), the exact values (layers,), and its name.

    The result is what the file beside this module holds. The penalty is the one that predicts left-out models best.
    Raises ConfigError for fewer than 2 models.
    """
    try:
        from sklearn.linear_model import RidgeCV
    except ImportError:
        raise MissingExtraError("sklearn", "importance") from None
    if len(examples) < 2:
        raise ConfigError(f"meta_learning is trained on at least 2 models, not {len(examples)}")
    rows = np.concatenate([own for own, _ in examples])
    wanted = np.concatenate([ranks(np.asarray(values, dtype=np.float64)) for _, values in examples])
    example = np.repeat(np.arange(len(examples)), [len(own) for own, _ in examples])
    folds = [(np.flatnonzero(example != one), np.flatnonzero(example == one)) for one in range(len(examples))]
    ridge = RidgeCV(PENALTIES, cv=folds, scoring="neg_mean_squared_error").fit(rows, wanted)
    return {
        "schema_version": SCHEMA_VERSION,
        "features": list(FEATURES),
        "coefficients": ridge.coef_.tolist(),
        "intercept": float(ridge.intercept_),
        "trained_on": list(names),
    }


def _learned(path: Path) -> tuple[Floats, float]:
    if not path.exists():
        raise NotApplicableError(
            "meta_learning has not been trained; measure lattices and train it on them, or leave the method out"
        )
    value = read_json(path, kind="trained meta_learning", schema_version=SCHEMA_VERSION)
    if value.get("features") != list(FEATURES):
        raise ConfigError(f"{path.name} was trained on other features than {', '.join(FEATURES)}; train it again")
    weights = np.asarray(value.get("coefficients"), dtype=np.float64)
    if weights.shape != (len(FEATURES),) or "intercept" not in value:
        raise ArtefactError(f"{path.name} lacks the intercept or the coefficient of a feature; train it again")
    return weights, float(value["intercept"])


def _rows(model: LayeredModel, batches: Iterable[Batch], generator: torch.Generator) -> Tensor:
    """The features as they are, per sample, (samples, layers, FEATURES) float64."""

    def by(method: ImportanceMethod) -> Tensor:
        try:
            return method.scores(model, batches, generator).double().cpu()
        except NotApplicableError:  # no attention, no weight matrices
            return torch.zeros_like(influence)

    influence = BlockInfluence().scores(model, batches, generator).double().cpu()
    taylor, lens = torch.cat([_first_order(model, batch) for batch in batches]).double().cpu().unbind(-1)
    place = torch.empty(len(model.layers), dtype=torch.float64)
    place[list(model.layers)] = torch.arange(len(model.layers), dtype=torch.float64)
    middle = (place - place.mean()).abs()
    known = [influence, by(Activation()), by(Attention()), by(ZeroShot()), taylor, taylor.abs(), lens]
    return torch.stack([place.expand_as(influence), middle.expand_as(influence), *known], dim=-1)


def _first_order(model: LayeredModel, batch: Batch) -> Tensor:
    """Gradient times update, and the loss read before each layer less that read after it, (samples, layers, 2)."""
    real = model.real_positions(batch)[..., None]
    states, gradients = states_and_gradients(model, batch)
    found = torch.zeros(len(real), len(model.layers), 2, dtype=gradients[0].dtype, device=real.device)
    with torch.no_grad():
        losses = [model.losses(batch, state) for state in states]
        for place, layer in enumerate(model.layers):
            update = torch.where(real, states[place + 1] - states[place], 0.0)
            found[:, layer, 0] = -(torch.where(real, gradients[place], 0.0) * update).sum((1, 2))
            found[:, layer, 1] = losses[place] - losses[place + 1]
    return found
