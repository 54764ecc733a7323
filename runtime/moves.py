"""User vectors move by what a request tells beside its history: its time and its context.

Engines know nothing of it: their vectors are moved afterwards, so that those in the prefix cache hold for any request.
"""

import numpy as np
from numpy.typing import NDArray

#: Of what is learned of a user vector, whose components are at most 1.
LARGEST_CHANGE = 1e3


def move(users: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.float32]:
    """User vectors (n, width) changed by (n, 2 width): what each is scaled by besides 1, and what is then added.

    Where that is all 0 a vector stays as it is.
    """
    width = users.shape[1]
    moved = users * (1 + change[:, :width]) + change[:, width:]
    # Not finite where the engine's vector is not; that is for whoever searches to tell.
    size = np.maximum(np.sqrt((moved * moved).sum(axis=1, keepdims=True)), np.float32(1e-12))
    found: NDArray[np.float32] = np.where(change.any(axis=1, keepdims=True), moved / size, users)
    return found
