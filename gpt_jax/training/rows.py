"""The rows of training: what a row says of a chunk, and what earlier rows say of each step.

Functions of numbers alone. A run that skips steps or looks for spikes writes the loss of each step,
so that a resumed run and `replay` have the limits that training had.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.config import TrainConfig


def chunk_row(
    step: int, values: Mapping[str, np.ndarray], is_sound: np.ndarray, train: TrainConfig
) -> dict[str, Any]:
    """Returns the row of a chunk: the means of its sound steps; without any there is no loss.

    Args:
      step: the last of the chunk.
      values: the metrics of `step.make_train_chunk`, each (steps,).
      is_sound: see `divergence.sound_steps`.
      train: the settings of the run.
    """
    row: dict[str, Any] = {"step": step}
    if is_sound.any():
        row |= {name: values[name][is_sound].mean().item() for name in ("loss", "grad_norm")}
    if "learning_rate" in values:
        row["learning_rate"] = values["learning_rate"][-1].item()
    if train.on_divergence == "skip":
        row["skipped"] = int(np.count_nonzero(~is_sound))
    if train.on_divergence == "skip" or train.spike is not None:
        row["step_losses"] = losses_by_step(values["loss"], is_sound)
    return row


def losses_by_step(losses: np.ndarray, is_sound: np.ndarray) -> list[float | None]:
    """Returns the losses of a chunk's steps, None for each that is not sound."""
    return [x if sound else None for x, sound in zip(losses.tolist(), is_sound, strict=True)]


def count_last_skipped(losses: Iterable[float | None], before: int = 0) -> int:
    """Returns how many steps in a row, up to the last, have None for a loss: they were skipped."""
    for loss in losses:
        before = 0 if loss is not None else before + 1
    return before


def step_losses(rows: Sequence[Mapping[str, Any]], step: int) -> list[float | None]:
    """Returns the loss of each step up to `step`, from the rows; None for one that was skipped.

    A row without the losses of its steps, as in an older run, counts as its mean for each of them.
    """
    losses: list[float | None] = []
    before = 0
    for row in rows:
        if row["step"] > step or ("loss" not in row and "step_losses" not in row):
            continue
        mean = row.get("loss")
        values = row.get("step_losses", [mean] * max(0, row["step"] - before))
        losses += [x if isinstance(x, int | float) else None for x in values]
        before = row["step"]
    return losses


def recent_losses(losses: Sequence[float | None], window: int) -> np.ndarray:
    """Returns the last losses of steps that were not skipped, float32 (window,); NaN before."""
    known = [loss for loss in losses if loss is not None][-window:]
    return np.array([math.nan] * (window - len(known)) + known, np.float32)
