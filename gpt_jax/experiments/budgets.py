"""What both sides of a trial spend alike, as a number of steps for each.

A step of a side may have more tokens than one of the other, need more operations, or take longer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.config import Config, fix_schedule, override
from gpt_jax.config.known_settings import unknown_settings
from gpt_jax.errors import ConfigError, UserError, suggest
from gpt_jax.run.metrics import read_rows
from gpt_jax.storage import open_folder

# What --equal takes -> what a step costs, and its unit.
EQUALS = {
    "steps": ("steps", ""),
    "tokens": ("tokens", "tokens"),
    "flops": ("model FLOPs", "FLOPs"),
    "seconds": ("seconds of training", "s"),
}
BASE, CHANGE = SIDES = ("base", "change")
TIMED_STEPS, TIMED_PARTS, TIMED_RUNS = 20, 3, 2  # of each side, at least; the first part warms up
Runner = Callable[[str, Config], tuple[float, str | None]]  # side, settings -> loss, why diverged


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many steps each side has, so that both spend alike.

    Attributes:
      equal: what they spend: one of `EQUALS`.
      base_steps: of the baseline.
      change_steps: of the change.
      base_cost: of a step of the baseline: tokens, operations, seconds, or 1.
      change_cost: likewise.
    """

    equal: str
    base_steps: int
    change_steps: int
    base_cost: float
    change_cost: float

    def steps(self, side: str) -> int:
        return self.base_steps if side == BASE else self.change_steps

    def __str__(self) -> str:
        what, unit = EQUALS[self.equal]
        each = [f"{self.base_steps:,} steps", f"{self.change_steps:,} steps"]
        if unit:
            costs = (self.base_cost, self.change_cost)
            each = [f"{n} of {cost:.4g} {unit}" for n, cost in zip(each, costs, strict=True)]
        return f"equal {what}: base {each[0]}, change {each[1]}"


def check_equal(equal: str | None, change: Mapping[str, Any], has_trees: bool) -> None:
    """Raises ConfigError where sides can't have an equal budget of that kind."""
    if equal is None:
        return
    if equal not in EQUALS:
        raise ConfigError(
            f"equal={equal!r} is unknown{suggest(equal, EQUALS)}; there are {', '.join(EQUALS)}"
        )
    if "train.steps" in change:
        raise ConfigError(
            f"change: train.steps can't be tried with equal={equal}, which decides the steps of "
            "the change; leave one of them out"
        )
    if equal == "flops" and has_trees:
        raise ConfigError(
            "equal=flops is counted from the settings, and other code may compute something else; "
            "use equal=seconds, tokens or steps"
        )


def make_budget(equal: str, configs: Mapping[str, Config], costs: Mapping[str, float]) -> Budget:
    """Returns the steps of both sides.

    Args:
      equal: what they spend: one of `EQUALS`.
      configs: the settings of each side; `train.steps` are the baseline's.
      costs: of a step of each side.
    """
    steps = configs[BASE].train.steps
    wanted = max(1, round(steps * costs[BASE] / costs[CHANGE]))
    return Budget(equal, steps, wanted, costs[BASE], costs[CHANGE])


def step_costs(
    equal: str, configs: Mapping[str, Config], folder: Path, run: Runner
) -> dict[str, float]:
    """Returns what a step of each side costs; seconds are measured with `run`.

    Args:
      equal: one of `EQUALS`.
      configs: the settings of each side.
      folder: of the trial, in which what is measured lies meanwhile.
      run: trains a run.

    Raises:
      UserError: it can't be told.
    """
    if equal == "seconds":
        return measured_seconds(configs, folder, run)
    if equal == "flops":
        return {side: _flops(config, folder) for side, config in configs.items()}
    tokens = {s: c.train.batch_size * c.model.block_size for s, c in configs.items()}
    return {side: float(tokens[side]) if equal == "tokens" else 1.0 for side in configs}


def _flops(config: Config, folder: Path) -> float:
    """Returns the operations of a step; the corpus is read for the size of the vocabulary."""
    import jax

    from gpt_jax.training.flops import model_flops
    from gpt_jax.training.run_setup import prepare_run
    from gpt_jax.training.state import state_shapes

    if unknown := unknown_settings(config.model):
        raise UserError(
            f"equal=flops: the operations of {unknown[0]} are not known; use equal=seconds"
        )
    config = prepare_run(override(config, {"run_dir": str(folder / "none")})).config
    params = state_shapes(config.model, config.optim).params
    n_params = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    tokens = config.train.batch_size * config.model.block_size
    return float(model_flops(config.model, n_params, tokens) or 0)


def measured_seconds(configs: Mapping[str, Config], folder: Path, run: Runner) -> dict[str, float]:
    """Returns the seconds of a step of each side: a few are run, in turns, and thrown away.

    Compiling, evaluations and checkpoints are left out, as in the rows of a run. It is the median.
    """
    found: dict[str, list[float]] = {side: [] for side in configs}
    place = open_folder(folder)
    for i in range(TIMED_RUNS):
        for side, config in configs.items():
            name = f"timing-{side}-{i}"
            place.remove(name)  # what a kill left
            short = timing_config(config, str(folder / name))
            run(side, short)
            rows = [row for row in read_rows(folder / name) if row.get("seconds")]
            found[side] += [row["seconds"] / short.train.eval_interval for row in rows[1:]]
            place.remove(name)
    if empty := [side for side, seconds in found.items() if not seconds]:
        raise UserError(
            f"equal=seconds: the {empty[0]} can't be timed: it ends in its first steps; choose "
            "another budget"
        )
    return {side: float(np.median(seconds)) for side, seconds in found.items()}


def timing_config(config: Config, run_dir: str) -> Config:
    """Returns the settings of a short run that is timed, with the compiled steps of `config`."""
    config = fix_schedule(config)
    chunk = config.train.chunk_steps
    part = math.ceil(TIMED_STEPS / chunk) * chunk
    values = {
        "run_dir": run_dir,
        "train.steps": part * TIMED_PARTS,
        "train.log_interval": chunk,
        "train.eval_interval": part,
        "train.checkpoint_interval": part * TIMED_PARTS,
        "train.keep_interval": None,
        "train.eval_batches": 1,
        "train.final_eval_tokens": 2 * config.model.block_size,
        "train.max_minutes": None,
        "train.sample_tokens": 0,
        "sample.max_new_tokens": 1,
        "sample.num_samples": 1,
    }
    return override(config, values)
