"""A picture of a comparison: the validation losses with bands, and their differences below."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.experiments.statistics import mean_half_width, paired_t, welch_t
from gpt_jax.run.plots import new_figure, render
from gpt_jax.storage import write_atomically

COLOURS = ("#6b7280", "#4269d0", "#d1495b", "#2a9d5c", "#b5701f", "#8a5cc2", "#1b9aaa")
Curve = tuple[str, np.ndarray, np.ndarray]  # label, steps (S,), losses (n, S)


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a picture.

    Raises:
      UserError: it is neither a .png nor an .svg in a folder that is there.
    """
    picture = Path(path).expanduser()
    if picture.suffix not in (".png", ".svg"):
        raise UserError(f"picture {path} must end in .png or .svg")
    if not picture.parent.is_dir():
        raise UserError(f"picture {path} can't be written: {picture.parent} is not a folder")
    if picture.is_dir():
        raise UserError(f"picture {path} is a folder; give it another name")
    return picture


def draw(
    path: str | os.PathLike[str],
    curves: Sequence[Curve],
    paired: Sequence[bool],
    level: float,
    unit: str,
    marks: Sequence[int] = (),
) -> Path:
    """Draws validation losses over the steps, and each one's difference from the first.

    A line is a mean; a band is its t interval. One run, or one pair, has no band.

    Args:
      path: of the picture, .png or .svg.
      curves: of each side, the baseline first.
      paired: for each curve after the first: its runs are paired with those of the first.
      level: of the bands, in (0, 1).
      unit: of the losses.
      marks: steps at which a branch parts, each a line.

    Returns:
      The path.

    Raises:
      UserError: it can't be written.
    """
    path = check_picture(path)
    figure = new_figure(8, 7)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for i, (label, steps, losses_NS) in enumerate(curves):
        means, halves = mean_band(losses_NS, level)
        _band(above, steps, means, halves, COLOURS[i % len(COLOURS)], f"{label} ({len(losses_NS)})")
    below.axhline(0, color=COLOURS[0], linewidth=1)
    for i, (curve, is_paired) in enumerate(zip(curves[1:], paired, strict=True), 1):
        steps, means, halves = difference_band(curves[0], curve, is_paired, level)
        _band(below, steps, means, halves, COLOURS[i % len(COLOURS)], curve[0])
    above.set_ylabel(f"validation loss ({unit})")
    below.set_ylabel(f"difference ({unit})")
    below.set_xlabel("optimizer step")
    above.set_title(f"means over seeds, with {100 * level:g}% intervals")
    below.set_title(f"difference from {curves[0][0]}", parse_math=False)
    for axes in (above, below):
        for step in marks:
            axes.axvline(step, color=COLOURS[0], linewidth=1, linestyle="--")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    legend = above.legend(frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return save(figure, path)


def save(figure: Any, path: Path) -> Path:
    """Writes a figure of matplotlib, the same bytes each time; raises UserError where it can't."""
    try:
        write_atomically(path, render(figure, path.suffix[1:]))
    except OSError as error:
        raise UserError(f"picture {path} can't be written: {error.strerror or error}") from error
    return path


def mean_band(losses_NS: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of n curves, (S,), and the half width of its t interval; 0 of one curve."""
    return losses_NS.mean(axis=0), np.nan_to_num(mean_half_width(losses_NS, level))


def difference_band(
    a: Curve, b: Curve, is_paired: bool, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the steps that both have, and b - a there with the half width of its interval."""
    steps, at_a, at_b = np.intersect1d(a[1], b[1], return_indices=True)
    test = paired_t if is_paired else welch_t
    found = [
        test(x, y, 1 - level)
        for x, y in zip(a[2][:, at_a].T, b[2][:, at_b].T, strict=True)
    ]  # fmt: skip
    means = np.array([each.mean for each in found])
    halves = np.array([each.half_width if each.is_judged else 0.0 for each in found])
    return steps, means, halves


def _band(
    axes: Any, steps: np.ndarray, means: np.ndarray, halves: np.ndarray, colour: str, label: str
) -> None:
    axes.plot(steps, means, color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
    axes.fill_between(steps, means - halves, means + halves, color=colour, alpha=0.2, linewidth=0)


def draw_sequence(path: str | os.PathLike[str], trial: Any) -> Path:
    """Draws the differences of a trial's pairs, and the confidence sequence of their mean.

    Args:
      path: of the picture, .png or .svg.
      trial: an `outcomes.Trial`.

    Returns:
      The path.

    Raises:
      UserError: it can't be written.
    """
    path = check_picture(path)
    figure = new_figure(8, 4.8)
    axes = figure.subplots()
    differences, sequence = trial.differences, trial.sequence
    pairs = np.arange(1, len(differences) + 1)
    axes.axhline(0, color=COLOURS[0], linewidth=1)
    axes.plot(pairs, differences, "o", color=COLOURS[1], alpha=0.6, label="change - base")
    axes.plot(pairs, sequence.means, color=COLOURS[2], label="mean so far")
    known = np.isfinite(sequence.half_widths)
    band = pairs[known], sequence.low[known], sequence.high[known]
    axes.fill_between(*band, color=COLOURS[2], alpha=0.2, linewidth=0)
    size = float(np.abs(differences).max(initial=0))
    if known.any():
        size = max(size, float(np.abs([sequence.low[known][-1], sequence.high[known][-1]]).max()))
    if size:  # the first intervals are many times as wide as the last
        axes.set_ylim(-1.5 * size, 1.5 * size)
    axes.set_xlabel("pair")
    axes.set_ylabel("difference (nats per token)")
    axes.set_title(trial.sentence, parse_math=False, fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return save(figure, path)
