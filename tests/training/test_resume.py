"""Which settings may differ when a run is resumed: those that measure, and no others."""

import dataclasses

import pytest

from gpt_jax.config import Config, fix_schedule, load_config, override
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.errors import ConfigError
from gpt_jax.training import resume
from gpt_jax.training.describe import describe_changes
from gpt_jax.training.resume import changed_measuring, resume_config

SAVED = fix_schedule(override(load_config("nano"), {"data.corpus": "/a.txt", "sample.prompt": "a"}))
MEASURED = {
    "train.sample_tokens": 0,
    "train.log_interval": 3,
    "train.eval_interval": 7,
    "train.eval_batches": 2,
    "train.eval_fixed": True,
    "train.final_eval_tokens": 10,
    "train.checkpoint_interval": 9,
    "train.keep_checkpoints": 5,
    "train.keep_interval": 500,
    "train.keep_best": False,
    "sample.prompt": "b",
    "sample.max_new_tokens": 5,
    "sample.temperature": 0.5,
    "sample.top_k": 3,
    "sample.top_p": 0.5,
    "sample.num_samples": 2,
    "sample.window": "refill",
}
LEARNED = {
    "seed": 1,
    "model.dropout": 0.1,
    "data.train_fraction": 0.5,
    "data.order": "epochs",
    "optim.weight_decay": 0.5,
    "train.batch_size": 64,
    "train.on_divergence": "skip",
    "train.spike": 2.0,
    "train.spike_window": 3,
}


def resumed(values):
    return resume_config(override(SAVED, values), SAVED, {}, done=100)


def test_micro_batches_may_change_unless_their_masks_would():
    assert resumed({"train.micro_batch": 16}).train.micro_batch == 16
    old = override(SAVED, {"train.micro_batch": 16, "train.dropout_masks": "micro_batch"})
    asked = override(SAVED, {"train.micro_batch": 16})
    assert resume_config(asked, old, {}, done=100) == old
    with pytest.raises(ConfigError, match=r"train\.micro_batch is 16 there and 8 here"):
        resume_config(override(asked, {"train.micro_batch": 8}), old, {}, done=100)


def test_every_setting_that_measures_has_an_example_here():
    assert set(MEASURED) == set(resume.MEASURING)


@pytest.mark.parametrize("name", MEASURED)
def test_what_only_measures_may_change_and_is_said(name):
    now = resumed({name: MEASURED[name]})
    assert get_field(now, name) == MEASURED[name]
    before = get_field(SAVED, name)
    changed = changed_measuring(SAVED, now)
    assert changed == {name: {"from": before, "to": MEASURED[name]}}
    assert describe_changes(changed, 100) == (
        f"changed from step 100 on: {name} {MEASURED[name]}, not {before}"
    )
    assert dataclasses.replace(now, train=SAVED.train, sample=SAVED.sample) == SAVED


@pytest.mark.parametrize("name", LEARNED)
def test_what_changes_the_learning_is_refused_with_the_way_out(name):
    with pytest.raises(ConfigError, match=f"{name} is .* there and .* here.*--init-from"):
        resumed({name: LEARNED[name]})


def test_every_other_setting_is_refused_by_name():
    """No setting is free by accident: each that is not named in `resume` is compared."""
    free = {
        *resume.FREE,
        *resume.MACHINE_SETTINGS,
        *resume.SCHEDULE_END,
        "run_dir",
        "model.vocab_size",
        "data.corpus",
    }
    free |= {"data.fallback_corpus"}
    settings = {name for name, _, _ in iter_fields(Config) if not name.startswith("mesh.")}
    assert set(LEARNED) <= settings - free
    assert not {name for name in free if name.startswith("optim.")} - resume.SCHEDULE_END


def test_the_folder_in_the_way_out_is_quoted_for_a_shell():
    saved = dataclasses.replace(SAVED, run_dir="runs/a b")
    with pytest.raises(ConfigError, match="--init-from 'runs/a b'"):
        resume_config(override(saved, {"seed": 1}), saved, {}, done=0)
