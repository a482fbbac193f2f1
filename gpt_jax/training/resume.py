"""Which settings may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from gpt_jax.config import Config, SampleConfig, TrainConfig, fix_schedule, override
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.errors import ConfigError, differences
from gpt_jax.input_pipeline.corpus import parse_mixture, with_absolute_paths
from gpt_jax.terminal import quote

# How a schedule ends.
SCHEDULE_END = {"optim.schedule_steps", "optim.decay_steps", "optim.floor"}
# What suits the machine that resumes a run; see `machine_settings`.
MACHINE_SETTINGS = ("model.attention", "model.remat", "train.loss_chunk", "train.deterministic")
MACHINE_SETTINGS += ("train.micro_batch",)
# When training ends; train.steps can only grow.
RUN_LENGTH = ("train.steps", "train.max_minutes", "train.max_skipped")
# What is measured, shown and kept, which changes nothing of what is learned.
MEASURING = (
    "train.log_interval",
    "train.eval_interval",
    "train.eval_batches",
    "train.eval_fixed",
    "train.sample_tokens",
    "train.final_eval_tokens",
    "train.checkpoint_interval",
    "train.keep_checkpoints",
    "train.keep_interval",
    "train.keep_best",
    *(f"sample.{name}" for name, _, _ in iter_fields(SampleConfig)),
)
FREE = (*RUN_LENGTH, *MEASURING, "data.resident")


def machine_settings(train: TrainConfig) -> set[str]:
    """Returns which of `MACHINE_SETTINGS` change rounding only.

    Not train.micro_batch in a run begun when each micro-batch had dropout masks of its own.
    """
    whole = train.dropout_masks == "batch"
    return set(MACHINE_SETTINGS) - (set() if whole else {"train.micro_batch"})


def resume_config(config: Config, saved: Config, record: dict[str, Any], done: int) -> Config:
    """Returns the settings to resume a run with.

    Four groups may differ: `RUN_LENGTH` (`train.steps` can only grow); `MEASURING`, which changes
    nothing of what is learned; `SCHEDULE_END`, if it changes the learning rate of none of the
    `done` steps; `machine_settings`, which change rounding only.

    Raises:
      ConfigError: another setting differs; the message names each.
    """
    corpus = config.data.corpus
    asked_for, used = record.get("requested"), saved.data.corpus
    if corpus == asked_for and config.data.fallback_corpus is not None:
        corpus = used  # a run that began on a fallback corpus stays on it
    path = with_absolute_paths(corpus)
    if corpus != used:
        corpus = path
    config = _with_recorded_choices(config, saved)
    settable = {*FREE, *machine_settings(saved.train)}
    free = {"run_dir", "model.vocab_size", "data.corpus", "data.fallback_corpus", *settable}
    free |= {"train.dropout_masks"}  # always as saved
    free |= {"mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence"}
    config = fix_schedule(config)
    ends_may_move = config.optim.schedule == saved.optim.schedule and done <= min(
        config.optim.constant_steps, saved.optim.constant_steps
    )
    if ends_may_move:
        free |= SCHEDULE_END
    if config.sample.prompt is None:
        config = override(config, {"sample.prompt": saved.sample.prompt})
    names = [name for name, _, _ in iter_fields(Config) if name not in free]
    different = differences(
        {name: get_field(saved, name) for name in names},
        {name: get_field(config, name) for name in names},
    )
    # Another path may hold the same corpus: `check_same_corpus` compares sums.
    if corpus != used and not (os.path.isabs(corpus) or parse_mixture(corpus)):
        different += differences({"data.corpus": used}, {"data.corpus": corpus})
    if config.train.steps < saved.train.steps:
        steps = {"train.steps": config.train.steps}
        (line,) = differences({"train.steps": saved.train.steps}, steps)
        different.append(f"{line} (it can grow)")
    way_out = ""
    end = saved.optim.schedule_steps
    if not ends_may_move and end not in (None, config.optim.schedule_steps):
        way_out = (
            f"; --optim.schedule-steps {end} keeps the learning rate of the {done} steps taken, "
            "and later steps stay at its floor"
        )
    if different:
        raise ConfigError(
            f"{config.run_dir} is a run with other settings: {'; '.join(different)}. A run in "
            "another folder starts from its parameters with --init-from "
            f"{quote(config.run_dir)}. Choose another --run-dir, or its own settings{way_out}"
        )
    kept = dataclasses.replace(
        saved,
        run_dir=config.run_dir,
        data=dataclasses.replace(saved.data, corpus=corpus),
        optim=config.optim,
        mesh=config.mesh,
    )
    return override(kept, {name: get_field(config, name) for name in settable})


def _with_recorded_choices(config: Config, saved: Config) -> Config:
    """Returns the settings with what "auto" was when the run began; see `automatic.py`."""
    names = [n for n in ("model.dtype", "train.micro_batch") if get_field(config, n) == "auto"]
    return override(config, {name: get_field(saved, name) for name in names}) if names else config


def changed_measuring(saved: Config, now: Config) -> dict[str, dict[str, Any]]:
    """Returns {setting: {"from", "to"}} for each of `MEASURING` that differs, for a row."""
    return {
        name: {"from": before, "to": after}
        for name in MEASURING
        if (before := get_field(saved, name)) != (after := get_field(now, name))
    }
