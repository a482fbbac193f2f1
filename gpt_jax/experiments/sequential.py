"""A confidence sequence: an interval for a mean that may be looked at after every value.

Functions of NumPy arrays; no files, no runs, no jax. `trial` adds pairs of runs until the interval
leaves 0 out; a t interval looked at as often would be wrong far more often than it says.

The values x_1, x_2, ... are independent and normal with mean m and variance s^2, both unknown. For
a mean m0 the effect size is d = (m - m0) / s. By a change of scale alone a test of d = 0 depends on
the ratios of x_i - m0, whose density is that of the sample with s integrated out by ds / s. Under
d ~ N(0, w^2), x - m0 given s is normal with covariance s^2 (I + w^2 11'). Both integrals over s are
Gamma functions; with n values, mean x, S = sum (x_i - x)^2, y = n (x - m0)^2 and r = 1 + n w^2
their ratio is

    E_n = r^(-1/2) [(S + y) / (S + y / r)]^(n/2).

It is a likelihood ratio of the ratios so far, so under m = m0 a nonnegative martingale of mean 1
(E_1 = 1: one value has no ratio), and by Ville's inequality P(some E_n >= 1/alpha) <= alpha. The
means m0 with E_n < 1/alpha are therefore a confidence sequence: with chance 1 - alpha they hold m
at all n at once. Solved for y, with k = (r^(1/2) / alpha)^(2/n),

    |x - m0| < [S (k - 1) / (n (1 - k / r))]^(1/2)    where k < r, else no m0 is left out.

Source: Lai, "On confidence sequences", Annals of Statistics 4 (1976), for the test martingale with
s integrated out; Wang and Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian
means with unknown variance" (2023), for the Gaussian mixture over d in this form.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gpt_jax.experiments.statistics import ROUNDING

WIDTH = 1.0  # w: sizes of effects that are expected; benchmarks/trials.py tries others


@dataclasses.dataclass(frozen=True)
class Sequence:
    """The confidence sequence of a mean, after each of n values.

    Attributes:
      means: (..., n), of the values so far.
      half_widths: (..., n); infinite while nothing can be said, or without spread.
    """

    means: np.ndarray
    half_widths: np.ndarray

    @property
    def low(self) -> np.ndarray:
        return self.means - self.half_widths

    @property
    def high(self) -> np.ndarray:
        return self.means + self.half_widths


def log_evidence(values: np.ndarray, mean: float = 0.0, width: float = WIDTH) -> np.ndarray:
    """Returns log E_n against `mean` after each value; see the module.

    Args:
      values: (..., n).
      mean: m0.
      width: w, above 0.

    Returns:
      (..., n); 0 at the first, and where all values so far are `mean`.
    """
    counts, means, squares = _moments(values)
    y, r = counts * (means - mean) ** 2, 1 + counts * width**2
    with np.errstate(invalid="ignore"):
        ratio = (squares + y) / (squares + y / r)
    ratio = np.where(np.isnan(ratio), np.sqrt(r) ** (2 / counts), ratio)  # 0 / 0: no evidence
    return -0.5 * np.log(r) + counts / 2 * np.log(ratio)


def confidence_sequence(
    values: np.ndarray, alpha: float, width: float = WIDTH, scale: float = 0.0
) -> Sequence:
    """Returns the confidence sequence of the values' mean; see the module.

    Args:
      values: (..., n), in the order in which they came.
      alpha: in (0, 1); the chance that the mean is ever outside.
      width: w, above 0. It must not depend on the values.
      scale: the size of the numbers that the values are differences of, whose rounding is no
        spread; the values' own size counts too.
    """
    counts, means, squares = _moments(values)
    factors = half_width_factors(counts.astype(int), alpha, width)
    size = np.maximum(scale, np.maximum.accumulate(np.abs(values), -1))
    spread = squares > counts * (ROUNDING * size) ** 2
    with np.errstate(invalid="ignore"):  # 0 times infinity
        half_widths = np.where(spread, np.sqrt(squares) * factors, np.inf)
    return Sequence(means, half_widths)


def half_width_factors(counts: np.ndarray, alpha: float, width: float = WIDTH) -> np.ndarray:
    """Returns the half widths over sqrt(S) for so many values each; infinite for too few."""
    r = 1 + counts * width**2
    k = (np.sqrt(r) / alpha) ** (2 / counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(k < r, np.sqrt((k - 1) / (counts * (1 - k / r))), np.inf)


def first_decided(sequence: Sequence, mean: float = 0.0) -> np.ndarray:
    """Returns after how many values the sequence first leaves `mean` out; 0 where it never does."""
    outside = np.abs(sequence.means - mean) > sequence.half_widths
    return np.where(outside.any(-1), outside.argmax(-1) + 1, 0)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the counts (n,), and mean and sum of squares about it after each value, (..., n)."""
    values = np.asarray(values, np.float64)
    counts = np.arange(1, values.shape[-1] + 1)
    # About the first value, which is near the mean beside the spread: no digits are lost.
    shifted = values - values[..., :1]
    sums = np.cumsum(shifted, -1)
    squares = np.cumsum(shifted**2, -1) - sums**2 / counts
    return counts, values[..., :1] + sums / counts, np.maximum(squares, 0)
