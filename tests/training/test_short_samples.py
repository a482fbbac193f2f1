"""The short texts of evaluations: their keys, what a resumed run keeps, what they may cost."""

import dataclasses

import jax
import numpy as np
import pytest

import gpt_jax
from gpt_jax.config import override
from gpt_jax.errors import UserError
from gpt_jax.inference.decoding import Filters, generate_tokens
from gpt_jax.inference.generation import encode_prompt, sample_key
from gpt_jax.run.metrics import TIMING_FIELDS, read_rows
from gpt_jax.run.samples import FILE, read_samples
from gpt_jax.training import short_samples


def untimed(run_dir):
    return [{k: v for k, v in r.items() if k not in TIMING_FIELDS} for r in read_rows(run_dir)]


def test_a_run_keeps_a_text_of_each_evaluation_sampled_with_the_key_of_its_step(
    finished_run, tiny_config
):
    run = finished_run(tiny_config)
    found = read_samples(run.run_dir)
    assert [each.step for each in found] == [0, 4, 8, 12]
    prompt = run.config.sample.prompt
    context = encode_prompt(run.tokenizer, prompt, False)[-4:]  # half of block_size
    key = jax.random.fold_in(sample_key(run.config.seed), 12)
    pieces = generate_tokens(
        run.config.model, run.decode_params, context, key, Filters(1.0), max_new_tokens=4
    )
    ids = np.concatenate([ids_BT[0] for ids_BT in pieces])
    assert found[-1].text == prompt + run.tokenizer.decode(ids)
    assert len(ids) == 4


def test_training_is_the_same_without_them(finished_run, tiny_config, tmp_path):
    with_texts = finished_run(tiny_config)
    plain = {"run_dir": str(tmp_path / "plain"), "train.sample_tokens": 0}
    without = gpt_jax.train(override(tiny_config, plain), quiet=True)
    assert untimed(with_texts.run_dir) == untimed(without.run_dir)
    assert not (tmp_path / "plain" / FILE).exists()
    assert [each.step for each in read_samples(without.run_dir)] == [12]  # that of the end


def test_a_resumed_run_drops_texts_after_its_checkpoint(finished_run, tiny_config):
    run = finished_run(tiny_config)
    before = read_samples(run.run_dir)
    path = run.run_dir / FILE
    path.write_text(path.read_text() + '{"step": 16, "text": "of a run that was killed"}\n')
    gpt_jax.train(override(tiny_config, {"train.steps": 16}), quiet=True)
    after = read_samples(run.run_dir)
    assert after[:4] == before
    assert after[4].step == 16
    assert "killed" not in after[4].text


@pytest.mark.parametrize("reason", ["size", "failure"])
def test_there_are_none_of_a_large_model_and_a_failure_ends_them_alone(
    reason, tiny_config, tmp_path, monkeypatch, capsys
):
    if reason == "size":
        monkeypatch.setattr(short_samples, "MOST_PARAMETERS", 10)
    else:

        def fail(*args, **kwargs):
            raise OSError("No space left on device")

        monkeypatch.setattr(short_samples, "generate_tokens", fail)
    run = gpt_jax.train(tiny_config)
    assert run.summary["step"] == 12
    printed = capsys.readouterr()
    notes = (printed.out + printed.err).count("no more samples during training: No space left")
    assert notes == (reason == "failure")
    file = tmp_path / "run" / FILE
    assert not file.exists() if reason == "size" else file.read_text() == ""


def test_a_damaged_line_is_an_error_and_one_cut_short_is_dropped(tmp_path):
    path = tmp_path / FILE
    path.write_text('{"step": 4, "text": "a"}\n{"step": 8, "te')
    assert [dataclasses.astuple(each) for each in read_samples(tmp_path)] == [(4, "a")]
    path.write_text('{"step": "4", "text": "a"}\n')
    with pytest.raises(UserError, match=r"samples\.jsonl is damaged: .*step"):
        read_samples(tmp_path)


def test_the_texts_of_the_end_are_read_from_samples_txt(tmp_path):
    heading = "=== step {}, prompt 'a', corpus b ===\n"
    (tmp_path / "samples.txt").write_text(
        heading.format(5) + "one\ntwo\n\n" + heading.format(9) + "=== step x\n\n"
    )
    found = [dataclasses.astuple(each) for each in read_samples(tmp_path)]
    assert found == [(5, "one\ntwo"), (9, "=== step x")]
