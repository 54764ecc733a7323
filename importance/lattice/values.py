"""What follows from a lattice: Shapley values and interactions of layers, the best subsets, the best chain.

Throughout, a whole lattice of L layers is an array of 2^L utilities, higher is better; entry m is the subset whose
bit i says whether layer i runs.
"""

from collections.abc import Sequence
from math import comb, factorial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fathom.errors import ConfigError
from fathom.importance.statistics import Floats

if TYPE_CHECKING:  # it loads torch, which a plan does without
    from fathom.importance.lattice.lattice import Lattice


def sizes(layers: int) -> NDArray[np.int64]:
    """How many layers each subset has, (2^L,)."""
    return np.bitwise_count(np.arange(2**layers)).astype(np.int64)


def layers_of(mask: int) -> tuple[int, ...]:
    """The layers of a subset, ascending."""
    return tuple(layer for layer in range(mask.bit_length()) if mask >> layer & 1)


def mask_of(layers: Sequence[int]) -> int:
    """The subset of these layers."""
    return sum(1 << layer for layer in set(layers))


def shapley_values(utilities: ArrayLike) -> Floats:
    """The exact Shapley value of each layer, (..., L) for utilities (..., 2^L).

    A layer's mean gain over all orders in which layers could be added; they sum to full less empty. Shapley 1953.
    """
    values = np.asarray(utilities)
    layers = _layers(values)
    weights = np.array([1 / (layers * comb(layers - 1, size)) for size in range(layers)])
    found = []
    for layer in range(layers):
        without, having = _halves(values, layer)
        found.append((having - without) @ weights[sizes(layers - 1)])
    return np.stack(found, axis=-1)


def interactions(utilities: ArrayLike) -> Floats:
    """The Shapley interaction index of each pair, symmetric (L, L), 0 on the diagonal, for utilities (2^L,).

    Negative: the two layers stand in for each other; positive: each needs the other. Grabisch and Roubens 1999.
    """
    values = np.asarray(utilities, dtype=np.float64)
    layers = _layers(values)
    weights = np.array(
        [factorial(size) * factorial(layers - size - 2) / factorial(layers - 1) for size in range(layers - 1)]
    )[sizes(layers - 2)]
    found = np.zeros((layers, layers))
    for upper in range(layers):
        without, having = _halves(values, upper)
        for lower in range(upper):
            neither, low = _halves(without, lower)
            high, both = _halves(having, lower)
            found[lower, upper] = found[upper, lower] = (both - high - low + neither) @ weights
    return found


def best_subsets(utilities: ArrayLike, *, keep: Sequence[int] = ()) -> list[int]:
    """The best subset of each size 0..L by utilities (2^L,); -1 for sizes too small to hold the layers ``keep``."""
    values, allowed = _allowed(utilities, keep)
    size = sizes(_layers(values))
    return [
        int(np.argmax(np.where(size == wanted, allowed, -np.inf))) if wanted >= len(set(keep)) else -1
        for wanted in range(_layers(values) + 1)
    ]


def frontier(utilities: ArrayLike) -> Floats:
    """The utility of the best, the median and the worst subset of each size, (3, L+1)."""
    values = np.asarray(utilities, dtype=np.float64)
    size = sizes(_layers(values))
    of_size = [values[size == count] for count in range(_layers(values) + 1)]
    return np.array([[pick(some) for some in of_size] for pick in (np.max, np.median, np.min)])


def along(utilities: ArrayLike, order: Sequence[int]) -> Floats:
    """The utility of the first k layers of an order, for k = 0..L: (L+1,)."""
    chosen: Floats = np.asarray(utilities, dtype=np.float64)[
        [mask_of(order[:count]) for count in range(len(order) + 1)]
    ]
    return chosen


def best_chain(utilities: ArrayLike, depths: Sequence[int], *, keep: Sequence[int] = ()) -> list[int]:
    """Nested subsets of the sizes ``depths`` (ascending), each holding the one before, whose utilities sum highest.

    utilities (2^L,); every subset holds the layers ``keep``. Dynamic programming over all subsets: L 2^L steps. Raises
    ConfigError for depths that do not rise within len(keep)..L.
    """
    values, allowed = _allowed(utilities, keep)
    layers = _layers(values)
    if not depths or list(depths) != sorted(set(depths)) or depths[0] < max(len(set(keep)), 1) or depths[-1] > layers:
        raise ConfigError(f"a chain's depths must rise within {max(len(set(keep)), 1)}..{layers}, not {list(depths)}")
    size, subsets = sizes(layers), np.arange(2**layers)
    # The best sum so far of a chain that ends within each subset, and the last link of that chain.
    total, link = np.zeros(2**layers), np.full(2**layers, -1)
    before: list[NDArray[np.int64]] = []
    for first, depth in zip([0, *depths], depths, strict=False):
        for step in range(first + 1, depth + 1):
            these = subsets[size == step]
            candidates = np.stack(
                [np.where(these >> layer & 1, total[these & ~(1 << layer)], -np.inf) for layer in range(layers)]
            )
            chosen = candidates.argmax(0)
            total[these] = candidates.max(0)
            link[these] = link[these & ~(1 << chosen)]
        these = subsets[size == depth]
        before.append(link.copy())
        total[these] += allowed[these]
        link[these] = these
    end = int(subsets[size == depths[-1]][np.argmax(total[size == depths[-1]])])
    chain = [end]
    for links in reversed(before[1:]):
        chain.append(int(links[chain[-1]]))
    return chain[::-1]


def sampled_shapley_values(lattice: "Lattice", metric: str) -> Floats:
    """Estimated Shapley values of each user, (users, L), from the orders that a sampled lattice followed.

    Every chain of measured subsets from none to all, one layer more each, counts as one order: the mean of a layer's
    gains over the orders drawn (Castro et al. 2009).
    """
    utilities = lattice.utilities(metric)
    column = {int(mask): place for place, mask in enumerate(lattice.masks)}
    orders = [order for one in lattice.about["orders"] for order in (one, one[::-1])]
    found = np.zeros((len(utilities), lattice.layers))
    for order in orders:
        mask = 0
        for layer in order:
            found[:, layer] += utilities[:, column[mask | 1 << layer]] - utilities[:, column[mask]]
            mask |= 1 << layer
    return found / len(orders)


def _layers(values: NDArray[np.floating]) -> int:
    layers = int(values.shape[-1]).bit_length() - 1
    if values.shape[-1] != 1 << layers:
        raise ConfigError(f"a whole lattice has 2^layers subsets, not {values.shape[-1]}")
    return layers


def _halves(values: NDArray[np.floating], layer: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The utilities without and with one layer, (..., 2^(L-1)) each, over the subsets of the other layers."""
    pairs = values.reshape(*values.shape[:-1], -1, 2, 2**layer)
    flat = (*values.shape[:-1], values.shape[-1] // 2)
    return pairs[..., 0, :].reshape(flat), pairs[..., 1, :].reshape(flat)


def _allowed(utilities: ArrayLike, keep: Sequence[int]) -> tuple[Floats, Floats]:
    """The utilities, and the same with minus infinity where a layer of ``keep`` is missing."""
    values = np.asarray(utilities, dtype=np.float64)
    must = mask_of(keep)
    return values, np.where(np.arange(len(values)) & must == must, values, -np.inf)
