"""The training driver: every side effect of training is here.

`train` checks everything before anything is computed; a `Trainer` then alternates compiled chunks
of steps with evaluations, rows and checkpoints, and reacts to signals. What a step does is in
`step.py`; what a run's folder holds is in `run/folder.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import jax
import numpy as np

from gpt_jax import numerics
from gpt_jax.config import Config, fix_schedule, to_dict
from gpt_jax.console import Display, TrainingProgress
from gpt_jax.errors import Interrupted, OutOfTime, TrainingError
from gpt_jax.input_pipeline.shards.background import SumCheck
from gpt_jax.parallel import multihost
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.mesh import params_mesh_over_hosts
from gpt_jax.run import checkpoints as checkpoint
from gpt_jax.run.folder import is_run, read_summary
from gpt_jax.run.load import Run, load_run
from gpt_jax.run.metrics import MetricsWriter, bits_per_byte
from gpt_jax.storage import to_folder
from gpt_jax.training.branch_start import BranchStart, start_branch
from gpt_jax.training.branches import mark
from gpt_jax.training.compared import compared_on_hosts
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.describe import describe_changes, describe_finished, describe_run
from gpt_jax.training.divergence import (
    Divergence,
    describe_end,
    divergence_error,
    find_end,
    sound_steps,
)
from gpt_jax.training.finalize import finalize
from gpt_jax.training.guards import failed_save, one_line_errors, open_for_training
from gpt_jax.training.history import changed_numerics, numerics_now
from gpt_jax.training.micro_batch import settle_micro_batch
from gpt_jax.training.rows import (
    chunk_row,
    count_last_skipped,
    losses_by_step,
    recent_losses,
    step_losses,
)
from gpt_jax.training.run_setup import (
    RunSetup,
    check_machine,
    prepare_run,
)
from gpt_jax.training.short_samples import ShortSamples
from gpt_jax.training.signals import defer_signals, interruption, out_of_time
from gpt_jax.training.state import TrainState
from gpt_jax.training.step_timer import StepTimer

SUM_SECONDS = 10  # to wait for the rest of the corpus's sums after the last step


@numerics.fixed()
def train(
    config: Config, *, quiet: bool = False, on_row: Callable[[dict[str, Any]], None] | None = None
) -> Run:
    """Trains a model as the settings say, or resumes the run of the folder.

    A finished run is left as it is and returned. With more `train.steps` it is resumed.

    Args:
      config: the settings; `config.run_dir` is the run's folder.
      quiet: print nothing.
      on_row: called with each row of metrics.jsonl, once it is written; an error of it ends
        training, and the same call resumes from the last checkpoint.

    Returns:
      The finished run. Where training splits its parameters further than the devices of one host
      can, all hosts hold them together, and must use them together.

    Raises:
      UserError: a usage error, found before anything is computed.
      TrainingError: the loss is not finite any more, a checkpoint can't be written, or a device
        has no memory left.
      Interrupted: Ctrl-C or SIGTERM; the state is saved, and the same call resumes from it.
      OutOfTime: `train.max_minutes` are over; likewise.
    """
    display = Display(quiet or not multihost.is_host0())
    config = dataclasses.replace(config, run_dir=os.path.expanduser(config.run_dir))
    setup = multihost.all_agree(lambda: _prepare(config, display), compared_on_hosts)
    return train_prepared(setup, display, on_row)


@numerics.fixed()
def train_prepared(
    setup: RunSetup, display: Display, on_row: Callable[[dict[str, Any]], None] | None = None
) -> Run:
    """Trains what is prepared; see `train`, whose results and errors these are."""
    if setup.resumes and (run := _load_finished(setup)):
        describe_finished(run, display)
        return run
    setup, compiled = settle_micro_batch(setup)
    multihost.all_agree(lambda: check_machine(setup.config, resumes=setup.resumes))
    run_dir = to_folder(setup.config.run_dir)
    with one_line_errors(run_dir), open_for_training(setup) as check_folder:
        trainer = Trainer(setup, display, check_folder, on_row or (lambda row: None), compiled)
        seconds_per_step = trainer.run()
        del trainer  # frees its state
        run = load_run(run_dir, mesh=params_mesh_over_hosts(setup.config))
        return finalize(run, setup, display, seconds_per_step)


def _prepare(config: Config, display: Display) -> RunSetup:
    """Reads and checks all that a run starts from, on this host."""
    target_backend()  # a platform that is not there is found at once
    with display:
        display.doing("reading the corpus")
        if config.model.vocab_size and not is_run(to_folder(config.run_dir)):
            check_machine(fix_schedule(config))  # before a large corpus is opened
        return prepare_run(config, display.download, display)


def _load_finished(setup: RunSetup) -> Run | None:
    """Returns the run of the folder, if it has all its steps."""
    run_dir, steps = to_folder(setup.config.run_dir), setup.config.train.steps
    if read_summary(run_dir).get("step") != steps:
        return None
    run = load_run(run_dir, mesh=params_mesh_over_hosts(setup.config))
    return run if run.step == steps else None  # else its last checkpoint is damaged


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Steps that have been dispatched and whose metrics have not been read.

    Attributes:
      step: the number of steps before it.
      metrics: see `step.make_train_chunk`, each (steps,), on the devices.
    """

    step: int
    metrics: dict[str, jax.Array]


class Trainer:
    """One run: its compiled steps, state, metrics, checkpoints and timer; every side effect.

    Attributes:
      step: optimizer steps dispatched so far; `state` is that after them.
      pending: the chunk that ends at `step`, until its metrics are read.
      recent_losses: see `step.make_train_chunk`; None where no spike is looked for.
      row_between: of a branch: that of the steps between the parent's last row and where it parts.
      asked: returns what hosts were told when they last asked one another.
      n_skipped: the last steps in a row, of those read, that were skipped.
      doing: what training waits for, such as "compiling the evaluation"; "" while it trains.
    """

    state: TrainState
    row_between: dict[str, Any] | None
    checkpoints: checkpoint.CheckpointWriter
    metrics: MetricsWriter
    samples: ShortSamples
    signals: list[int]

    def __init__(
        self,
        setup: RunSetup,
        display: Display,
        check_folder: Callable[[], None],
        on_row: Callable[[dict[str, Any]], None],
        compiled: CompiledSteps | None = None,
    ):
        self.on_row = on_row
        self.setup, self.config, self.display = setup, setup.config, display
        self._check_folder = check_folder  # see `guards.open_for_training`
        self.run_dir = to_folder(setup.config.run_dir)
        minutes = setup.config.train.max_minutes
        self.deadline = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
        self.progress = TrainingProgress(display, setup.config.train.steps)
        self.timer = StepTimer(setup.config.train.batch_size * setup.config.model.block_size)
        self.step, self.doing, self.has_trained = 0, "", False
        self.pending: Chunk | None = None
        self.asked: Callable[[], list[int]] | None = None
        self.compiled = compiled or CompiledSteps(setup.config, setup.splits)
        self.to_close = contextlib.ExitStack()  # what is opened last is closed first
        self.to_close.callback(self.compiled.close)
        self.sums = SumCheck(setup.corpus.folders)
        self.to_close.callback(self.sums.stop)

    def run(self) -> float | None:
        """Trains until `train.steps`; leaves a checkpoint of the last step.

        Returns:
          Seconds per step, compiling left out; None where no step was taken.

        Raises:
          TrainingError, Interrupted, OutOfTime: see `train`.
        """
        train = self.config.train
        with defer_signals(self.say_when_it_stops) as self.signals, self.to_close, self.display:
            self.restore_or_initialize()
            if self.step == 0:
                self.evaluate()
            while not self.is_finished:
                self.dispatch_chunk()
                self.sums.raise_if_damaged()
                stop = self.agree_on_stopping()
                if self.is_due(train.eval_interval):
                    self.evaluate()
                if stop or self.is_due(train.checkpoint_interval):
                    self.save_checkpoint()
                if stop and not self.is_finished:
                    self.wait_for_checkpoint()
                    self.samples.finish()
                    raise stop
            seconds_per_step = self.timer.seconds_per_step(self.step)
            self.wait_for_checkpoint()
            self.samples.finish()
            if not self.sums.finish(SUM_SECONDS):
                self.display.note("not all sums of the corpus's shards could be compared meanwhile")
        return seconds_per_step

    @property
    def is_finished(self) -> bool:
        return self.step >= self.config.train.steps

    def is_due(self, interval: int) -> bool:
        """Returns whether what happens every `interval` steps, and at the end, happens now."""
        return self.is_finished or self.step % interval == 0

    def restore_or_initialize(self) -> None:
        """Loads the newest valid checkpoint or makes the first state, and opens the records."""
        train = self.config.train
        describe_run(self.setup, self.compiled, self.display)
        newest = lambda: checkpoint.newest_valid(self.run_dir)
        self.step, problems = multihost.broadcast_from_host0(newest)
        branch = None if self.step else self.setup.branch
        if branch:
            self.start_branch(branch)
        elif self.step:
            self.show(f"loading the checkpoint of step {self.step}")
            self.state = checkpoint.load(self.run_dir, self.step, self.compiled.abstract_state)
        for problem in problems:
            self.display.note(f"{problem}; resuming from step {self.step}")
        if 0 < self.step < train.steps and not branch:
            self.display.line(f"resuming from step {self.step}")
        params = self.setup.params
        if not self.is_finished:
            self.compiled.compile_ahead(self.step, initializes=params is None)
        self.keys = self.compiled.keys()
        if self.step == 0 and params is not None:
            self.state = self.compiled.state_from_params(params)
        elif self.step == 0:
            self.wait_for(self.compiled.init_program(), "the initialization")
            self.state = self.compiled.init_state(self.keys)
        self.checkpoints = checkpoint.CheckpointWriter(
            self.run_dir,
            train.keep_checkpoints,
            train.keep_interval,
            train.keep_best,
            self.config.at_step,
        )
        self.to_close.callback(self.checkpoints.close)
        begun = 0 if branch else self.step
        self.metrics = MetricsWriter(self.run_dir, begun, multihost.is_host0())
        self.to_close.callback(self.metrics.close)
        params = self.compiled.abstract_state.params
        self.samples = ShortSamples(self.setup, params, self.step, self.display)
        self.to_close.callback(self.samples.close)
        if branch:
            self.save_branch_start(branch)
        self.say_what_has_changed()
        if self.setup.changed and not self.is_finished:
            self.metrics.mark({"changed": {"since": self.step, **self.setup.changed}})
            self.display.note(describe_changes(self.setup.changed, self.step))
        losses = step_losses(self.metrics.rows, self.step)
        self.n_skipped = count_last_skipped(losses)
        self.recent_losses = (
            None if train.spike is None else recent_losses(losses, train.spike_window)
        )
        self.timer.start(self.step)

    def start_branch(self, branch: BranchStart) -> None:
        """Loads or recomputes the state that the branch starts from."""
        for note in branch.notes:
            self.display.note(note)
        self.display.line(branch.line)

        def between(step: int) -> None:
            self.show(f"recomputing the steps up to {branch.step}: {step}")
            self.stop_if_told_early()

        self.state, self.row_between = start_branch(branch, self.compiled, between)
        self.step = branch.step

    def save_branch_start(self, branch: BranchStart) -> None:
        """Saves the branch's own first checkpoint, and the parent's rows; the last has a mark."""
        *rows, last = [*branch.rows, *filter(None, [self.row_between])]
        for row in [*rows, last | mark(self.config, branch.change)]:
            self.write_row(row)
        self.save_checkpoint()

    def say_what_has_changed(self) -> None:
        """Says, also in the next row, where a resumed run is rounded otherwise than before."""
        if not (self.setup.resumes or self.setup.branch) or self.is_finished:
            return
        now = numerics_now(self.config)
        changed, line = changed_numerics(self.run_dir, self.metrics.rows, now)
        if changed:
            self.metrics.mark({"numerics": changed})
            self.display.note(line)

    def dispatch_chunk(self) -> None:
        """Dispatches the next steps, and then reads the metrics of those before them.

        So the devices always have work: they never wait until this host has read a number.
        """
        steps = self.compiled.chunk_length(self.step)
        self.wait_for(self.compiled.chunk_program(steps), "the training step")
        self.state, metrics = self.compiled.train_chunk(
            self.state, self.keys, self.step, steps, self.recent_losses
        )
        self.recent_losses = metrics.pop("recent_losses", None)
        before, self.pending = self.pending, Chunk(self.step, metrics)
        self.step, self.has_trained = self.step + steps, True
        self.progress.doing("taking the first steps")
        if before:
            self.log(self.read_metrics(before))

    def wait_for(self, program: Future, what: str) -> None:
        """Waits until a program is compiled, which is not training.

        Raises:
          Interrupted: before the first step, at once.
        """
        before = time.perf_counter()
        if not program.done():
            self.show(f"compiling {what}")
        self.stop_if_told_early()
        while not wait([program], timeout=0.1).done:
            self.stop_if_told_early()
        program.result()
        self.timer.exclude(time.perf_counter() - before)
        self.doing = ""

    def read_metrics(self, chunk: Chunk) -> dict[str, Any]:
        """Waits for a chunk's metrics; returns its row, the means of the steps not skipped."""
        values = {name: np.asarray(metric, np.float64) for name, metric in chunk.metrics.items()}
        train = self.config.train
        limits = values.get("loss_limit", math.inf)
        sound = sound_steps(values["loss"], values["grad_norm"], limits)
        if found := find_end(values, sound, self.n_skipped, train):
            step, diverged = chunk.step + found[0] + 1, found[1]
            raise self.stop_diverged(diverged, describe_end(step, train))
        by_step = losses_by_step(values["loss"], sound)
        self.n_skipped = count_last_skipped(by_step, self.n_skipped)
        if not sound.all():
            skipped = ", ".join(str(chunk.step + i + 1) for i in np.flatnonzero(~sound))
            self.display.note(f"skipped updates (non-finite or spiking): step {skipped}")
        return chunk_row(chunk.step + len(sound), values, sound, train)

    def log(self, row: dict[str, Any]) -> None:
        """Writes the row of a chunk and moves the bar."""
        speed = self.timer.tokens_per_second(row["step"])
        self.write_row(row)
        self.show_progress(row, speed)

    def write_row(self, row: dict[str, Any]) -> None:
        self.metrics.write(row)
        self.on_row(dict(self.metrics.rows[-1]))

    def evaluate(self) -> None:
        """Evaluates the state on random batches; the result is in the row of its step."""
        pending, self.pending = self.pending, None
        row = self.read_metrics(pending) if pending else {"step": self.step}
        timing: dict[str, Any] = {"tokens_per_second": None}
        if pending:  # there is none before the first step
            seconds = self.timer.seconds()
            speed = self.timer.tokens_per_second(self.step)
            timing = {"tokens_per_second": speed, "seconds": seconds}
            self.show_progress(row, speed)
        self.check_folder()
        self.wait_for(self.compiled.evaluation_program(), "the evaluation")
        self.show("evaluating")
        losses = self.compiled.evaluate(self.state, self.keys, self.step)
        train_loss, val_loss = np.asarray(losses, np.float64).tolist()
        if not math.isfinite(train_loss + val_loss):
            where = f"in the evaluation at step {self.step}"
            raise self.stop_diverged(Divergence(train_loss + val_loss), where)
        val_bpb = bits_per_byte(val_loss, self.setup.splits["val"].bytes_per_token)
        row |= {"train_loss": train_loss, "val_loss": val_loss, "val_bpb": val_bpb, **timing}
        self.write_row(row)
        self.samples.take(self.step, self.state.params)
        self.display.evaluation(row)
        self.timer.restart(self.step)

    def agree_on_stopping(self) -> Interrupted | OutOfTime | None:
        """Returns why to stop after this chunk; what one host is told, all of them do.

        Several hosts answer what they asked one another a chunk ago: else they would wait for the
        chunk that was just dispatched, and the devices then for them.
        """
        told = [max(self.signals, default=0), time.monotonic() >= self.deadline]
        before, self.asked = self.asked, multihost.start_all_reduce_max(told)
        read = self.asked if multihost.host_count() == 1 else before
        signum, is_out_of_time = read() if read else (0, 0)
        if signum:
            return interruption(signum, self.step, self.config.train.steps)
        return out_of_time(self.step, self.config.train) if is_out_of_time else None

    def save_checkpoint(self) -> None:
        """Starts saving the state; its rows are on the disk first."""
        if self.pending:
            row, self.pending = self.read_metrics(self.pending), None
            self.log(row)
        if not self.compiled.is_finite(self.state):
            where = f"in the parameters after step {self.step}"
            raise self.stop_diverged(Divergence(math.nan), where)
        self.check_folder()
        self.metrics.sync()
        val_loss = self.metrics.rows[-1].get("val_loss")
        with failed_save():
            self.checkpoints.save(self.step, self.state, to_dict(self.config), val_loss)
        if val_loss is not None:  # a save right after an evaluation is left out with it
            self.timer.restart(self.step)

    def wait_for_checkpoint(self) -> None:
        """Returns once the last save is complete, and the folder is there that has it."""
        with failed_save():
            self.checkpoints.wait()
        self.check_folder()

    def check_folder(self) -> None:
        """Raises TrainingError where the run's folder is not the one that was opened."""
        try:
            self._check_folder()
        except TrainingError:
            with contextlib.suppress(checkpoint.CheckpointError):  # of the save under way
                self.checkpoints.wait()
            raise

    def stop_diverged(self, divergence: Divergence, where: str) -> TrainingError:
        """Returns the error to raise, once the save under way is done."""
        with contextlib.suppress(checkpoint.CheckpointError):
            self.checkpoints.wait()
        newest = max(checkpoint.steps(self.run_dir), default=None)
        return divergence_error(divergence, where, str(self.run_dir), newest, self.config.train)

    def show(self, what: str) -> None:
        """Says what training waits for."""
        self.doing = what
        self.progress.doing(what)

    def show_progress(self, row: dict[str, Any], speed: float) -> None:
        """Moves the bar; the time remaining leaves out compiling, and counts evaluations."""
        per_step = self.timer.seconds_per_step(row["step"])
        left = None if per_step is None else per_step * (self.config.train.steps - row["step"])
        self.progress.update(row["step"], row.get("loss"), speed, left)

    @property
    def may_stop_early(self) -> bool:
        """Whether a signal ends the run before a chunk: nothing is lost, and no host waits."""
        return not self.has_trained and multihost.host_count() == 1

    def stop_if_told_early(self) -> None:
        """Raises Interrupted where a signal came before this process has taken a step."""
        if self.signals and self.may_stop_early:
            raise interruption(max(self.signals), self.step, self.config.train.steps)

    def say_when_it_stops(self) -> None:
        """Answers the first signal."""
        doing = f"{self.doing}: " if self.doing else ""
        when = "before the first step" if self.may_stop_early else "after these steps"
        self.display.line(f"{doing}stopping {when}; once more to stop at once")
