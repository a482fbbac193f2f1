"""The settings of a sweep, a `Comparison` with the baseline each, which print as one table."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from gpt_jax.errors import BETTER, NOT_SHOWN, WORSE
from gpt_jax.experiments import report
from gpt_jax.experiments.verdicts import Comparison, Group, standard_error


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """The settings of a sweep, each beside the baseline.

    Attributes:
      items: a comparison each; `a` is the baseline in all of them.
      notes: what else a reader must know.
    """

    items: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> int:
        """0 where any setting is better than the baseline; else 4 where any is worse; else 3."""
        statuses = {each.status for each in self.items}
        return next(status for status in (BETTER, WORSE, NOT_SHOWN) if status in statuses)

    def table(self) -> list[tuple[str, ...]]:
        first = self.items[0]
        head = ("setting", "mean", "difference", "interval", "p", "verdict")
        rows = [head, (first.a.label, _mean(first.a, first), "", "", "", "baseline")]
        for each in self.items:
            error = each.estimate.half_width
            cells = ["", f"{each.estimate.mean:+.4f}", "", ""]
            if each.estimate.is_judged:
                mean = report.number(each.estimate.mean, error, "+")
                cells = [
                    "",
                    mean,
                    report.half_width(error),
                    report.p_value(each.p)[2:].lstrip("= "),
                ]
            cells[0] = _mean(each.b, each)
            rows.append((each.b.label, *cells, each.verdict))
        return rows

    @property
    def remarks(self) -> list[str]:
        first, n = self.items[0], len(self.items)
        lines = [f"note: {note}" for note in self.notes]
        if n > 1:
            lines.append(
                f"note: p is corrected for {n} comparisons by Holm's method; each interval is that "
                "of one comparison"
            )
        for each in self.items:
            if each.why_unpaired:
                lines.append(f"note: {each.b.label} is not paired: {each.why_unpaired}")
            lines += [f"note: {each.b.label}: {note}" for note in each.notes]
        lines += [f"{each.b.label}: {each.sentence}" for each in self.items]
        return [f"against {first.a.label}, {first.metric.title} ({first.metric.unit})", *lines]

    def __str__(self) -> str:
        head, *lines = self.remarks
        return "\n\n".join([head, report.text_table(self.table()), "\n".join(lines)])

    def markdown(self) -> str:
        head, *lines = self.remarks
        listed = "\n".join(f"- {line}" for line in lines)
        return "\n\n".join([head, report.markdown_table(self.table()), listed])

    _repr_markdown_ = markdown

    def record(self) -> dict[str, Any]:
        """Returns the results for JSON."""
        return {
            "status": self.status,
            "baseline": self.items[0].a.label,
            "comparisons": [each.record() for each in self.items],
            "notes": list(self.notes),
        }

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws the curves and their differences from the baseline; see `curves.draw`."""
        from gpt_jax.experiments.curves import draw

        groups = [self.items[0].a, *(each.b for each in self.items)]
        curves = [(g.label, g.steps, g.losses_NS) for g in groups]
        paired = [each.is_paired for each in self.items]
        first = self.items[0]
        return draw(path, curves, paired, 1 - first.alpha, first.metric.curve_unit)


def _mean(group: Group, comparison: Comparison) -> str:
    spread = max(standard_error(each.values) for each in (comparison.a, comparison.b))
    return report.number(group.mean, spread)
