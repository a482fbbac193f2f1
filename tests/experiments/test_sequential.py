"""The confidence sequence: its formula beside numerical integration, and its promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from gpt_jax.experiments.sequential import (
    confidence_sequence,
    first_decided,
    half_width_factors,
    log_evidence,
)

VALUES = st.lists(
    st.floats(-50, 50).map(lambda x: round(x, 2)), min_size=1, max_size=8
).map(np.array)  # fmt: skip


def likelihood(values, width):
    """The density of the values' ratios: over effects N(0, width^2), and over s by ds / s."""

    def given_effect(d):
        # The integral over s of prod N(x; d s, s^2) ds / s, with u = 1 / s.
        def over_u(u):
            return u ** (len(values) - 1) * math.exp(-0.5 * np.sum((u * values - d) ** 2))

        return integrate.quad(over_u, 0, np.inf, epsabs=0, epsrel=1e-9, limit=400)[0]

    if not width:
        return given_effect(0.0)

    def weighted(d):
        return (
            given_effect(d) * math.exp(-0.5 * (d / width) ** 2) / (width * math.sqrt(2 * math.pi))
        )

    return integrate.quad(weighted, -12 * width, 12 * width, epsrel=1e-8, limit=200)[0]


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("values", [[0.7], [0.3, -0.1], [1.0, 1.4, 0.8, 1.1]])
def test_the_evidence_is_the_ratio_of_two_integrals(values, width):
    values = np.array(values)
    expected = likelihood(values, width) / likelihood(values, 0.0)
    assert log_evidence(values, width=width)[-1] == pytest.approx(math.log(expected), abs=1e-6)


def test_the_evidence_is_that_of_the_t_statistics_densities():
    """Another way: a noncentral t over effects, beside the central one, at n values."""
    values = np.array([0.5, 1.2, 0.1, 0.9, 1.5])
    n = len(values)
    t = math.sqrt(n) * values.mean() / values.std(ddof=1)

    def density(shift, h=1e-4):
        return (special.nctdtr(n - 1, shift, t + h) - special.nctdtr(n - 1, shift, t - h)) / (2 * h)

    def weighted(d):
        return density(math.sqrt(n) * d) * math.exp(-0.5 * d * d) / math.sqrt(2 * math.pi)

    ratio = integrate.quad(weighted, -8, 8, limit=200)[0] / density(0.0)
    assert log_evidence(values, width=1.0)[-1] == pytest.approx(math.log(ratio), abs=1e-4)


@given(VALUES, st.floats(0.001, 0.3), st.floats(0.3, 3))
def test_the_interval_is_the_means_without_much_evidence_against_them(values, alpha, width):
    found = confidence_sequence(values, alpha, width)
    for i in range(len(values)):
        half = found.half_widths[i]
        if math.isfinite(half):
            for sign in (-1, 1):
                bound = found.means[i] + sign * half
                evidence = log_evidence(values, bound, width)[i]
                assert evidence == pytest.approx(-math.log(alpha), abs=1e-6)


@given(VALUES, st.sampled_from([1e-3, 0.5, 7.0]))
def test_scale_and_sign_change_no_evidence(values, scale):
    expected = log_evidence(values)
    assert log_evidence(scale * values) == pytest.approx(expected, abs=1e-6)
    assert log_evidence(-values) == pytest.approx(expected, abs=1e-9)
    assert expected[0] == pytest.approx(0, abs=1e-12)  # one value has no ratio


def test_a_moment_says_what_all_values_before_it_say():
    values = np.random.default_rng(0).normal(3, 1, 12)
    whole = confidence_sequence(values, 0.05)
    for n in range(1, 13):
        part = confidence_sequence(values[:n], 0.05)
        assert part.means[-1] == whole.means[n - 1] == pytest.approx(values[:n].mean())
        assert part.half_widths[-1] == whole.half_widths[n - 1]


def test_too_few_values_say_nothing_and_more_say_more():
    factors = half_width_factors(np.arange(1, 200), 0.01) / np.sqrt(np.arange(1, 200))
    finite = np.isfinite(factors)
    first = int(finite.argmax())
    assert not finite[:first].any()
    assert finite[first:].all()
    assert first + 1 == 6
    assert np.all(np.diff(factors[first:]) < 0)  # S grows as n, so this is the width


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6])
def test_zero_spread_alone_decides_nothing(offset):
    """Rounding is no spread: 0.1 is subtracted in ten different ways."""
    a = 1.7 + np.arange(10) / 3
    found = confidence_sequence((a + offset) - a, 0.01, scale=float(np.abs(a + offset).max()))
    assert np.all(np.isinf(found.half_widths))
    assert first_decided(found) == 0


def test_the_first_decision_is_the_first_value_that_leaves_0_out():
    values = np.random.default_rng(0).normal(2, 1, (5, 20))
    found = confidence_sequence(values, 0.01)
    for row, n in enumerate(first_decided(found)):
        excluded = np.abs(found.means[row]) > found.half_widths[row]
        assert not excluded[: n - 1].any()
        assert excluded[n - 1]
    assert first_decided(confidence_sequence(np.array([1.0, -1, 1, -1]), 0.01)) == 0


def test_looked_at_after_each_of_500_values_it_is_wrong_at_most_as_often_as_it_says():
    trials, alpha = 2000, 0.05
    values = np.random.default_rng(7).normal(0, 1, (trials, 500))
    wrong = np.mean(first_decided(confidence_sequence(values, alpha)) > 0)
    assert 0.2 * alpha < wrong <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / trials)
