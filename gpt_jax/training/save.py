"""A run in memory, written as a run's folder: `gpt_jax.save_run`."""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import to_dict
from gpt_jax.errors import UserError
from gpt_jax.run.checkpoints import CheckpointWriter
from gpt_jax.run.folder import check_folder, create_run
from gpt_jax.run.load import Run
from gpt_jax.run.metrics import write_rows
from gpt_jax.storage import open_folder
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.state import TrainState, state_from_params, state_shapes


def save_run(run: Run, folder: str | os.PathLike[str]) -> None:
    """Writes a run as a folder of its own, with its parameters as they are now.

    It reads as any run, and training resumes it from `run.step`: with the learning rate of that
    step, and with an optimizer that has seen no gradient yet.

    Args:
      run: its parameters may have been changed: `dataclasses.replace(run, params=...)`.
      folder: a new one, or an empty one.

    Raises:
      UserError: the folder is in use or can't be written, the parameters do not fit the model, or
        the run has no step or no corpus.
    """
    path = open_folder(folder).path
    if not run.corpus or run.step < 1:
        raise UserError(
            f"{run.run_dir} has no steps of training to save; for its model alone: "
            "gpt_jax.hf.save(folder, run.config.model, run.params)"
        )
    _check_params(run)
    check_folder(path)
    config = dataclasses.replace(run.config, run_dir=str(path))
    origin = {"source": str(run.run_dir), "step": run.step}
    create_run(path, config, run.corpus, run.tokenizer, origin)
    write_rows(path, run.rows)
    writer = CheckpointWriter(path, keep_newest=1)
    try:
        writer.save(run.step, _state(run), to_dict(config))
    finally:
        writer.close()


def _check_params(run: Run) -> None:
    wanted = state_shapes(run.config.model, run.config.optim).params
    shapes = lambda tree: jax.tree.map(lambda x: (tuple(x.shape), np.dtype(x.dtype)), tree)
    if shapes(run.params) != shapes(wanted):
        raise UserError(
            "the parameters of the run have other names, shapes or types than its model"
        )


def _state(run: Run) -> TrainState:
    """Returns the state after `run.step` steps: new but for its parameters and counts of steps."""
    params = jax.tree.map(jnp.asarray, run.params)
    state = state_from_params(params, make_optimizer(run.config.optim))
    is_count = lambda x: jnp.issubdtype(x.dtype, jnp.integer)
    return jax.tree.map(lambda x: jnp.full_like(x, run.step) if is_count(x) else x, state)
