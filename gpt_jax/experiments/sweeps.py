"""`sweep`: a run for each point of a grid and each seed, one after another in one process.

Members of one shape follow one another and share compiled programs and the corpus; each is the run
that its settings would have been alone, bit for bit on a CPU. Members side by side, a device each
or stacked, are not done here. Read `grid.py` for what is varied, `members.py` for sweep.json,
`sweep_results.py` for the result.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_jax import numerics
from gpt_jax.config import Config, fix_schedule, override
from gpt_jax.console import Display, WorkProgress, format_duration
from gpt_jax.errors import ConfigError, Diverged, UserError
from gpt_jax.experiments.estimate import estimate, estimate_text
from gpt_jax.experiments.grid import Variation, list_of, make_points, parse_vary, show_values
from gpt_jax.experiments.members import (
    ONE_CHECKPOINT,
    SWEEP_FILE,
    Member,
    SweepRecord,
    check_seeds,
    is_finished,
    make_members,
    member_config,
    new_record,
    open_sweep,
    record_text,
    shape_of,
)
from gpt_jax.experiments.sweep_results import Sweep, read_result
from gpt_jax.parallel import multihost
from gpt_jax.run.folder import read_summary
from gpt_jax.storage import open_folder, to_folder
from gpt_jax.training.run_setup import RunSetup, check_machine, prepare_beside
from gpt_jax.training.trainer import train_prepared


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """All that a sweep starts from, read and checked.

    Attributes:
      folder: of the sweep.
      base: the settings that members share; its seed is the first one.
      record: of the members; as in the folder where that exists.
      is_new: whether the folder does not exist yet.
      setups: {shape: the setup of the first member of it that is to run}.
    """

    folder: Path
    base: Config
    record: SweepRecord
    is_new: bool
    setups: dict[str, RunSetup]

    def config_of(self, member: Member) -> Config:
        place = str(self.folder / member.run_dir)
        return member_config(self.base, member.values, member.seed, place)

    def is_finished(self, member: Member) -> bool:
        return is_finished(self.folder, member, self.config_of(member).train.steps)


def sweep(
    config: Config,
    vary: Mapping[str, Sequence[Any] | str] | None = None,
    *,
    out: str | os.PathLike[str],
    seeds: int | Sequence[int] = 1,
    samples: int | None = None,
    quiet: bool = False,
) -> Sweep:
    """Trains a run for each point of a grid and each seed; the same call continues.

    Args:
      config: the settings that are not varied. A member keeps one checkpoint; see `plan_sweep`.
      vary: {setting: its values}, or a text for a range: {"optim.learning_rate": "1e-4..1e-2"}.
      out: the sweep's folder.
      seeds: how many, from `config.seed` on, or which.
      samples: how many points of the ranges are drawn.
      quiet: print nothing.

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
    plan = plan_sweep(config, variations, numbers, out=out, samples=samples, quiet=quiet)
    return run_sweep(plan, quiet=quiet)


@numerics.fixed()
def plan_sweep(
    config: Config,
    variations: Sequence[Variation],
    seeds: Sequence[int],
    *,
    out: str | os.PathLike[str],
    samples: int | None = None,
    config_name: str | None = None,
    quiet: bool = False,
) -> SweepPlan:
    """Returns a sweep, read and checked as far as can be before anything is computed.

    Args:
      config: the settings that are not varied, as they are used.
      variations: what is varied.
      seeds: of each point.
      out: the sweep's folder.
      samples: how many points of the ranges are drawn.
      config_name: what `--config` named, for the command that is recommended.
      quiet: print nothing.

    Raises:
      UserError: what is wrong, and what to do about it.
    """
    if multihost.host_count() > 1:
        raise UserError("a sweep runs on one host; start it without --hosts.count")
    folder = to_folder(os.path.expanduser(os.fspath(out)))
    points = make_points(variations, samples)
    base = dataclasses.replace(config, seed=seeds[0] if len(seeds) else 0)
    members = make_members(base, points, check_seeds(seeds))
    found = open_sweep(folder, base, config_name, members)
    record = found or new_record(base, config_name, members)
    plan = SweepPlan(folder, base, record, found is None, {})
    with Display(quiet) as display:
        display.doing("reading the corpus")
        return dataclasses.replace(plan, setups=_first_setups(plan, display))


def _first_setups(plan: SweepPlan, display: Display) -> dict[str, RunSetup]:
    """Returns the setup of the first member to run of each shape, checked for this machine."""
    setups: dict[str, RunSetup] = {}
    other = None
    for member in plan.record.members:
        if plan.is_finished(member):
            continue
        config = plan.config_of(member)
        if (shape := shape_of(config)) in setups:
            continue
        try:
            setups[shape] = other = prepare_beside(config, other, display.download)
            check_machine(fix_schedule(other.config), resumes=other.resumes)
        except UserError as error:
            raise ConfigError(f"the member {show_values(member.values)}: {error}") from error
    return setups


def describe_plan(plan: SweepPlan) -> str:
    """Returns what a sweep would do, as text: members, steps, estimated time and disk.

    A chunk of steps and an evaluation of each shape are run for it, in memory.
    """
    todo = [member for member in plan.record.members if not plan.is_finished(member)]
    done = len(plan.record.members) - len(todo)
    lines = [f"{member.run_dir}: {member}" for member in todo]
    steps = sum(plan.config_of(member).train.steps for member in todo)
    lines += ["", f"{len(todo)} members to run, {done} done; {steps:,} steps"]
    lines += [f"shapes, each compiled once: {len(plan.setups)}; one member after another"]
    shapes = [shape_of(plan.config_of(member)) for member in todo]
    if todo:
        estimates = {shape: estimate(setup) for shape, setup in plan.setups.items()}
        lines += estimate_text(estimates, shapes)
    return "\n".join(lines)


@numerics.fixed()
def run_sweep(plan: SweepPlan, *, quiet: bool = False) -> Sweep:
    """Runs the members that are not finished, and writes the result; see `sweep`."""
    folder = open_folder(plan.folder)
    try:
        if plan.is_new:
            folder.create({SWEEP_FILE: record_text(plan.record)})
    except OSError as error:
        raise UserError(
            f"cannot make the sweep's folder {plan.folder}: {error.strerror or error}; choose "
            "another --out"
        ) from error
    with Display(quiet) as display, folder.lock("swept"):
        _run_members(plan, display)
        result = read_result(plan.folder)
        result.write()
    return result


def _run_members(plan: SweepPlan, display: Display) -> None:
    members = list(plan.record.members)
    steps = [plan.config_of(member).train.steps for member in members]
    done = [n if plan.is_finished(m) else 0 for m, n in zip(members, steps, strict=True)]
    progress = SweepProgress(display, members, sum(done), sum(steps))
    other: RunSetup | None = None
    for i, member in enumerate(members):
        if done[i]:
            progress.finished(member, _loss(plan.folder, member), 0)
            continue
        config = plan.config_of(member)
        setup = plan.setups.get(shape_of(config))
        if setup is None or setup.config.run_dir != config.run_dir:
            setup = prepare_beside(config, other or setup)
        other, began, diverged = setup, time.monotonic(), None
        try:
            train_prepared(setup, Display(quiet=True), progress.on_row(i, member))
        except Diverged as error:
            diverged = str(error)
        finally:
            seconds = (member.seconds or 0.0) + time.monotonic() - began
            members[i] = dataclasses.replace(member, seconds=seconds, diverged=diverged)
            text = record_text(dataclasses.replace(plan.record, members=members))
            open_folder(plan.folder).write(SWEEP_FILE, text)
        progress.finished(members[i], _loss(plan.folder, members[i]), steps[i])


def _loss(folder: Path, member: Member) -> float | None:
    """Returns a finished member's exact validation loss; None of one that diverged."""
    if member.diverged is not None:
        return None
    return read_summary(folder / member.run_dir).get("val", {}).get("nats_per_token")


class SweepProgress:
    """The bar of a sweep, and a line for each member that ends: its loss, the best so far."""

    def __init__(self, display: Display, members: Sequence[Member], done: int, total: int):
        self._display, self._n = display, len(members)
        self._done, self._n_done = done, 0
        self._best: tuple[float, str] | None = None
        self._bar = WorkProgress(display, done, total)
        self._began, self._taken, self._total = time.monotonic(), 0, total

    def on_row(self, number: int, member: Member) -> Any:
        """Returns a function of a row that moves the bar."""

        def move(row: dict[str, Any]) -> None:
            loss = row.get("loss")
            shown = "" if loss is None else f"  loss {loss:.3f}"
            best = "" if self._best is None else f"  best {self._best[0]:.4f}"
            status = f"run {number + 1} of {self._n}  step {row['step']}{shown}{best}"
            self._bar.update(self._done + row["step"], status)

        return move

    def finished(self, member: Member, loss: float | None, steps: int) -> None:
        """Prints the line of a member; one that was done before, with 0 steps, only counts."""
        self._done, self._taken = self._done + steps, self._taken + steps
        self._n_done += 1
        if loss is not None and (self._best is None or loss < self._best[0]):
            self._best = loss, str(member)
        if not steps:
            return
        left = ""
        if self._n_done < self._n:
            rate = (time.monotonic() - self._began) / self._taken
            left = f"; about {format_duration(rate * (self._total - self._done))} left"
        shown = "diverged" if loss is None else f"{loss:.4f}"
        best = "" if self._best is None else f"; best {self._best[0]:.4f} ({self._best[1]})"
        self._display.line(f"{self._n_done}/{self._n}  {shown}  {member}{best}{left}")
