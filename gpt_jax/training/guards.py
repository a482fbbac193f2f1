"""What is around a run while it is trained: its folder, locked, and its errors, each one line."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax

from gpt_jax.errors import ConfigError, TrainingError, UserError, is_out_of_memory
from gpt_jax.parallel import multihost
from gpt_jax.run.checkpoints import CheckpointError
from gpt_jax.run.folder import (
    CONFIG_FILE,
    clear_unfinished,
    create_run,
    is_run,
    run_record,
    update_config,
)
from gpt_jax.storage import open_folder, to_folder
from gpt_jax.training.branch_start import parent_numerics
from gpt_jax.training.history import numerics_now
from gpt_jax.training.memory import SUGGESTIONS
from gpt_jax.training.run_setup import RunSetup


@contextlib.contextmanager
def open_for_training(setup: RunSetup) -> Generator[Callable[[], None]]:
    """Creates or updates the run's folder, on host 0, and keeps it locked.

    Yields:
      a function for all hosts to call together, which raises TrainingError where the folder is not
      the locked one any more.

    Raises:
      UserError: it can't be created, is locked, or another host does not see it.
      TrainingError: what failed in it, because it was removed or replaced.
    """
    run_dir = to_folder(setup.config.run_dir)
    with contextlib.ExitStack() as held:

        def create_or_update() -> None:
            if not setup.resumes:
                now = parent_numerics(setup.branch) if setup.branch else numerics_now(setup.config)
                create_run(run_dir, setup.config, setup.corpus, setup.tokenizer, setup.origin, now)
            held.enter_context(open_folder(run_dir).lock())
            clear_unfinished(run_dir)
            if setup.resumes:
                update_config(run_dir, setup.config)

        multihost.all_agree(create_or_update if multihost.is_host0() else lambda: None)
        multihost.all_agree(lambda: _check_shared(run_dir), lambda seen: seen)
        is_there = lambda: True
        if multihost.is_host0():
            is_there = held.enter_context(open_folder(run_dir).watch(CONFIG_FILE))
        try:
            yield lambda: multihost.all_agree(lambda: _check_there(run_dir, is_there))
        except (OSError, UserError, TrainingError):
            _check_there(run_dir, is_there)
            raise


def _check_there(run_dir: Path, is_there: Callable[[], bool]) -> None:
    """Raises TrainingError where the run's folder is gone."""
    if not is_there():
        raise TrainingError(
            f"the run's folder {run_dir} was removed or replaced while it was trained, so training "
            "has ended and is not saved there; if it was moved, give its new place as --run-dir"
        )


def _check_shared(run_dir: Path) -> dict[str, Any]:
    """Returns what a host sees of the run's folder: one that is not shared differs, or is none."""
    if not is_run(run_dir):
        raise ConfigError(
            f"run_dir={run_dir} is not the folder that host 0 made: name one on a disk that all "
            "hosts share"
        )
    return {f"the run's {k}": v for k, v in dataclasses.asdict(run_record(run_dir)).items()}


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
