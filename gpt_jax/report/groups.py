"""What the arguments of a report name: groups of runs of one setting, and what is said of them.

Reads folders of runs, without parameters, and writes nothing.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Sequence
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.experiments.budgets import SIDES
from gpt_jax.experiments.comparison import compare
from gpt_jax.experiments.grid import show
from gpt_jax.experiments.members import read_sweep
from gpt_jax.experiments.sides import Side, find_side, is_sweep, read_run
from gpt_jax.experiments.sweep_results import read_result
from gpt_jax.experiments.sweep_verdicts import Comparisons
from gpt_jax.experiments.trial_record import TRIAL_FILE, read_trial
from gpt_jax.run.folder import is_run
from gpt_jax.storage import open_folder, to_folder

Table = Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is known of the groups, in words and tables.

    Attributes:
      title: what is judged, by what.
      sentences: the result.
      tables: each with its head.
      notes: what else a reader must know.
    """

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def find_groups(names: Sequence[str]) -> tuple[list[Side], list[str]]:
    """Returns the groups that names of runs, sweeps, trials and patterns stand for, and notes.

    What has not begun yet is left out, with a note.

    Raises:
      UserError: a name stands for no run.
    """
    groups: list[Side] = []
    notes: list[str] = []
    for name in names:
        place = to_folder(name)
        if _is_pattern(name):
            groups.append(find_side(name))
        elif is_sweep(place):
            found = _sweep_groups(name, notes)
            groups += _labelled(found, name if len(names) > 1 else "")
        elif open_folder(place).has(TRIAL_FILE):
            groups += _labelled(_trial_groups(name), name if len(names) > 1 else "")
        else:
            groups.append(Side(place.name, (read_run(place),)))
    if len({group.label for group in groups}) < len(groups):  # two folders of one name
        groups = [_by_folder(group) for group in groups]
    return groups, notes


def _by_folder(group: Side) -> Side:
    one = len(group.runs) == 1
    return dataclasses.replace(group, label=str(group.runs[0].run_dir) if one else group.label)


def _is_pattern(name: str) -> bool:
    return not os.path.exists(os.path.expanduser(name)) and glob.has_magic(name)


def _labelled(groups: Sequence[Side], name: str) -> list[Side]:
    prefix = f"{os.path.basename(os.path.normpath(name))}: " if name else ""
    return [dataclasses.replace(group, label=prefix + group.label) for group in groups]


def _sweep_groups(name: str, notes: list[str]) -> list[Side]:
    """Returns a group for each point of a sweep that has a run, finished or not."""
    folder, members = to_folder(name), read_sweep(to_folder(name)).members
    begun = [member for member in members if is_run(folder / member.run_dir)]
    if not begun:
        raise UserError(f"the sweep {name} has no run yet; make the page once one has begun")
    if len(begun) < len(members):
        notes.append(f"{name}: {len(members) - len(begun)} of {len(members)} runs have not begun")
    for member in begun:
        if member.diverged is not None:
            notes.append(f"{member.run_dir} diverged: {member.diverged}")
    points: dict[str, list[Any]] = {}
    for member in begun:
        words = [f"{n.replace('_', '-')}={show(value)}" for n, value in member.values.items()]
        points.setdefault(", ".join(words) or name, []).append(member)
    return [
        Side(label, tuple(read_run(folder / each.run_dir) for each in found))
        for label, found in points.items()
    ]


def _trial_groups(name: str) -> list[Side]:
    """Returns the runs of both sides of a trial, finished or not."""
    folder = open_folder(to_folder(name))
    groups = []
    for side in SIDES:
        found = [path for path in folder.entries() if path.name.startswith(f"{side}-")]
        runs = sorted(map(read_run, filter(is_run, found)), key=lambda run: run.seeds)
        if runs:
            groups.append(Side(side, tuple(runs)))
    if not groups:
        raise UserError(f"the trial {name} has no run yet; make the page once one has begun")
    return groups


def find_verdicts(names: Sequence[str], metric: str) -> list[Verdict]:
    """Returns what is known: of a sweep, of a trial, of two sides; [] where nothing is asked.

    Where it can't be known, as of a run that goes on, the verdict says why.
    """
    if len(names) == 2:
        return [_or_why(f"{names[1]} beside {names[0]}", lambda: _compared(*names, metric=metric))]
    found = []
    for name in names:
        if _is_pattern(name):
            continue
        if is_sweep(to_folder(name)):
            found.append(_or_why(f"the sweep {name}", lambda name=name: _of_sweep(name)))
            if len(names) == 1 and len({str(m.values) for m in read_sweep(name).members}) > 1:
                what = "its settings beside the first"
                found.append(_or_why(what, lambda name=name: _compared(name, metric=metric)))
        elif open_folder(to_folder(name)).has(TRIAL_FILE):
            found.append(_or_why(f"the trial {name}", lambda name=name: _of_trial(name)))
    return found


def _or_why(title: str, find: Callable[[], Verdict]) -> Verdict:
    try:
        return find()
    except UserError as error:
        return Verdict(title, [f"nothing is shown: {error}"])


def _compared(*sides: str, metric: str) -> Verdict:
    found = compare(*sides, metric=metric)
    if isinstance(found, Comparisons):
        head, *lines = found.remarks
        return Verdict(f"its settings {head}", [], [found.table()], lines)
    unpaired = [f"not paired: {found.why_unpaired}"] if found.why_unpaired else []
    title = f"{found.b.label} beside {found.a.label}: {found.metric.title} ({found.metric.unit})"
    (head, *settings), (_, means) = found.tables()
    table = [head, *settings, ("mean", *means[1:])]
    figures = [("figure", ""), *found.rows()]
    return Verdict(title, [found.sentence], [table, figures], [*unpaired, *found.notes])


def _of_sweep(name: str) -> Verdict:
    result = read_result(name)
    return Verdict(f"the sweep {name}, by the mean loss", [], [result.table()], result.facts)


def _of_trial(name: str) -> Verdict:
    folder = open_folder(to_folder(name))
    found = read_trial(folder).outcome(folder.path)
    return Verdict(f"the trial {name}", [found.sentence], [found.table()], found.notes)
