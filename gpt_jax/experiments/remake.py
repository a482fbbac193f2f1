"""The command that made a sweep or a trial, from what its folder says; the same one continues it.

Reads what the folders say, writes nothing and trains nothing.
"""

from __future__ import annotations

import math
import os

from gpt_jax.config import from_dict
from gpt_jax.experiments.budgets import CHANGE
from gpt_jax.experiments.grid import show
from gpt_jax.experiments.members import ONE_CHECKPOINT, read_sweep
from gpt_jax.experiments.trial_record import read_trial
from gpt_jax.storage import open_folder
from gpt_jax.terminal import program_command
from gpt_jax.training.advice import config_words


def sweep_command(folder: str | os.PathLike[str]) -> str | None:
    """Returns the command of a sweep; None where its points are no grid: they were drawn.

    Raises:
      UserError: the folder is no sweep, or damaged.
    """
    record = read_sweep(folder)
    points = [member.values for member in record.members]
    varied = {name: dict.fromkeys(show(point[name]) for point in points) for name in points[0]}
    if len({str(point) for point in points}) < math.prod(map(len, varied.values())):
        return None
    words = config_words(from_dict(record.config), {"run_dir", "seed", *ONE_CHECKPOINT})
    for name, values in varied.items():
        words += ["--vary", f"{name.replace('_', '-')}={','.join(values)}"]
    first, *others = dict.fromkeys(member.seed for member in record.members)
    seeds = ["--seeds", ",".join(map(str, [first, *others]))] if others else ["--seed", first]
    return program_command("sweep", *words, *seeds, "--out", folder)


def trial_command(folder: str | os.PathLike[str]) -> str:
    """Returns the command of a trial, with as many pairs as it may have by default.

    Raises:
      UserError: the folder is no trial, or damaged.
    """
    asked = read_trial(open_folder(folder)).question
    words = config_words(from_dict(asked.config), {"run_dir"})
    for name, value in asked.change.items():
        words += ["--change", f"{name.replace('_', '-')}={show(value)}"]
    words += ["--alpha", show(asked.alpha)]
    words += [] if asked.smallest is None else ["--smallest", show(asked.smallest)]
    words += [] if asked.equal is None else ["--equal", asked.equal]
    words += [] if asked.trees is None else ["--against", asked.trees[CHANGE].path]
    flags = [] if asked.paired else ["--unpaired"]
    return program_command("trial", *words, "--out", folder, *flags)
