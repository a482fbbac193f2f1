"""Whole runs on sequences of integers whose answers alone count as targets."""

import json

import jax
import numpy as np
import pytest
from conftest import stopped_at

import gpt_jax
import main
from gpt_jax.analysis.replay import replay
from gpt_jax.config import override
from gpt_jax.errors import UserError
from gpt_jax.run.metrics import TIMING_FIELDS, read_rows

NAMES = [*"01234", "+", "=", ";"]  # "3 + 4 = 2 ;", sums modulo 5
ANSWER = [0, 0, 0, 0, 1, 0]


def sums(n, seed):
    a, b = np.random.default_rng(seed).integers(0, 5, (2, n))
    ones = np.ones_like(a)
    return np.stack([a, 5 * ones, b, 6 * ones, (a + b) % 5, 7 * ones], axis=1)


@pytest.fixture
def corpus(tmp_path):
    def write(name="sums", **values):
        masks = {"train_mask": np.tile(ANSWER, (100, 1)), "val_mask": np.tile(ANSWER, (20, 1))}
        folder = tmp_path / name
        values = {"names": NAMES, "shard_tokens": 401, **masks, **values}
        return str(gpt_jax.write_sequences(folder, sums(100, 0), sums(20, 1), **values))

    return write


@pytest.fixture
def config(tiny_config, corpus):
    values = {"data.corpus": corpus(), "train.log_interval": 1, "train.steps": 8}
    return override(tiny_config, {**values, "data.order": "epochs"})


def timeless(run):
    return [
        {k: v for k, v in row.items() if k not in {*TIMING_FIELDS, "numerics"}}
        for row in read_rows(run.run_dir)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("own_compiler_options")  # to the bit, by two programs
def test_a_run_is_the_same_resumed_and_from_the_host_and_knows_its_mask(config, tmp_path):
    run = gpt_jax.train(override(config, {"data.resident": "device"}), quiet=True)
    host = override(config, {"run_dir": str(tmp_path / "host"), "data.resident": "host"})
    with stopped_at(6):
        gpt_jax.train(host, quiet=True)
    other = gpt_jax.train(host, quiet=True)
    assert timeless(run) == timeless(other)
    jax.tree.map(np.testing.assert_array_equal, run.params, other.params)
    assert run.config.sample.prompt == "2 + 4 = 1 ; 2 +"  # of the validation split
    assert [row["val_bpb"] for row in run.rows if "val_bpb" in row] == [None] * 3
    exact = run.summary["val"]
    assert (exact["tokens_predicted"], exact["bits_per_byte"]) == (20, None)
    assert gpt_jax.evaluate(run).record() == exact
    step = replay(run.run_dir, 6)
    assert step.loss == pytest.approx(run.rows[6]["loss"], rel=1e-4)
    assert step.batch.min() >= 0
    assert set(step.tokenizer.decode(step.batch[0]).split()) <= set(NAMES)


@pytest.mark.slow
def test_the_verbs_take_it(config, corpus, tmp_path, capsys):
    config = override(config, {"model.head_bias": False})  # as GPT-2's folders have it
    run = gpt_jax.train(config, quiet=True)
    folder = str(run.run_dir)
    assert main.main(["sample", "--run-dir", folder, "--prompt", "3 + 4 =", "--seed", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("3 + 4 = ")
    assert set(text.split()) <= set(NAMES)
    assert main.main(["sample", "--run-dir", folder, "--prompt", "3 - 4 ="]) == 2
    assert "'-' is not in the vocabulary: 0 1 2 3 4 + = ;" in capsys.readouterr().err
    assert main.main(["eval", "--run-dir", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens_predicted"] == 20
    gpt_jax.train(override(config, {"run_dir": folder + "2", "seed": 7}), quiet=True)
    assert main.main(["compare", folder, folder + "2"]) == 3  # one run each shows nothing
    assert "exact validation loss after the last step, nats" in capsys.readouterr().out
    assert main.main(["export", "--run-dir", folder, "--out", str(tmp_path / "gpt2")]) == 0
    capsys.readouterr()
    exported = gpt_jax.load_run(tmp_path / "gpt2")
    assert exported.tokenizer.to_json() == run.tokenizer.to_json()
    fine = {"init_from": folder, "run_dir": str(tmp_path / "fine"), "data.corpus": corpus("new")}
    assert gpt_jax.train(override(config, fine), quiet=True).step == 8
    book = tmp_path / "book.txt"
    with pytest.raises(UserError, match=r"was trained on sequences of integers, and .* is a text"):
        gpt_jax.train(override(config, {**fine, "run_dir": "no", "data.corpus": str(book)}))
    other = corpus("other", names=[*NAMES, "x"])
    with pytest.raises(UserError, match="different tokenizers: 8 tokens and 9"):
        gpt_jax.train(override(config, {**fine, "run_dir": "no", "data.corpus": other}))
