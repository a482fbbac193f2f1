"""The figures of an evaluation, where a count that they are divided by is 0."""

import json
import math
import types

import numpy as np
import pytest

from gpt_jax.console import Display
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.inference.evaluation import Evaluation, evaluate, evaluate_split
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.run.metrics import bits_per_byte
from gpt_jax.training.step_timer import StepTimer

NO_BYTES = Evaluation(2.0, tokens=1, n_bytes=0, stride=8, n_predictable=9)
SOME = Evaluation(2.0, tokens=4, n_bytes=8, stride=8, n_predictable=9)
SHOWN = "no bits per byte: these tokens stand for no text"


def mixture(*components):
    n = len(components)
    return Evaluation(2.0, 5, sum(c.n_bytes for c in components), 8, 18,
                      tuple((1 / n, c) for c in components))  # fmt: skip


@pytest.mark.parametrize("found", [NO_BYTES, mixture(NO_BYTES, NO_BYTES)])
def test_tokens_without_bytes_have_no_bits_per_byte(found):
    assert found.bits_per_byte is None
    assert SHOWN in str(found)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["bits_per_byte"] is None
    assert record["nats_per_token"] == 2.0


def test_a_mixture_with_a_component_without_bytes_has_them():
    found = mixture(NO_BYTES, SOME)
    assert found.bits_per_byte == pytest.approx(2.0 / math.log(2) / 1.0)
    assert SHOWN not in str(found)
    parts = found.record()["parts"]
    assert [part["bits_per_byte"] is None for part in parts] == [True, False]


def test_a_perplexity_that_no_float_holds_is_none_in_json():
    assert Evaluation(1e4, 1, 1, 8, 9).record()["perplexity"] is None
    assert Evaluation(1e4, 1, 1, 8, 9).perplexity == math.inf


def test_a_split_without_a_token_to_predict_is_one_line():
    dataset = Dataset.from_shards([np.zeros(1, np.int32)], 1)
    model = types.SimpleNamespace(block_size=8, vocab_size=11, kv_heads=1)
    with pytest.raises(UserError, match="no token to predict"):
        evaluate_split(model, {}, dataset, np.ones(3, np.int32))


def test_rows_and_lines_of_training_do_without_too(capsys):
    assert bits_per_byte(1.0, 0) is None
    row = {"step": 4, "train_loss": 2.0, "val_loss": 2.0, "val_bpb": None}
    Display().evaluation({**row, "tokens_per_second": None})
    assert capsys.readouterr().out.splitlines()[1].split() == ["4", "2.0000", "2.0000", "-", "-"]


def test_a_clock_that_has_not_moved_divides_nothing_by_zero():
    timer = StepTimer(10, clock=lambda: 5.0)
    assert math.isfinite(timer.tokens_per_second(3))


@pytest.mark.parametrize("name", ["stride", "max_tokens"])
@pytest.mark.parametrize("value", [1.5, "3", True])
def test_a_number_that_is_none_is_one_line(name, value):
    with pytest.raises(ConfigError, match=f"{name}=.* must be a whole number"):
        evaluate(None, **{name: value})
