"""The item vectors that a bundle stores."""

import numpy as np

from fathom.runtime.item_vectors import ItemPrecision, ItemVectors
from fathom.training.model import ElasticModel


def item_vectors(model: ElasticModel, precision: ItemPrecision = "fp32") -> ItemVectors:
    """Those of a model, (items, width)."""
    vectors = np.ascontiguousarray(model.item_vectors().detach().cpu().numpy(), dtype=np.float32)
    return ItemVectors.store(vectors, precision)
