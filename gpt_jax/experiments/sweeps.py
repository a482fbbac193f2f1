"""`sweep`: a run for each point of a grid and each seed, in one process.

Members of one shape follow one another, or run together (`together.py`), and share compiled
programs and the corpus; each is the run that its settings would have been alone. Read
`sweep_plan.py` for what is checked before, `sweep_results.py` for the result.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_jax import numerics
from gpt_jax.config import Config, override
from gpt_jax.console import Display
from gpt_jax.errors import Diverged, UserError
from gpt_jax.experiments.grid import list_of, parse_vary
from gpt_jax.experiments.members import ONE_CHECKPOINT, SWEEP_FILE, Member, record_text, shape_of
from gpt_jax.experiments.sweep_plan import SweepPlan, plan_sweep
from gpt_jax.experiments.sweep_progress import SweepProgress
from gpt_jax.experiments.sweep_results import Sweep, read_result
from gpt_jax.experiments.together import arrange
from gpt_jax.run.folder import read_summary
from gpt_jax.storage import open_folder
from gpt_jax.training.lockstep import train_together
from gpt_jax.training.run_setup import RunSetup, prepare_beside
from gpt_jax.training.stack import Stack
from gpt_jax.training.trackers import TrackedRuns
from gpt_jax.training.trainer import train_prepared


def sweep(
    config: Config,
    vary: Mapping[str, Sequence[Any] | str] | None = None,
    *,
    out: str | os.PathLike[str],
    seeds: int | Sequence[int] = 1,
    samples: int | None = None,
    together: str | None = None,
    quiet: bool = False,
    track: Sequence[str] = (),
) -> Sweep:
    """Trains a run for each point of a grid and each seed; the same call continues.

    Args:
      config: the settings that are not varied. A member keeps one checkpoint; see `plan_sweep`.
      vary: {setting: its values}, or a text for a range: {"optim.learning_rate": "1e-4..1e-2"}.
      out: the sweep's folder.
      seeds: how many, from `config.seed` on, or which.
      samples: how many points of the ranges are drawn.
      together: "one-after-another", "side-by-side" or "stacked", see `together.py`; None as
        before, or chosen by measuring.
      quiet: print nothing.
      track: trackers that are told of the runs, see `training.trackers`.

    Returns:
      The result; it is also in the folder, as result.md, .json and .csv and in pictures.

    Raises:
      UserError: a usage error, found before anything is computed.
      TrainingError: a member can't be trained for another reason than that it diverged.
      Interrupted: Ctrl-C or SIGTERM; the same call continues.
    """
    variations = [
        parse_vary(f"{name}={values}") if isinstance(values, str) else list_of(name, values)
        for name, values in (vary or {}).items()
    ]
    numbers = range(config.seed, config.seed + seeds) if isinstance(seeds, int) else seeds
    config = override(config, ONE_CHECKPOINT)
    plan = plan_sweep(
        config, variations, numbers, out=out, samples=samples, together=together, quiet=quiet
    )
    return run_sweep(plan, quiet=quiet, track=track)


@numerics.fixed()
def run_sweep(plan: SweepPlan, *, quiet: bool = False, track: Sequence[str] = ()) -> Sweep:
    """Runs the members that are not finished, and writes the result; see `sweep`."""
    folder, tracked = open_folder(plan.folder), TrackedRuns(track, plan.folder)
    try:
        if plan.is_new:
            folder.create({SWEEP_FILE: record_text(plan.record)})
    except OSError as error:
        raise UserError(
            f"cannot make the sweep's folder {plan.folder}: {error.strerror or error}; choose "
            "another --out"
        ) from error
    with Display(quiet) as display, folder.lock("swept"):
        if plan.groups():
            with tracked:
                _Running(plan, display, tracked).run()
        result = read_result(plan.folder)
        result.write()
    return result


class _Running:
    """The members of a sweep while they run; what is known of them is in sweep.json at once."""

    def __init__(self, plan: SweepPlan, display: Display, tracked: TrackedRuns):
        self._plan, self._display, self._tracked = plan, display, tracked
        display.doing("trying how members run fastest")
        self._together = plan.together()
        display.line(f"members run {self._together}")
        self._members = list(plan.record.members)
        steps = [plan.config_of(member).train.steps for member in self._members]
        self._progress = SweepProgress(display, self._members, steps)
        self._other: RunSetup | None = None
        self._write()

    def run(self) -> None:
        """Runs all members that are not finished."""
        groups = self._plan.groups()
        todo = {i for group in groups.values() for i in group}
        for i, member in enumerate(self._members):
            if i not in todo:
                self._progress.was_done(i, self._loss(member))
        for shape, numbers in groups.items():
            setup = self._plan.setups[shape]
            arrangement = arrange(self._together.way, setup, len(numbers))
            stack = Stack(setup, arrangement) if arrangement else None
            n = stack.n_slots if stack else 1
            try:
                for at in range(0, len(numbers), n):
                    self._run_at_once(numbers[at : at + n], stack)
            finally:
                if stack:
                    stack.close()

    def _run_at_once(self, numbers: Sequence[int], stack: Stack | None) -> None:
        setups = [self._setup(i) for i in numbers]
        began, ended = time.monotonic(), set()

        def on_row(k: int, row: dict[str, Any]) -> None:
            self._progress.row(numbers[k], row)
            self._tracked.on_row(setups[k].config.run_dir, row)

        def on_end(k: int, error: Diverged | None) -> None:
            ended.add(numbers[k])
            keep(numbers[k], error)
            self._tracked.on_end(setups[k].config.run_dir)
            self._progress.ended(numbers[k], self._loss(self._members[numbers[k]]))

        def keep(i: int, error: Diverged | None = None) -> None:
            seconds = (self._members[i].seconds or 0.0) + (time.monotonic() - began) / len(numbers)
            diverged = None if error is None else str(error)
            self._members[i] = dataclasses.replace(
                self._members[i], seconds=seconds, diverged=diverged
            )
            self._write()

        try:
            if stack is None:
                _train_alone(setups[0], on_row, on_end)
            else:
                notify = lambda: self._display.line(
                    "stopping after these steps; once more: at once"
                )
                train_together(stack, setups, on_row, on_end, notify)
        finally:
            for i in set(numbers) - ended:
                keep(i)

    def _setup(self, i: int) -> RunSetup:
        config = self._plan.config_of(self._members[i])
        setup = self._plan.setups.get(shape_of(config))
        if setup is None or setup.config.run_dir != config.run_dir:
            setup = prepare_beside(config, self._other or setup)
        self._other = setup
        return setup

    def _loss(self, member: Member) -> float | None:
        """Returns a finished member's exact validation loss; None of one that diverged."""
        if member.diverged is not None:
            return None
        summary = read_summary(self._plan.folder / member.run_dir)
        return summary.get("val", {}).get("nats_per_token")

    def _write(self) -> None:
        record = dataclasses.replace(
            self._plan.record, members=self._members, together=self._together
        )
        open_folder(self._plan.folder).write(SWEEP_FILE, record_text(record))


def _train_alone(
    setup: RunSetup,
    on_row: Callable[[int, dict[str, Any]], None],
    on_end: Callable[[int, Diverged | None], None],
) -> None:
    try:
        train_prepared(setup, Display(quiet=True), lambda row: on_row(0, row))
    except Diverged as error:
        on_end(0, error)
    else:
        on_end(0, None)
