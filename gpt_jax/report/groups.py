"""What the arguments of a report name: groups of runs of one setting, and what is said of them.

Reads folders of runs, without parameters, and writes nothing.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Sequence
from functools import partial
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
from gpt_jax.terminal import program_command


def is_pattern(name: str) -> bool:
    return not os.path.exists(os.path.expanduser(name)) and glob.has_magic(name)


def is_trial(name: str | os.PathLike[str]) -> bool:
    return open_folder(name).has(TRIAL_FILE)


def find_groups(names: Sequence[str]) -> tuple[list[Side], list[str]]:
    """Returns the groups that names of runs, sweeps, trials and patterns stand for, and notes.

    What has not begun yet is left out, with a note.

    Raises:
      UserError: a name stands for no run.
    """
    groups: list[Side] = []
    notes: list[str] = []
    for name in names:
        if is_pattern(name):
            found = [find_side(name)]
        elif is_sweep(name) or is_trial(name):
            found = _sweep_groups(name, notes) if is_sweep(name) else _trial_groups(name)
            if not found:
                raise UserError(f"{name} has no run yet; make the page once one has begun")
            if len(names) > 1:
                name = os.path.basename(os.path.normpath(name))
                found = [dataclasses.replace(each, label=f"{name}: {each.label}") for each in found]
        else:
            found = [Side(to_folder(name).name, (read_run(name),))]
        groups += found
    if len({group.label for group in groups}) < len(groups):  # two folders of one name
        paths = {id(group): str(group.runs[0].run_dir) for group in groups if len(group.runs) == 1}
        groups = [dataclasses.replace(g, label=paths.get(id(g), g.label)) for g in groups]
    return groups, notes


def _sweep_groups(name: str, notes: list[str]) -> list[Side]:
    """Returns a group for each point of a sweep that has a run, finished or not."""
    folder, members = to_folder(name), read_sweep(name).members
    points: dict[str, list[Any]] = {}
    for member in members:
        if is_run(folder / member.run_dir):
            words = [f"{n.replace('_', '-')}={show(value)}" for n, value in member.values.items()]
            run = read_run(folder / member.run_dir)
            points.setdefault(", ".join(words) or name, []).append(run)
        if member.diverged is not None:
            notes.append(f"{member.run_dir} diverged: {member.diverged}")
    if n := len(members) - sum(map(len, points.values())):
        notes.insert(0, f"{name}: {n} of {len(members)} runs have not begun")
    return [Side(label, tuple(runs)) for label, runs in points.items()]


def _trial_groups(name: str) -> list[Side]:
    """Returns the runs of both sides of a trial, finished or not."""
    paths = [path for path in open_folder(name).entries() if is_run(path)]
    sides = {s: [read_run(p) for p in paths if p.name.startswith(f"{s}-")] for s in SIDES}
    return [
        Side(side, tuple(sorted(runs, key=lambda run: run.seeds)))
        for side, runs in sides.items()
        if runs
    ]


def find_verdicts(names: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """Returns what is known of a sweep, of a trial, of two sides; [] where nothing is asked.

    Each is {"title", "sentences", "tables": each with its head, "notes"}. Where it can't be known,
    as of a run that goes on, the verdict says why.
    """
    asked: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if len(names) == 2:
        asked.append((f"{names[1]} beside {names[0]}", partial(_compared, *names, metric=metric)))
    for name in names if len(names) != 2 else ():
        if is_pattern(name):
            continue
        if is_sweep(name):
            asked.append((f"the sweep {name}", partial(_of_sweep, name)))
            if len(names) == 1 and len({str(m.values) for m in read_sweep(name).members}) > 1:
                beside = partial(_compared, name, metric=metric)
                asked.append(("its settings beside the first", beside))
        elif is_trial(name):
            asked.append((f"the trial {name}", partial(_of_trial, name)))
    verdicts = []
    if len(names) > 2:
        command = program_command("compare", *names[:2])
        why = "are not compared with one another, as a comparison has two sides"
        verdicts.append(_verdict(f"{len(names)} are shown", f"They {why}; {command}"))
    for title, find in asked:
        try:
            verdicts.append(find())
        except UserError as error:
            verdicts.append(_verdict(title, f"nothing is shown: {error}"))
    return verdicts


def _verdict(
    title: str, sentence: str = "", tables: Sequence[Any] = (), notes: Sequence[str] = ()
) -> dict[str, Any]:
    notes = [note.removeprefix("note: ") for note in notes]
    sentences = [sentence] if sentence else []
    return {"title": title, "sentences": sentences, "tables": tables, "notes": notes}


def _compared(*sides: str, metric: str) -> dict[str, Any]:
    found = compare(*sides, metric=metric)
    if isinstance(found, Comparisons):
        head, *lines = found.remarks
        return _verdict(f"its settings {head}", "", [found.table()], lines)
    unpaired = [f"not paired: {found.why_unpaired}"] if found.why_unpaired else []
    title = f"{found.b.label} beside {found.a.label}: {found.metric.title} ({found.metric.unit})"
    rows, (_, means) = found.tables()
    tables = [[*rows, ("mean", *means[1:])], [("figure", ""), *found.rows()]]
    return _verdict(title, found.sentence, tables, [*unpaired, *found.notes])


def _of_sweep(name: str) -> dict[str, Any]:
    result = read_result(name)
    return _verdict(f"the sweep {name}, by the mean loss", "", [result.table()], result.facts)


def _of_trial(name: str) -> dict[str, Any]:
    folder = open_folder(name)
    found = read_trial(folder).outcome(folder.path)
    return _verdict(f"the trial {name}", found.sentence, [found.table()], found.notes)
