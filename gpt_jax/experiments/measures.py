"""What runs are compared by: the metrics, read from a run's rows and its summary."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from gpt_jax.errors import ConfigError, UserError, suggest
from gpt_jax.experiments.sides import RunFiles

# What --metric takes -> (title, unit). Those that end in a sign take a number after it.
METRICS = {
    "final": ("exact validation loss after the last step", "nats"),
    "best": ("lowest validation loss", "nats"),
    "bpb": ("exact bits per byte of the validation text after the last step", "bits per byte"),
    "val@": ("validation loss at step", "nats"),
    "steps-to:": ("steps to a validation loss of", "steps"),
    "seconds-to:": ("seconds of training to a validation loss of", "s"),
    "tokens/s": ("tokens per second of training", "tokens/s"),
}
WAYS = "final, best, bpb, val@STEP, steps-to:LOSS, seconds-to:LOSS or tokens/s"
EXACT = ("final", "bpb")  # of the summary's exact evaluation


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      name: as `--metric` has it.
      kind: the key in `METRICS`.
      at: the step, or the loss in nats per token, of a kind that takes one; else NaN.
    """

    name: str
    kind: str
    at: float = math.nan

    @property
    def title(self) -> str:
        at = "" if math.isnan(self.at) else f" {self.at:g}"
        return METRICS[self.kind][0] + at

    @property
    def unit(self) -> str:
        return METRICS[self.kind][1]

    @property
    def is_lower_better(self) -> bool:
        return self.kind != "tokens/s"

    @property
    def is_exact(self) -> bool:
        return self.kind in EXACT

    @property
    def is_by_token(self) -> bool:
        """It depends on what a token is, so it compares runs of one tokenizer only."""
        return self.kind != "bpb"

    @property
    def curve(self) -> str:
        """The field of rows that is drawn beside it."""
        return "val_loss" if self.is_by_token else "val_bpb"

    @property
    def curve_unit(self) -> str:
        return "nats per token" if self.is_by_token else "bits per byte"

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "lower_is_better": self.is_lower_better,
        }


def parse_metric(text: str) -> Metric:
    """Returns the metric that a text names.

    Raises:
      ConfigError: it names none.
    """
    for kind in METRICS:
        if text == kind and kind[-1] not in "@:":
            return Metric(text, kind)
        if kind[-1] in "@:" and text.startswith(kind):
            return Metric(text, kind, _number(text, kind))
    raise ConfigError(f"metric {text!r} is unknown{suggest(text, METRICS)}; there are {WAYS}")


def _number(text: str, kind: str) -> float:
    number = text.removeprefix(kind)
    try:
        at = float(int(number)) if kind == "val@" else float(number)
    except (ValueError, OverflowError):
        at = -1.0
    if not (0 <= at < math.inf):
        what = "a step, such as val@300" if kind == "val@" else f"a loss, such as {kind}2.2"
        raise ConfigError(f"metric {text!r} needs {what}")
    return at


def measure(run: RunFiles, metric: Metric) -> float:
    """Returns a run's figure.

    Raises:
      UserError: the run has none; the message says why.
    """
    if metric.kind in EXACT:
        value = _exact(run, metric)
    elif metric.kind == "best":
        value = min(_evaluations(run)[1])
    elif metric.kind == "val@":
        value = _at_step(run, int(metric.at))
    elif metric.kind == "tokens/s":
        value = _speed(run)
    else:
        value = _way_to(run, metric)
    if not math.isfinite(value):
        raise UserError(f"{run.run_dir}: its {metric.title} is {value}, which can't be compared")
    return value


def _exact(run: RunFiles, metric: Metric) -> float:
    """Returns the figure of the exact evaluation after the last step."""
    steps = run.config.train.steps
    if run.summary.get("step") != steps:
        done = max((row["step"] for row in run.rows), default=0)
        raise UserError(
            f"{run.run_dir} is not finished (step {done:,} of {steps:,}), so it has no "
            f"{metric.title}; resume it, or compare by --metric val@STEP or best"
        )
    name = "nats_per_token" if metric.kind == "final" else "bits_per_byte"
    value = run.summary["val"].get(name)
    if type(value) not in (int, float):
        raise UserError(f"{run.run_dir} has no {metric.title}: its summary has no {name}")
    return float(value)


def _evaluations(run: RunFiles) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps of a run's evaluations, (E,), and the validation losses, (E,)."""
    steps, losses = run.curve("val_loss")
    if not len(steps):
        raise UserError(f"{run.run_dir} has no evaluation yet; resume it with the same command")
    return steps, losses


def _at_step(run: RunFiles, step: int) -> float:
    steps, losses = _evaluations(run)
    if step not in steps:
        there = ", ".join(f"{each}" for each in steps[:12])
        more = ", ..." if len(steps) > 12 else ""
        raise UserError(
            f"{run.run_dir} has no evaluation at step {step}; it has those at {there}{more}"
        )
    return float(losses[list(steps).index(step)])


def _speed(run: RunFiles) -> float:
    """Returns the tokens of training over its seconds, without compiling and evaluations."""
    seconds, tokens = 0.0, 0.0
    for row in run.rows:
        if row.get("seconds") and row.get("tokens_per_second"):
            seconds += row["seconds"]
            tokens += row["seconds"] * row["tokens_per_second"]
    if not seconds:
        raise UserError(f"{run.run_dir} has no speed: none of its rows has seconds of training")
    return tokens / seconds


def _way_to(run: RunFiles, metric: Metric) -> float:
    """Returns the steps or seconds to the first evaluation at a loss or below it.

    Between that evaluation and the one before, a line gives the moment.
    """
    steps, losses = _evaluations(run)
    there = np.flatnonzero(losses <= metric.at)
    if not len(there):
        raise UserError(
            f"{run.run_dir} never has a validation loss of {metric.at:g}; its lowest is "
            f"{losses.min():.4f} at step {steps[losses.argmin()]}"
        )
    place = steps.astype(float)
    if metric.kind == "seconds-to:":
        place = _seconds_at(run, steps)
    i = int(there[0])
    if i == 0:
        return float(place[0])
    share = (losses[i - 1] - metric.at) / (losses[i - 1] - losses[i])
    return float(place[i - 1] + share * (place[i] - place[i - 1]))


def _seconds_at(run: RunFiles, steps: np.ndarray) -> np.ndarray:
    """Returns the seconds of training up to each evaluation, float64 (E,)."""
    seconds, total = {}, 0.0
    for row in run.rows:
        if "val_loss" in row:
            if row["step"] and row.get("seconds") is None:
                raise UserError(f"{run.run_dir} has no seconds of training at step {row['step']}")
            total += row.get("seconds") or 0.0
            seconds[row["step"]] = total
    return np.array([seconds[step] for step in steps])
