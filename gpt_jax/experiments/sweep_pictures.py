"""Pictures of a sweep: the curves of its settings with bands, and final losses against each one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.experiments.grid import show, show_values
from gpt_jax.experiments.statistics import mean_half_width
from gpt_jax.run.plots import SUFFIXES, new_figure, render
from gpt_jax.storage import open_folder

MOST_NAMED = 12  # settings in a legend


def draw(sweep: Any) -> list[Path]:
    """Writes curves.png and final.png, each also as .svg, into the sweep's folder.

    Args:
      sweep: a `sweep_results.Sweep`.

    Returns:
      The paths of the .png files; that of final.png only where something is varied.
    """
    names = list(sweep.settings[0].values)
    drawn = [("curves", 1, _draw_curves)]
    if names:
        drawn.append(("final", len(names), _draw_final))
    for name, panels, function in drawn:
        figure = new_figure(8, 4.8) if panels == 1 else new_figure(4.5 * panels, 4.2)
        all_axes = figure.subplots(1, panels, squeeze=False, sharey=True)[0]
        function(sweep, all_axes)
        for axes in all_axes:
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        _save(figure, sweep.folder, name)
    return [sweep.folder / f"{name}.png" for name, _, _ in drawn]


def _draw_curves(sweep: Any, all_axes: Any) -> None:
    """The mean validation loss of each setting over the steps, with its 95% interval."""
    from matplotlib import colormaps

    axes = all_axes[0]
    for i, setting in enumerate(sweep.settings):
        mine = [m for m in sweep.members if m.member.values == setting.values and len(m.steps)]
        if not mine:
            continue
        steps = mine[0].steps
        for each in mine[1:]:
            steps = np.intersect1d(steps, each.steps)
        losses_NS = np.stack([m.losses[np.isin(m.steps, steps)] for m in mine])
        means, halves = losses_NS.mean(axis=0), np.nan_to_num(mean_half_width(losses_NS))
        colour = colormaps["viridis"](0.85 * i / max(1, len(sweep.settings) - 1))
        label = show_values(setting.values) if i < MOST_NAMED else None
        axes.plot(steps, means, color=colour, label=label)
        axes.fill_between(steps, means - halves, means + halves, color=colour, alpha=0.2, lw=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_title("means over seeds, with 95% intervals")
    if axes.lines:
        for text in axes.legend(frameon=False, fontsize="small").get_texts():
            text.set_parse_math(False)


def _draw_final(sweep: Any, all_axes: Any) -> None:
    """The final exact loss of each member against the value of each varied setting."""
    for axes, name in zip(all_axes, sweep.settings[0].values, strict=True):
        values = [setting.values[name] for setting in sweep.settings]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        labels = sorted(set(map(show, values)))
        place = (lambda v: v) if numbers else (lambda v, labels=labels: labels.index(show(v)))
        for setting in sweep.settings:
            x = np.full(len(setting.losses), place(setting.values[name]), float)
            axes.plot(x, setting.losses, "o", color="#4269d0", alpha=0.5, markersize=4)
            if setting.is_whole:
                half = np.nan_to_num(setting.half_width)
                axes.errorbar(x[:1], [setting.mean], yerr=half, fmt="_", color="#d1495b")
        if not numbers:
            axes.set_xticks(range(len(labels)), labels)
        elif min(values) > 0 and max(values) > 5 * min(values):
            axes.set_xscale("log")
        axes.set_xlabel(name)
    all_axes[0].set_ylabel("final validation loss (nats per token)")


def _save(figure: Any, folder: Path, name: str) -> None:
    for suffix in SUFFIXES:
        open_folder(folder).write(f"{name}.{suffix}", render(figure, suffix))
