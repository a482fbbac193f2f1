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
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_jax.config import Config, override, to_dict
from gpt_jax.config.fields import iter_fields
from gpt_jax.errors import ConfigError, Diverged, UserError, differences, suggest
from gpt_jax.experiments.members import ONE_CHECKPOINT
from gpt_jax.experiments.outcomes import Pair, Trial
from gpt_jax.experiments.sides import is_seed, shown_value
from gpt_jax.run.folder import is_run, read_summary
from gpt_jax.run.metrics import TIMING_FIELDS, read_rows
from gpt_jax.storage import Folder, open_folder, read_record, to_folder

TRIAL_FILE = "trial.json"
FORMAT = 1
BASE, CHANGE = "base", "change"
FIXED = ("run_dir", "data.corpus", "data.fallback_corpus", "data.train_fraction")
FIXED += ("data.tokenizer", "data.vocab_size", "train.final_eval_tokens")


@dataclasses.dataclass(frozen=True)
class Question:
    """What a trial asks.

    Attributes:
      config: the settings of the baseline, but its run_dir.
      change: {setting: value} of the other side.
      alpha: the chance of a false verdict, at most.
      smallest: the least difference that matters, in nats per token; None where that was not said.
      paired: both sides have the same seeds.
    """

    config: dict[str, Any]
    change: dict[str, Any]
    alpha: float
    smallest: float | None
    paired: bool


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """What trial.json holds."""

    format: int
    question: Question
    pairs: list[Pair]


def trial(
    config: Config,
    change: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    alpha: float = 0.01,
    max_pairs: int = 20,
    smallest: float | None = None,
    paired: bool = True,
    progress: Callable[[str], None] | None = None,
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
      progress: called with a line before each run and after each pair.

    Raises:
      UserError: a setting can't be tried, or the folder is another's.
      Interrupted: a signal stopped training; the same call continues.
    """
    question = check_question(config, change, alpha, max_pairs, smallest, paired)
    folder = open_trial(out, question)
    say = progress or (lambda line: None)
    with folder.lock("tried"):
        pairs = read_trial(folder).pairs
        found = Trial(folder.path, question.change, pairs, alpha, smallest, paired, max_pairs)
        while not found.is_over:
            pair = _run_pair(folder, config, question, len(found.pairs), say)
            found = dataclasses.replace(found, pairs=[*found.pairs, pair])
            folder.write(TRIAL_FILE, _text(question, found.pairs))
            say(found.line)
    return found


def plan_lines(
    config: Config, question: Question, out: str | os.PathLike[str], max_pairs: int
) -> list[str]:
    """Returns what `trial` would run, in lines; nothing is made or trained."""
    folder = open_folder(to_folder(out))
    done: list[Pair] = []
    if folder.has(TRIAL_FILE):
        _check_same(out, folder, question)
        done = read_trial(folder).pairs
    left = max(0, max_pairs - len(done))
    lines = [
        f"at most {max_pairs} pairs in {out}, {len(done)} of them done: at most {2 * left} runs, "
        "one after another"
    ]
    for side in (BASE, CHANGE):
        own = _side_config(config, question.change, side, config.seed, "x")
        tokens = own.train.steps * own.train.batch_size * own.model.block_size
        values = question.change if side == CHANGE else {}
        shown = ", ".join(f"{n.replace('_', '-')}={shown_value(v)}" for n, v in values.items())
        lines.append(f"{side}: {own.train.steps:,} steps, {tokens:,} tokens a run; {shown or '-'}")
    first, last = (seeds_of(question, i, config.seed) for i in (0, max_pairs - 1))
    lines.append(f"seeds: from {first[0]} to {last[1]}")
    lines.append("disk: one checkpoint a run; time: known after the first pair")
    return lines


def check_question(
    config: Config,
    change: Mapping[str, Any],
    alpha: float,
    max_pairs: int,
    smallest: float | None,
    paired: bool,
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
    if not change and paired:
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
    for side in (BASE, CHANGE):  # every rule, before anything runs
        _side_config(config, dict(change), side, config.seed, "x")
    return Question(settings, dict(change), float(alpha), smallest, paired)


def _side_config(
    config: Config, change: dict[str, Any], side: str, seed: int, run_dir: str
) -> Config:
    """Returns the settings of a run of a trial; raises ConfigError where they break a rule."""
    own = {**ONE_CHECKPOINT, "seed": seed, "run_dir": run_dir}
    return override(config, {**(change if side == CHANGE else {}), **own})


def seeds_of(question: Question, index: int, first: int) -> tuple[int, int]:
    """Returns the seeds of both runs of a pair."""
    if question.paired:
        return first + index, first + index
    return first + 2 * index, first + 2 * index + 1


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
            folder.create({TRIAL_FILE: _text(question, [])})
        except OSError as error:
            raise UserError(f"cannot make {out}: {error.strerror or error}") from error
        return folder
    _check_same(out, folder, question)
    return folder


def _check_same(out: str | os.PathLike[str], folder: Folder, question: Question) -> None:
    """Raises UserError where a folder is that of another trial, or its runs deny its pairs."""
    record = read_trial(folder)
    there, here = (_flat(dataclasses.asdict(q)) for q in (record.question, question))
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
    if pair.seeds != list(seeds_of(question, index, question.config["seed"])):
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
    are_equal = not (pair.base_diverged or pair.change_diverged) and question.paired
    if all(map(is_run, run_dirs)) and pair.equal != (are_equal and _are_equal(*run_dirs)):
        return f"its runs are {'not ' * pair.equal}equal to the last bit"
    return ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        whole = prefix == "change." or not isinstance(value, dict)  # its names are dotted already
        flat |= {prefix + name: value} if whole else _flat(value, f"{prefix}{name}.")
    return flat


def read_trial(folder: Folder) -> TrialRecord:
    """Returns what trial.json says.

    Raises:
      UserError: it is damaged, or a newer program wrote it.
    """
    path = folder.path / TRIAL_FILE
    try:
        record = read_record(folder.read_json(TRIAL_FILE), TrialRecord)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; choose another --out") from error
    if record.format > FORMAT:
        raise UserError(f"{path} has format {record.format}, from a newer gpt_jax")
    return record


def _text(question: Question, pairs: Sequence[Pair]) -> str:
    record = TrialRecord(FORMAT, question, list(pairs))
    return json.dumps(dataclasses.asdict(record), indent=1) + "\n"


def _run_pair(
    folder: Folder, config: Config, question: Question, index: int, say: Callable[[str], None]
) -> Pair:
    """Trains both runs of a pair, or what is missing of them, and returns their figures."""
    seeds = seeds_of(question, index, config.seed)
    losses, diverged, run_dirs = [], [], []
    for side, seed in zip((BASE, CHANGE), seeds, strict=True):
        run_dirs.append(folder.path / f"{side}-{seed}")
        own = _side_config(config, question.change, side, seed, str(run_dirs[-1]))
        say(f"pair {index + 1}: {side}, seed {seed}")
        loss, why = _train(own)
        losses.append(loss)
        diverged.append(why)
    equal = not any(diverged) and question.paired and _are_equal(*run_dirs)
    return Pair(list(seeds), losses[0], losses[1], diverged[0], diverged[1], equal)


def _train(config: Config) -> tuple[float, str | None]:
    """Trains a run; returns its exact loss, or the untrained one and why it diverged."""
    from gpt_jax.training.trainer import train

    run_dir = to_folder(config.run_dir)
    try:
        train(config, quiet=True)
    except Diverged as error:
        first = [row["val_loss"] for row in read_rows(run_dir) if "val_loss" in row][:1]
        if not first:
            raise
        return first[0], str(error)
    return float(read_summary(run_dir)["val"]["nats_per_token"]), None


def _are_equal(a: Path, b: Path) -> bool:
    """Says whether every loss of two runs is equal to the last bit."""
    rows = [
        [{k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in read_rows(run_dir)]
        for run_dir in (a, b)
    ]
    exact = [read_summary(run_dir).get("val") for run_dir in (a, b)]
    return rows[0] == rows[1] and exact[0] == exact[1]
