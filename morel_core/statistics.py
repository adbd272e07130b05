"""Intervals and tests for accuracies: of one network, of two on the same images, over seeds.

Two networks on the same images: `mcnemar` and `paired_difference` speak of these two networks.
One method: `mean_t` over the seeds that it was trained with. Two methods: `paired_t` over seeds,
each of which trained one network of either; `holm` where there are several such comparisons. What
they can resolve at all: `detectable_difference` and `detectable_mean_difference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Z_95 = 1.959963984540054
LEVEL = 0.05
"""Of every test here: two-sided, as the 95 % intervals are."""
POWER = 0.8
FEWEST_PAIRS = 3
"""Seeds that `paired_t` needs."""
ROUNDING = 1e-12
"""Differences of accuracies below this are none."""


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Exact McNemar test."""

    only_first: int
    """Images that the first alone gets right."""
    only_second: int
    """Images that the second alone gets right."""
    p_value: float
    """Two-sided; of the hypothesis that either is as likely."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Two accuracies on the same images: the first less the second."""

    difference: float
    low: float
    high: float
    """The 95 % interval is [low, high]."""
    p_value: float
    """Of the exact McNemar test."""
    only_first: int
    only_second: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class MeanT:
    """The mean of one number over seeds."""

    mean: float
    low: float
    high: float
    """The 95 % interval is [low, high]."""
    deviation: float
    """Standard deviation over seeds, of n - 1 degrees of freedom."""
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class PairedT:
    """Two methods over the same seeds: the mean of first less second."""

    difference: float
    low: float
    high: float
    """The 95 % interval is [low, high]."""
    p_value: float
    """Two-sided; of the hypothesis that the mean difference is 0."""
    deviation: float
    """Standard deviation of the differences over seeds."""
    num_seeds: int

    @property
    def spread_known(self) -> bool:
        """Whether the differences are not all the same; if they are, the interval says nothing."""
        return self.deviation / math.sqrt(self.num_seeds) > ROUNDING


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


def binomial_tail(successes: int, n: int, p: float) -> float:
    """P(X >= successes) of n trials with probability ``p`` in (0, 1), summed term by term."""
    if successes <= 0:
        return 1.0
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(successes, n + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """McNemar's test (1947) of two networks on the same images, exact and two-sided.

    Given how many images only one of the two gets right, the number that the first does is binomial
    with probability 1/2 if neither is better; the p-value is twice the smaller tail. Exact rather
    than mid-p: its level holds for any number of images, at the price of some power where few
    images tell the two apart.

    Args:
        first: (N,) bool, which images the first network gets right.
        second: (N,) bool, the same images for the second.

    Raises:
        ValueError: not as many images, or none.
    """
    only_first, only_second = _discordant(first, second)
    discordant, smaller = only_first + only_second, min(only_first, only_second)
    # In integers: no rounding, and 10,000 images take milliseconds.
    ways, tail = 1, 0
    for k in range(smaller + 1):
        tail += ways
        ways = ways * (discordant - k) // (k + 1)
    return McNemar(
        only_first=only_first,
        only_second=only_second,
        p_value=min(1.0, 2 * tail / 2**discordant),
    )


def paired_difference(first: Tensor, second: Tensor) -> PairedDifference:
    """Difference of two accuracies on the same images, with Tango's score interval (1998).

    The interval holds the differences that the score test does not reject; for the difference 0
    that is McNemar's test in its asymptotic form, so that at the border the exact p-value and the
    interval may disagree. It stays within [-1, 1] and keeps its coverage for few images.

    Args:
        first: (N,) bool, which images the first network gets right.
        second: (N,) bool, the same images for the second.

    Raises:
        ValueError: not as many images, or none.
    """
    test, n = mcnemar(first, second), len(first)
    return PairedDifference(
        difference=(test.only_first - test.only_second) / n,
        low=-_tango_upper(test.only_second, test.only_first, n),
        high=_tango_upper(test.only_first, test.only_second, n),
        p_value=test.p_value,
        only_first=test.only_first,
        only_second=test.only_second,
        num_images=n,
    )


def mean_t(values: Sequence[float]) -> MeanT:
    """Mean over seeds, with its t-interval; raises ValueError for fewer than 2 ``values``."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} seeds: need at least 2")
    n, mean, deviation = len(values), fmean(values), stdev(values)
    half = t_quantile(1 - LEVEL / 2, n - 1) * deviation / math.sqrt(n)
    return MeanT(mean=mean, low=mean - half, high=mean + half, deviation=deviation, num_seeds=n)


def paired_t(first: Sequence[float], second: Sequence[float]) -> PairedT:
    """Mean difference of two methods over the same seeds, with its t-interval.

    Where all differences are the same, t has no distribution, though with accuracies, multiples of
    one image's share, that happens by chance: p is then that of the sign-flip test (Fisher 1935).

    Args:
        first: accuracy, or any other number, of the first method for each seed.
        second: the same seeds for the second method.

    Raises:
        ValueError: not as many seeds, or fewer than 3: accuracies are multiples of one image's
            share, so that the differences of two seeds are often equal, and the test would reject
            far too often.
    """
    if len(first) != len(second) or len(first) < FEWEST_PAIRS:
        raise ValueError(
            f"{len(first)} and {len(second)} seeds: need as many, at least {FEWEST_PAIRS}"
        )
    mean = mean_t([a - b for a, b in zip(first, second, strict=True)])
    n, error = mean.num_seeds, mean.deviation / math.sqrt(mean.num_seeds)
    test = PairedT(
        difference=mean.mean,
        low=mean.low,
        high=mean.high,
        p_value=1.0 if abs(mean.mean) <= ROUNDING else 2.0 ** (1 - n),
        deviation=mean.deviation,
        num_seeds=n,
    )
    if not test.spread_known:
        return test
    angle = math.atan(abs(mean.mean) / error / math.sqrt(n - 1))
    return replace(test, p_value=1 - _within(angle, n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, by Holm's step-down rule (1979).

    Those at most α keep the chance of any false rejection among them at α, whatever depends on
    what. In the order given; each at least as large as before, and at most 1.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    ascending = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(ascending):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


def detectable_difference(num_images: int, discordance: float) -> float | None:
    """Smallest difference of two accuracies that ``num_images`` images resolve, power 80 %.

    That is, so large that the interval of `paired_difference` leaves out 0 in four of five samples
    of images (Connor 1987, on the approximation of Miettinen 1968 to McNemar's test).

    Args:
        num_images: that both networks are measured on.
        discordance: share of images, in (0, 1], that only one of the two gets right.

    Returns:
        A difference in (0, discordance]; None if not even the largest is resolved.
    """
    if num_images < 1 or not 0 < discordance <= 1:
        raise ValueError(
            f"num_images = {num_images}, discordance = {discordance}: need >= 1 and in (0, 1]"
        )

    def resolved(difference: float) -> bool:
        spread = math.sqrt(max(0.0, discordance - difference**2))
        needed = Z_95 * math.sqrt(discordance) + _Z_POWER * spread
        return difference * math.sqrt(num_images) >= needed

    return _first(resolved, 0.0, discordance) if resolved(discordance) else None


def detectable_mean_difference(num_seeds: int, deviation: float) -> float:
    """Smallest mean difference of two methods that ``num_seeds`` seeds resolve, power 80 %.

    That is, so large that the paired t-test at the 5 % level rejects 0 in four of five repetitions.
    By the noncentral t-distribution: with few seeds the normal one would promise too much.

    Args:
        num_seeds: >= 2, for both methods the same.
        deviation: standard deviation of the differences over seeds.
    """
    if num_seeds < 2 or not deviation >= 0:
        raise ValueError(f"num_seeds = {num_seeds}, deviation = {deviation}: need >= 2 and >= 0")

    def resolved(shift: float) -> bool:
        return _t_test_power(shift, num_seeds - 1) >= POWER

    above = 1.0
    while not resolved(above):
        above *= 2
    return _first(resolved, 0.0, above) * deviation / math.sqrt(num_seeds)


def t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t-distribution, ``probability`` in [0.5, 1), ``df`` >= 1 whole."""
    angle = _first(lambda a: _within(a, df) >= 2 * probability - 1, 0.0, math.pi / 2)
    return math.tan(angle) * math.sqrt(df)


_Z_POWER = NormalDist().inv_cdf(POWER)


def _discordant(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Images that the first alone, and that the second alone, gets right."""
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"{len(first)} and {len(second)} images: need as many, at least 1")
    return int((first & ~second).sum()), int((second & ~first).sum())


def _tango_upper(only_first: int, only_second: int, n: int) -> float:
    """Upper end of Tango's interval: from there on the score test rejects, as too high."""

    def rejected(delta: float) -> bool:
        # The likelihood's maximum over the share of "second only", the difference being delta.
        b = (2 * n - only_first + only_second) * delta - only_first - only_second
        c = -only_second * delta * (1 - delta)
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * max(0.0, 2 * share + delta * (1 - delta))
        return n * delta - (only_first - only_second) > Z_95 * math.sqrt(variance)

    return _first(rejected, (only_first - only_second) / n, 1.0)


def _within(angle: float, df: int) -> float:
    r"""P(\|T\| <= √df tan(angle)) of Student's T: Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    cosine2 = math.cos(angle) ** 2
    if df % 2 == 0:
        term, total, k = 1.0, 1.0, 2
        while k < df:
            term *= (k - 1) / k * cosine2
            total, k = total + term, k + 2
        return math.sin(angle) * total
    term = math.cos(angle)
    total, k = (term if df > 1 else 0.0), 3
    while k < df:
        term *= (k - 1) / k * cosine2
        total, k = total + term, k + 2
    return 2 / math.pi * (angle + math.sin(angle) * total)


def _t_test_power(shift: float, df: int) -> float:
    """Of the two-sided t-test at `LEVEL`, the mean being ``shift`` standard errors from 0.

    Given the estimated error w (in units of the true one, √(χ²/df) distributed), the statistic is
    normal; what is left is the mean over w.
    """
    import torch  # tests of recorded numbers do without

    critical = t_quantile(1 - LEVEL / 2, df)
    w = torch.linspace(1e-9, 1 + 10 / math.sqrt(2 * df), 4001, dtype=torch.float64)
    log_density = (df - 1) * w.log() - df * w.square() / 2
    density = (log_density - log_density.max()).exp()
    rejects = torch.special.ndtr(shift - critical * w) + torch.special.ndtr(-shift - critical * w)
    return float(torch.trapezoid(density * rejects) / torch.trapezoid(density))


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``holds`` turns true between ``low`` and ``high``, which is taken to hold."""
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return high
        low, high = (low, middle) if holds(middle) else (middle, high)
