"""The progress of a sweep: a bar, a table of the members that run, a line for each that ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gpt_jax.console import Display, WorkProgress, format_duration
from gpt_jax.experiments.members import Member

MOST_RUNNING, MOST_ENDED = 10, 5  # rows of the table


class SweepProgress:
    """What is known of a sweep's members while they run."""

    def __init__(self, display: Display, members: Sequence[Member], steps: Sequence[int]):
        """Opens the bar.

        Args:
          display: where to show it.
          members: of the sweep.
          steps: of each.
        """
        self._display, self._members, self._steps = display, members, steps
        self._at: dict[int, tuple[int, float | None]] = {}  # those that run: step, training loss
        self._losses: dict[int, float | None] = {}  # those that have ended
        self._before = 0  # steps of members that had ended before
        self._began = time.monotonic()
        self._bar = WorkProgress(display, 0, sum(steps), self.rows)

    @property
    def _done(self) -> int:
        ended = sum(self._steps[i] for i in self._losses)
        return ended + sum(step for step, _ in self._at.values())

    @property
    def _best(self) -> tuple[float, int] | None:
        """The lowest loss so far, and whose."""
        return min(((x, i) for i, x in self._losses.items() if x is not None), default=None)

    def was_done(self, i: int, loss: float | None) -> None:
        """Counts a member that had ended before."""
        self._losses[i] = loss
        self._before = self._done

    def row(self, i: int, row: dict[str, Any]) -> None:
        """Moves the bar by a member's row."""
        _, before = self._at.get(i, (0, None))
        self._at[i] = row["step"], row.get("loss", before)
        best = "" if self._best is None else f"  best {self._best[0]:.4f}"
        self._bar.update(self._done, f"{len(self._losses)} of {len(self._members)} runs done{best}")

    def ended(self, i: int, loss: float | None) -> None:
        """Prints the line of a member: its loss, the best so far, the time left."""
        self._at.pop(i, None)
        self._losses[i] = loss
        left = ""
        if len(self._losses) < len(self._members):
            rate = (time.monotonic() - self._began) / max(1, self._done - self._before)
            left = f"; about {format_duration(rate * (sum(self._steps) - self._done))} left"
        best = ""
        if self._best is not None:
            best = f"; best {self._best[0]:.4f} ({self._members[self._best[1]]})"
        n = f"{len(self._losses)}/{len(self._members)}"
        self._display.line(f"{n}  {_shown(loss)}  {self._members[i]}{best}{left}")

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the table, its heading first: the members that run, then the best that ended."""
        rows = [("run", "step", "loss", "")]
        for i, (step, loss) in sorted(self._at.items())[:MOST_RUNNING]:
            shown = "" if loss is None else f"{loss:.3f}"
            rows.append((str(self._members[i]), f"{step}/{self._steps[i]}", shown, "training"))
        if len(self._at) > MOST_RUNNING:
            rows.append((f"and {len(self._at) - MOST_RUNNING} more", "", "", "training"))
        by_loss = sorted(self._losses, key=lambda i: (self._losses[i] is None, self._losses[i]))
        for place, i in enumerate(by_loss[:MOST_ENDED]):
            what = "best so far" if place == 0 and self._losses[i] is not None else "done"
            rows.append((str(self._members[i]), str(self._steps[i]), _shown(self._losses[i]), what))
        return rows


def _shown(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.4f}"
