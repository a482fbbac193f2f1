"""What a trial is refused for, before anything is made or trained.

Its question, its folder, and what both sides of its next pair start from.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from gpt_jax.config import Config, fix_schedule, to_dict
from gpt_jax.errors import ConfigError, UserError, differences
from gpt_jax.experiments.budgets import BASE, CHANGE, SIDES, check_equal
from gpt_jax.experiments.fixed_settings import changed_hint
from gpt_jax.experiments.members import same_runs_line
from gpt_jax.experiments.outcomes import Pair
from gpt_jax.experiments.sides import shown_value
from gpt_jax.experiments.trees import Tree, check_settings, check_unchanged, read_trees
from gpt_jax.experiments.trial_record import TRIAL_FILE, Question, TrialRecord, read_trial
from gpt_jax.experiments.trial_runs import are_equal, seeds_of, sides_of
from gpt_jax.run.folder import is_run, read_summary
from gpt_jax.run.metrics import read_rows
from gpt_jax.storage import Folder, open_folder, to_folder


def check_question(
    config: Config,
    change: Mapping[str, Any],
    alpha: float,
    max_pairs: int,
    smallest: float | None,
    paired: bool,
    equal: str | None = None,
    against: str | os.PathLike[str] | None = None,
    begun: bool = False,
) -> Question:
    """Returns what a trial asks; see `trial`. One that has `begun` goes on as it was allowed to.

    Raises:
      ConfigError: a value is impossible, or a setting can't be tried.
    """
    if isinstance(alpha, bool) or not 0 < alpha < 1:
        raise ConfigError(f"alpha={alpha} must be a number between 0 and 1, both excluded")
    if type(max_pairs) is not int or max_pairs < 1:
        raise ConfigError(f"max_pairs={max_pairs} must be a whole number of at least 1")
    if smallest is not None and not 0 < smallest < math.inf:
        raise ConfigError(f"smallest={smallest} must be a finite number above 0")
    if not change and paired and against is None:
        raise ConfigError(
            "nothing is changed, so that both runs of a pair would be the same; name a change, or "
            "try the config against itself with --unpaired"
        )
    for name in change:
        changed_hint(name, begun=begun)
    seeds = max_pairs if paired else 2 * max_pairs
    if config.seed + seeds > 2**32:
        raise ConfigError(f"seed={config.seed} leaves no {seeds} seeds below 2**32")
    settings = {name: value for name, value in to_dict(config).items() if name != "run_dir"}
    sides = sides_of(config, change, None)  # every rule, before anything runs
    same = [same_runs_line(side, "runs that differ in their seed") for side in sides.values()]
    if all(same) and not begun and (max_pairs > 1 or not paired):
        raise ConfigError(same[0])
    trees = None if against is None else read_trees(against)
    check_equal(equal, change, trees is not None)
    return Question(settings, dict(change), float(alpha), smallest, paired, equal, trees)


def check_sides(sides: Mapping[str, Config], trees: Mapping[str, Tree] | None) -> None:
    """Reads and checks all that both runs of a pair start from; nothing is made.

    They can be compared, as what decides the tokens that are predicted can't be changed. Where
    each side is another program, that says only whether it takes the settings.

    Args:
      sides: the settings of each.
      trees: the checkout of each; None: both are computed by this program.

    Raises:
      ConfigError: one can't be trained, and which.
    """
    if trees is not None:
        for side, config in sides.items():
            check_settings(trees[side], config)
        return
    from gpt_jax import numerics
    from gpt_jax.training.run_setup import check_machine, prepare_beside

    setup = None
    with numerics.fixed():
        for side, config in sides.items():
            try:
                setup = prepare_beside(config, setup)
                if not _is_finished(setup.config):
                    check_machine(fix_schedule(setup.config), resumes=setup.resumes)
                setup = dataclasses.replace(setup, params=None)  # one side's at a time
            except UserError as error:
                raise ConfigError(f"the {side}: {error}") from error


def _is_finished(config: Config) -> bool:
    return read_summary(config.run_dir).get("step") == config.train.steps


def is_trial(out: str | os.PathLike[str]) -> bool:
    """Says whether a folder is that of a trial; raises UserError where it can't be reached."""
    return open_folder(to_folder(out)).has(TRIAL_FILE)


def open_trial(
    out: str | os.PathLike[str], question: Question
) -> tuple[Folder, TrialRecord | None]:
    """Returns the folder of a trial, and its record; None where one can be made there.

    Raises:
      UserError: it holds another trial, or anything else.
    """
    folder = open_folder(to_folder(out))
    if not folder.has(TRIAL_FILE):
        if folder.kind() == "file":
            raise UserError(f"{out} is a file; choose another --out")
        if folder.kind() and (there := folder.obstacles((TRIAL_FILE,))):
            raise UserError(
                f"{out} holds other files ({there[0]}) and no {TRIAL_FILE}; choose another --out"
            )
        return folder, None
    record = read_trial(folder)
    _check_same(out, folder, question, record)
    return folder, dataclasses.replace(record, question=question)


def create_trial(folder: Folder, text: str) -> None:
    """Makes a trial's folder with its first trial.json; raises UserError where it can't."""
    try:
        folder.create({TRIAL_FILE: text})
    except OSError as error:
        raise UserError(f"cannot make {folder.path}: {error.strerror or error}") from error


def _check_same(
    out: str | os.PathLike[str], folder: Folder, question: Question, record: TrialRecord
) -> None:
    """Raises UserError where a folder is that of another trial, or its runs deny its pairs.

    Or where the code of a tree has changed since it began.
    """
    before = record.question
    if before.trees and question.trees:
        there, here = before.trees, question.trees
        if [there[side].path for side in SIDES] == [here[side].path for side in SIDES]:
            check_unchanged(before.trees, out)
            question = dataclasses.replace(question, trees=before.trees)  # committed, perhaps
    there, here = (_flat(dataclasses.asdict(q)) for q in (before, question))
    if not there.get("config.model.vocab_size"):  # set by an earlier release only as it trained
        here.pop("config.model.vocab_size", None)
        there.pop("config.model.vocab_size", None)
    names = {name: here.get(name) for name in sorted({*there, *here})}
    if lines := differences(there, names, shown_value):
        raise UserError(f"{out} is another trial: {'; '.join(lines[:3])}; choose another --out")
    for index, pair in enumerate(record.pairs):
        if problem := _pair_problem(folder, question, index, pair):
            raise UserError(
                f"{folder.path / TRIAL_FILE} is damaged: pair {index + 1}: {problem}; restore the "
                "file, or choose another --out"
            )


def _pair_problem(folder: Folder, question: Question, index: int, pair: Pair) -> str:
    """Returns what is said of a pair that can't be, or that its runs' folders deny; or ''."""
    if pair.seeds != list(seeds_of(index, question.config["seed"], paired=question.paired)):
        return f"its seeds are {', '.join(map(str, pair.seeds)) or 'none'}"
    sides = ((BASE, pair.base, pair.base_diverged), (CHANGE, pair.change, pair.change_diverged))
    run_dirs = []
    for (side, loss, why), seed in zip(sides, pair.seeds, strict=True):
        if not math.isfinite(loss):
            return f"the loss of {side}-{seed} is {loss}"
        run_dirs.append(folder.path / f"{side}-{seed}")
        rows, summary = read_rows(run_dirs[-1]), read_summary(run_dirs[-1])
        first = [row["val_loss"] for row in rows if "val_loss" in row][:1]
        found = summary["val"]["nats_per_token"] if summary else first[0] if first else loss
        if found != loss or (summary and why is not None):
            what = "" if why is None else ", diverged"
            return f"the loss of {side}-{seed} is {loss:g}{what} there and {found:g} in its folder"
    may_be = not (pair.base_diverged or pair.change_diverged) and question.paired
    if all(map(is_run, run_dirs)) and pair.equal != (may_be and are_equal(*run_dirs)):
        return f"its runs are {'not ' * pair.equal}equal to the last bit"
    return ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        whole = prefix == "change." or not isinstance(value, dict)  # its names are dotted already
        flat |= {prefix + name: value} if whole else _flat(value, f"{prefix}{name}.")
    return flat
