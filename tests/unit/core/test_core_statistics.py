"""Wilson's interval against other derivations of it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from morel_core.statistics import Z_95, wilson_interval

SEEDED = settings(derandomize=True, deadline=None)
COUNTS = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # By hand, z² = 3.8415: (2np + z² ± z√(z² + 4np(1 − p))) / 2(n + z²)
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),  # z² / (n + z²)
        (10, 10, 0.7224672, 1.0),
        (1, 1, 0.2065493, 1.0),
        (5298, 10000, 0.5200080, 0.5395691),
    ],
)
def test_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-7)


@given(COUNTS)
@SEEDED
def test_against_scipy(counts):
    expected = binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert wilson_interval(*counts) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(COUNTS)
@SEEDED
def test_contains_the_proportion_and_stays_in_the_unit_interval(counts):
    low, high = wilson_interval(*counts)
    p = counts[0] / counts[1]
    assert 0.0 <= low <= p <= high <= 1.0
    assert (low == 0.0) == (counts[0] == 0)
    assert (high == 1.0) == (counts[0] == counts[1])


@given(COUNTS)
@SEEDED
def test_mirrored(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_shrinks_with_the_square_root_of_n():
    widths = [high - low for low, high in (wilson_interval(n // 2, n) for n in (1000, 100_000))]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.01)


def test_quantile():
    assert math.erf(Z_95 / math.sqrt(2)) == pytest.approx(0.95, abs=1e-15)


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="need 0 <= successes <= n and n >= 1"):
        wilson_interval(successes, n)
