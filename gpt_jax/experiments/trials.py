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
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_jax.config import Config
from gpt_jax.experiments.budgets import CHANGE, Budget, Runner, make_budget, step_costs
from gpt_jax.experiments.outcomes import Trial
from gpt_jax.experiments.sides import shown_value
from gpt_jax.experiments.trial_checks import (
    check_question,
    check_sides,
    create_trial,
    is_trial,
    open_trial,
)
from gpt_jax.experiments.trial_record import (
    FORMAT,
    TRIAL_FILE,
    Question,
    TrialRecord,
    read_trial,
    record_text,
)
from gpt_jax.experiments.trial_runs import (
    pair_configs,
    run_pair,
    runner,
    seeds_of,
    sides_of,
)
from gpt_jax.storage import Folder
from gpt_jax.training.trackers import TrackedRuns, check_trackers

MEASURED_FIRST = "equal seconds: the steps of the change are measured first, before the first pair"


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
      UserError: a setting can't be tried, a side can't be trained, or the folder is another's; all
        found before anything is made, but what depends on the steps that equal="seconds" finds.
      Interrupted: a signal stopped training; the same call continues.
    """
    question = check_question(
        config, change, alpha, max_pairs, smallest, paired,
        equal=equal, against=against, begun=is_trial(out),
    )  # fmt: skip
    check_trackers(track)
    folder, begun = open_trial(out, question)
    say = progress or (lambda line: None)
    record = begun or TrialRecord(FORMAT, question, [])
    budget = _check_next_pair(record, folder, config, max_pairs, say)
    if begun is None and open_trial(out, question)[1] is None:  # no other process made it since
        create_trial(folder, record_text(question, [], budget))
        if budget is not None:
            say(str(budget))
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


def _check_next_pair(
    record: TrialRecord,
    folder: Folder,
    config: Config,
    max_pairs: int,
    say: Callable[[str], None] = lambda line: None,
) -> Budget | None:
    """Checks what the next pair starts from; returns the steps of each side that can be told now.

    Raises:
      UserError: a side can't be trained.
    """
    question, budget = record.question, record.budget
    if record.outcome(folder.path, max_pairs).is_over:
        return budget
    say("checking both sides")
    if budget is None and question.equal not in (None, "seconds"):
        budget = find_budget(question, config, folder, runner(folder, None))
    seeds = seeds_of(len(record.pairs), config.seed, paired=question.paired)
    sides = pair_configs(folder.path, config, question.change, budget, seeds)
    check_sides(sides, question.trees)
    return budget


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
    folder, begun = open_trial(out, question)
    record = begun or TrialRecord(FORMAT, question, [])
    budget = _check_next_pair(record, folder, config, max_pairs)
    done = len(record.pairs)
    left = max(0, max_pairs - done)
    sides = sides_of(config, question.change, budget)
    is_known = question.equal is None or budget is not None
    steps = left * sum(own.train.steps for own in sides.values())
    lines = [
        f"at most {max_pairs} pairs in {out}, {done} of them done: at most {2 * left} runs, "
        + (f"{steps:,} steps, " if is_known else "")
        + "one after another"
    ]
    lines += [_side_line(side, own, question, budget) for side, own in sides.items()]
    if question.equal is not None:
        lines.append(str(budget or MEASURED_FIRST))
    first, last = (seeds_of(i, config.seed, paired=question.paired) for i in (0, max_pairs - 1))
    lines.append(f"seeds: from {first[0]} to {last[1]}")
    if left and not question.trees:
        from gpt_jax.experiments.estimate import runs_text

        lines += runs_text(list(sides.values()), left)
        if not is_known:
            lines[-2] += "; with as many steps of the change as of the baseline"
    elif left:
        lines.append("disk: one checkpoint a run; time: known after the first pair")
    return lines


def _side_line(side: str, config: Config, question: Question, budget: Budget | None) -> str:
    """Returns what a side's runs are."""
    values = question.change if side == CHANGE else {}
    shown = [f"{n.replace('_', '-')}={shown_value(v)}" for n, v in values.items()]
    shown += [f"code of {question.trees[side]}"] if question.trees else []
    tokens = config.train.steps * config.train.batch_size * config.model.block_size
    steps = f"{config.train.steps:,} steps, {tokens:,} tokens a run"
    if side == CHANGE and question.equal == "seconds" and budget is None:
        steps = "as many steps as take the seconds of the base"
    return f"{side}: {steps}; {', '.join(shown) or '-'}"
