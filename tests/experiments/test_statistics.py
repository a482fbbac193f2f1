"""Statistics beside scipy's own functions, by hand, and by their properties."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.experiments import statistics
from gpt_jax.experiments.statistics import (
    correlation,
    holm,
    paired_t,
    pairing_gain,
    pairs_to_show,
    sign_flips,
    t_power,
    welch_t,
)

NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))
SAMPLES = st.lists(NUMBERS, min_size=2, max_size=12).map(np.array)


def samples(n, m, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(2, 0.1, n), draw.normal(2.05, 0.2, m)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_the_paired_t_is_scipys(n, alpha):
    a, b = samples(n, n)
    found = paired_t(a, b, alpha)
    expected = scipy.stats.ttest_rel(b, a)
    interval = expected.confidence_interval(1 - alpha)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.degrees == n - 1
    assert found.is_judged


def test_the_paired_t_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t = 2 sqrt(3) at 2 degrees."""
    found = paired_t(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert found.mean == 2
    assert found.half_width == pytest.approx(4.302652729911275 / math.sqrt(3))
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2))  # the t's at 2 degrees, closed


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 8), (20, 5)])
def test_welchs_t_is_scipys(n, m):
    a, b = samples(n, m)
    found = welch_t(a, b, 0.1)
    expected = scipy.stats.ttest_ind(b, a, equal_var=False)
    interval = expected.confidence_interval(0.9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.degrees == pytest.approx(expected.df, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("test", [paired_t, welch_t])
def test_without_spread_nothing_is_judged(test, n):
    """Differences of 0.1 that float64 rounds in different ways have no spread either."""
    a = np.full(n, 1.7) if test is welch_t else 1.7 + np.arange(n) / 3
    found = test(a, a + 0.1)
    assert not found.is_judged
    assert found.p == 1
    assert found.half_width == math.inf
    assert found.mean == pytest.approx(0.1)


def test_a_spread_just_above_rounding_is_one():
    a = np.full(4, 2.0)
    assert paired_t(a, a + 0.1 + 1e-12 * np.arange(4)).is_judged


@given(SAMPLES)
def test_swapping_the_sides_turns_the_difference_round(a):
    b = a[::-1] * 1.5 + 0.25
    for test in (paired_t, welch_t):
        one, other = test(a, b), test(b, a)
        assert one.mean == pytest.approx(-other.mean, abs=1e-9)
        assert one.p == pytest.approx(other.p, rel=1e-6, abs=1e-12)
        assert one.is_judged == other.is_judged


@given(SAMPLES, st.floats(0.001, 0.5))
def test_the_interval_leaves_0_out_where_p_is_below_alpha(b, alpha):
    found = paired_t(np.zeros_like(b), b, alpha)
    if found.is_judged and abs(found.p - alpha) > 1e-9:
        assert (found.p < alpha) == (not found.low <= 0 <= found.high)


def brute_force_flips(differences):
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return np.mean(np.array(sums) >= abs(sum(differences)) - 1e-9)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_sign_flips_are_exact(differences):
    """Whole numbers have ties, which count."""
    found = sign_flips(np.array(differences, float))
    assert found.p == pytest.approx(brute_force_flips(differences))
    assert found.is_exact
    assert found.least_p <= found.p


def test_sign_flips_are_scipys_permutations():
    differences = np.random.default_rng(1).normal(0.5, 1, 10)
    expected = scipy.stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flips(differences).p == pytest.approx(expected.pvalue)


def test_the_least_p_of_flips_is_that_of_differences_of_one_sign():
    assert sign_flips(np.arange(1.0, 9)).p == sign_flips(np.arange(1.0, 9)).least_p == 2 / 2**8
    assert sign_flips(np.array([0.0, 0, 1, 2])).least_p == 0.5  # those of 0 have no sign
    assert sign_flips(np.zeros(5)).p == 1


def test_beyond_20_pairs_flips_are_drawn_and_near_the_exact_p(monkeypatch):
    differences = np.random.default_rng(3).normal(0.4, 1, 20)
    exact = sign_flips(differences)
    assert exact.is_exact
    assert exact.least_p == 2.0**-19
    monkeypatch.setattr(statistics, "EXACT_PAIRS", 19)
    drawn = sign_flips(differences)
    assert not drawn.is_exact
    assert drawn == sign_flips(differences)
    error = math.sqrt(exact.p * (1 - exact.p) / statistics.DRAWS)
    assert abs(drawn.p - exact.p) < 5 * error + 1 / statistics.DRAWS
    never = sign_flips(np.ones(60))  # no draw has one sign; the observed signs count
    assert never.p == never.least_p == 1 / (1 + statistics.DRAWS)


@pytest.mark.parametrize("r", [0.0, 0.66, 0.88])
def test_pairing_gains_1_over_1_minus_the_correlation(r):
    draw = np.random.default_rng(0)
    shared, x, y = draw.normal(size=(3, 20_000))
    a, b = (math.sqrt(r) * shared + math.sqrt(1 - r) * z for z in (x, y))
    assert correlation(a, b) == pytest.approx(scipy.stats.pearsonr(a, b)[0])
    assert pairing_gain(a, b) == pytest.approx(1 / (1 - r), rel=0.05)


def test_a_correlation_needs_three_pairs_and_spread():
    assert correlation(np.arange(2.0), np.arange(2.0)) is None
    assert correlation(np.ones(5), np.arange(5.0)) is None
    assert pairing_gain(np.ones(5), np.arange(5.0)) is None
    assert pairing_gain(np.arange(5.0), np.arange(5.0) + 1) is None  # no spread of differences


@pytest.mark.parametrize("sides", [1, 2])
def test_the_power_is_that_of_a_simulation(sides):
    n, effect, alpha, trials = 9, 0.9, 0.05, 20_000
    draw = np.random.default_rng(4)
    b = draw.normal(effect, 1, (trials, n))
    if sides == 1:
        p = scipy.stats.ttest_1samp(b, 0, axis=1).pvalue
    else:
        p = scipy.stats.ttest_ind(b, draw.normal(0, 1, (trials, n)), axis=1).pvalue
    power = t_power(n, effect, alpha, sides)
    assert abs(np.mean(p < alpha) - power) < 4 * math.sqrt(power * (1 - power) / trials)


def test_how_many_pairs_show_a_difference():
    """Cohen's tables: d = 0.8 needs 26 a side (independent) and, paired, 15, at a power of 0.8."""
    assert pairs_to_show(1.0, 0.8, sides=2) == 26
    assert pairs_to_show(1.0, 0.8) == 15
    assert pairs_to_show(1.0, -0.8) == 15
    assert pairs_to_show(1.0, 1000.0) == 2
    assert pairs_to_show(1.0, 1e-9) is None
    assert pairs_to_show(1.0, 0.0) is None
    for n in (5, 40):  # one fewer is too few
        effect = 3 / math.sqrt(n)
        needed = pairs_to_show(1.0, effect)
        assert t_power(needed, effect, 0.05) >= 0.8 > t_power(needed - 1, effect, 0.05)


def test_holm_by_hand():
    """Holm's steps: 3 * 0.01, then 2 * 0.02, then 0.03, never below one before."""
    assert holm(np.array([0.02, 0.03, 0.01])) == pytest.approx([0.04, 0.04, 0.03])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).map(np.array))
def test_holm_is_between_the_p_values_and_bonferronis(p_values):
    adjusted = holm(p_values)
    assert np.all(adjusted >= p_values)
    assert np.all(adjusted <= np.minimum(1, len(p_values) * p_values))
    assert np.all(np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0)
