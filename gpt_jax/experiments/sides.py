"""The sides of a comparison: which runs an argument names, and whether two sides can be compared.

Reads folders of runs, without parameters, and writes nothing; never imports jax.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.config import Config
from gpt_jax.config.fields import get_field, iter_fields, parse
from gpt_jax.errors import ConfigError, UserError, differences, suggest
from gpt_jax.experiments.members import SWEEP_FILE, Member, read_sweep
from gpt_jax.run.folder import TOKENIZER_FILE, is_run, read_config, read_summary, run_record
from gpt_jax.run.metrics import read_rows
from gpt_jax.storage import open_folder, to_folder
from gpt_jax.training.branches import lineage

# Where a run lies and what it writes; its corpus is compared by its sum.
PLACES = {"run_dir", "checkpoint", "branch_from", "data.corpus", "data.fallback_corpus"}
# What may differ between the runs of one side: it changes rounding, or what is kept and measured.
INCIDENTAL = {"data.resident", "model.attention", "model.remat", "train.loss_chunk"}
INCIDENTAL |= {
    "train.micro_batch",
    "train.deterministic",
    "train.max_minutes",
    "train.log_interval",
    "train.sample_tokens",
}
INCIDENTAL |= {"train.checkpoint_interval", "train.keep_checkpoints", "train.keep_interval"}
INCIDENTAL |= {"train.keep_best", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence"}
# What a run may be resumed with, beside these.
MAY_GROW = {"train.steps", "train.max_skipped"}
MAY_GROW |= {"optim.schedule_steps", "optim.decay_steps", "optim.floor"}
# With these and the seeds equal, two runs on one corpus have the same batches.
BATCHES = ("data.order", "data.tokenizer", "data.vocab_size", "model.vocab_size")
BATCHES += ("model.block_size", "train.batch_size")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run's folder says, without its parameters.

    Attributes:
      run_dir: the folder.
      config: the settings.
      corpus: the record of its corpus.
      rows: of metrics.jsonl.
      summary: of a finished run; else empty.
      tokenizer: a sum of tokenizer.json; "" where there is none.
      id: of the run; None in folders of earlier releases.
      lineage: the ancestors of a branch, see `training.branches.branch_record`.
    """

    run_dir: Path
    config: Config
    corpus: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    tokenizer: str
    id: str | None = None
    lineage: Sequence[Mapping[str, Any]] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed, and those of purposes that may have their own, which is the seed if unset."""
        given = [
            get_field(self.config, name) for name, _, _ in iter_fields(Config) if is_seed(name)
        ]
        return tuple(self.config.seed if seed is None else seed for seed in given)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps of the rows that have a number, int64 (E,), and the numbers, (E,)."""
        rows = {row["step"]: row[name] for row in self.rows if row.get(name) is not None}
        return np.array(list(rows), np.int64), np.array(list(rows.values()), np.float64)


@dataclasses.dataclass(frozen=True)
class Side:
    """Runs of one setting, which differ by their seeds.

    Attributes:
      label: how it is called in the result.
      runs: at least one, by their seeds.
    """

    label: str
    runs: tuple[RunFiles, ...]

    @property
    def config(self) -> Config:
        return self.runs[0].config


def is_sweep(name: str | os.PathLike[str]) -> bool:
    return open_folder(name).has(SWEEP_FILE)


def read_run(run_dir: str | os.PathLike[str]) -> RunFiles:
    """Returns what a run's folder says.

    Raises:
      UserError: it is no run, or damaged.
    """
    folder = open_folder(run_dir)
    config, corpus = read_config(folder.path)
    if not corpus:
        raise UserError(f"{run_dir} is a GPT-2 folder, which has no losses to compare")
    tokenizer = ""
    if folder.has(TOKENIZER_FILE):
        try:
            tokenizer = hashlib.sha256(folder.read(TOKENIZER_FILE)).hexdigest()
        except (OSError, ValueError) as error:
            raise UserError(f"{folder.path / TOKENIZER_FILE} is damaged: {error}") from error
    record = run_record(folder)
    return RunFiles(
        run_dir=folder.path,
        config=config,
        corpus=corpus,
        rows=read_rows(folder),
        summary=read_summary(folder),
        tokenizer=tokenizer,
        id=record.id,
        lineage=lineage(record.origin),
    )


def find_side(name: str | os.PathLike[str]) -> Side:
    """Returns the runs that a folder, the folder of a sweep of seeds, or a pattern names.

    Raises:
      UserError: there are none, or they are not of one setting.
    """
    text = os.fspath(name)
    if not os.path.exists(os.path.expanduser(text)) and glob.has_magic(text):
        found = sorted(glob.glob(os.path.expanduser(text)))
        folders = [path for path in found if is_run(path)]
        if not folders:
            what = f"nothing but {found[0]}, which is no run" if found else "nothing"
            raise UserError(f"no run matches {text!r}: there is {what}")
        return make_side(text, [read_run(path) for path in folders])
    if is_sweep(to_folder(text)):
        side, *others = find_settings(text).values()
        if others or isinstance(side, str):
            what = f"it has {1 + len(others)} settings, and a side has one" if others else side
            raise UserError(f"the sweep {text} can't be a side: {what}; compare it alone")
        return dataclasses.replace(side, label=text)
    return make_side(text, [read_run(to_folder(text))])


def make_side(label: str, runs: Iterable[RunFiles]) -> Side:
    """Returns a side of runs, by their seeds.

    Raises:
      UserError: two have one seed, or other settings.
    """
    runs = sorted(runs, key=lambda run: run.seeds)
    for before, run in itertools.pairwise(runs):
        if before.seeds == run.seeds:
            raise UserError(
                f"{before.run_dir} and {run.run_dir} are on one side and both have seed "
                f"{run.config.seed}; name runs of different seeds"
            )
        seeds = {name for name, _, _ in iter_fields(Config) if is_seed(name)}
        mixed = settings_lines(before.config, run.config, ignored=INCIDENTAL | seeds)
        if mixed:
            raise UserError(
                f"{label} mixes settings: {mixed[0]} in {before.run_dir} and {run.run_dir}; a side "
                "has runs that differ by their seeds alone"
            )
    return Side(label, tuple(runs))


def find_settings(name: str | os.PathLike[str]) -> dict[str, Side | str]:
    """Returns the settings of a sweep by their labels, in the order of its members.

    In place of a setting with a member that diverged, or has not begun, stands why it is left out.

    Raises:
      UserError: sweep.json is damaged, or names a folder outside the sweep's.
    """
    folder = open_folder(name)
    path = folder.path / SWEEP_FILE
    groups: dict[str, list[Member]] = {}
    for member in read_sweep(folder).members:
        groups.setdefault(_label(member.values), []).append(member)
    sides: dict[str, Side | str] = {}
    for label, members in groups.items():
        paths = [folder.path / member.run_dir for member in members]
        diverged = [path for path, m in zip(paths, members, strict=True) if m.diverged is not None]
        missing = [path for path in paths if not is_run(path)]
        if diverged:
            sides[label] = f"{diverged[0]} diverged"
        elif missing:
            sides[label] = f"{missing[0]} has not begun"
        else:
            runs = list(map(read_run, paths))
            for member, run in zip(members, runs, strict=True):
                _check_member(path, member, run)
            sides[label] = make_side(label, runs)
    return sides


def _check_member(path: Path, member: Member, run: RunFiles) -> None:
    """Raises UserError where sweep.json says of a member what its run does not."""
    for name, value in {**member.values, "seed": member.seed}.items():
        if name in INCIDENTAL | MAY_GROW:
            continue
        try:
            there = get_field(run.config, name)
        except AttributeError:
            there = "no setting"
        if there != value or isinstance(there, bool) != isinstance(value, bool):
            raise UserError(
                f"{path} is damaged: {name} of {member.run_dir} is {shown_value(value)} there and "
                f"{shown_value(there)} in its config.json"
            )


def _label(values: Mapping[str, Any]) -> str:
    """Returns a member's settings as the command line takes them, but its seeds."""
    shown = [
        f"{name.replace('_', '-')}={shown_value(value)}"
        for name, value in values.items()
        if not is_seed(name)
    ]
    return ", ".join(shown) or "its setting"


def is_seed(name: str) -> bool:
    return name == "seed" or name.endswith("_seed")


def find_baseline(sides: Sequence[Side], text: str) -> int:
    """Returns which side of a sweep `NAME=VALUE[,NAME=VALUE]` names.

    Raises:
      ConfigError: none, or several.
    """
    hints = {name: hint for name, hint, _ in iter_fields(Config)}
    wanted = {}
    for part in text.split(","):
        name, equals, value = part.strip().removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not equals or name not in hints:
            raise ConfigError(
                f"baseline {part!r} is not NAME=VALUE of a setting{suggest(name, hints)}"
            )
        wanted[name] = parse(value, hints[name], name)
    found = [
        i
        for i, side in enumerate(sides)
        if all(get_field(side.config, name) == value for name, value in wanted.items())
    ]
    if len(found) != 1:
        there = "; ".join(side.label for side in sides)
        what = "several settings" if found else "no setting"
        raise ConfigError(f"baseline {text!r} names {what} of the sweep; there are: {there}")
    return found[0]


def shown_value(value: Any) -> str:
    """Returns a value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def different_settings(
    a: Config, b: Config, ignored: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Returns {setting: (value in a, value in b)} of those that differ.

    Left out are the seed, places, what is sampled at the end, and what is `ignored`.
    """
    ignored = {*PLACES, *ignored}
    if a.branch_from or b.branch_from:  # whose parameters began as an ancestor's
        ignored |= {"init_from"}
    return {
        name: (get_field(a, name), get_field(b, name))
        for name, _, _ in iter_fields(Config)
        if name not in ignored
        and not name.startswith("sample.")
        and name != "seed"
        and get_field(a, name) != get_field(b, name)
    }


def settings_lines(a: Config, b: Config, ignored: Iterable[str] = ()) -> list[str]:
    """Returns "NAME is A and B" for each of `different_settings`."""
    different = different_settings(a, b, ignored)
    return [f"{n} is {shown_value(x)} and {shown_value(y)}" for n, (x, y) in different.items()]


def pair_runs(a: Side, b: Side) -> tuple[list[tuple[RunFiles, RunFiles]], str]:
    """Returns the pairs of runs with equal seeds and the same batches, and why there are none.

    Fewer than two pairs of two sides that both have several runs are none.
    """
    there = {name: get_field(a.config, name) for name in BATCHES}
    here = {name: get_field(b.config, name) for name in BATCHES}
    if other := differences(there, here, shown_value):
        return [], f"their batches differ: {other[0].replace(' there and ', ' and ')[:-5]}"
    partners = {run.seeds: run for run in b.runs}
    pairs = [(run, partners[run.seeds]) for run in a.runs if run.seeds in partners]
    if not pairs:
        return [], "no seed is on both sides"
    if len(pairs) < 2 <= min(len(a.runs), len(b.runs)):
        return [], "only one seed is on both sides"
    return pairs, ""
