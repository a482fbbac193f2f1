"""The training driver: every side effect of training is here.

It checks everything before it computes anything, then alternates compiled chunks of steps with
evaluations, rows and checkpoints, and reacts to signals. What a step does is in `step.py`; what a
run's folder holds is in `run.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax.config import Config, fix_schedule, to_dict
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.console import Display
from gpt_jax.errors import ConfigError, Interrupted, OutOfTime, TrainingError, is_out_of_memory
from gpt_jax.model.attention import choose_attention
from gpt_jax.parallel import multihost
from gpt_jax.parallel.backend import target_backend
from gpt_jax.run import checkpoints as checkpoint
from gpt_jax.run.folder import create_run, is_run, read_summary, update_config
from gpt_jax.run.load import Run, load_run
from gpt_jax.run.metrics import MetricsWriter, bits_per_byte
from gpt_jax.storage import lock, to_folder
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.describe import describe_finished, describe_run
from gpt_jax.training.divergence import divergence_error, spike_limit
from gpt_jax.training.finalize import finalize
from gpt_jax.training.memory import SUGGESTIONS, check_memory
from gpt_jax.training.run_setup import RunSetup, prepare_run
from gpt_jax.training.signals import defer_signals
from gpt_jax.training.state import TrainState
from gpt_jax.version import __version__


def train(config: Config, *, quiet: bool = False) -> Run:
    """Trains a model as the settings say, or goes on where the folder's run stopped.

    A run that is finished is left as it is and returned. With more `train.steps` it goes on.

    Args:
      config: the settings; `config.run_dir` is the run's folder.
      quiet: print nothing.

    Returns:
      The finished run.

    Raises:
      UserError: a mistake to mend, before anything is computed.
      TrainingError: the loss is not finite any more, the disk refuses a checkpoint, or a device
        has no memory left.
      Interrupted: Ctrl-C or SIGTERM; the state is saved, and the same call goes on from it.
      OutOfTime: `train.max_minutes` are over; likewise.
    """
    display = Display(quiet or not multihost.is_host0())
    config = dataclasses.replace(config, run_dir=os.path.expanduser(config.run_dir))
    start = multihost.all_agree(lambda: _make_start(config, display), _must_be_alike)
    config, run_dir = start.config, to_folder(start.config.run_dir)
    if start.resumes and (run := _load_finished(start)):
        describe_finished(run, display)
        return run
    multihost.all_agree(lambda: _check_machine(start.config, resumes=start.resumes))
    with contextlib.ExitStack() as held:
        multihost.all_agree(lambda: _prepare_folder(start, held) if multihost.is_host0() else None)
        multihost.all_agree(lambda: _check_folder(run_dir))
        try:
            _train(start, display)
            return finalize(load_run(run_dir), start, display)
        except OSError as error:
            raise TrainingError(
                f"cannot write the run {run_dir}: {error.strerror or error}; its checkpoints stay, "
                "and the same command goes on from them"
            ) from error
        except (jax.errors.JaxRuntimeError, checkpoint.CheckpointError, TrainingError) as error:
            if problem := multihost.lost_host_message(error):
                raise TrainingError(
                    f"another host ended or can't be reached ({problem}); the checkpoints in "
                    f"{run_dir} stay, and the same command on every host goes on from them"
                ) from error
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"the memory is too small: {str(error).splitlines()[0]}; checkpoints stay; "
                + SUGGESTIONS
            ) from error


def _make_start(config: Config, display: Display) -> RunSetup:
    """Reads and checks all that a run starts from, on this host."""
    if config.model.vocab_size and not is_run(to_folder(config.run_dir)):
        _check_machine(fix_schedule(config))  # before a large corpus is looked for
    try:
        return prepare_run(config, display.download)
    finally:
        display.stop()


def _load_finished(start: RunSetup) -> Run | None:
    """Returns the run of the folder, if it has all its steps."""
    run_dir, steps = to_folder(start.config.run_dir), start.config.train.steps
    if read_summary(run_dir).get("step") != steps:
        return None
    run = load_run(run_dir)
    return run if run.step == steps else None  # else its last checkpoint is damaged


def _must_be_alike(start: RunSetup) -> dict[str, Any]:
    """Returns what the hosts of a run must have in common."""
    values = {name: get_field(start.config, name) for name, _, _ in iter_fields(Config)}
    versions = {"gpt_jax": __version__, "jax": jax.__version__}
    return {**versions, **values, "the corpus's sha256": start.corpus.sha256}


def _prepare_folder(start: RunSetup, held: contextlib.ExitStack) -> None:
    """Makes the run's folder, or brings its settings up to date, and locks it."""
    run_dir = to_folder(start.config.run_dir)
    if not start.resumes:
        create_run(run_dir, start.config, start.corpus, start.tokenizer, start.origin)
    held.enter_context(lock(run_dir))
    if start.resumes:
        update_config(run_dir, start.config)


def _check_folder(run_dir: Path) -> None:
    if not is_run(run_dir):
        raise ConfigError(
            f"run_dir={run_dir} is not the folder that host 0 made: name one on a disk that all "
            "hosts share"
        )


def _check_machine(config: Config, *, resumes: bool = False) -> None:
    """Raises UserError where this machine can't train as the settings say."""
    name, reason = choose_attention(config.model, target_backend())
    asked = config.model.attention
    if asked not in ("auto", name):
        raise ConfigError(f"model.attention={asked} can't be: {reason}; set model.attention=auto")
    check_memory(config, resumes=resumes)


def _train(start: RunSetup, display: Display) -> None:
    """Trains until `train.steps`; leaves a checkpoint of the last step."""
    config, train = start.config, start.config.train
    run_dir = to_folder(config.run_dir)
    minutes = math.inf if train.max_minutes is None else train.max_minutes
    deadline = time.monotonic() + 60 * minutes
    programs = CompiledSteps(config, start.splits)
    describe_run(start, programs, display)
    step, messages = multihost.broadcast_from_host0(lambda: checkpoint.newest_valid(run_dir))
    state = checkpoint.load(run_dir, step, programs.target) if step else None
    for message in messages:
        display.note(f"{message}; going on from step {step}")
    if 0 < step < train.steps:
        display.line(f"going on from step {step}")
    if step < train.steps:
        programs.start(step, initialises=start.params is None)
    keys = programs.keys()
    if state is None:
        state = (
            programs.state_from_params(start.params) if start.params else programs.init_state(keys)
        )
    val_bytes_per_token = start.splits["val"].bytes_per_token
    tokens_per_step = train.batch_size * config.model.block_size

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        losses = programs.evaluate(state, keys, step)
        train_loss, val_loss = np.asarray(losses, np.float64).tolist()
        val_bpb = bits_per_byte(val_loss, val_bytes_per_token)
        return {"train_loss": train_loss, "val_loss": val_loss, "val_bpb": val_bpb}

    writer = MetricsWriter(run_dir, step, multihost.is_host0())
    checkpoints = checkpoint.CheckpointWriter(
        run_dir, train.keep_checkpoints, train.keep_interval, train.keep_best
    )

    def read_chunk(step: int, metrics: dict[str, jax.Array]) -> dict[str, Any]:
        """Waits for a chunk's numbers; returns its row, of the steps that were not skipped."""
        values = {name: np.asarray(metric, np.float64) for name, metric in metrics.items()}
        n = len(values["loss"])
        limit = spike_limit(writer.rows, step - n, train.spike)
        sound = (values["loss"] < np.float32(limit)) & np.isfinite(values["grad_norm"])
        if not sound.all() and (train.on_divergence == "stop" or not sound.any()):
            worst = int(np.argmin(sound))
            where = f"at step {step - n + worst + 1}"
            loss, grad_norm = values["loss"][worst], values["grad_norm"][worst]
            raise divergence_error(
                where, loss, run_dir, checkpoints, grad_norm=grad_norm, limit=limit
            )
        row = {
            "step": step,
            "loss": values["loss"][sound].mean().item(),
            "grad_norm": values["grad_norm"][sound].mean().item(),
        }
        if "learning_rate" in values:
            row["learning_rate"] = values["learning_rate"][-1].item()
        if train.on_divergence == "skip":
            row["skipped"] = int(n - sound.sum())
            if row["skipped"]:
                which = ", ".join(str(step - n + i + 1) for i in np.flatnonzero(~sound))
                display.note(f"left out, for their loss or gradient: step {which}")
        return row

    def check_evaluation(row: dict[str, Any]) -> None:
        if not math.isfinite(row["train_loss"] + row["val_loss"]):
            where = f"in the evaluation at step {row['step']}"
            raise divergence_error(where, row["val_loss"], run_dir, checkpoints)

    with defer_signals(display.line) as caught, contextlib.ExitStack() as stack:
        for close in (programs.close, checkpoints.close, writer.close, display.stop):
            stack.callback(close)
        if step == 0:
            row = {"step": 0, **evaluate(state, 0), "tokens_per_second": None}
            check_evaluation(row)
            writer.write(row)
            display.evaluation(writer.rows[-1])
        display.start(step, train.steps)
        pending: tuple[int, dict[str, jax.Array]] | None = None
        mark, mark_step = time.perf_counter(), step
        while step < train.steps:
            n = programs.chunk_length(step)
            mark += programs.wait_for_chunk(n)  # compiling is not training
            limit = spike_limit(writer.rows, step, train.spike)
            state, metrics = programs.train_chunk(state, keys, step, n, limit)
            if pending:  # the numbers of one chunk are read while the next is computed
                writer.write(read_chunk(*pending))
                now = time.perf_counter()
                speed = (pending[0] - mark_step) * tokens_per_step / (now - mark)
                display.progress(pending[0], writer.rows[-1]["loss"], speed)
            step += n
            pending = (step, metrics)
            last = step == train.steps
            # What one host was told, all do.
            out_of_time = time.monotonic() >= deadline
            signum, out_of_time = multihost.all_reduce_max([max(caught, default=0), out_of_time])
            evaluating = last or step % train.eval_interval == 0
            saving = last or signum or out_of_time or step % train.checkpoint_interval == 0
            if not (evaluating or saving):
                continue
            row, pending = read_chunk(*pending), None
            seconds = time.perf_counter() - mark
            speed = (step - mark_step) * tokens_per_step / seconds
            if evaluating:
                row |= evaluate(state, step)
                row |= {"tokens_per_second": speed, "seconds": seconds}
                check_evaluation(row)
                mark_step = step
            writer.write(row)
            display.progress(step, row["loss"], speed)
            if evaluating:
                display.evaluation(row)
            if saving:
                if not programs.is_finite(state):
                    where = f"in the parameters after step {step}"
                    raise divergence_error(where, math.nan, run_dir, checkpoints)
                writer.sync()
                _save(checkpoints, step, state, config, row.get("val_loss"))
            if signum and not last:
                _save_last(checkpoints)
                name = signal.Signals(signum).name
                raise Interrupted(
                    signum,
                    f"{name}: saved at step {step} of {train.steps}; the same command goes on",
                )
            if out_of_time and not last:
                _save_last(checkpoints)
                raise OutOfTime(
                    f"{train.max_minutes:g} minutes are over: saved at step {step} of "
                    f"{train.steps}; the same command goes on"
                )
            if evaluating:
                mark = time.perf_counter()
        _save_last(checkpoints)


def _save(
    checkpoints: checkpoint.CheckpointWriter,
    step: int,
    state: TrainState,
    config: Config,
    val_loss: float | None,
) -> None:
    try:
        checkpoints.save(step, state, to_dict(config), val_loss)
    except checkpoint.CheckpointError as error:
        raise TrainingError(str(error)) from error


def _save_last(checkpoints: checkpoint.CheckpointWriter) -> None:
    try:
        checkpoints.wait()
    except checkpoint.CheckpointError as error:
        raise TrainingError(str(error)) from error
