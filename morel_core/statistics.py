"""Intervals for accuracies."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), 95 % by default.

    Args:
        successes: 0 … n.
        n: number of trials, >= 1.
        z: quantile of the normal distribution.

    Returns:
        (low, high) in [0, 1].
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes = {successes}, n = {n}: need 0 <= successes <= n and n >= 1")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not move it off.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high
