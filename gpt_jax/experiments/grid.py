"""What a sweep varies: settings with lists of values or with ranges, and the points of its design.

Lists are crossed. Ranges are sampled together: a scrambled Sobol sequence (Sobol 1967; Owen 1998),
log-uniform in each range, of which every point is crossed with the lists. Never imports jax.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_jax.config import Config
from gpt_jax.config.fields import get_field, parse
from gpt_jax.errors import ConfigError, suggest
from gpt_jax.experiments.fixed_settings import settings, variable_settings, why_fixed

MOST_POINTS = 10_000
DESIGN_SEED = 0  # of the scrambling: the same command draws the same points


@dataclasses.dataclass(frozen=True)
class Variation:
    """A setting that is varied.

    Attributes:
      name: of the setting, dotted.
      values: that it takes; empty for a range.
      low, high: of a range, both above 0; 0 for a list.
      is_whole: whether a range is of whole numbers.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False

    @property
    def is_range(self) -> bool:
        return not self.values


def parse_vary(text: str) -> Variation:
    """Returns what `--vary NAME=VALUE,...` or `--vary NAME=LOW..HIGH` says.

    Raises:
      ConfigError: there is no such setting, it can't vary, or a value has the wrong type.
    """
    name, equals, values = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not equals:
        raise ConfigError(f"--vary {text} has no values; write --vary {text}=VALUE,VALUE")
    hint = _hint(name)
    low, dots, high = values.partition("..")
    if dots:
        return _range(name, low, high)
    words = [word.strip() for word in values.split(",")]
    if not values.strip() or "" in words:
        raise ConfigError(f"--vary {text} has an empty value; write --vary {name}=VALUE,VALUE")
    return list_of(name, [parse(word, hint, f"--vary {name}") for word in words])


def list_of(name: str, values: Sequence[Any]) -> Variation:
    """Returns the variation of a setting over values.

    Raises:
      ConfigError: it can't vary, there is no value, or one is given twice.
    """
    name = name.replace("-", "_")
    _hint(name)
    if not values:
        raise ConfigError(f"--vary {name} has no values: an empty grid")
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ConfigError(f"--vary {name} has the value {twice[0]} twice")
    return Variation(name, tuple(values))


def _hint(name: str) -> Any:
    """Returns the type of a setting that can vary."""
    hints = settings()
    if name not in hints:
        raise ConfigError(f"--vary {name}: unknown setting{suggest(name, variable_settings())}")
    if why := why_fixed(name):
        raise ConfigError(f"--vary {name}: a sweep can't vary it, because {why}")
    return hints[name]


def _range(name: str, low: str, high: str) -> Variation:
    option = f"--vary {name}"
    default = get_field(Config(), name)
    whole = "int" in str(_hint(name))
    if not whole and "float" not in str(_hint(name)):
        raise ConfigError(f"{option}={low}..{high}: a range is for numbers; {name} is {default!r}")
    kind = int if whole else float
    ends = [parse(end.strip(), kind, option) for end in (low, high)]
    if not 0 < ends[0] < ends[1] < math.inf:
        raise ConfigError(
            f"{option}={low}..{high} must go from a number above 0 to a larger one: it is sampled "
            "log-uniformly"
        )
    return Variation(name, low=float(ends[0]), high=float(ends[1]), is_whole=whole)


def make_points(
    variations: Sequence[Variation], samples: int | None = None
) -> list[dict[str, Any]]:
    """Returns the points of a design, {setting: value} each; without variations one, empty.

    Args:
      variations: what is varied.
      samples: how many points of the ranges are drawn; needed where there is a range.

    Raises:
      ConfigError: a setting is varied twice, or samples and ranges don't go together.
    """
    names = [variation.name for variation in variations]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--vary {name} is given twice; give all its values in one")
    ranges = [v for v in variations if v.is_range]
    if ranges and samples is None:
        raise ConfigError(f"--vary {ranges[0].name} is a range: give --samples, how many to draw")
    if samples is not None and not ranges:
        raise ConfigError("--samples is for ranges, such as --vary optim.learning-rate=1e-4..1e-2")
    if samples is not None and samples < 1:
        raise ConfigError(f"--samples {samples} must be at least 1")
    lists = [v for v in variations if not v.is_range]
    n_points = (samples or 1) * math.prod(len(v.values) for v in lists)
    if n_points > MOST_POINTS:
        raise ConfigError(f"the grid has {n_points:,} points, and at most {MOST_POINTS:,} can run")
    drawn = _sobol(ranges, samples) if ranges and samples else [{}]
    crossed = [
        dict(zip((v.name for v in lists), values, strict=True))
        for values in itertools.product(*(v.values for v in lists))
    ]
    points = [{**point, **of_lists} for point in drawn for of_lists in crossed]
    unique = {tuple(repr(point[name]) for name in names): point for point in points}
    return [{name: point[name] for name in names} for point in unique.values()]


def _sobol(ranges: Sequence[Variation], samples: int) -> list[dict[str, Any]]:
    """Returns points that are log-uniform in each range, floats in four digits."""
    from scipy.stats import qmc  # takes time to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers that are no power of 2
        unit = qmc.Sobol(len(ranges), scramble=True, rng=DESIGN_SEED).random(samples)
    points = []
    for row in unit.tolist():
        exact = {v.name: v.low * (v.high / v.low) ** u for v, u in zip(ranges, row, strict=True)}
        points.append(
            {v.name: round(x) if v.is_whole else float(f"{x:.4g}") for v, x in
             zip(ranges, exact.values(), strict=True)}
        )  # fmt: skip
    return points


def show_values(values: Mapping[str, Any]) -> str:
    """Returns a point in words, by the last parts of its names: "learning_rate=0.001"."""
    shown = [f"{name.rpartition('.')[2]}={show(value)}" for name, value in values.items()]
    return ", ".join(shown) or "the config as it is"


def show(value: Any) -> str:
    """Returns a value as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
