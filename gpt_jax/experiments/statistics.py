"""Statistics of differences between runs: t intervals, sign flips, Holm's correction, sample sizes.

Functions of NumPy arrays, float64 inside; no files, no runs, no jax. `sequential.py` has the test
that may be looked at after every pair.

Zero spread alone is never evidence: equal differences have no interval here (`Estimate.is_judged`
is False), because a metric in whole steps, or a change that changes nothing, makes them too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

EXACT_PAIRS = 20  # 2^19 sums of flipped signs, up to a common sign
DRAWS = 100_000  # of signs, where there are more pairs
POWER = 0.8  # with which a number of pairs shows a difference
MOST_PAIRS = 100_000  # that `pairs_to_show` looks at
ROUNDING = 16 * np.finfo(np.float64).eps  # spread below this share of the values is rounding


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean difference with its t interval.

    Attributes:
      mean: the difference.
      half_width: of the interval; infinite with too few values.
      p: two-sided, of a difference of 0; 1 where nothing can be judged.
      degrees: of freedom of the t distribution; 0 where nothing can be judged.
      is_judged: False with fewer than two values a side, or without spread.
    """

    mean: float
    half_width: float
    p: float
    degrees: float
    is_judged: bool

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean with its 95% interval, by Student's t.

    Attributes:
      mean: of the values.
      half_width: of the interval; NaN of fewer than two values.
      values: one at least.
    """

    mean: float
    half_width: float
    values: list[float]


@dataclasses.dataclass(frozen=True)
class SignFlips:
    """A sign-flip test.

    Attributes:
      p: two-sided.
      least_p: the least that so many differences can have.
      is_exact: all signs were tried; else `DRAWS` of them.
    """

    p: float
    least_p: float
    is_exact: bool


def t_quantile(degrees: float, alpha: float) -> float:
    """Returns the two-sided critical value: P(|t| > it) = alpha, by `scipy.special.stdtrit`."""
    return float(special.stdtrit(degrees, 1 - alpha / 2))


def mean_half_width(values: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Returns the half width of the interval of the mean over the first axis, by Student's t.

    Of one value it is NaN: nothing is known of its spread.
    """
    n = len(values)
    if n < 2:
        return np.full(values.shape[1:], np.nan)
    return t_quantile(n - 1, 1 - level) * values.std(axis=0, ddof=1) / math.sqrt(n)


def mean_of(values: Sequence[float]) -> Mean:
    """Returns the mean of values with its interval."""
    numbers = np.asarray(values, np.float64)
    return Mean(float(numbers.mean()), float(mean_half_width(numbers)), numbers.tolist())


def _estimate(mean: float, error: float, degrees: float, alpha: float) -> Estimate:
    p = 2 * float(special.stdtr(degrees, -abs(mean) / error))
    return Estimate(mean, t_quantile(degrees, alpha) * error, p, degrees, True)


def _unjudged(mean: float) -> Estimate:
    return Estimate(mean, math.inf, 1.0, 0.0, False)


def has_spread(values: np.ndarray, scale: float | None = None) -> bool:
    """Says whether values, (n,), differ by more than rounding.

    Args:
      values: at least one.
      scale: the size of the numbers that they were computed from; None for their own.
    """
    scale = float(np.abs(values).max()) if scale is None else scale
    return bool(np.ptp(values) > ROUNDING * scale)


def paired_t(a: np.ndarray, b: np.ndarray, alpha: float = 0.05) -> Estimate:
    """Returns the mean of b - a with its Student t interval of 1 - alpha (Student 1908).

    It assumes that the differences are independent and normal; n - 1 degrees of freedom.

    Args:
      a: (n,), a pair each with `b`.
      b: (n,).
      alpha: in (0, 1).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    differences = b - a
    mean, n = float(differences.mean()), len(differences)
    scale = float(max(np.abs(a).max(), np.abs(b).max()))
    if n < 2 or not has_spread(differences, scale):
        return _unjudged(mean)
    return _estimate(mean, float(differences.std(ddof=1)) / math.sqrt(n), n - 1, alpha)


def welch_t(a: np.ndarray, b: np.ndarray, alpha: float = 0.05) -> Estimate:
    """Returns mean(b) - mean(a) of independent values with Welch's t interval of 1 - alpha.

    The variances may differ; the degrees of freedom are Satterthwaite's (Welch 1947).

    Args:
      a: (n,).
      b: (m,).
      alpha: in (0, 1).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mean = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2 or not (has_spread(a) or has_spread(b)):
        return _unjudged(mean)
    parts = np.array([x.var(ddof=1) / len(x) for x in (a, b)])
    shares = parts / parts.sum()  # their squares, not those of the parts, which may underflow
    degrees = 1 / float((shares**2 / [len(a) - 1, len(b) - 1]).sum())
    return _estimate(mean, math.sqrt(parts.sum()), degrees, alpha)


def sign_flips(differences: np.ndarray, seed: int = 0) -> SignFlips:
    """Returns the p of a sign-flip test of mean 0 (Fisher 1935), two-sided.

    It assumes that a difference is as likely with either sign. Up to `EXACT_PAIRS` differences all
    signs are tried, so that p is exact; beyond, `DRAWS` are drawn, and the observed signs count as
    one of them, so that p is valid (Phipson and Smyth 2010).

    Args:
      differences: (n,); one of 0 has no sign.
      seed: of the draws.
    """
    sizes = np.abs(np.asarray(differences, np.float64))
    sizes = sizes[sizes > 0]
    n = len(sizes)
    if n == 0:
        return SignFlips(1.0, 1.0, True)
    # Ties with the observed sum count, whatever their rounding.
    observed = abs(float(np.sum(differences))) - 1e-12 * float(sizes.sum())
    if n <= EXACT_PAIRS:
        sums = sizes[:1]  # the first sign stays: a common sign changes no |sum|
        for size in sizes[1:]:
            sums = np.concatenate([sums + size, sums - size])
        p = float(np.mean(np.abs(sums) >= observed))
        return SignFlips(p, 2.0 ** (1 - n), True)
    draw, count = np.random.default_rng(seed), 0
    for _ in range(DRAWS // 1000):
        signs = 1 - 2 * draw.integers(0, 2, (1000, n), np.int8)
        count += int(np.sum(np.abs(signs @ sizes) >= observed))
    return SignFlips((1 + count) / (1 + DRAWS), 1 / (1 + DRAWS), False)


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns Pearson's correlation of pairs; None with fewer than 3, or without spread."""
    if len(a) < 3 or not (has_spread(a) and has_spread(b)):
        return None
    return float(np.corrcoef(a, b)[0, 1])


def pairing_gain(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns how many times as many runs without pairs would have as narrow an interval.

    That is (var a + var b) / var(b - a), or 1 / (1 - r) for equal variances and a correlation r.
    Below 1 pairing has cost something. None with fewer than 3 pairs, or without spread.
    """
    if correlation(a, b) is None or not has_spread(b - a, float(np.abs(a).max())):
        return None
    return float((np.var(a, ddof=1) + np.var(b, ddof=1)) / np.var(b - a, ddof=1))


def t_power(n: int, effect: float, alpha: float, sides: int = 1) -> float:
    """Returns the chance that a two-sided t test of level alpha shows a difference.

    By the noncentral t distribution.

    Args:
      n: pairs; or values a side, where `sides` is 2.
      effect: the true difference in standard deviations of the differences (or of a side's values).
      alpha: in (0, 1).
      sides: 1 for pairs, 2 for two independent sides.
    """
    degrees, shift = sides * (n - 1), abs(effect) * math.sqrt(n / sides)
    if shift > 37:  # where scipy's nctdtr leaves its range, and the chance is 1
        shift = 37.0
    critical = t_quantile(degrees, alpha)
    above = 1 - float(special.nctdtr(degrees, shift, critical))
    return above + float(special.nctdtr(degrees, shift, -critical))


def pairs_to_show(
    deviation: float, difference: float, alpha: float = 0.05, sides: int = 1
) -> int | None:
    """Returns how many pairs show a true difference with a chance of `POWER`.

    Args:
      deviation: standard deviation of the differences; of a side's values, where `sides` is 2.
      difference: the true one.
      alpha: of the t test.
      sides: see `t_power`; then it is the number a side.

    Returns:
      At least 2; None where it is more than `MOST_PAIRS`.
    """
    if not difference:
        return None
    effect = abs(difference) / deviation if deviation else math.inf
    low, high = 1, 2
    while t_power(high, effect, alpha, sides) < POWER:
        low, high = high, 2 * high
        if high > MOST_PAIRS:
            return None
    while high - low > 1:  # the power grows with the number
        middle = (low + high) // 2
        if t_power(middle, effect, alpha, sides) < POWER:
            low = middle
        else:
            high = middle
    return high


def holm(p_values: np.ndarray) -> np.ndarray:
    """Returns the p values, (m,), adjusted for m comparisons (Holm 1979).

    Those below alpha have, together, a chance of at most alpha that any of them is false, however
    they depend on one another. The i-th smallest (from 0) becomes the largest of (m - j) p_j over
    j <= i, and at most 1.
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted
