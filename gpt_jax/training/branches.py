"""A branch, a run that continues another from one of its steps: its settings, and what it records.

A branch begins with its parent's rows up to that step, and a checkpoint of its own there, which
stays; so the parent may go afterwards. The state itself is read or recomputed by `past_state.py`.
Never imports jax.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_jax.config import Config, override
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.run.folder import is_run, read_config, run_record
from gpt_jax.run.metrics import read_rows
from gpt_jax.storage import open_folder, to_folder

# Of these none is a change of the parent's; a prompt may have been found in the corpus.
OWN = ("run_dir", "branch_from", "at_step", "model.vocab_size", "sample.prompt")
# What a branch has from its parent, and why it can't be given.
INHERITED = {
    "init_from": "it starts from the parent's step",
    "checkpoint": "it starts from the parent's step; give that as at_step",
    "init_seed": "its parameters are the parent's",
    "data.tokenizer": "the parent brings its tokenizer",
    "data.vocab_size": "the parent brings its tokenizer",
}


def branch_from(
    parent: str | os.PathLike[str], at_step: int, values: Mapping[str, Any] | None = None
) -> Config:
    """Returns the settings of a run that continues another from one of its steps, for `train`.

    They are the parent's, `train.steps` included, but for `values`. Of a branch that exists already
    they are those that it began with, so that the same call resumes it, also without the parent.

    Args:
      parent: the folder of a run, finished or not.
      at_step: a step that it has taken, from 1; the branch's first step is the next.
      values: dotted settings to replace; "run_dir", the branch's own folder, must be one of them.

    Raises:
      ConfigError: a value breaks a rule, or can't differ from the parent's.
      UserError: the parent is no run, or has not taken the step.
    """
    values = dict(values or {})
    for name, why in INHERITED.items():
        if name in values:
            raise ConfigError(f"{name}={values[name]} can't be given to a branch: {why}")
    if values.get("run_dir") is None:
        raise ConfigError("a branch needs a folder of its own; give it as run_dir (--run-dir)")
    own, theirs = to_folder(values["run_dir"]), to_folder(parent)
    if place(own) == place(theirs):
        raise ConfigError(f"run_dir={own} is the parent's folder; give the branch one of its own")
    if is_run(own):
        saved, before = _begun(own, theirs, at_step)
        return override(saved, {**before, **values})
    config = read_parent(parent)
    check_step(parent, at_step)
    begun = {"branch_from": os.fspath(parent), "at_step": at_step}
    return override(config, {**_inherited(config), **begun, **values})


def _inherited(config: Config) -> dict[str, Any]:
    """Returns what a branch has in place of how its parent began; a corpus is not replaced."""
    corpus = {"data.corpus": config.data.corpus, "data.fallback_corpus": None}
    return {"init_from": None, "checkpoint": "newest", **corpus}


def _begun(own: Path, parent: Path, at_step: int) -> tuple[Config, dict[str, Any]]:
    """Returns the settings of a branch that exists, and what its parent had in their place.

    Raises:
      UserError: the folder's run is another.
    """
    saved, origin = read_config(own)[0], run_record(own).origin or {}
    there = None
    if saved.branch_from is not None:
        there = f"a branch of {saved.branch_from} at step {saved.at_step}"
    places = {place(to_folder(saved.branch_from or "")), origin.get("path")}
    if there is None or place(parent) not in places or saved.at_step != at_step:
        raise UserError(
            f"{own} is {there or 'a run that is no branch'}, not one of {parent} at step "
            f"{at_step}; choose another --run-dir"
        )
    change = origin.get("change")
    change = change if isinstance(change, dict) else {}
    return saved, {name: both.get("from") for name, both in change.items()}


def place(folder: str | os.PathLike[str]) -> str:
    """Returns one text for a folder, however it is named."""
    return open_folder(folder).real_path()


def read_parent(parent: str | os.PathLike[str]) -> Config:
    """Returns the settings of a run to branch from.

    Raises:
      UserError: the folder is no run with steps, or damaged.
    """
    config, record = read_config(to_folder(parent))
    if not record:
        raise UserError(
            f"branch_from={parent} is a GPT-2 folder, which has no steps; fine-tune it with "
            "--init-from"
        )
    return config


def first_step(run_dir: str | os.PathLike[str]) -> int:
    """Returns the step that a run's folder begins with: 0, or where it parts from its parent.

    Of a folder that `save_run` wrote, the step at which its parameters were given.
    """
    origin = run_record(run_dir).origin or {}
    step = 0 if "sha256" in origin else origin.get("step", 0)  # parameters alone: init_from
    return step if type(step) is int else 0


def check_step(parent: str | os.PathLike[str], at_step: int) -> None:
    """Raises UserError where a run has not taken a step, or had taken it before it began."""
    rows = read_rows(to_folder(parent))
    done, began = (rows[-1]["step"] if rows else 0), first_step(to_folder(parent))
    if at_step > done:
        raise UserError(
            f"branch_from={parent} has taken {done:,} steps, and at_step={at_step} is beyond them; "
            f"choose a step of at most {done}, or let it train on"
        )
    if at_step < began:
        raise UserError(
            f"branch_from={parent} begins at step {began}, and at_step={at_step} is before that; "
            "branch from the run that it came from"
        )


def changes(parent: Config, branch: Config) -> dict[str, dict[str, Any]]:
    """Returns {setting: {"from", "to"}} of what a branch has changed."""
    inherited = {*OWN, *_inherited(parent)} - {"data.corpus"}
    return {
        name: {"from": before, "to": after}
        for name, _, _ in iter_fields(Config)
        if name not in inherited
        and (before := get_field(parent, name)) != (after := get_field(branch, name))
    }


def branch_record(parent: Config, branch: Config) -> dict[str, Any]:
    """Returns what config.json keeps of where a branch comes from.

    "lineage" lists its ancestors, the eldest first: {"path", "id", "step"}, the step being that at
    which the next of them, or the branch, parts.
    """
    folder = to_folder(branch.branch_from or "")
    record = run_record(folder)
    itself = {"path": place(folder), "id": record.id, "step": branch.at_step}
    return {
        "source": branch.branch_from,
        "path": itself["path"],
        "step": branch.at_step,
        "change": changes(parent, branch),
        "lineage": [*lineage(record.origin), itself],
    }


def lineage(origin: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the ancestors of a run by its record of where it comes from; see `branch_record`."""
    found = (origin or {}).get("lineage")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def mark(branch: Config, change: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the row of the step at which a branch parts says of that."""
    return {"branch": {"from": branch.branch_from, "at_step": branch.at_step, **change}}


def shown_changes(change: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns "optim.learning_rate 0.0001, not 0.0003; ..." of `changes`, or what there is none."""
    lines = [f"{name} {both.get('to')}, not {both.get('from')}" for name, both in change.items()]
    return "; ".join(lines) or "no setting is changed"


def corpus_of(config: Config, parent: Config, same: bool) -> Config:
    """Returns a parent's settings with the branch's place of the corpus, where it is the same."""
    corpus = config.data.corpus if same else parent.data.corpus
    return dataclasses.replace(parent, data=dataclasses.replace(parent.data, corpus=corpus))
