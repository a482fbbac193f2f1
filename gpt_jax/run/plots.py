"""How pictures are made and rendered, and those of a run. Never imports jax."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from gpt_jax.storage import open_folder

# A fixed salt, so that equal rows give equal bytes; and text as text, which can be searched.
STYLE: Any = {"svg.hashsalt": "gpt_jax", "svg.fonttype": "none"}
SUFFIXES = ("svg", "png")
TRAIN_COLOUR, VAL_COLOUR, MARK_COLOUR = "#4269d0", "#d1495b", "#6b7280"


def new_figure(width: float, height: float) -> Any:
    """Returns a figure of matplotlib without a window; its sizes are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render(figure: Any, suffix: str) -> bytes:
    """Returns a figure as a file ending in "svg" or "png", the same bytes each time."""
    import matplotlib

    picture = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in Chinese
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(picture, format=suffix, dpi=144, metadata=metadata)
    return picture.getvalue()


def plot_losses(
    rows: list[dict[str, Any]],
    run_dir: Path,
    title: str,
    parts: tuple[int, str] | None = None,
) -> Path:
    """Draws the training and validation loss over the steps.

    Args:
      rows: of metrics.jsonl.
      run_dir: where loss.png and loss.svg go.
      title: above the picture.
      parts: of a branch: the step at which it parts from its parent, and the mark's label.

    Returns:
      The path of loss.png.
    """
    figure = new_figure(8, 4.8)
    axes = figure.add_subplot()
    chunks = [row for row in rows if "loss" in row]
    axes.plot(
        [row["step"] for row in chunks],
        [row["loss"] for row in chunks],
        color=TRAIN_COLOUR,
        alpha=0.3,
        linewidth=1,
        label="training batches, with dropout",
    )
    evaluations = [row for row in rows if "val_loss" in row]
    steps = [row["step"] for row in evaluations]
    for name, field, colour in (
        ("train", "train_loss", TRAIN_COLOUR),
        ("validation", "val_loss", VAL_COLOUR),
    ):
        losses = [row[field] for row in evaluations]
        label = f"{name}, now {losses[-1]:.3f}" if losses else name
        axes.plot(steps, losses, color=colour, marker="o", markersize=3.5, label=label)
    if parts is not None:
        axes.axvline(parts[0], color=MARK_COLOUR, linewidth=1, linestyle="--", label=parts[1])
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross-entropy loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    for suffix in SUFFIXES:
        open_folder(run_dir).write(f"loss.{suffix}", render(figure, suffix))
    return run_dir / "loss.png"
