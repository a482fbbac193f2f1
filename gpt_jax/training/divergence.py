"""Divergence: losses or gradients that are not finite, and loss spikes.

Everything is decided step by step, so that it does not depend on how steps are grouped in chunks.
Functions of numbers alone: what is done about it, `trainer.py` decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from gpt_jax.config import TrainConfig
from gpt_jax.errors import Diverged


@dataclasses.dataclass(frozen=True)
class Divergence:
    """A step that diverged; or anything else that did, such as an evaluation.

    Attributes:
      loss: nats per token.
      grad_norm: global L2 norm of the gradient.
      loss_limit: a loss of this or more is a spike.
    """

    loss: float
    grad_norm: float = 0.0
    loss_limit: float = math.inf

    def __str__(self) -> str:
        if math.isfinite(self.loss + self.grad_norm):
            return f"the loss is a spike ({self.loss:.4g}, and the limit {self.loss_limit:.4g})"
        return f"the loss or its gradient is not finite ({self.loss + self.grad_norm})"


_FIELDS = tuple(field.name for field in dataclasses.fields(Divergence))


def sound_steps(
    losses: np.ndarray, grad_norms: np.ndarray, loss_limits: np.ndarray | float
) -> np.ndarray:
    """Returns which steps of a chunk are sound, bool (steps,).

    A step is sound where its loss is below its limit and its gradient is finite. The compiled step
    compares the same way, in float32, when it skips an update.

    Args:
      losses: of each step, nats per token, (steps,).
      grad_norms: global L2 norms of the gradients, (steps,).
      loss_limits: of each step, (steps,), or of all.
    """
    return (losses < np.asarray(loss_limits, np.float32)) & np.isfinite(grad_norms)


def find_end(
    values: Mapping[str, np.ndarray], is_sound: np.ndarray, skipped_before: int, train: TrainConfig
) -> tuple[int, Divergence] | None:
    """Returns (index, what happened) of the step of a chunk at which the run has to end, or None.

    Args:
      values: the metrics of `step.make_train_chunk`, each (steps,).
      is_sound: see `sound_steps`.
      skipped_before: consecutive steps just before the chunk that were skipped.
      train: with `on_divergence` "stop" the run ends at the first step that is not sound, with
        "skip" at the `max_skipped`th in a row.
    """
    most = train.max_skipped if train.on_divergence == "skip" else 1
    in_a_row = skipped_before
    for i, sound in enumerate(is_sound):
        in_a_row = 0 if sound else in_a_row + 1
        if in_a_row >= most:
            found = {name: values[name][i].item() for name in _FIELDS if name in values}
            return i, Divergence(**found)
    return None


def describe_end(step: int, train: TrainConfig) -> str:
    """Returns where a run ends that diverged at `step`."""
    if train.on_divergence == "stop":
        return f"at step {step}"
    return f"at step {step}, the last of {train.max_skipped} skipped in a row (train.max_skipped)"


def divergence_error(
    divergence: Divergence, where: str, run_dir: str, newest: int | None, train: TrainConfig
) -> Diverged:
    """Returns the error that ends a run; it recommends what is not set already.

    Args:
      divergence: what happened.
      where: "at step 8", "in the evaluation at step 8".
      run_dir: the run's folder.
      newest: the step of its newest checkpoint; None without any.
      train: the settings of the run.
    """
    kept = "none had been saved" if newest is None else f"that of step {newest} stays"
    way_out = "or --train.on-divergence skip, "
    if train.on_divergence == "skip":
        way_out = ""
    return Diverged(
        f"{divergence} {where}; of the checkpoints in {run_dir}, {kept}. Try a smaller "
        f"--optim.learning-rate, {way_out}with another --run-dir"
    )
