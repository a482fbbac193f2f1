"""`compare`: two sides, or the settings of a sweep, by one metric.

Read `sides.py` for what a side is, `statistics.py` for what is computed, `verdicts.py` for the
result. Reads folders of runs and writes nothing; never imports jax.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from gpt_jax.errors import ConfigError, UserError
from gpt_jax.experiments.comparability import check_comparable
from gpt_jax.experiments.measures import Metric, measure, parse_metric
from gpt_jax.experiments.parting import parting_note, partings
from gpt_jax.experiments.sides import (
    RunFiles,
    Side,
    different_settings,
    find_baseline,
    find_settings,
    find_side,
    is_sweep,
    pair_runs,
)
from gpt_jax.experiments.statistics import (
    correlation,
    holm,
    paired_t,
    pairing_gain,
    pairs_to_show,
    sign_flips,
    welch_t,
)
from gpt_jax.experiments.sweep_verdicts import Comparisons
from gpt_jax.experiments.verdicts import Comparison, Group
from gpt_jax.storage import to_folder

Place = str | os.PathLike[str]


def compare(
    a: Place,
    b: Place | None = None,
    *,
    metric: str = "final",
    alpha: float = 0.05,
    smallest: float | None = None,
    baseline: str | None = None,
) -> Comparison | Comparisons:
    """Compares runs: is b better than a?

    Runs with equal seeds and the same batches are paired; else the sides are independent, which the
    result says. The paired t decides, or Welch's; the sign-flip test stands beside it. Equal
    differences alone are never a verdict.

    Args:
      a: the folder of a run, a pattern such as "runs/base-*", or a sweep of seeds: the baseline.
        Without `b` the folder of a sweep, whose settings are each compared with the first.
      b: what is judged.
      metric: "final" (exact validation loss after the last step), "best" (lowest validation loss),
        "bpb" (bits per byte), "val@300", "steps-to:2.2", "seconds-to:2.2" or "tokens/s".
      alpha: below which a p is a verdict, in (0, 1); several comparisons are corrected (Holm).
      smallest: the least difference that matters, in the metric's unit; None is the one seen. It
        changes no verdict, but what is said of more pairs.
      baseline: with a sweep: NAME=VALUE of its setting that the others are compared with; None is
        the first.

    Returns:
      A `Comparison`; of a sweep, `Comparisons`.

    Raises:
      UserError: there are no such runs, or they can't be compared.
    """
    wanted = parse_metric(metric)
    if isinstance(alpha, bool) or not 0 < alpha < 1:
        raise ConfigError(f"alpha={alpha} must be a number between 0 and 1, both excluded")
    if smallest is not None and not 0 < smallest < float("inf"):
        raise ConfigError(f"smallest={smallest} must be a finite number above 0")
    if b is not None:
        if baseline is not None:
            raise ConfigError("baseline is for a sweep; of two sides the first is the baseline")
        baseline_side, side = find_side(a), find_side(b)
        check_comparable([baseline_side, side], wanted)
        return _compare_sides(baseline_side, side, wanted, alpha, smallest)
    if not is_sweep(to_folder(a)):
        raise UserError(f"{a} is no sweep (it has no sweep.json); name two sides to compare")
    return _compare_sweep(a, wanted, alpha, smallest, baseline)


def _compare_sweep(
    name: Place, metric: Metric, alpha: float, smallest: float | None, baseline: str | None
) -> Comparisons:
    """Compares the settings of a sweep with one of them; see `compare`."""
    found = {label: _measurable(side, metric) for label, side in find_settings(name).items()}
    sides = [side for side in found.values() if isinstance(side, Side)]
    missing = {label: why for label, why in found.items() if isinstance(why, str)}
    notes = tuple(f"{label} is left out: {why}" for label, why in missing.items())
    label = next(iter(found))
    if baseline is None and label in missing:
        raise UserError(
            f"{label} is the baseline, and {missing[label]}; name another with --baseline"
        )
    if len(sides) < 2:
        why = f"; {notes[0]}" if notes else ""
        raise UserError(f"the sweep {name} has no two settings to compare{why}")
    first = 0 if baseline is None else find_baseline(sides, baseline)
    check_comparable(sides, metric)
    others = [side for i, side in enumerate(sides) if i != first]
    items = [
        _compare_sides(sides[first], side, metric, alpha, smallest, len(others)) for side in others
    ]
    return Comparisons(correct(items), notes)


def _measurable(side: Side | str, metric: Metric) -> Side | str:
    """Returns a side whose runs all have the metric; else why it is left out.

    It is left out whole: the seeds that a setting survived are no fair sample of it.
    """
    if isinstance(side, str):
        return side
    try:
        for run in side.runs:
            measure(run, metric)
    except UserError as error:
        return str(error)
    return side


def correct(items: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Returns comparisons with their p adjusted by Holm's method.

    Only those that have a p count as comparisons.
    """
    judged = [each for each in items if each.estimate.is_judged]
    adjusted = iter(holm(np.array([each.estimate.p for each in judged])).tolist())
    return tuple(
        dataclasses.replace(each, p=next(adjusted), comparisons=len(judged))
        if each.estimate.is_judged
        else each
        for each in items
    )


def _compare_sides(
    a: Side, b: Side, metric: Metric, alpha: float, smallest: float | None, comparisons: int = 1
) -> Comparison:
    """Compares two sides that `check_comparable` has passed; p is not yet corrected."""
    pairs, why = pair_runs(a, b)
    runs = ([x for x, _ in pairs], [y for _, y in pairs]) if pairs else (a.runs, b.runs)
    groups = [_group(side.label, of, metric) for side, of in zip((a, b), runs, strict=True)]
    x, y = (group.values for group in groups)
    estimate = paired_t(x, y, alpha) if pairs else welch_t(x, y, alpha)
    differences = y - x if pairs else np.zeros(0)
    parts, all_part = partings(*runs, paired=bool(pairs))
    labels = (a.label, b.label)
    parted = (parting_note(*labels, parts, all_part=all_part),) if parts else ()
    shown = smallest or abs(estimate.mean)
    more = None
    if estimate.is_judged:
        deviation = float(differences.std(ddof=1)) if pairs else _pooled(x, y)
        needed = pairs_to_show(deviation, shown, alpha / comparisons, sides=1 if pairs else 2)
        more = None if needed is None else max(0, needed - min(len(x), len(y)))
    return Comparison(
        a=groups[0],
        b=groups[1],
        metric=metric,
        alpha=alpha,
        settings=different_settings(a.config, b.config),
        differences=differences,
        estimate=estimate,
        flips=sign_flips(differences) if len(pairs) > 1 else None,
        correlation=correlation(x, y) if pairs else None,
        gain=pairing_gain(x, y) if pairs else None,
        more=more,
        shown=shown,
        smallest=smallest,
        why_unpaired=why,
        notes=(*parted, *_left_out(a, b, len(pairs))),
        p=estimate.p,
        parts=tuple(parts),
    )


def _pooled(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the standard deviation of a side's values: the root of the mean of both variances."""
    return float(np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2))


def _left_out(a: Side, b: Side, n_pairs: int) -> tuple[str, ...]:
    """Returns a note on the runs that have no partner."""
    if not n_pairs:
        return ()
    missing = [(side.label, len(side.runs) - n_pairs) for side in (a, b)]
    return tuple(
        f"{n} of the runs of {label} are left out: the other side has no run of their seeds"
        for label, n in missing
        if n
    )


def _group(label: str, runs: Sequence[RunFiles], metric: Metric) -> Group:
    """Returns the figures and curves of the runs of a side."""
    curves = [dict(zip(*run.curve(metric.curve), strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return Group(
        label=label,
        run_dirs=tuple(str(run.run_dir) for run in runs),
        seeds=np.array([run.config.seed for run in runs], np.int64),
        values=np.array([measure(run, metric) for run in runs], np.float64),
        steps=np.array(steps, np.int64),
        losses_NS=np.array([[c[s] for s in steps] for c in curves], np.float64).reshape(
            len(runs), len(steps)
        ),
    )
