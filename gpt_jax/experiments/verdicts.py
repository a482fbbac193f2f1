"""The result of a comparison: plain records of NumPy arrays that print, and say what they mean."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import BETTER, NOT_SHOWN, WORSE
from gpt_jax.experiments import report
from gpt_jax.experiments.measures import Metric
from gpt_jax.experiments.sides import shown_value
from gpt_jax.experiments.statistics import POWER, Estimate, SignFlips

STATUSES = {"better": BETTER, "worse": WORSE, "not shown": NOT_SHOWN}


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one side that are compared.

    Attributes:
      label: how the side is called.
      run_dirs: of its n runs.
      seeds: int64 (n,).
      values: of the metric, float64 (n,).
      steps: at which all its runs have an evaluation, int64 (S,).
      losses_NS: the validation losses there, float64 (n, S).
    """

    label: str
    run_dirs: tuple[str, ...]
    seeds: np.ndarray
    values: np.ndarray
    steps: np.ndarray
    losses_NS: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    def record(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "run_dirs": list(self.run_dirs),
            "seeds": self.seeds.tolist(),
            "values": self.values.tolist(),
            "mean": self.mean,
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two sides beside one another; `str()` of it is what `compare` prints.

    Attributes:
      a: the baseline.
      b: what is judged.
      metric: by what.
      alpha: below which a p is a verdict.
      settings: {setting: (value in a, value in b)} of those that differ.
      differences: b - a of each pair, float64 (n,); (0,) where runs are not paired.
      estimate: of the mean of b - a: the paired t, or Welch's.
      flips: the sign-flip test; None without pairs.
      correlation: of the pairs; None where it can't be known.
      gain: how many times as many runs pairing is worth; None where it can't be known.
      more: how many more pairs (or runs a side) would show `shown`; None where it can't be known.
      shown: a difference, above 0: that of `smallest`, or the one seen.
      smallest: the least difference that matters; None where that was not said.
      why_unpaired: why runs are not paired; "" where they are.
      notes: what else a reader must know.
      p: of the estimate; adjusted by Holm's method where there are several comparisons.
      comparisons: how many.
      parts: the steps at which runs part of which one is a branch of the other, or of a third.
    """

    a: Group
    b: Group
    metric: Metric
    alpha: float
    settings: dict[str, tuple[Any, Any]]
    differences: np.ndarray
    estimate: Estimate
    flips: SignFlips | None
    correlation: float | None
    gain: float | None
    more: int | None
    shown: float
    smallest: float | None
    why_unpaired: str
    notes: tuple[str, ...]
    p: float
    comparisons: int = 1
    parts: tuple[int, ...] = ()

    @property
    def is_paired(self) -> bool:
        return not self.why_unpaired

    @property
    def verdict(self) -> str:
        """What is shown of b: "better", "worse" or "not shown"."""
        if not self.estimate.is_judged or not self.p < self.alpha:
            return "not shown"
        return "better" if (self.estimate.mean < 0) == self.metric.is_lower_better else "worse"

    @property
    def status(self) -> int:
        """The exit status of `compare`: 0 better, 4 worse, 3 not shown."""
        return STATUSES[self.verdict]

    @property
    def sample(self) -> str:
        """How much was compared: "8 pairs", "5 and 4 runs, not paired"."""
        if self.is_paired:
            return report.count(len(self.differences), "pair")
        return f"{len(self.a.values)} and {report.count(len(self.b.values), 'run')}, not paired"

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.estimate.is_judged:
            return f"no difference shown: {self._why_unjudged()}"
        error, unit = report.half_width(self.estimate.half_width), self.metric.unit
        if self.verdict == "not shown":
            return f"no difference shown: {error} {unit} with {self.sample}; {self._outlook()}"
        mean = report.number(abs(self.estimate.mean), self.estimate.half_width)
        way = "lower" if self.estimate.mean < 0 else "higher"
        p = report.p_value(self.p) + self._corrected()
        return f"{self.b.label} is {way} by {mean} {error} {unit} ({self.sample}, {p})"

    def _corrected(self) -> str:
        n = self.comparisons
        return f" by Holm's method, {n} comparisons" if n > 1 else ""

    def _why_unjudged(self) -> str:
        n = len(self.differences)
        if self.is_paired and n == 1:
            return "one pair has no spread to judge by; run more seeds of both"
        if not self.is_paired and min(len(self.a.values), len(self.b.values)) < 2:
            return "one run has no spread to judge by; run more seeds of both"
        if self.estimate.mean == 0 and not self.differences.any():
            return f"the two sides are equal to the last bit ({self.sample})"
        mean = report.short(self.estimate.mean)
        return (
            f"each difference is {mean} {self.metric.unit} ({self.sample}), and zero spread alone "
            "is no evidence"
        )

    def _outlook(self) -> str:
        """Returns what more pairs would show."""
        what, shown = "pairs" if self.is_paired else "runs a side", report.short(self.shown)
        if self.smallest is not None:
            shown = report.given(self.smallest)
            if max(abs(self.estimate.low), abs(self.estimate.high)) < self.smallest:
                return f"a difference of {shown} is ruled out"
        if self.more is None:
            return f"no reasonable number of {what} would show {shown}"
        if self.more == 0:
            return f"a difference of {shown} would probably have been shown"
        return f"about {self.more:,} more would show {shown}"

    def rows(self) -> list[tuple[str, str]]:
        """Returns the figures, each with its name."""
        estimate, unit = self.estimate, self.metric.unit
        rows = []
        if estimate.is_judged:
            error = estimate.half_width
            low, high = (report.number(x, error, "+") for x in (estimate.low, estimate.high))
            mean = report.number(estimate.mean, error, "+")
            name = "paired t" if self.is_paired else "Welch's t"
            p = report.p_value(estimate.p)
            if self.comparisons > 1:
                p += f"; {report.p_value(self.p)}{self._corrected()}"
            percent = report.given(100 * (1 - self.alpha))
            rows += [
                ("difference, b - a", f"{mean} {report.half_width(error)} {unit}"),
                (f"{percent}% interval", f"{low} to {high}"),
                (name, f"{p} ({self.sample})"),
            ]
        else:
            rows.append(("difference, b - a", f"{estimate.mean:+.4f} {unit} ({self.sample})"))
        if flips := self.flips:
            how = "exact" if flips.is_exact else "signs drawn"
            least = report.p_value(flips.least_p).removeprefix("p ").removeprefix("= ")
            rows.append(
                (
                    "sign flips",
                    f"{report.p_value(flips.p)} ({how}; so many pairs: at least {least})",
                )
            )
        if self.correlation is not None:
            worth = f"; pairing is worth {self.gain:.2g} times as many runs" if self.gain else ""
            rows.append(("correlation of pairs", f"{self.correlation:.2f}{worth}"))
        if estimate.is_judged and self.verdict == "not shown":
            chance = f" (with a chance of {report.given(100 * POWER)}%)"
            rows.append(("more pairs" if self.is_paired else "more runs", self._outlook() + chance))
        return rows

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Returns the settings that differ, and the means, as rows under a head."""
        heads = (f"a: {self.a.label}", f"b: {self.b.label}")
        settings = [
            (name.replace("_", "-"), shown_value(x), shown_value(y))
            for name, (x, y) in self.settings.items()
        ]
        if not np.array_equal(self.a.seeds, self.b.seeds):
            here, there = (report.ranges(group.seeds.tolist()) for group in (self.a, self.b))
            settings.append(("seeds", here, there))
        spread = max(standard_error(group.values) for group in (self.a, self.b))
        means = [report.number(group.mean, spread) for group in (self.a, self.b)]
        if not settings:
            settings = [("no setting differs", "", "")]
        return [
            [("setting", *heads), *settings],
            [(f"mean {self.metric.title} ({self.metric.unit})", *heads), ("", *means)],
        ]

    def __str__(self) -> str:
        (head, *settings), (_, means) = self.tables()
        title = f"{self.metric.title}, {self.metric.unit}"
        table = report.text_table([head, *settings, ("mean", *means[1:])])
        parts = [title, table, report.text_table(self.rows()), *self._remarks(), self.sentence]
        return "\n\n".join(parts)

    def _remarks(self) -> list[str]:
        unpaired = [f"not paired: {self.why_unpaired}"] if self.why_unpaired else []
        lines = [f"note: {line}" for line in (*unpaired, *self.notes)]
        return ["\n".join(lines)] if lines else []

    def markdown(self) -> str:
        """Returns the result for an issue or a paper."""
        (head, *settings), (_, means) = self.tables()
        figures = [(f"{self.metric.title}, {self.metric.unit}", "")]
        parts = [
            f"**{self.sentence}**",
            report.markdown_table([head, *settings, ("mean", *means[1:])]),
            report.markdown_table([*figures, *self.rows()]),
        ]
        return "\n\n".join([*parts, *self._remarks()])

    _repr_markdown_ = markdown

    def record(self) -> dict[str, Any]:
        """Returns the result for JSON."""
        estimate = self.estimate
        return {
            "sentence": self.sentence,
            "verdict": self.verdict,
            "status": self.status,
            "metric": self.metric.record(),
            "a": self.a.record(),
            "b": self.b.record(),
            "settings": {name: list(values) for name, values in self.settings.items()},
            "paired": self.is_paired,
            "why_unpaired": self.why_unpaired or None,
            "pairs": len(self.differences),
            "differences": self.differences.tolist(),
            "mean_difference": estimate.mean,
            "half_width": _finite(estimate.half_width),
            "interval": [estimate.low, estimate.high] if estimate.is_judged else None,
            "alpha": self.alpha,
            "p": self.p if estimate.is_judged else None,
            "p_uncorrected": estimate.p if estimate.is_judged else None,
            "comparisons": self.comparisons,
            "correction": "Holm" if self.comparisons > 1 else None,
            "sign_flips": None if self.flips is None else dataclasses.asdict(self.flips),
            "correlation": self.correlation,
            "pairing_gain": self.gain,
            "more_needed": self.more,
            "difference_then_shown": self.shown,
            "notes": list(self.notes),
            "parts": list(self.parts),
        }

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws the curves and their difference; see `curves.draw`."""
        from gpt_jax.experiments.curves import draw

        curves = [(g.label, g.steps, g.losses_NS) for g in (self.a, self.b)]
        level, unit = 1 - self.alpha, self.metric.curve_unit
        return draw(path, curves, [self.is_paired], level, unit, self.parts)


def standard_error(values: np.ndarray) -> float:
    """Returns the standard error of a mean of some values; 0 of one."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
