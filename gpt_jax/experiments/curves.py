"""A picture of a comparison: the validation losses with bands, and their differences below."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.experiments.statistics import mean_half_width, paired_t, welch_t
from gpt_jax.storage import write_atomically

COLOURS = ("#6b7280", "#4269d0", "#d1495b", "#2a9d5c", "#b5701f", "#8a5cc2", "#1b9aaa")
STYLE: Any = {"svg.hashsalt": "gpt_jax", "svg.fonttype": "none"}
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
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = check_picture(path)
    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
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
    picture = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(picture, format=path.suffix[1:], dpi=144, metadata=metadata)
    try:
        write_atomically(path, picture.getvalue())
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
