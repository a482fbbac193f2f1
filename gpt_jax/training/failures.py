"""Errors that end training, each as one line: what happened, what stays, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import jax

from gpt_jax.errors import TrainingError, is_out_of_memory
from gpt_jax.parallel import multihost
from gpt_jax.run.checkpoints import CheckpointError
from gpt_jax.training.memory import SUGGESTIONS


@contextlib.contextmanager
def one_line_errors(run_dir: Path) -> Generator[None]:
    """Turns a write that fails, a lost host and a full memory each into one line.

    Raises:
      TrainingError: that line.
    """
    stay = f"the checkpoints in {run_dir} stay; run the same command"
    try:
        yield
    except OSError as error:
        problem = f"cannot write the run {run_dir}: {error.strerror or error}"
        raise TrainingError(f"{problem}; {stay} to resume") from error
    except (jax.errors.JaxRuntimeError, CheckpointError, TrainingError) as error:
        if lost := multihost.lost_host_message(error):
            problem = f"another host ended or can't be reached ({lost})"
            raise TrainingError(f"{problem}; {stay} on every host to resume") from error
        if not is_out_of_memory(error):
            raise
        problem = f"the memory is too small: {str(error).splitlines()[0]}"
        raise TrainingError(f"{problem}; checkpoints stay; {SUGGESTIONS}") from error


@contextlib.contextmanager
def failed_save() -> Generator[None]:
    """Makes a checkpoint that can't be saved end training, with exit status 1.

    Raises:
      TrainingError: in place of a CheckpointError, which is a UserError where one is read.
    """
    try:
        yield
    except CheckpointError as error:
        raise TrainingError(str(error)) from error
