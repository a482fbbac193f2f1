"""`trial`: pairs of runs, seed by seed, until a change is shown to help or to harm.

A trial is a folder: trial.json has the question and the pairs so far, and each side of a pair is
the folder of a run, BASE-SEED or CHANGE-SEED. trial.json is written before the first run and after
each pair, so that a trial that was killed continues by the same command.

After each pair the confidence sequence of the mean difference is looked at, which is allowed as
often as one likes; see `sequential.py`. It assumes normal differences. A run that diverged counts
with the validation loss before its first step, that of a model that has learned nothing.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_jax.config import Config, to_dict
from gpt_jax.config.fields import iter_fields
from gpt_jax.errors import ConfigError, UserError, differences, suggest
from gpt_jax.experiments.budgets import (
    BASE,
    CHANGE,
    SIDES,
    Budget,
    Runner,
    check_equal,
    make_budget,
    step_costs,
)
from gpt_jax.experiments.outcomes import Pair, Trial
from gpt_jax.experiments.sides import is_seed, shown_value
from gpt_jax.experiments.trees import check_unchanged, read_trees
from gpt_jax.experiments.trial_record import FORMAT as FORMAT  # as before it was a module
from gpt_jax.experiments.trial_record import (
    TRIAL_FILE,
    Question,
    TrialRecord,
    read_trial,
    record_text,
)
from gpt_jax.experiments.trial_runs import are_equal, run_pair, runner, seeds_of, sides_of
from gpt_jax.run.folder import is_run, read_summary
from gpt_jax.run.metrics import read_rows
from gpt_jax.storage import Folder, open_folder, to_folder
from gpt_jax.training.trackers import TrackedRuns, check_trackers

FIXED = ("run_dir", "data.corpus", "data.fallback_corpus", "data.train_fraction")
FIXED += ("data.tokenizer", "data.vocab_size", "train.final_eval_tokens")


def trial(
    config: Config,
    change: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    alpha: float = 0.01,
    max_pairs: int = 20,
    smallest: float | None = None,
    paired: bool = True,
    equal: str | None = None,
    against: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
    track: Sequence[str] = (),
) -> Trial:
    """Trains pairs of runs until the change is shown to help or to harm, or the pairs are used up.

    The same call continues a trial that was stopped; more `max_pairs` continue one that ended
    without a verdict.

    Args:
      config: the settings of the baseline; its seed is that of the first pair, and the next pairs
        have the seeds after it.
      change: {setting: value} of the other side. None at all tries the config against itself, which
        needs `paired=False`.
      out: the trial's folder.
      alpha: in (0, 1); the chance of a verdict where the change makes no difference, at most.
      max_pairs: at most so many pairs.
      smallest: end also when a difference of this size, in nats per token, is ruled out.
      paired: both runs of a pair have one seed, so the same batches; else each run has its own.
      equal: give the change as many steps as spend what the baseline's spend: "steps", "tokens",
        "flops" or "seconds"; these are measured before the first pair. None: each side has its own.
      against: another checkout of the code, as the change: each side is run by its own tree.
      progress: called with a line before each run and after each pair.
      track: trackers that are told of the runs, see `training.trackers`.

    Raises:
      UserError: a setting can't be tried, or the folder is another's.
      Interrupted: a signal stopped training; the same call continues.
    """
    question = check_question(
        config, change, alpha, max_pairs, smallest, paired, equal=equal, against=against
    )
    check_trackers(track)
    folder = open_trial(out, question)
    say = progress or (lambda line: None)
    with folder.lock("tried"), TrackedRuns(track, folder.path) as tracked:
        timed = runner(folder, question.trees)
        record = _with_budget(read_trial(folder), folder, config, timed, say)
        run = runner(folder, question.trees, tracked)
        found = dataclasses.replace(record, question=question).outcome(folder.path, max_pairs)
        while not found.is_over:
            n, budget = len(found.pairs), record.budget
            seeds = seeds_of(n, config.seed, paired=paired)
            tell = lambda line, n=n: say(f"pair {n + 1}: {line}")
            pair = run_pair(folder, config, question.change, budget, seeds, run, tell)
            found = dataclasses.replace(found, pairs=[*found.pairs, pair])
            folder.write(TRIAL_FILE, record_text(question, found.pairs, budget))
            say(found.line)
    return found


def _with_budget(
    record: TrialRecord, folder: Folder, config: Config, run: Runner, say: Callable[[str], None]
) -> TrialRecord:
    """Returns the record with the steps of each side, which are found once and kept."""
    question = record.question
    if question.equal is None or record.budget is not None:
        return record
    if question.equal == "seconds":
        say("timing a few steps of each side")
    budget = find_budget(question, config, folder, run)
    sides_of(config, question.change, budget)  # every rule
    folder.write(TRIAL_FILE, record_text(question, record.pairs, budget))
    say(str(budget))
    return dataclasses.replace(record, budget=budget)


def find_budget(question: Question, config: Config, folder: Folder, run: Runner) -> Budget:
    """Returns the steps of each side; see `budgets.step_costs`."""
    sides, equal = sides_of(config, question.change, None), question.equal or ""
    return make_budget(equal, sides, step_costs(equal, sides, folder.path, run))


def plan_lines(
    config: Config, question: Question, out: str | os.PathLike[str], max_pairs: int
) -> list[str]:
    """Returns what `trial` would run, in lines, and about what that takes; nothing is made.

    A few steps of each side are run for it, in memory.
    """
    folder = open_folder(to_folder(out))
    done: list[Pair] = []
    budget = None
    if folder.has(TRIAL_FILE):
        _check_same(out, folder, question)
        record = read_trial(folder)
        done, budget = record.pairs, record.budget
    if budget is None and question.equal not in (None, "seconds"):
        budget = find_budget(question, config, folder, runner(folder, None))
    left = max(0, max_pairs - len(done))
    lines = [
        f"at most {max_pairs} pairs in {out}, {len(done)} of them done: at most {2 * left} runs, "
        "one after another"
    ]
    sides = sides_of(config, question.change, budget)
    for side, own in sides.items():
        tokens = own.train.steps * own.train.batch_size * own.model.block_size
        values = question.change if side == CHANGE else {}
        shown = [f"{n.replace('_', '-')}={shown_value(v)}" for n, v in values.items()]
        shown += [f"code of {question.trees[side]}"] if question.trees else []
        steps = f"{own.train.steps:,} steps, {tokens:,} tokens a run"
        lines.append(f"{side}: {steps}; {', '.join(shown) or '-'}")
    if question.equal is not None:
        lines.append(str(budget or "equal seconds: the steps of the change are measured first"))
    first, last = (seeds_of(i, config.seed, paired=question.paired) for i in (0, max_pairs - 1))
    lines.append(f"seeds: from {first[0]} to {last[1]}")
    if left and not question.trees:
        from gpt_jax.experiments.estimate import runs_text

        lines += runs_text(list(sides.values()), left)
    elif left:
        lines.append("disk: one checkpoint a run; time: known after the first pair")
    return lines


def check_question(
    config: Config,
    change: Mapping[str, Any],
    alpha: float,
    max_pairs: int,
    smallest: float | None,
    paired: bool,
    equal: str | None = None,
    against: str | os.PathLike[str] | None = None,
) -> Question:
    """Returns what a trial asks; see `trial`.

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
    known = [name for name, _, field in iter_fields(Config) if not field.metadata["internal"]]
    for name in change:
        if name not in known:
            raise ConfigError(f"change: unknown setting {name!r}{suggest(name, known)}")
        if name in FIXED or is_seed(name) or name.startswith("sample."):
            raise ConfigError(f"change: {name} can't be tried: losses could not be compared")
    seeds = max_pairs if paired else 2 * max_pairs
    if config.seed + seeds > 2**32:
        raise ConfigError(f"seed={config.seed} leaves no {seeds} seeds below 2**32")
    settings = {name: value for name, value in to_dict(config).items() if name != "run_dir"}
    sides_of(config, change, None)  # every rule, before anything runs
    trees = None if against is None else read_trees(against)
    check_equal(equal, change, trees is not None)
    return Question(settings, dict(change), float(alpha), smallest, paired, equal, trees)


def open_trial(out: str | os.PathLike[str], question: Question) -> Folder:
    """Returns the folder of a trial, made where there is none.

    Raises:
      UserError: it holds another trial, or anything else, or can't be made.
    """
    folder = open_folder(to_folder(out))
    if not folder.has(TRIAL_FILE):
        if folder.kind() == "file":
            raise UserError(f"{out} is a file; choose another --out")
        if folder.kind() and (there := folder.obstacles((TRIAL_FILE,))):
            raise UserError(
                f"{out} holds other files ({there[0]}) and no {TRIAL_FILE}; choose another --out"
            )
        try:
            folder.create({TRIAL_FILE: record_text(question, [])})
        except OSError as error:
            raise UserError(f"cannot make {out}: {error.strerror or error}") from error
        return folder
    _check_same(out, folder, question)
    return folder


def _check_same(out: str | os.PathLike[str], folder: Folder, question: Question) -> None:
    """Raises UserError where a folder is that of another trial, or its runs deny its pairs.

    Or where the code of a tree has changed since it began.
    """
    record = read_trial(folder)
    before = record.question
    if before.trees and question.trees:
        there, here = before.trees, question.trees
        if [there[side].path for side in SIDES] == [here[side].path for side in SIDES]:
            check_unchanged(before.trees, out)
            question = dataclasses.replace(question, trees=before.trees)  # committed, perhaps
    there, here = (_flat(dataclasses.asdict(q)) for q in (before, question))
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
