"""How often a trial that is looked at after every pair is wrong, and how many pairs it needs.

    python benchmarks/trials.py [--trials 10000] [--measured trials/NAME ...]

Simulates the confidence sequence of `gpt_jax/experiments/sequential.py` on paired differences of
standard deviation 1, up to 20 pairs, at alpha = 0.01: with no true difference (how many trials end
with a verdict, which is false), and with true differences of 1, 2 and 4 standard deviations (how
many end with one, and after how many pairs). Beside it a t test of 20 pairs, looked at once; and
one looked at after every pair as if it were looked at once, which is what not to do. One kind of
noise is drawn from measured differences: without --measured, those of `nano` that
benchmarks/results/tuned.json has. NumPy alone, seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from gpt_jax.errors import UserError
from gpt_jax.experiments.comparison import compare
from gpt_jax.experiments.sequential import WIDTH, confidence_sequence, first_decided
from gpt_jax.experiments.sides import is_sweep
from gpt_jax.experiments.statistics import pairs_to_show, t_quantile
from gpt_jax.experiments.trial_record import read_trial
from gpt_jax.storage import open_folder

MEASURED = Path(__file__).parent / "results" / "tuned.json"
ALPHA, PAIRS, EFFECTS = 0.01, 20, (1.0, 2.0, 4.0)
Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def both_sides(draw: Callable[[tuple[int, int]], np.ndarray], deviation: float) -> Callable:
    """Returns differences of two sides that have the same noise, of standard deviation 1."""
    return lambda shape: (draw(shape) - draw(shape)) / (deviation * math.sqrt(2))


# Differences of mean 0 and standard deviation 1. Where nothing has changed, both sides have the
# same noise, so that differences are as likely with either sign, however skewed a run's noise is.
KINDS: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t with 5 degrees of freedom": lambda rng, shape: rng.standard_t(5, shape) / math.sqrt(5 / 3),
    "runs with exponential noise (skewness 2)": lambda rng, shape: both_sides(
        rng.standard_exponential, 1.0
    )(shape),
    "runs with lognormal noise (skewness 6)": lambda rng, shape: both_sides(
        lambda s: rng.lognormal(size=s), math.sqrt(math.e * (math.e - 1))
    )(shape),
    "skewed differences (gamma, skewness 1)": lambda rng, shape: (rng.gamma(4, size=shape) - 4) / 2,
    "skewed differences (exponential, skewness 2)": lambda rng, shape: (
        rng.standard_exponential(shape) - 1
    ),
}


def measured(*places: Path) -> Noise:
    """Returns differences drawn from measured ones, with replacement.

    Those of each place are centred and scaled to a standard deviation of 1, then put together.

    Args:
      places: see `differences_of`.

    Raises:
      UserError: there are no three differences with spread.
    """
    found = [d for place in places for d in differences_of(place) if len(d) > 2 and np.ptp(d) > 0]
    if not found:
        raise UserError(f"{places[0]} has no three differences that differ")
    values = np.concatenate([(d - d.mean()) / d.std() for d in found])
    return lambda rng, shape: rng.choice(values, shape)


def differences_of(place: Path) -> list[np.ndarray]:
    """Returns paired differences of final losses, of each setting one array, float64 (n,).

    Args:
      place: the folder of a trial, or of a sweep, whose settings are compared with its first; or a
        JSON file with lists of numbers named "differences" at any depth.
    """
    if place.is_file():
        return list(_lists_of_differences(json.loads(place.read_text("utf-8"))))
    if is_sweep(place):
        compared = compare(place)
        return [each.differences for each in getattr(compared, "items", ())]
    found = read_trial(open_folder(place)).outcome(place)
    sound = [not (pair.base_diverged or pair.change_diverged) for pair in found.pairs]
    return [found.differences[sound]]


def _lists_of_differences(value: Any) -> Iterator[np.ndarray]:
    """Yields what is named "differences" in JSON values, in their order."""
    for name, each in value.items() if isinstance(value, dict) else enumerate(value):
        if name == "differences":
            yield np.array(each, np.float64)
        elif isinstance(each, dict | list):
            yield from _lists_of_differences(each)


def simulate(noise: Noise, trials: int, seed: int = 0, width: float = WIDTH) -> dict[str, Any]:
    """Returns how trials with one kind of noise end.

    Args:
      noise: see `KINDS`.
      trials: of each true difference.
      seed: of the draws.
      width: of the sequence, see `sequential`.
    """
    values = noise(np.random.default_rng(seed), (trials, PAIRS))
    result: dict[str, Any] = {
        "no_difference": {
            "false_verdicts": share(first_decided(confidence_sequence(values, ALPHA, width)) > 0),
            "t_test_once": share(t_tests(values)[:, -1]),
            "t_test_after_every_pair": share(t_tests(values).any(axis=1)),
        }
    }
    for effect in EFFECTS:
        pairs = first_decided(confidence_sequence(values + effect, ALPHA, width))
        decided = pairs[pairs > 0]
        result[f"{effect:g} standard deviations"] = {
            "decided": share(pairs > 0),
            "median_pairs": float(np.median(decided)),
            "mean_pairs_of_all": float(np.where(pairs > 0, pairs, PAIRS).mean()),
            "t_test_once": share(t_tests(values + effect)[:, -1]),
            "pairs_of_a_t_test_with_power_0.8": pairs_to_show(1.0, effect, ALPHA),
        }
    return result


def share(happened: np.ndarray) -> dict[str, float]:
    """Returns a share of trials with its Monte Carlo standard error."""
    p = float(happened.mean())
    return {"share": p, "error": math.sqrt(p * (1 - p) / len(happened))}


def t_tests(values: np.ndarray) -> np.ndarray:
    """Returns whether a t test of level ALPHA rejects after 2, 3, ... pairs, bool (trials, n-1).

    Equal values, as measured ones that are drawn twice, are no evidence.
    """
    counts = np.arange(2, values.shape[1] + 1)
    sums, squares = np.cumsum(values, 1)[:, 1:], np.cumsum(values**2, 1)[:, 1:]
    variances = (squares - sums**2 / counts) / (counts - 1)
    variances = np.where(variances > 1e-9, variances, np.inf)
    limits = np.array([t_quantile(n - 1, ALPHA) for n in counts])
    return np.abs(sums) > limits * np.sqrt(counts * variances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument(
        "--measured",
        type=Path,
        nargs="+",
        default=[MEASURED],
        help="folders of trials or sweeps of nano, or JSON with differences",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trials.json"))
    args = parser.parse_args()
    kinds = {**KINDS, "nano's measured differences, centred": measured(*args.measured)}
    found = {name: simulate(noise, args.trials) for name, noise in kinds.items()}
    widths = {
        f"{width:g}": simulate(KINDS["normal"], args.trials, width=width)
        for width in (0.5, 0.7, 1.0, 1.4, 2.0, 4.0)
    }
    print(f"{'':<46} false    decided at 1, 2, 4 sd (median pairs)")
    for name, row in {**found, **{f"normal, width {w}": row for w, row in widths.items()}}.items():
        wrong = row["no_difference"]["false_verdicts"]
        cells = [
            "{decided[share]:.0%} ({median_pairs:.0f})".format(**row[f"{e:g} standard deviations"])
            for e in EFFECTS
        ]
        print(f"{name:<46} {wrong['share']:.4f}   {', '.join(cells)}")
    places = {str(place): f"{place.parent.name}/{place.name}" for place in args.measured}
    result = {
        "machine": describe_machine(),
        "command": " ".join(["python", *(places.get(word, word) for word in sys.argv)]),
        "alpha": ALPHA,
        "most_pairs": PAIRS,
        "trials": args.trials,
        "width": WIDTH,
        "kinds": found,
        "widths, normal noise": widths,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
