"""The members of a sweep: a run for each point and seed, their order, and the file that lists them.

sweep.json, in the sweep's folder, says what was asked for and lists the members. It is written
whole: first before any member runs, then after each. Never imports jax.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_jax.config import Config, fix_schedule, override, to_dict
from gpt_jax.errors import ConfigError, UserError, differences
from gpt_jax.experiments.grid import show, show_values
from gpt_jax.run.folder import is_run, read_summary
from gpt_jax.storage import NewerFormatError, open_folder, read_versioned
from gpt_jax.training.hyperparameters import optim_structure
from gpt_jax.version import __version__

SWEEP_FILE = "sweep.json"
FORMAT = 1
ONE_AFTER_ANOTHER, SIDE_BY_SIDE, STACKED = WAYS = ("one-after-another", "side-by-side", "stacked")
SEEDS = ("init_seed", "data_seed", "dropout_seed")
ONE_CHECKPOINT = {"train.keep_checkpoints": 1, "train.keep_best": False}


@dataclasses.dataclass(frozen=True)
class Member:
    """A run of a sweep.

    Attributes:
      run_dir: its folder's name in the sweep's.
      values: the settings that are varied.
      seed: of the run.
      seconds: that it took; None until it has ended.
      diverged: why it ended before its last step; None if it did not.
    """

    run_dir: str
    values: dict[str, Any]
    seed: int
    seconds: float | None = None
    diverged: str | None = None

    def __str__(self) -> str:
        return f"{show_values(self.values)}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Together:
    """How the members of a sweep run.

    Attributes:
      way: one of `WAYS`; see `together.py`.
      why: what decided.
    """

    way: str
    why: str

    def __str__(self) -> str:
        return f"{self.way} ({self.why})"


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """What sweep.json holds.

    Attributes:
      format: of the file.
      version: of the program that began the sweep.
      config: the settings of all members, but those that are varied and the seed.
      config_name: what `--config` named; None if nothing.
      members: in the order in which they run.
      together: how they run; None until that is known.
    """

    format: int
    version: str
    config: dict[str, Any]
    config_name: str | None
    members: list[Member]
    together: Together | None = None


def parse_seeds(text: str, first: int) -> tuple[int, ...]:
    """Returns the seeds of "4" (four, from `first` on) or of "3,5,8" (these).

    Raises:
      ConfigError: there is none, one twice, or one is out of range.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ConfigError(f"--seeds takes a number of seeds, or seeds such as 3,5,8; not {text!r}")
    numbers = [int(word) for word in words]
    if len(numbers) > 1:
        return check_seeds(numbers)
    return check_seeds(range(first, first + numbers[0]))


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Returns the seeds; raises ConfigError where there is none, one twice, or out of range."""
    if not len(seeds):
        raise ConfigError("--seeds 0 leaves no run; give at least 1")
    if len(seeds) > 10_000:
        raise ConfigError(f"--seeds asks for {len(seeds):,} seeds; give at most 10,000")
    known: set[int] = set()
    for seed in seeds:
        if seed in known:
            raise ConfigError(f"--seeds has {seed} twice: both runs would be the same")
        if not 0 <= seed < 2**32:
            raise ConfigError(f"--seeds has {seed}, and a seed is a whole number in [0, 2**32)")
        known.add(seed)
    return tuple(seeds)


def make_members(
    base: Config, points: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> list[Member]:
    """Returns the members: those of one shape together, and of one point, seed by seed.

    Raises:
      ConfigError: a point breaks a rule of the settings, or seeds are held that tell runs apart.
    """
    if not points:
        raise ConfigError("nothing to run: an empty grid")
    shapes: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        config = member_config(base, point, seeds[0])
        line = same_runs_line(config, "members that differ in --seeds")
        if line and len(seeds) > 1:
            raise ConfigError(line)
        shapes.setdefault(shape_of(config), []).append(point)
    ordered = [point for group in shapes.values() for point in group]
    return [
        Member(_folder_name(i * len(seeds) + j, point, seed), dict(point), seed)
        for i, point in enumerate(ordered)
        for j, seed in enumerate(seeds)
    ]


def same_runs_line(config: Config, what: str) -> str:
    """Returns why runs that differ in their seed alone would be the same; '' where they differ.

    Args:
      config: their settings.
      what: the runs, in words.
    """
    model, held, reasons = config.model, [*SEEDS], []
    if not (model.dropout or model.attention_dropout_rate or model.embedding_dropout):
        held.remove("dropout_seed")
        reasons.append("there is no dropout")
    if config.init_from is not None or config.branch_from is not None:
        held.remove("init_seed")
        reasons.append("parameters are those of another run")
    if any(getattr(config, name) is None for name in held):
        return ""
    *others, last = held
    names = f"{', '.join(others)} and {last} are {'all' if others[1:] else 'both'} set"
    names = names if others else f"{last} is set"
    *first, final = [names, *reasons]
    why = f"{', '.join(first)} and {final}" if first else final
    way = "leave one of them out" if others else "leave it out"
    return f"{why}, so {what} would be the same training; {way}"


def _folder_name(number: int, values: Mapping[str, Any], seed: int) -> str:
    words = [f"{name.rpartition('.')[2]}={show(value)}" for name, value in values.items()]
    text = re.sub(r"[^\w.=+-]", "_", "-".join([*words, f"seed={seed}"]), flags=re.ASCII)
    return f"{number:03d}-{text[:100]}"


def member_config(base: Config, values: Mapping[str, Any], seed: int, run_dir: str = "") -> Config:
    """Returns a member's settings.

    Raises:
      ConfigError: they break a rule; the message names the member.
    """
    own = {**values, "seed": seed, **({"run_dir": run_dir} if run_dir else {})}
    try:
        return override(base, own)
    except ConfigError as error:
        raise ConfigError(f"the member {show_values(values)}: {error}") from error


def shape_of(config: Config) -> str:
    """Returns a text that members whose compiled programs are the same have in common."""
    config = fix_schedule(config)
    same = dataclasses.replace(config, run_dir="-", seed=0, init_seed=0, data_seed=0,
                               dropout_seed=0)  # fmt: skip
    values = to_dict(same) | {"optim": dataclasses.asdict(optim_structure(config.optim))}
    return json.dumps(values, sort_keys=True)


def is_finished(folder: Path, member: Member, steps: int) -> bool:
    """Returns whether a member's run has all its steps, or never will."""
    run_dir = folder / member.run_dir
    if member.diverged is not None:
        return True
    return is_run(run_dir) and read_summary(run_dir).get("step") == steps


def open_sweep(
    folder: Path, base: Config, config_name: str | None, members: list[Member]
) -> SweepRecord | None:
    """Returns the record of a folder's sweep; None where there is none yet, and one can be made.

    Raises:
      UserError: the folder holds another sweep, or anything else.
    """
    place = open_folder(folder)
    if not place.has(SWEEP_FILE):
        there = place.obstacles((SWEEP_FILE,)) if place.kind() == "folder" else []
        if place.kind() == "file" or there:
            what = f"holds other files ({there[0]}) and no {SWEEP_FILE}" if there else "is a file"
            raise UserError(f"--out {folder} {what}; choose another --out")
        return None
    record = read_sweep(folder)
    asked = [(m.run_dir, m.values, m.seed) for m in members]
    lines = differences(_flat(record.config), _flat(_shared(base)), show)
    if not lines and [(m.run_dir, m.values, m.seed) for m in record.members] != asked:
        lines = [f"it has {len(record.members)} other members than the {len(asked)} asked for"]
    if lines:
        raise UserError(f"--out {folder} is another sweep: {lines[0]}; choose another --out")
    return record


def read_sweep(folder: str | os.PathLike[str]) -> SweepRecord:
    """Returns what a sweep's sweep.json holds.

    Raises:
      UserError: there is none, or it is damaged, or of a newer program.
    """
    place = open_folder(folder)
    if not place.has(SWEEP_FILE):
        raise UserError(f"{folder} is no sweep: it has no {SWEEP_FILE}")
    path = place.path / SWEEP_FILE
    try:
        record = read_versioned(place.read_json(SWEEP_FILE), SweepRecord, FORMAT)
        if problem := _problem(record):
            raise ValueError(problem)
    except NewerFormatError as error:
        raise UserError(f"{path} {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; restore the file") from error
    return record


def _problem(record: SweepRecord) -> str:
    """Returns what a record says of its members that can't be, or ''."""
    if not record.members:
        return "it has no members"
    if record.together is not None and record.together.way not in WAYS:
        return f"its members run {record.together.way!r:.40}"
    for member in record.members:
        if member.run_dir in ("", "..") or Path(member.run_dir).name != member.run_dir:
            return f"{member.run_dir!r:.60} is not a folder in the sweep's"
        if member.seconds is not None and not 0 <= member.seconds < math.inf:
            return f"{member.run_dir} took {member.seconds:g} seconds"
    return ""


def new_record(base: Config, config_name: str | None, members: list[Member]) -> SweepRecord:
    return SweepRecord(FORMAT, __version__, _shared(base), config_name, members)


def record_text(record: SweepRecord) -> str:
    return json.dumps(dataclasses.asdict(record), indent=1) + "\n"


def _shared(base: Config) -> dict[str, Any]:
    """Returns what sweep.json keeps of the settings: not where the sweep lies, and no seed."""
    values = json.loads(json.dumps(to_dict(base)))
    return {name: value for name, value in values.items() if name not in ("run_dir", "seed")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
