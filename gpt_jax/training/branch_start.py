"""Where a branch starts: its parent as it is recomputed, and the refusal of one that can't be.

See `branches.py` for what a branch is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax.config import Config, fix_schedule, override
from gpt_jax.config.fields import get_field
from gpt_jax.console import format_duration
from gpt_jax.errors import ConfigError, differences
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.run.folder import run_record
from gpt_jax.run.metrics import read_rows
from gpt_jax.training.branches import changes, shown_changes
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.divergence import sound_steps
from gpt_jax.training.past_state import nearest_checkpoint, state_after
from gpt_jax.training.resume import machine_settings
from gpt_jax.training.rows import chunk_row
from gpt_jax.training.state import TrainState, state_shapes

MESH = ("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence")


@dataclasses.dataclass(frozen=True)
class BranchStart:
    """Where a branch starts.

    Attributes:
      config: the parent's, as it is recomputed on the branch's mesh.
      splits: the parent's "train" and "val".
      step: at which they part.
      from_step: of the parent's checkpoint before it; 0 is the parent's beginning.
      rows: the parent's up to `step`.
      change: see `branches.changes`.
      notes: what a reader must know.
    """

    config: Config
    splits: dict[str, Dataset]
    step: int
    from_step: int
    rows: list[dict[str, Any]]
    change: dict[str, dict[str, Any]]
    notes: list[str]

    @property
    def line(self) -> str:
        """What is continued, from where, and what is recomputed for it."""
        place, n = self.config.run_dir, self.step - self.from_step
        how = (
            f"from its checkpoint of step {self.from_step}" if self.from_step else "from its start"
        )
        if n:
            seconds = self._seconds(n)
            long = (
                "" if seconds is None else f", about {format_duration(seconds)}, as it took there"
            )
            how += f", the {n:,} steps after that recomputed{long}"
        return f"branch of {place} at step {self.step}, {how}; {shown_changes(self.change)}"

    def _seconds(self, steps: int) -> float | None:
        """Returns how long so many of the parent's steps took; None where no row says it."""
        train, model = self.config.train, self.config.model
        speeds = [row["tokens_per_second"] for row in self.rows if row.get("tokens_per_second")]
        tokens = steps * train.batch_size * model.block_size
        return tokens / float(np.median(speeds)) if speeds else None


def make_branch_start(parent: Config, splits: dict[str, Dataset], branch: Config) -> BranchStart:
    """Returns where a branch starts.

    Args:
      parent: the settings of its parent, as they are recomputed.
      splits: the parent's "train" and "val".
      branch: the branch's settings.

    Raises:
      ConfigError: it has other parameters, or another state of its optimizer, than its parent.
      UserError: the state at that step can't be had any more.
    """
    check_same_state(parent, branch)
    step, run_dir = branch.at_step or 0, parent.run_dir
    from_step, notes = nearest_checkpoint(run_dir, step)
    rows = [row for row in read_rows(run_dir) if row["step"] <= step]
    return BranchStart(parent, splits, step, from_step, rows, changes(parent, branch), notes)


def check_same_state(parent: Config, branch: Config) -> None:
    """Raises ConfigError where settings change the shapes of a state, and names them."""
    if _shapes(parent) == _shapes(branch):
        return
    changed = [n for n in changes(parent, branch) if n.startswith(("model.", "optim."))]
    alone = {name: _changes_shapes(parent, branch, name) for name in changed}
    guilty = [n for n in changed if alone[n]] or [n for n in changed if alone[n] is None] or changed
    lines = differences(
        {name: get_field(parent, name) for name in guilty},
        {name: get_field(branch, name) for name in guilty},
    )
    raise ConfigError(
        f"branch_from={branch.branch_from}: {'; '.join(lines)}, which would change the shapes of "
        "its parameters or the tree of its optimizer's state; leave these out, or start from its "
        "parameters alone with --init-from"
    )


def _changes_shapes(parent: Config, branch: Config, name: str) -> bool | None:
    """Says whether one setting of the branch changes the parent's shapes; None: not alone."""
    try:
        return _shapes(override(parent, {name: get_field(branch, name)})) != _shapes(parent)
    except ConfigError:
        return None


def _shapes(config: Config) -> list[tuple[str, tuple[int, ...], str]]:
    state = state_shapes(config.model, fix_schedule(config).optim)
    return [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype))
        for path, leaf in jax.tree.leaves_with_path(state)
    ]


def on_this_machine(parent: Config, branch: Config) -> Config:
    """Returns the parent's settings for recomputing its steps where the branch is trained.

    The mesh and what suits a machine are the branch's: they change rounding only.
    """
    names = {*MESH, *machine_settings(parent.train)}
    if parent.train.batch_size != branch.train.batch_size:
        names -= {"train.micro_batch"}
    if branch.train.micro_batch in (None, "auto"):
        names -= {"train.micro_batch"}
    return override(parent, {name: get_field(branch, name) for name in sorted(names)})


def parent_numerics(branch: BranchStart) -> dict[str, Any] | None:
    """Returns the record of how the parent was computed in its beginning, which a branch keeps."""
    return run_record(branch.config.run_dir).numerics


def start_branch(
    branch: BranchStart, compiled: CompiledSteps, between: Callable[[int], None]
) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns a branch's first state, and the row of the steps after the parent's last row.

    Args:
      branch: where it starts.
      compiled: the branch's programs, on whose mesh the state is.
      between: see `past_state.state_after`.
    """
    config = branch.config
    if branch.from_step == branch.step:
        return state_after(compiled, config, compiled.keys(), branch.step, branch.step)[0], None
    programs = CompiledSteps(config, branch.splits)
    try:
        args = (config, programs.keys(), branch.from_step, branch.step, between)
        state, metrics = state_after(programs, *args)
        jax.block_until_ready(state)
    finally:
        programs.close()
    return state, _row_between(branch, metrics)


def _row_between(branch: BranchStart, metrics: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """Returns the row of the steps after the parent's last row; None where that is of the step."""
    n = branch.step - branch.rows[-1]["step"]
    if not n:
        return None
    last = {name: values[-n:] for name, values in metrics.items()}
    limits = last.get("loss_limit", np.inf)
    sound = sound_steps(last["loss"], last["grad_norm"], limits)
    return chunk_row(branch.step, last, sound, branch.config.train)
