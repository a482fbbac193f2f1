"""Divergence: losses or gradients that are not finite, and loss spikes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_jax.errors import TrainingError
from gpt_jax.run import checkpoints as checkpoint


def divergence_error(
    where: str,
    loss: float,
    run_dir: Path,
    checkpoints: checkpoint.CheckpointWriter,
    *,
    grad_norm: float = 0.0,
    limit: float = math.inf,
) -> TrainingError:
    """Returns the error of a loss that went astray, once the save under way is done."""
    with contextlib.suppress(checkpoint.CheckpointError):
        checkpoints.wait()
    sound = max(checkpoint.steps(run_dir), default=None)
    kept = "none had been saved" if sound is None else f"that of step {sound} stays"
    what = f"the loss or its gradient is not finite ({loss + grad_norm})"
    if math.isfinite(loss + grad_norm):
        what = f"the loss is a spike ({loss:.4g}, and the limit {limit:.4g})"
    return TrainingError(
        f"{what} {where}; of the checkpoints in {run_dir}, {kept}. Try a smaller "
        "--optim.learning-rate, or --train.on-divergence skip, with another --run-dir"
    )


def spike_limit(rows: Sequence[Mapping[str, Any]], step: int, spike: float | None) -> float:
    """Returns the loss from which on it is a spike, in the chunk of steps that begins at `step`.

    It is `spike` times the loss of the last row before: the row at `step` itself is not read yet
    when that chunk begins.
    """
    if spike is None:
        return math.inf
    losses = (row["loss"] for row in reversed(rows) if "loss" in row and row["step"] < step)
    return spike * next(losses, math.inf)
