"""The state of a run after any of its steps: from the checkpoint before it, the rest recomputed.

A step is a function of the run's folder and its corpus, so nothing had to be recorded for this. The
run's folder is not changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gpt_jax.config import Config
from gpt_jax.errors import UserError
from gpt_jax.prng import Keys
from gpt_jax.run import checkpoints
from gpt_jax.run.metrics import read_rows
from gpt_jax.training.branches import first_step
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.init_from import reload_initial_params
from gpt_jax.training.rows import recent_losses, step_losses
from gpt_jax.training.state import TrainState


def nearest_checkpoint(run_dir: str | os.PathLike[str], step: int) -> tuple[int, list[str]]:
    """Returns the newest valid checkpoint up to a step, and a message for each damaged one passed.

    0 is the run's beginning.

    Raises:
      UserError: there is none, and the folder does not begin at step 0.
    """
    messages = []
    for at in reversed([at for at in checkpoints.steps(run_dir) if at <= step]):
        path = checkpoints.path_of(run_dir, at)
        if not (found := checkpoints.problem(path)):
            return at, messages
        messages.append(f"checkpoint {path} is damaged: {found}")
    if began := first_step(run_dir):
        why = f" ({messages[0]})" if messages else ""
        raise UserError(
            f"{run_dir} begins at step {began} and has no valid checkpoint up to step {step}{why}, "
            "so that state can't be recomputed from it"
        )
    return 0, messages


def state_after(
    programs: CompiledSteps,
    config: Config,
    keys: Keys,
    from_step: int,
    step: int,
    between: Callable[[int], None] = lambda at: None,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Returns a run's state after a step, and the metrics of the steps recomputed for it.

    Args:
      programs: of the run.
      config: its settings; `config.run_dir` is its folder.
      keys: of its seeds.
      from_step: see `nearest_checkpoint`.
      step: at or after it.
      between: called with the step reached before each compiled call.

    Returns:
      The state, and the metrics of `step.make_train_chunk`, float64 (step - from_step,) each; none
      where nothing was recomputed.

    Raises:
      UserError: what the run started from is not available any more.
    """
    if from_step:
        state = _load(config.run_dir, from_step, programs)
    elif config.init_from is not None:
        state = programs.state_from_params(reload_initial_params(config)[0])
    else:
        state = programs.init_state(keys)
    if from_step == step:
        return state, {}
    losses = step_losses(read_rows(config.run_dir), from_step)
    at, recent, parts = from_step, recent_losses(losses, config.train.spike_window), []
    while at < step:
        between(at)
        n = min(programs.chunk_length(at), step - at)
        state, metrics = programs.train_chunk(state, keys, at, n, recent)
        recent = metrics.pop("recent_losses", recent)
        parts.append(metrics)
        at += n
    return state, _joined(parts)


def _load(run_dir: str, step: int, programs: CompiledSteps) -> TrainState:
    """Returns the state of a checkpoint, which a run that is being trained may remove meanwhile."""
    try:
        return checkpoints.load(run_dir, step, programs.abstract_state)
    except checkpoints.CheckpointError as error:
        if step in checkpoints.steps(run_dir):
            raise
        raise UserError(
            f"{run_dir} is being trained, and has removed its checkpoint of step {step} meanwhile; "
            "run the same command again"
        ) from error


def _joined(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the metrics of consecutive calls as one; float64."""
    return {
        name: np.concatenate([np.asarray(part[name], np.float64) for part in parts])
        for name in parts[0]
    }
