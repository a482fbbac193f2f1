"""What a trial has found so far: a plain record of NumPy arrays, which prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import BETTER, NOT_SHOWN, RULED_OUT, WORSE
from gpt_jax.experiments import report
from gpt_jax.experiments.budgets import Budget
from gpt_jax.experiments.sequential import Sequence as ConfidenceSequence
from gpt_jax.experiments.sequential import confidence_sequence
from gpt_jax.experiments.sides import shown_value
from gpt_jax.experiments.trees import Tree

STATUSES = {
    "better": BETTER,
    "worse": WORSE,
    "ruled out": RULED_OUT,
    "nothing changes": NOT_SHOWN,
    "not shown": NOT_SHOWN,
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runs of a trial.

    Attributes:
      seeds: of the baseline and of the change.
      base: exact validation loss after the last step, nats per token; of a run that diverged the
        one before its first step.
      change: likewise.
      base_diverged: why the baseline ended; None if it did not.
      change_diverged: likewise.
      equal: every loss of both is equal to the last bit.
    """

    seeds: list[int]
    base: float
    change: float
    base_diverged: str | None = None
    change_diverged: str | None = None
    equal: bool = False


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial; `str()` of it is what the command prints.

    Attributes:
      out: its folder.
      change: {setting: value} that is tried.
      pairs: so far.
      alpha: the chance of a false verdict, at most.
      smallest: the least difference that matters; None where that was not said.
      paired: both runs of a pair have one seed.
      max_pairs: at most so many.
      budget: the steps of each side, where both spend alike; else None.
      trees: the checkout of each side; None where both are computed by this program.
    """

    out: Path
    change: dict[str, Any]
    pairs: Sequence[Pair]
    alpha: float
    smallest: float | None
    paired: bool
    max_pairs: int
    budget: Budget | None = None
    trees: Mapping[str, Tree] | None = None

    @property
    def losses_2N(self) -> np.ndarray:
        """The losses of the baseline and of the change, float64 (2, n)."""
        sides = [[pair.base for pair in self.pairs], [pair.change for pair in self.pairs]]
        return np.array(sides, np.float64)

    @property
    def differences(self) -> np.ndarray:
        """Change - baseline, float64 (n,)."""
        return self.losses_2N[1] - self.losses_2N[0]

    @property
    def sequence(self) -> ConfidenceSequence:
        """The confidence sequence of the mean difference, after each pair."""
        scale = float(np.abs(self.losses_2N).max(initial=0))
        return confidence_sequence(self.differences, self.alpha, scale=scale)

    @property
    def verdict(self) -> str:
        """What is shown of the change.

        One of "better", "worse", "ruled out" (a difference of `smallest`), "nothing changes" (all
        is equal to the last bit) and "not shown".
        """
        if not self.pairs:
            return "not shown"
        if all(pair.equal for pair in self.pairs):
            return "nothing changes"
        low, high = self.sequence.low[-1], self.sequence.high[-1]
        if high < 0:
            return "better"
        if low > 0:
            return "worse"
        if self.smallest is not None and -self.smallest < low and high < self.smallest:
            return "ruled out"
        return "not shown"

    @property
    def status(self) -> int:
        """The exit status of `trial`: 0 better, 4 worse, 5 ruled out, 3 not shown."""
        return STATUSES[self.verdict]

    @property
    def is_over(self) -> bool:
        return self.verdict != "not shown" or len(self.pairs) >= self.max_pairs

    @property
    def line(self) -> str:
        """The last pair, and what is known after it."""
        pair, half = self.pairs[-1], float(self.sequence.half_widths[-1])
        known = "nothing can be said yet"
        if np.isfinite(half):
            mean = report.number(float(self.sequence.means[-1]), half, "+")
            known = f"mean difference {mean} {report.half_width(half)}"
        return f"pair {len(self.pairs)}: {pair.base:.4f}, {pair.change:.4f}; {known}"

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        n = report.count(len(self.pairs), "pair")
        if self.verdict == "nothing changes":
            return f"the change changes nothing: every loss is equal to the last bit ({n})"
        half = float(self.sequence.half_widths[-1]) if self.pairs else np.inf
        if not np.isfinite(half):
            return f"no difference shown with {n}: too few, or without spread"
        mean, error = float(self.sequence.means[-1]), report.half_width(half)
        if self.verdict == "not shown":
            return f"no difference shown: {report.number(mean, half, '+')} {error} nats with {n}"
        if self.verdict == "ruled out":
            return (
                f"a difference of {report.given(self.smallest or 0)} is ruled out: "
                f"{report.number(mean, half, '+')} {error} nats ({n})"
            )
        way = "lower" if mean < 0 else "higher"
        size = report.number(abs(mean), half)
        return f"the change is {way} by {size} {error} nats ({n}, alpha = {self.alpha:g})"

    def table(self) -> list[tuple[str, ...]]:
        """Returns a row for each pair, under a head."""
        rows: list[tuple[str, ...]] = [("seed", "base", "change", "change - base", "so far")]
        sequence = self.sequence
        for i, pair in enumerate(self.pairs):
            half, known = float(sequence.half_widths[i]), ""
            if np.isfinite(half):
                mean = report.number(float(sequence.means[i]), half, "+")
                known = f"{mean} {report.half_width(half)}"
            seeds = ", ".join(map(str, dict.fromkeys(pair.seeds)))
            sides = ((pair.base, pair.base_diverged), (pair.change, pair.change_diverged))
            losses = [f"{x:.4f}" + ("" if why is None else " (diverged)") for x, why in sides]
            rows.append((seeds, *losses, f"{pair.change - pair.base:+.4f}", known))
        return rows

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the table."""
        changed = [f"{n.replace('_', '-')}={shown_value(v)}" for n, v in self.change.items()]
        shown = ", ".join(changed) or "none"
        lines = [f"change: {shown}; exact validation loss after the last step, nats per token"]
        if any(pair.base_diverged or pair.change_diverged for pair in self.pairs):
            lines.append("a run that diverged counts with the loss before its first step")
        if self.budget is not None:
            lines.append(str(self.budget))
        for side, tree in (self.trees or {}).items():
            lines.append(f"{side}: the code of {tree}")
        if not self.paired:
            lines.append("not paired: both runs of a pair have seeds of their own")
        percent = report.given(100 * (1 - self.alpha))
        lines.append(
            f"intervals of {percent}% that may be looked at after every pair; they assume normal "
            "differences"
        )
        return lines

    def __str__(self) -> str:
        return "\n\n".join(["\n".join(self.notes), report.text_table(self.table()), self.sentence])

    def markdown(self) -> str:
        """Returns the result for an issue or a paper."""
        notes = "\n".join(f"- {line}" for line in self.notes)
        return "\n\n".join([f"**{self.sentence}**", report.markdown_table(self.table()), notes])

    _repr_markdown_ = markdown

    def record(self) -> dict[str, Any]:
        """Returns the result for JSON."""
        sequence = self.sequence
        finite = np.isfinite(sequence.half_widths)
        return {
            "sentence": self.sentence,
            "verdict": self.verdict,
            "status": self.status,
            "change": self.change,
            "alpha": self.alpha,
            "smallest": self.smallest,
            "paired": self.paired,
            "max_pairs": self.max_pairs,
            "budget": None if self.budget is None else dataclasses.asdict(self.budget),
            "trees": {side: dataclasses.asdict(tree) for side, tree in (self.trees or {}).items()},
            "pairs": [dataclasses.asdict(pair) for pair in self.pairs],
            "differences": self.differences.tolist(),
            "means": sequence.means.tolist(),
            "half_widths": [h if ok else None for h, ok in zip(
                sequence.half_widths.tolist(), finite, strict=True)],
        }  # fmt: skip
