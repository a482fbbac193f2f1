"""What a row says of a chunk, and what rows say of each step."""

import json
import math

import numpy as np
import pytest

from gpt_jax.config import TrainConfig
from gpt_jax.errors import UserError
from gpt_jax.run.metrics import read_rows
from gpt_jax.training.describe import describe_small_chunks
from gpt_jax.training.rows import chunk_row, count_last_skipped, recent_losses, step_losses

SKIP = TrainConfig(on_divergence="skip")
VALUES = {"loss": np.array([2.0, math.nan, 4.0]), "grad_norm": np.array([1.0, math.inf, 2.0])}
SOUND = np.array([True, False, True])


def test_a_row_has_the_means_of_the_sound_steps_and_the_loss_of_each():
    row = {"step": 6, "loss": 3.0, "grad_norm": 1.5, "skipped": 1, "step_losses": [2.0, None, 4.0]}
    assert chunk_row(6, VALUES, SOUND, SKIP) == row
    none = chunk_row(6, VALUES, np.zeros(3, bool), SKIP)
    assert none == {"step": 6, "skipped": 3, "step_losses": [None] * 3}
    json.dumps(none, allow_nan=False)


def test_a_run_that_neither_skips_nor_looks_for_spikes_has_the_rows_it_had():
    values = {"loss": np.array([2.0]), "grad_norm": np.array([1.0]), "learning_rate": np.array([3])}
    row = chunk_row(1, values, np.array([True]), TrainConfig())
    assert list(row.items()) == [("step", 1), ("loss", 2.0), ("grad_norm", 1.0),
                                 ("learning_rate", 3)]  # fmt: skip
    assert "step_losses" in chunk_row(1, values, np.array([True]), TrainConfig(spike=2.0))


ROWS = [
    {"step": 0, "val_loss": 9.0},
    {"step": 2, "step_losses": [4.0, 5.0], "loss": 4.5, "skipped": 0},
    {"step": 5, "step_losses": [None, 3.0, None], "loss": 3.0, "skipped": 2},
    {"step": 7, "step_losses": [None, None], "skipped": 2},
]


def test_the_losses_of_steps_are_read_back_whatever_the_chunks():
    losses = [4.0, 5.0, None, 3.0, None, None, None]
    for step in (0, 2, 5, 7):
        assert step_losses(ROWS, step) == losses[:step]
    assert count_last_skipped(losses) == 3
    assert count_last_skipped([None], before=3) == 4
    assert count_last_skipped([None, 1.0], before=3) == 0
    assert recent_losses(losses, 2).tolist() == [5.0, 3.0]
    shown = recent_losses(losses, 4)
    assert np.isnan(shown[0])
    assert (shown[1:].tolist(), shown.dtype) == ([4.0, 5.0, 3.0], np.float32)


def test_a_row_of_an_older_run_counts_as_its_mean_for_each_step():
    rows = [{"step": 0, "val_loss": 9.0}, {"step": 2, "loss": 4.0}, {"step": 4, "loss": 2.0}]
    assert step_losses(rows, 4) == [4.0, 4.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("intervals", "steps"),
    [((10, 50, 100), None), ((10, 25, 100), 5), ((7, 50, 100), 1), ((1, 50, 100), 1)],
)
def test_intervals_that_make_chunks_small_are_named_at_the_start(intervals, steps):
    log, evaluate, save = intervals
    train = TrainConfig(log_interval=log, eval_interval=evaluate, checkpoint_interval=save)
    note = describe_small_chunks(train)
    assert bool(note) == (steps is not None)
    if steps:
        assert f"train.log_interval={log}, train.eval_interval={evaluate}" in note
        assert f"have {steps} step" in note


@pytest.mark.parametrize("steps", [(0, 2, 2), (0, 4, 2), (2, 0)])
def test_rows_whose_steps_do_not_rise_are_damaged(tmp_path, steps):
    text = "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in steps)
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=f"damaged at line {len(steps)}"):
        read_rows(tmp_path)
