"""What counts as divergence, by hand: losses, gradients and limits in, the steps out."""

import itertools
import math
import random

import numpy as np
import pytest

from gpt_jax.config import TrainConfig
from gpt_jax.training.divergence import (
    Divergence,
    describe_end,
    divergence_error,
    find_end,
    sound_steps,
)

NAN, INF = math.nan, math.inf


def sound(losses, grad_norms=None, limit=INF):
    losses = np.array(losses, np.float64)
    grad_norms = np.ones_like(losses) if grad_norms is None else np.array(grad_norms, np.float64)
    return sound_steps(losses, grad_norms, np.asarray(limit)).tolist()


def test_sound_steps_are_no_divergence():
    assert sound([2.0, 1.5, 3.0]) == [True] * 3
    assert sound([2.0, 1.5, 2.9], limit=3.0) == [True] * 3
    assert sound([2.0], grad_norms=[1e30]) == [True]  # a large gradient is finite


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("limit", [INF, 10.0])
def test_what_is_not_finite_is_not_sound(value, limit):
    assert sound([2.0, value, 2.0, value], limit=limit) == [True, False, True, False]
    assert sound([2.0, 2.0], grad_norms=[1.0, value], limit=limit) == [True, False]
    text = f"the loss or its gradient is not finite ({value + 1})"
    assert str(Divergence(value, 1.0)) == str(Divergence(1.0, value)) == text


def test_a_spike_is_a_loss_at_the_limit_of_its_step_or_above_it():
    assert sound([2.0, 3.0, 9.0], limit=3.0) == [True, False, False]
    assert sound([2.0, 3.0, 9.0], limit=[2.0, 4.0, 10.0]) == [False, True, True]
    assert str(Divergence(3.0, 1.0, 3.0)) == "the loss is a spike (3, and the limit 3)"


def test_the_limit_is_rounded_to_float32_as_in_the_compiled_step():
    assert sound([1.0], limit=1.0 + 2.0**-30) == [False]  # the limit is 1 in float32
    assert sound([1.0], limit=1.0 + 2.0**-23) == [True]


def end(is_sound, before, train):
    """The index of the step at which a run ends, with what is said of it."""
    n = len(is_sound)
    values = {"loss": np.arange(n) + 0.5, "grad_norm": np.ones(n), "loss_limit": np.full(n, 0.25)}
    found = find_end(values, np.array(is_sound), before, train)
    if found is None:
        return None
    assert found[1] == Divergence(found[0] + 0.5, 1.0, 0.25)
    return found[0]


def test_where_a_run_stops_it_ends_at_its_first_step_that_is_not_sound():
    assert end([True, True], 0, TrainConfig()) is None
    assert end([True, False, False], 0, TrainConfig()) == 1
    assert describe_end(7, TrainConfig()) == "at step 7"
    skips = TrainConfig(on_divergence="skip", max_skipped=3)
    assert describe_end(7, skips) == (
        "at step 7, the last of 3 skipped in a row (train.max_skipped)"
    )


def test_where_it_skips_it_ends_at_a_number_in_a_row_whatever_the_chunks():
    """Random steps, cut at random: the same step ends the run as without any cut."""
    rng = random.Random(0)
    ends = set()
    for _ in range(200):
        train = TrainConfig(on_divergence="skip", max_skipped=rng.randint(1, 4))
        steps = [rng.random() < 0.6 for _ in range(12)]
        text = "".join("_" if ok else "x" for ok in steps)
        at = text.find("x" * train.max_skipped)
        expected = None if at < 0 else at + train.max_skipped - 1
        cuts = sorted({0, 12, *(rng.randint(0, 12) for _ in range(4))})
        found, before = None, 0
        for start, stop in itertools.pairwise(cuts):
            at = end(steps[start:stop], before, train)
            if at is not None:
                found = start + at
                break
            for ok in steps[start:stop]:
                before = 0 if ok else before + 1
        assert found == expected
        ends.add(found)
    assert None in ends
    assert len(ends) > 5


@pytest.mark.parametrize(
    ("newest", "kept"), [(None, "none had been saved"), (4, "that of step 4 stays")]
)
def test_the_error_names_where_the_checkpoints_and_what_to_try(newest, kept):
    where = "in the evaluation at step 8"
    error = divergence_error(Divergence(NAN), where, "runs/a", newest, TrainConfig())
    start = (
        "the loss or its gradient is not finite (nan) in the evaluation at step 8; of the "
        f"checkpoints in runs/a, {kept}. Try a smaller --optim.learning-rate, "
    )
    assert str(error) == f"{start}or --train.on-divergence skip, with another --run-dir"
    skips = TrainConfig(on_divergence="skip")  # which is not recommended again
    error = divergence_error(Divergence(NAN), where, "runs/a", newest, skips)
    assert str(error) == f"{start}with another --run-dir"
