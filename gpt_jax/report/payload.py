"""What the page shows, as JSON values; each text of a run is made visible here.

Curves are thinned to a number of points that the whole page shares.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_jax import numerics
from gpt_jax.config import Config
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.experiments.remake import sweep_command, trial_command
from gpt_jax.experiments.sides import PLACES, RunFiles, Side, is_seed, is_sweep, shown_value
from gpt_jax.experiments.statistics import mean_half_width
from gpt_jax.report.groups import find_groups, find_verdicts, is_trial
from gpt_jax.report.live import spread_out
from gpt_jax.run.folder import read_init_from, run_record
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
# What a record calls otherwise than a reader, and what is not said as it is so in any run.
PLAIN = {"matmul_precision": "precision of matrix products", "xla_flags": "options of XLA"}
PLAIN |= {"flax_rng_separator": "flax tells random streams apart", "rounding": "way of rounding"}
PLAIN |= {"mesh": "devices: data x fsdp x tensor x sequence"}
USUAL = {name: value for name, (value, _) in numerics.KEPT.items()} | {"xla_flags": ""}


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
    most = min(MOST_POINTS, max(LEAST_POINTS, max_points // (len(shown) + len(runs))))
    notes += _left_out(groups, [run for _, run in runs], most)
    values = {
        "title": ", ".join(names),
        "version": __version__,
        "groups": [
            {"label": each.label, "n": len(each.runs), "curve": _curve(each.runs, most)}
            for each in shown
        ],
        "runs": [{"group": i, **_run(run), "curve": _curve([run], most)} for i, run in runs],
        "settings": {"rows": _settings([group.config for group in shown[:MOST_RUNS]])},
        "verdicts": find_verdicts(names, metric),
        "command": program_command("report", *names, "--out", "page.html"),
        "notes": notes,
    }
    return shown_values(values), groups


def _left_out(groups: list[Side], runs: list[RunFiles], most: int) -> list[str]:
    """Returns what a page of some runs leaves out, whose curves have at most `most` points."""
    samples = [read_samples(run.run_dir) for run in runs]
    n, n_runs = len(groups), sum(len(group.runs) for group in groups)
    longest = max((len(sample.text) for each in samples for sample in each), default=0)
    rows, n_texts = max(len(run.rows) for run in runs), max(map(len, samples))
    notes = [
        (n > MOST_GROUPS, f"{MOST_GROUPS} of {n} settings have a curve; name fewer"),
        (n > MOST_RUNS, f"{MOST_RUNS} of {n} settings have a column in the table of settings"),
        (n_runs > len(runs), f"{len(runs)} of {n_runs} runs have a curve and texts; name fewer"),
        (n_texts > MOST_SAMPLES, f"of {n_texts} samples of a run {MOST_SAMPLES} are shown"),
        (longest > SAMPLE_CHARACTERS, f"samples are cut after {SAMPLE_CHARACTERS:,} characters"),
        (rows > most, f"curves are thinned to at most {most:,} points, extremes kept"),
    ]
    return [note for holds, note in notes if holds]


def shown_values(value: Any) -> Any:
    """Returns JSON values with control characters shown; null stands for what is no number."""
    if isinstance(value, dict):
        return {visible(name): shown_values(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown_values(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return visible(value) if isinstance(value, str) else value


def _columns(run: RunFiles) -> dict[str, np.ndarray]:
    """Returns the rows as columns, float64 (R,) each; NaN where a row has no such number."""
    rows = list({row["step"]: row for row in run.rows}.values())
    columns = {
        name: np.array([row.get(name) for row in rows], np.float64)  # None is NaN
        for name in ("step", *FIELDS, "seconds")
    }
    if run.config.optim.schedule == "constant" and not run.config.optim.warmup_steps:
        columns["learning_rate"] = np.full(len(rows), run.config.optim.learning_rate)
    timed = np.isfinite(columns["seconds"])
    if timed.any():  # of the steps since the row before; a row without is between two others
        steps, seconds = columns["step"][timed], columns["seconds"][timed].cumsum()
        at = np.concatenate([[0.0], steps]), np.concatenate([[0.0], seconds])
        columns["seconds"] = np.interp(columns["step"], *at, right=math.nan)
    return columns


def _curve(runs: Sequence[RunFiles], most: int) -> dict[str, Any]:
    """Returns means over runs, at the steps that all have, with the half widths of intervals.

    Columns without a number are left out.
    """
    each = [_columns(run) for run in runs]
    steps = functools.reduce(np.intersect1d, [columns["step"] for columns in each])
    at = [np.searchsorted(columns["step"], steps) for columns in each]
    values = {
        name: np.stack([columns[name][i] for columns, i in zip(each, at, strict=True)])
        for name in each[0]
    }
    means = {name: values_NS.mean(axis=0) for name, values_NS in values.items()}
    kept = thin(means, most)
    there = [name for name in means if np.isfinite(means[name]).any()]
    halves = [name for name in there if len(runs) > 1 and name in FIELDS]
    model, train = runs[0].config.model, runs[0].config.train
    return {
        **{name: means[name][kept].tolist() for name in there},
        "step": steps[kept].astype(np.int64).tolist(),
        "tokens_per_step": train.batch_size * model.block_size,
        "halves": {name: mean_half_width(values[name][:, kept], LEVEL).tolist() for name in halves},
    }


def thin(columns: dict[str, np.ndarray], most: int) -> np.ndarray:
    """Returns which of R rows are kept, at most about `most` of them, int64, in order.

    Evaluations have half of them, evenly; of the other rows each bucket keeps the lowest and the
    highest loss. The first and the last row stay.
    """
    n = len(columns["step"])
    if n <= most:
        return np.arange(n)
    evaluated = np.flatnonzero(np.isfinite(columns["val_loss"]))
    kept = {0, n - 1, *spread_out(evaluated.tolist(), most // 2)}
    losses = columns["loss"]
    for bucket in np.array_split(np.arange(n), most // 4):
        found = bucket[np.isfinite(losses[bucket])]
        if len(found):
            kept |= {int(found[losses[found].argmin()]), int(found[losses[found].argmax()])}
    return np.array(sorted(kept))


def _run(run: RunFiles) -> dict[str, Any]:
    """Returns what is said of one run."""
    record, config = run_record(run.run_dir), run.config
    made_with = {"machine": record.machine} if record.machine else {}
    made_with |= {**(record.versions or {}), **(record.numerics or {})}
    done = max((row["step"] for row in run.rows), default=0)
    val, steps = run.summary.get("val", {}), config.train.steps
    finished = run.summary.get("step") == steps
    samples = spread_out(read_samples(run.run_dir), MOST_SAMPLES)
    return {
        "name": run.run_dir.name,
        "state": f"finished, {steps:,} steps" if finished else f"at step {done:,} of {steps:,}",
        "figures": {
            "parameters": run.summary.get("parameters"),
            "exact validation loss": val.get("nats_per_token"),
            "lowest validation loss": min(run.curve("val_loss")[1].tolist(), default=None),
            "exact bits per byte": val.get("bits_per_byte"),
            "seconds of training": sum(row.get("seconds") or 0.0 for row in run.rows) or None,
        },
        "seed": config.seed,
        "corpus": {
            name: value
            for name, value in run.corpus.items()
            if not isinstance(value, dict | list) and not os.path.isabs(str(value))
        },
        "made with": {PLAIN.get(n, n): v for n, v in made_with.items() if USUAL.get(n, ...) != v},
        "changes": [
            f"up to step {row['step']:,}: {PLAIN.get(name, name)} is {value}"
            for row in run.rows
            for kind in ("numerics", "changed")
            for name, value in row.get(kind, {}).items()
        ],
        "commands": _commands(run),
        "samples": [{"step": s.step, "text": s.text[:SAMPLE_CHARACTERS]} for s in samples],
    }


def _commands(run: RunFiles) -> list[tuple[str, str]]:
    """Returns the commands that made a run, that would make it again, and that use it."""
    origin, folder, config = read_init_from(run.run_dir), run.run_dir.parent, run.config
    made, elsewhere = train_command(config, origin), f"{run.run_dir}-again"
    if is_sweep(folder) or is_trial(folder):  # made with others; alone it is the same run
        made = sweep_command(folder) if is_sweep(folder) else trial_command(folder)
        elsewhere = f"{folder}-{run.run_dir.name}"
    again = train_command(dataclasses.replace(config, run_dir=elsewhere), origin)
    if origin and config.init_from is None and config.branch_from is None:
        made = again = None  # `save_run` wrote it
    commands = {
        "made it, as its settings say": made,
        "continues it": None if run.summary else made,
        "makes it again": again,
        "writes text": program_command("sample", "--run-dir", run.run_dir),
    }
    return [(what, command) for what, command in commands.items() if command]


def _settings(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Returns each setting's value in each group, and which are not alike, or not the default."""
    rows = []
    for name, _, field in iter_fields(Config):
        values = [get_field(config, name) for config in configs]
        alike = all(value == values[0] for value in values)
        offered = name not in PLACES and not field.metadata["internal"]
        if name != "run_dir" and (alike or not is_seed(name)):
            rows.append(
                {
                    "name": name.replace("_", "-"),
                    "values": [shown_value(value) for value in values],
                    "differs": not alike,
                    "set": alike and offered and values[0] != get_field(Config(), name),
                }
            )
    return rows
