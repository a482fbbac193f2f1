"""Where two runs part of which one is a branch of the other, or both of a third. Never imports jax.

A run that is a branch knows its ancestors, see `training.branches.branch_record`: so the parting is
found also where they are gone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from gpt_jax.experiments.report import ranges
from gpt_jax.experiments.sides import RunFiles
from gpt_jax.training.branches import place


def parting_step(a: RunFiles, b: RunFiles) -> int | None:
    """Returns the last step that two runs have in common; None where neither branched."""
    found = 0.0
    for (x, x_id, x_step), (y, y_id, y_step) in zip(_chain(a), _chain(b), strict=False):
        if x_id != y_id or (x_id is None and x != y):
            break
        found = min(x_step, y_step)
    return int(found) if 0 < found < math.inf else None


def _chain(run: RunFiles) -> list[tuple[str, str | None, float]]:
    """Returns (folder, id, step at which the next one parts) of each ancestor and the run."""
    known = []
    for each in run.lineage:
        step = each.get("step")
        known.append((str(each.get("path")), each.get("id"), step if type(step) is int else 0))
    return [*known, (place(run.run_dir), run.id, math.inf)]


def partings(
    a: Sequence[RunFiles], b: Sequence[RunFiles], *, paired: bool
) -> tuple[list[int], bool]:
    """Returns the steps at which runs of two sides part, and whether all of them were one."""
    couples = zip(a, b, strict=True) if paired else itertools.product(a, b)
    found = [parting_step(x, y) for x, y in couples]
    return sorted({step for step in found if step is not None}), None not in found


def parting_note(a: str, b: str, steps: Sequence[int], *, all_part: bool) -> str:
    """Returns what a reader must know of two sides that were one."""
    of = "" if all_part else "some runs of "
    where = f"step {steps[0]}" if len(steps) == 1 else f"steps {ranges(list(steps))}"
    return f"{of}{b} and {a} part at {where}: up to it they have the same steps"
