"""Paired tests and intervals against SciPy, brute force and simulation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from morel_core.statistics import (
    binomial_tail,
    detectable_difference,
    detectable_mean_difference,
    holm,
    mcnemar,
    mean_t,
    paired_difference,
    paired_t,
    t_quantile,
)

SEEDED = settings(derandomize=True, deadline=None, max_examples=50)


def two_networks(both, only_first, only_second, neither):
    """Outcomes of two networks with so many images of each kind."""
    kinds = ((True, True), (True, False), (False, True), (False, False))
    counts = (both, only_first, only_second, neither)
    rows = [kind for kind, n in zip(kinds, counts, strict=True) for _ in range(n)]
    table = torch.tensor(rows)
    return table[:, 0], table[:, 1]


TABLES = st.tuples(*[st.integers(0, 40)] * 4).filter(lambda counts: sum(counts) > 0)


# --- McNemar -------------------------------------------------------------------------------------


@given(TABLES)
@SEEDED
def test_mcnemar_is_the_two_sided_binomial_test(table):
    result = mcnemar(*two_networks(*table))
    _, b, c, _ = table
    assert (result.only_first, result.only_second) == (b, c)
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert result.p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_images():
    result = mcnemar(*two_networks(3000, 2600, 2400, 2000))
    assert result.p_value == pytest.approx(stats.binomtest(2600, 5000).pvalue, rel=1e-9)


def test_mcnemar_keeps_its_level():
    """Two equally good networks: rejected at most one time in twenty."""
    draws = torch.Generator().manual_seed(0)
    rejected = 0
    for _ in range(1000):
        shuffled = torch.rand(200, generator=draws)
        first, second = shuffled < 0.6, (shuffled - 0.1) % 1 < 0.6
        rejected += mcnemar(first, second).p_value < 0.05
    assert 0 < rejected <= 1000 * 0.05


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.001, 0.999))
@SEEDED
def test_binomial_tail(successes, extra, p):
    n = successes + extra
    expected = stats.binom.sf(successes - 1, n, p)
    assert binomial_tail(successes, n, p) == pytest.approx(expected, rel=1e-9, abs=1e-300)


# --- the difference of two accuracies ------------------------------------------------------------


def tango_score(b, c, n, delta):
    """Signed root of the score statistic, its nuisance parameter found by a numeric maximum."""

    def minus_log_likelihood(share):  # of "second only"; "first only" is share + delta
        probabilities = (share + delta, share, 1 - 2 * share - delta)
        counts = (b, c, n - b - c)
        return -sum(
            k * math.log(max(p, 1e-300)) for k, p in zip(counts, probabilities, strict=True) if k
        )

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    share = minimize_scalar(
        minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    ).x
    return (b - c - n * delta) / math.sqrt(n * (2 * share + delta - delta**2))


@given(st.tuples(*[st.integers(1, 40)] * 4))
@SEEDED
def test_the_interval_ends_where_the_score_test_rejects(table):
    _, b, c, _ = table
    n = sum(table)
    result = paired_difference(*two_networks(*table))
    assert result.difference == pytest.approx((b - c) / n, abs=1e-12)
    assert result.low < result.difference < result.high
    assert tango_score(b, c, n, result.low) == pytest.approx(1.959964, abs=2e-3)
    assert tango_score(b, c, n, result.high) == pytest.approx(-1.959964, abs=2e-3)


@given(TABLES)
@SEEDED
def test_swapping_the_networks_mirrors_the_interval(table):
    first, second = two_networks(*table)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert -1 <= there.low <= there.difference <= there.high <= 1


def test_the_interval_without_a_discordant_image():
    """z² / (n + z²) to either side, as Wilson's interval of no success in n."""
    result = paired_difference(*two_networks(30, 0, 0, 20))
    z2 = 1.959963984540054**2
    assert (result.low, result.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)


def test_the_interval_of_opposite_networks_reaches_the_end():
    result = paired_difference(*two_networks(0, 20, 0, 0))
    assert (result.difference, result.high) == (1.0, 1.0)
    assert 0.6 < result.low < 1.0


@pytest.mark.parametrize(
    ("n", "only_first", "only_second"), [(50, 0.1, 0.05), (100, 0.03, 0.03), (500, 0.1, 0.06)]
)
def test_the_interval_covers_the_truth(n, only_first, only_second):
    """In 95 % of samples; three standard errors of 1,000 samples are 2 %."""
    draws = torch.Generator().manual_seed(0)
    shares = torch.tensor([only_first, only_second, 1 - only_first - only_second])
    covered = 0
    for _ in range(1000):
        kind = torch.multinomial(shares, n, replacement=True, generator=draws)
        result = paired_difference(kind == 0, kind == 1)
        covered += result.low <= only_first - only_second <= result.high
    assert covered / 1000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("test", [mcnemar, paired_difference])
@pytest.mark.parametrize("sizes", [(0, 0), (3, 2)])
def test_images_must_be_the_same(test, sizes):
    first, second = (torch.ones(n, dtype=torch.bool) for n in sizes)
    with pytest.raises(ValueError, match=f"{sizes[0]} and {sizes[1]} images"):
        test(first, second)


# --- over seeds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 30, 99])
@pytest.mark.parametrize("probability", [0.5, 0.8, 0.975, 0.9995])
def test_t_quantile(df, probability):
    assert t_quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df), abs=1e-9)


@pytest.mark.parametrize("n", [3, 4, 5, 10])
def test_paired_t_is_scipys(n):
    draws = torch.Generator().manual_seed(n)
    first = (0.5 + 0.01 * torch.randn(n, generator=draws, dtype=torch.float64)).tolist()
    second = (0.495 + 0.01 * torch.randn(n, generator=draws, dtype=torch.float64)).tolist()
    result, expected = paired_t(first, second), stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert result.p_value == pytest.approx(expected.pvalue, abs=1e-12)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert result.num_seeds == n


def test_mean_t_is_scipys():
    values = [0.51, 0.53, 0.50, 0.56, 0.52]
    result, expected = mean_t(values), stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert (result.mean, result.deviation) == pytest.approx((0.524, stats.tstd(values)))
    with pytest.raises(ValueError, match="1 seeds: need at least 2"):
        mean_t([0.5])


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        # By hand: 4 x 0.01, 3 x 0.02, 2 x 0.03, then 0.04, held up by what came before.
        ([0.01, 0.04, 0.03, 0.02], [0.04, 0.06, 0.06, 0.06]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


def test_holm_keeps_the_chance_of_any_false_rejection():
    draws = torch.Generator().manual_seed(3)
    families = torch.rand(2000, 5, generator=draws).tolist()
    wrong = sum(min(holm(family)) <= 0.05 for family in families)
    assert wrong / len(families) == pytest.approx(0.05, abs=0.015)


def test_paired_t_of_differences_that_are_all_the_same():
    same = paired_t([0.5, 0.75, 0.625], [0.25, 0.5, 0.375])
    assert (same.low, same.high, same.p_value, same.deviation) == (0.25, 0.25, 0.25, 0.0)
    assert not same.spread_known
    assert paired_t([0.5, 0.75, 0.625], [0.25, 0.5, 0.5]).spread_known
    assert paired_t([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]).p_value == 1.0
    images = [(288, 280), (295, 287), (301, 293)]  # equal but for the rounding of k / 359
    rounded = paired_t(*([k / 359 for k in of] for of in zip(*images, strict=True)))
    assert rounded.p_value == 0.25


def test_two_seeds_would_reject_far_too_often():
    """Why three are needed: without any difference, of few images and ten comparisons."""
    draws = torch.Generator().manual_seed(0)

    def rejected(seeds):
        count = 0
        for _ in range(300):
            counts = (0.5 + 0.01 * torch.randn(2, 10, seeds, generator=draws)).mul(359).round()
            differences = ((counts[0] - counts[1]) / 359).double()
            error = differences.std(dim=1) / math.sqrt(seeds)
            t = differences.mean(dim=1).abs() / error.clamp(min=1e-12)
            p = 2 * stats.t.sf(t.numpy(), seeds - 1)
            count += min(holm(p.tolist())) <= 0.05
        return count / 300

    assert rejected(3) < 0.1
    assert rejected(2) > 0.2


@pytest.mark.parametrize(("first", "second"), [([0.1, 0.2], [0.2, 0.1]), ([0.1, 0.2], [0.1])])
def test_paired_t_needs_the_same_seeds_and_three(first, second):
    with pytest.raises(ValueError, match="need as many, at least 3"):
        paired_t(first, second)


# --- what can be resolved ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "discordance"), [(359, 0.1), (1000, 0.1), (1000, 0.3)])
def test_the_detectable_difference_is_found_four_times_in_five(n, discordance):
    """By the interval of `paired_difference`; four standard errors of 1,000 samples are 5 %."""
    difference = detectable_difference(n, discordance)
    shares = torch.tensor(
        [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    )
    draws = torch.Generator().manual_seed(1)
    found = 0
    for _ in range(1000):
        kind = torch.multinomial(shares, n, replacement=True, generator=draws)
        found += paired_difference(kind == 0, kind == 1).low > 0
    assert found / 1000 == pytest.approx(0.8, abs=0.05)


def test_more_images_resolve_more():
    at = [detectable_difference(n, 0.1) for n in (100, 400, 1600, 6400)]
    assert at == sorted(at, reverse=True)
    assert at[2] / at[3] == pytest.approx(2, rel=0.02)  # with the square root, in the end


def test_too_few_images_resolve_nothing():
    assert detectable_difference(10, 0.1) is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 31])
def test_the_detectable_mean_difference_has_the_noncentral_power(seeds):
    shift = detectable_mean_difference(seeds, 0.02) / 0.02 * math.sqrt(seeds)
    critical = stats.t.ppf(0.975, seeds - 1)
    # The lower tail, below 1e-6 here, is nan in SciPy for two seeds.
    assert stats.nct.sf(critical, seeds - 1, shift) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (detectable_difference, (0, 0.1)),
        (detectable_difference, (10, 0.0)),
        (detectable_difference, (10, 1.1)),
        (detectable_mean_difference, (1, 0.1)),
        (detectable_mean_difference, (3, -0.1)),
        (detectable_mean_difference, (3, math.nan)),
    ],
)
def test_impossible_designs(call, arguments):
    with pytest.raises(ValueError, match="need >= "):
        call(*arguments)
