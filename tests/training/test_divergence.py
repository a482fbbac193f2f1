"""What counts as divergence, by hand: losses, gradients and limits in, the steps out."""

import math

import numpy as np
import pytest

from gpt_jax.training.divergence import (
    Divergence,
    divergence_error,
    find_divergence,
    spike_limit,
)

NAN, INF = math.nan, math.inf


def find(losses, grad_norms=None, limit=INF):
    losses = np.array(losses, np.float64)
    grad_norms = np.ones_like(losses) if grad_norms is None else np.array(grad_norms, np.float64)
    return find_divergence(losses, grad_norms, limit)


def test_sound_steps_are_no_divergence():
    assert find([2.0, 1.5, 3.0]) is None
    assert find([2.0, 1.5, 2.9], limit=3.0) is None
    assert find([2.0], grad_norms=[1e30]) is None  # a large gradient is finite


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("limit", [INF, 10.0])
def test_what_is_not_finite_is_named_by_its_first_step(value, limit):
    found = find([2.0, value, 2.0, value], limit=limit)
    assert found.is_sound.tolist() == [True, False, True, False]
    assert (found.first, found.is_whole_chunk) == (1, False)
    assert str(found) == f"the loss or its gradient is not finite ({value + 1})"
    found = find([2.0, 2.0], grad_norms=[1.0, value], limit=limit)
    assert (found.first, found.loss) == (1, 2.0)
    assert str(found) == f"the loss or its gradient is not finite ({value + 2})"


def test_a_spike_is_a_loss_at_the_limit_or_above_it():
    found = find([2.0, 3.0, 9.0], limit=3.0)
    assert found.is_sound.tolist() == [True, False, False]
    assert str(found) == "the loss is a spike (3, and the limit 3)"
    assert (found.loss, found.loss_limit) == (3.0, 3.0)


def test_the_limit_is_rounded_to_float32_as_in_the_compiled_step():
    limit = 1.0 + 2.0**-30  # 1 in float32
    assert find([1.0], limit=limit).first == 0
    assert find([1.0], limit=1.0 + 2.0**-23) is None


def test_a_chunk_without_a_sound_step_is_whole():
    assert find([NAN, 5.0], limit=4.0).is_whole_chunk
    assert Divergence(NAN).is_whole_chunk  # an evaluation, or parameters


@pytest.mark.parametrize(
    ("newest", "kept"), [(None, "none had been saved"), (4, "that of step 4 stays")]
)
def test_the_error_names_where_the_checkpoints_and_what_to_try(newest, kept):
    error = divergence_error(Divergence(NAN), "in the evaluation at step 8", "runs/a", newest)
    assert str(error) == (
        "the loss or its gradient is not finite (nan) in the evaluation at step 8; of the "
        f"checkpoints in runs/a, {kept}. Try a smaller --optim.learning-rate, or "
        "--train.on-divergence skip, with another --run-dir"
    )


def test_the_limit_is_of_the_last_row_before_the_chunk():
    rows = [{"step": 0, "val_loss": 9.0}, {"step": 2, "loss": 4.0}, {"step": 4, "loss": 2.0}]
    assert spike_limit(rows, 4, 1.5) == 6.0  # the row at step 4 may not have been read yet
    assert spike_limit(rows, 6, 1.5) == 3.0
    assert spike_limit(rows, 2, 1.5) == INF  # the row of step 0 has no loss
    assert spike_limit(rows, 6, None) == INF
