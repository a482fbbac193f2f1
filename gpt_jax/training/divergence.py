"""Divergence: losses or gradients that are not finite, and loss spikes.

Functions of numbers alone: what is done about it, `trainer.py` decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import TrainingError


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The steps of a chunk that diverged; of anything else, such as an evaluation, only numbers.

    Attributes:
      loss: of the first of these steps, nats per token.
      grad_norm: its global L2 norm of the gradient.
      loss_limit: a loss of this or more is a spike.
      is_sound: bool (steps,), False for each step that diverged.
    """

    loss: float
    grad_norm: float = 0.0
    loss_limit: float = math.inf
    is_sound: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1, bool))

    @property
    def first(self) -> int:
        """The index in the chunk of the first step that diverged."""
        return int(np.argmin(self.is_sound))

    @property
    def is_whole_chunk(self) -> bool:
        """Whether no step of the chunk is sound."""
        return not self.is_sound.any()

    def __str__(self) -> str:
        if math.isfinite(self.loss + self.grad_norm):
            return f"the loss is a spike ({self.loss:.4g}, and the limit {self.loss_limit:.4g})"
        return f"the loss or its gradient is not finite ({self.loss + self.grad_norm})"


def find_divergence(
    losses: np.ndarray, grad_norms: np.ndarray, loss_limit: float
) -> Divergence | None:
    """Returns which steps of a chunk diverged, None where none did.

    A step is sound where its loss is below the limit and its gradient is finite. The compiled step
    compares the same way, in float32, when it skips an update.

    Args:
      losses: of each step, nats per token, (steps,).
      grad_norms: global L2 norms of the gradients, (steps,).
      loss_limit: see `spike_limit`.
    """
    is_sound = (losses < np.float32(loss_limit)) & np.isfinite(grad_norms)
    if is_sound.all():
        return None
    first = int(np.argmin(is_sound))
    return Divergence(float(losses[first]), float(grad_norms[first]), loss_limit, is_sound)


def divergence_error(
    divergence: Divergence, where: str, run_dir: str, newest: int | None
) -> TrainingError:
    """Returns the error that ends a run.

    Args:
      divergence: what happened.
      where: "at step 8", "in the evaluation at step 8".
      run_dir: the run's folder.
      newest: the step of its newest checkpoint; None without any.
    """
    kept = "none had been saved" if newest is None else f"that of step {newest} stays"
    return TrainingError(
        f"{divergence} {where}; of the checkpoints in {run_dir}, {kept}. Try a smaller "
        "--optim.learning-rate, or --train.on-divergence skip, with another --run-dir"
    )


def spike_limit(rows: Sequence[Mapping[str, Any]], step: int, spike: float | None) -> float:
    """Returns the loss limit of the chunk that begins at `step`: this loss or more is a spike.

    It is `spike` times the loss of the last row before `step`, infinite without one. The row at
    `step` itself does not count: when the chunk begins, it has not been read yet.
    """
    if spike is None:
        return math.inf
    losses = (row["loss"] for row in reversed(rows) if "loss" in row and row["step"] < step)
    return spike * next(losses, math.inf)
