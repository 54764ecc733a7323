"""User vectors move by what a request tells beside its history: its time (``request_time.py``), its context.

That is learned for a trained model whose weights stay as they are (``moves_fit.py``). So engines, cached keys and
values and cached user vectors know nothing of it, and a request that does not tell it gets what it would get without.
"""

import numpy as np
from numpy.typing import NDArray


def move(users: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.float32]:
    """User vectors (n, width) changed by (n, 2 width): what each is scaled by besides 1, and what is then added.

    Where that is all 0 a vector stays as it is.
    """
    width = users.shape[1]
    found = users * (1 + change[:, :width]) + change[:, width:]
    size = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12))
    return np.where(change.any(axis=1, keepdims=True), found / size, users)
