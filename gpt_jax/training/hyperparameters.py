"""The numbers of a step that change no program's shape: arguments of the compiled step, not part.

Runs that differ in them alone share compiled programs, also those kept on the disk. What decides
structure (the optimizer, the kind of schedule, clipping on or off, a spike looked for or not) is a
choice of program. `1 - x` is computed here, in Python: of a float32 x it would be another number.
So is `1 / x`: XLA divides by a constant by multiplying by its reciprocal.

Constants of the program stay: a clip value of 1, by which a constant multiplies nothing, and with
which as an argument steps were rounded otherwise; dropout rates, for the same reason: where XLA
multiplies by a constant 1 / (1 - rate) in the gradient of the softmax of attention, before each
row's 1 / sum or after it, differs from programs for one device to those for two, so that neither
order written out keeps the bits of both; all else of the model, because layers are built from
`ModelConfig`, with `norm_epsilon` and `rotary_base`; `train.spike_window`, which is the length of
an array; Adam's epsilon and what Muon's Newton-Schulz steps multiply by, which are no settings.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt_jax.config import OptimConfig, TrainConfig

Hyperparameters = Mapping[str, Any]  # numbers by name: Python's, or float32 scalars in a program

DECAY_RATES = ("beta1", "beta2", "muon_beta")
CONSTANT_CLIPS = (None, 1.0)  # of optim.clip: off, and the one that is no multiplication
NUMBERS = ("learning_rate", "weight_decay", *DECAY_RATES, "floor")


def hyperparameters(optim: OptimConfig, train: TrainConfig | None = None) -> dict[str, float]:
    """Returns the numbers of a step by name, each to be a float32 scalar.

    Those of `optim` have the names of their settings; `NAME_complement` is 1 - NAME;
    `warmup_reciprocal` is 1 / (warmup_steps + 1); `decay_start_step` is where the schedule's decay
    begins, and `decay_reciprocal` 1 over its steps. `spike` is `train.spike`, where that is set.

    Raises:
      ValueError: the schedule has no length; see `config.fix_schedule`.
    """
    numbers = {name: float(getattr(optim, name)) for name in NUMBERS}
    numbers |= {f"{name}_complement": 1 - numbers[name] for name in (*DECAY_RATES, "floor")}
    numbers["warmup_reciprocal"] = _reciprocal(optim.warmup_steps + 1)
    if optim.clip not in CONSTANT_CLIPS:
        numbers["clip"] = float(optim.clip)
    if optim.schedule != "constant":
        start = optim.constant_steps
        numbers["decay_start_step"] = float(start)
        numbers["decay_reciprocal"] = _reciprocal((optim.schedule_steps or 0) - start)
    if train is not None and train.spike is not None:
        numbers["spike"] = float(train.spike)
    return numbers


def _reciprocal(x: float) -> float:
    """Returns 1 / x as float32 has it; infinite for 0, as a decay of no steps has it."""
    with np.errstate(divide="ignore"):
        return float(np.float32(1) / np.float32(x))


def optim_structure(optim: OptimConfig) -> OptimConfig:
    """Returns the settings with the numbers of `hyperparameters` replaced, alike in all runs.

    Two settings that differ in numbers alone are equal then, and share programs. These need the
    numbers as arguments; the optimizer's state has no use for them.
    """
    defaults = OptimConfig()
    left = copy.copy(optim)
    values = {name: getattr(defaults, name) for name in NUMBERS}
    values["clip"] = optim.clip if optim.clip in CONSTANT_CLIPS else 2.0
    constant = optim.schedule == "constant"  # of which only a warmup makes a schedule
    values["warmup_steps"] = min(1, optim.warmup_steps) if constant else 0
    values["schedule_steps"] = None if constant else 1
    values["decay_steps"] = 1 if optim.schedule == "wsd" else None
    for name, value in values.items():
        object.__setattr__(left, name, value)
    return left
