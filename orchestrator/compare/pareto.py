"""Non-dominated points, exactly: every coordinate is to be as large as possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices, ascending, of the points that no other dominates; of equal points all.

    A point dominates another if it is nowhere smaller and somewhere larger. Raises ValueError
    unless the points are finite and of one dimension.
    """
    if len(points) == 0:
        return []
    table = _finite(points)
    members: list[int] = []
    # In falling order no point dominates an earlier one.
    for i in np.lexsort(table.T[::-1])[::-1].tolist():
        before = table[members]
        above = (before >= table[i]).all(axis=1) & (before > table[i]).any(axis=1)
        if not above.any():
            members.append(i)
    return sorted(members)


def ranks(points: Sequence[Sequence[float]]) -> list[int]:
    """For each point its front: 0 for those of `front`, 1 for that of the rest, and so on.

    Non-dominated sorting of Deb et al. (2002), O(n²). Raises ValueError as `front` does.
    """
    dominates = _dominates(points)
    dominators = dominates.sum(axis=0)
    found = np.full(len(points), -1)
    rank = 0
    while (found < 0).any():
        members = (found < 0) & (dominators == 0)
        found[members] = rank
        dominators = dominators - dominates[members].sum(axis=0)
        rank += 1
    return found.tolist()


def hypervolume(
    points: Sequence[Sequence[float]], reference: tuple[float, float] = (0.0, 0.0)
) -> float:
    """Area between ``reference`` and the front of points in the plane (Zitzler & Thiele 1999).

    Points that are not above the reference in both coordinates add nothing. Raises ValueError
    unless the points are finite and have two coordinates.
    """
    if len(points) == 0:
        return 0.0
    plane = _finite(points)
    if plane.shape[1] != 2:
        raise ValueError(f"points of {plane.shape[1]} coordinates: the hypervolume takes 2")
    gains = np.maximum(plane - np.asarray(reference), 0.0)
    area = height = 0.0
    for width, top in gains[np.lexsort((gains[:, 1], gains[:, 0]))[::-1]].tolist():
        area += width * max(top - height, 0.0)
        height = max(height, top)
    return area


def best_first(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices in the plane by rank, then by what a point adds to the hypervolume of its rank.

    Equal ones by their order. Raises ValueError as `hypervolume` does.
    """
    members: dict[int, list[int]] = {}
    for index, rank in enumerate(ranks(points)):
        members.setdefault(rank, []).append(index)
    order: list[int] = []
    for _, peers in sorted(members.items()):
        whole = hypervolume([points[i] for i in peers])
        without = {i: hypervolume([points[j] for j in peers if j != i]) for i in peers}
        order += sorted(peers, key=lambda i: (without[i] - whole, i))
    return order


def _dominates(points: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """(N, N): whether the row's point dominates the column's."""
    if len(points) == 0:
        return np.zeros((0, 0), dtype=bool)
    table = _finite(points)
    rows, columns = table[:, None], table[None]
    return np.logical_and((rows >= columns).all(axis=2), (rows > columns).any(axis=2))


def _finite(points: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    table = np.asarray(points, dtype=float)  # raises ValueError for ragged rows
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError("points must be finite numbers of one dimension")
    return table
