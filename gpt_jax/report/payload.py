"""What the page shows, as JSON values; each text of a run is made visible here.

Curves are thinned to a number of points that the whole page shares.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt_jax.config import Config
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.errors import UserError
from gpt_jax.experiments.sides import PLACES, RunFiles, Side, is_seed, shown_value
from gpt_jax.experiments.statistics import mean_half_width
from gpt_jax.report.groups import Verdict, find_groups, find_verdicts
from gpt_jax.run.folder import run_record
from gpt_jax.run.samples import read_samples
from gpt_jax.terminal import program_command, visible
from gpt_jax.training.advice import train_command
from gpt_jax.version import __version__

FIELDS = ("loss", "train_loss", "val_loss", "val_bpb", "learning_rate", "grad_norm")
FIELDS += ("tokens_per_second",)
MOST_GROUPS, MOST_RUNS = 60, 24  # curves; runs of which all is shown
MOST_POINTS, LEAST_POINTS = 2000, 50  # of a curve
MOST_SAMPLES, SAMPLE_CHARACTERS = 40, 2000  # of a run
LEVEL = 0.95  # of the bands
DIGITS = 6


def make_payload(
    names: Sequence[str], metric: str, max_points: int
) -> tuple[dict[str, Any], list[Side]]:
    """Returns what the page shows of runs, as JSON values, and the groups that the names are.

    Args:
      names: see `page.make_report`.
      metric: of the comparison.
      max_points: of all curves together.

    Raises:
      UserError: a name stands for no run, or one is damaged.
    """
    groups, notes = find_groups(names)
    shown = groups[:MOST_GROUPS]
    runs = [(i, run) for i, group in enumerate(shown) for run in group.runs][:MOST_RUNS]
    for n, of, what in (
        (len(shown), len(groups), "settings have a curve"),
        (len(runs), sum(len(group.runs) for group in groups), "runs have their own"),
    ):
        if n < of:
            notes.append(f"{n} of {of} {what}; name fewer for the others")
    most = min(MOST_POINTS, max(LEAST_POINTS, max_points // (len(shown) + len(runs))))
    curves = [_curve(run, most) for _, run in runs]
    if any(len(run.rows) > len(c["step"]) for (_, run), c in zip(runs, curves, strict=True)):
        notes.append(f"curves are thinned to at most {most:,} points, extremes kept")
    values = {
        "title": ", ".join(names),
        "version": __version__,
        "groups": [_group(group, most) for group in shown],
        "runs": [
            {"group": i, **_run(run), "curve": curve}
            for (i, run), curve in zip(runs, curves, strict=True)
        ],
        "settings": _settings([group.config for group in shown[:MOST_RUNS]]),
        "verdicts": [_verdict(each) for each in find_verdicts(names, metric)],
        "command": program_command("report", *names, "--out", "page.html"),
        "notes": notes,
    }
    return shown_values(values), groups


def shown_values(value: Any) -> Any:
    """Returns JSON values with control characters shown; null stands for what is no number."""
    if isinstance(value, dict):
        return {visible(name): shown_values(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown_values(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return visible(value) if isinstance(value, str) else value


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "title": verdict.title,
        "sentences": list(verdict.sentences),
        "tables": [[list(row) for row in table] for table in verdict.tables],
        "notes": [note.removeprefix("note: ") for note in verdict.notes],
    }


def _tokens_per_step(config: Config) -> int:
    return config.train.batch_size * config.model.block_size


def _columns(run: RunFiles) -> dict[str, np.ndarray]:
    """Returns the rows as columns, float64 (R,) each; NaN where a row has no such number."""
    rows = list({row["step"]: row for row in run.rows}.values())
    columns = {
        name: np.array([_number(row.get(name)) for row in rows], np.float64)
        for name in ("step", *FIELDS)
    }
    if run.config.optim.schedule == "constant" and not run.config.optim.warmup_steps:
        columns["learning_rate"] = np.full(len(rows), run.config.optim.learning_rate)
    timed = [(row["step"], row["seconds"]) for row in rows if row.get("seconds") is not None]
    if timed:
        steps, seconds = np.array(timed, np.float64).T
        at = np.concatenate([[0.0], steps]), np.concatenate([[0.0], seconds.cumsum()])
        within = columns["step"] <= steps[-1]
        columns["seconds"] = np.where(within, np.interp(columns["step"], *at), np.nan)
    return columns


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _curve(run: RunFiles, most: int) -> dict[str, Any]:
    columns = _columns(run)
    kept = thin(columns, most)
    return _record({name: column[kept] for name, column in columns.items()}, run.config)


def _record(
    columns: dict[str, np.ndarray], config: Config, halves: dict[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Returns columns without those that have no number."""
    lists = {name: c.tolist() for name, c in columns.items() if np.isfinite(c).any()}
    if "step" in lists:
        lists["step"] = columns["step"].astype(np.int64).tolist()
    halves = {name: column.tolist() for name, column in (halves or {}).items() if name in lists}
    return {"step": [], **lists, "tokens_per_step": _tokens_per_step(config), "halves": halves}


def thin(columns: dict[str, np.ndarray], most: int) -> np.ndarray:
    """Returns which of R rows are kept, at most about `most` of them, int64, in order.

    Evaluations have half of them, evenly; of the other rows each bucket keeps the lowest and the
    highest loss. The first and the last row stay.
    """
    n = len(columns["step"])
    if n <= most:
        return np.arange(n)
    evaluated = np.flatnonzero(np.isfinite(columns["val_loss"]))
    evenly = np.linspace(0, len(evaluated) - 1, min(len(evaluated), most // 2)).round()
    kept = {0, n - 1, *evaluated[evenly.astype(int)].tolist()}
    losses = columns["loss"]
    for bucket in np.array_split(np.arange(n), most // 4):
        found = bucket[np.isfinite(losses[bucket])]
        if len(found):
            kept |= {int(found[losses[found].argmin()]), int(found[losses[found].argmax()])}
    return np.array(sorted(kept))


def _group(group: Side, most: int) -> dict[str, Any]:
    """Returns a group's curve: means over its runs, at the steps that all have, with intervals."""
    each = [_columns(run) for run in group.runs]
    steps = each[0]["step"]
    for columns in each[1:]:
        steps = np.intersect1d(steps, columns["step"])
    at = [np.searchsorted(columns["step"], steps) for columns in each]
    names = set.intersection(*(set(columns) for columns in each))
    stacked_NS = {
        name: np.stack([columns[name][i] for columns, i in zip(each, at, strict=True)])
        for name in ("step", *FIELDS, "seconds") if name in names
    }  # fmt: skip
    means = {name: values_NS.mean(axis=0) for name, values_NS in stacked_NS.items()}
    kept = thin(means, most)
    halves = {}
    if len(group.runs) > 1:
        halves = {n: mean_half_width(stacked_NS[n][:, kept], LEVEL) for n in FIELDS}
    columns = {name: column[kept] for name, column in means.items()}
    return {
        "label": group.label,
        "n": len(group.runs),
        "curve": _record(columns, group.config, halves),
    }


def _run(run: RunFiles) -> dict[str, Any]:
    """Returns what is said of one run."""
    record, config = run_record(run.run_dir), run.config
    done = max((row["step"] for row in run.rows), default=0)
    val, steps = run.summary.get("val", {}), config.train.steps
    finished = run.summary.get("step") == steps
    evaluations = run.curve("val_loss")[1]
    return {
        "name": run.run_dir.name,
        "folder": str(run.run_dir),
        "state": f"finished, {steps:,} steps" if finished else f"at step {done:,} of {steps:,}",
        "finished": finished,
        "figures": {
            "parameters": run.summary.get("parameters"),
            "exact validation loss": val.get("nats_per_token"),
            "lowest validation loss": min(evaluations.tolist(), default=None),
            "exact bits per byte": val.get("bits_per_byte"),
            "seconds of training": sum(row.get("seconds") or 0.0 for row in run.rows) or None,
        },
        "seed": config.seed,
        "corpus": {k: v for k, v in run.corpus.items() if not os.path.isabs(str(v))},
        "origin": record.origin,
        "made with": {**(record.versions or {}), **(record.numerics or {})},
        "changes": _changes(run.rows),
        "commands": _commands(run),
        "samples": _samples(run),
    }


def _changes(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Returns what a resumed run says of versions, devices and settings that changed."""
    return [
        f"up to step {row['step']:,}: {name} is {value}"
        for row in rows
        for kind in ("numerics", "changed")
        for name, value in row.get(kind, {}).items()
    ]


def _commands(run: RunFiles) -> list[tuple[str, str]]:
    """Returns the commands that made a run, that would make it again, and that use it."""
    made = train_command(run.config)
    again = dataclasses.replace(run.config, run_dir=f"{run.run_dir}-again")
    resumed = [] if run.summary else [("continues it", made)]
    return [
        ("made it, as its settings say", made),
        *resumed,
        ("makes it again", train_command(again)),
        ("writes text", program_command("sample", "--run-dir", run.run_dir)),
    ]


def _samples(run: RunFiles) -> list[dict[str, Any]]:
    found = read_samples(run.run_dir)
    evenly = np.linspace(0, len(found) - 1, min(len(found), MOST_SAMPLES)).round().astype(int)
    return [{"step": found[i].step, "text": found[i].text[:SAMPLE_CHARACTERS]} for i in evenly]


def _settings(configs: Sequence[Config]) -> dict[str, Any]:
    """Returns each setting's value in each group, and which are not alike, or not the default."""
    default, rows = Config(), []
    for name, _, field in iter_fields(Config):
        values = [get_field(config, name) for config in configs]
        alike = all(value == values[0] for value in values)
        if name == "run_dir" or (is_seed(name) and not alike):
            continue
        rows.append(
            {
                "name": name.replace("_", "-"),
                "values": [shown_value(value) for value in values],
                "differs": not alike,
                "set": alike
                and name not in PLACES
                and not field.metadata["internal"]
                and values[0] != get_field(default, name),
            }
        )
    if not configs:
        raise UserError("nothing to report")
    return {"rows": rows}
