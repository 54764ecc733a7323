"""What choosing among static depths at random gives, and how far above it a policy lies."""

import numpy as np

from fathom.selector.schema import Floats

#: Points of the cost axis on which areas are taken.
GRID = 201


def hull(cost: Floats, value: Floats) -> tuple[Floats, Floats]:
    """Cost and value of the corners (m,) of the upper convex hull of points (n,), by ascending cost."""
    corners: list[int] = []
    for i in np.lexsort((-value, cost)):
        while len(corners) > 1 and _left_of(cost, value, corners[-2], corners[-1], int(i)):
            corners.pop()
        corners.append(int(i))
    return cost[corners], value[corners]


def area_above(cost: Floats, value: Floats, static_cost: Floats, static_value: Floats) -> float:
    """Mean height of a curve (settings,) above the hull of static depths (D,); it begins and ends as the hull does."""
    corners, heights = hull(static_cost, static_value)
    grid = np.linspace(corners[0], corners[-1], GRID)
    order = np.argsort(np.r_[corners[0], cost, corners[-1]], kind="stable")
    x, y = np.r_[corners[0], cost, corners[-1]][order], np.r_[heights[0], value, heights[-1]][order]
    return float((np.interp(grid, x, y) - np.interp(grid, corners, heights)).mean())


def cost_of(level: float, cost: Floats, value: Floats) -> float:
    """The least cost at which a mixture of points (n,) has this value; NaN where none has."""
    x, y = hull(cost, value)
    rising = slice(0, int(y.argmax()) + 1)
    x, y = x[rising], y[rising]
    return float(np.interp(level, y, x)) if y[-1] >= level else float("nan")


def _left_of(x: Floats, y: Floats, a: int, b: int, c: int) -> bool:
    """Whether corner b lies on or below the line from a to c."""
    return bool((x[b] - x[a]) * (y[c] - y[a]) >= (x[c] - x[a]) * (y[b] - y[a]))
