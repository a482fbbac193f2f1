"""What training says at its end: a command that resumes the run, whatever its settings are."""

import dataclasses
import shlex

import pytest

import gpt_jax
from gpt_jax.cli.train import _parser
from gpt_jax.config import Config, list_configs, load_config, override
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.console import Display
from gpt_jax.run.load import Run
from gpt_jax.training.advice import advise, resume_command, train_command
from gpt_jax.training.resume import resume_config


def finished(config, rows=(), steps=None):
    """A run with these settings as its folder keeps them; nothing is trained."""
    config = override(gpt_jax.config.fix_schedule(config), {"sample.prompt": "the first line"})
    corpus = {"name": config.data.corpus, "sha256": "", "requested": config.data.corpus}
    values = dict.fromkeys(("tokenizer", "model", "params"))
    step = steps or config.train.steps
    return Run(config.run_dir, config, corpus, **values, step=step, rows=list(rows), summary={})


def parse(command):
    """The settings of a command line, as `train` reads them."""
    words = shlex.split(command)
    assert words[:4] == ["python", "main.py", "--config", words[3]]
    named = load_config(words[3])
    values = vars(_parser(named).parse(words[2:]))
    of_train = ("config", "debug", "track", "branch_from", "at_step")
    return override(named, {k: v for k, v in values.items() if k not in of_train})


ODD = {
    "run_dir": "runs/with a space", "seed": 3, "data.corpus": "/texts/a b.txt", "model.n_layer": 2,
    "model.tied": True, "optim.clip": 0.5, "optim.weight_decay": 1e-7, "sample.prompt": "-",
    "train.keep_checkpoints": 7, "train.max_minutes": 2.5, "data.fallback_corpus": None,
}  # fmt: skip
SCHEDULES = [
    {"optim.schedule": "cosine", "optim.warmup_steps": 10},
    {"optim.schedule": "wsd", "optim.decay_steps": 50},
]


@pytest.mark.parametrize("name", sorted(list_configs()))
@pytest.mark.parametrize("values", [{}, ODD, *SCHEDULES])
def test_the_command_resumes_with_the_settings_of_the_run(name, values):
    run = finished(override(load_config(name), values))
    steps = 10 * run.step
    command = resume_command(run, steps)
    resumed = resume_config(parse(command), run.config, run.corpus, run.step)
    differ = [
        setting
        for setting, _, field in iter_fields(Config)
        if get_field(resumed, setting) != get_field(run.config, setting)
    ]
    assert differ in (["train.steps"], ["model.vocab_size", "train.steps"])
    assert resumed.train.steps == steps


def test_the_command_of_a_named_config_is_short():
    run = finished(load_config("nano"))
    command = resume_command(dataclasses.replace(run, config=load_config("nano")), 5000)
    assert command == "python main.py --config nano --train.steps 5000"
    cosine = override(run.config, {"optim.schedule": "cosine", "optim.schedule_steps": 500})
    assert "--optim.schedule-steps 500" in resume_command(
        dataclasses.replace(run, config=cosine), 5000
    )


def losses(*values):
    return [{"step": 100 * i, "val_loss": value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "rises"),
    [
        ((4.0, 2.0, 2.1, 2.2), True),
        ((4.0, 2.0, 2.2, 2.1), False),
        ((4.0, 2.2, 2.1, 2.2), False),
        ((2.1, 2.2), False),
        ((4.0, 2.0, 2.0, 2.1), False),
    ],
)
def test_where_the_last_three_validation_losses_rise_more_steps_are_not_advised(
    values, rises, capsys, monkeypatch
):
    monkeypatch.setattr("gpt_jax.run.checkpoints.best_step", lambda run_dir: 100)
    run = finished(load_config("nano"), losses(*values))
    advise(run, Display(), 0.1)
    out = capsys.readouterr().out
    if rises:
        assert "the validation loss rises (2.0000, 2.1000, 2.2000): more steps" in out
        assert "of step 100: python main.py sample --run-dir runs/nano --checkpoint best" in out
        assert "--train.steps" not in out
    else:
        assert "10 times the steps (about 8 min more): python main.py --config nano" in out
        assert out.rstrip().endswith("--train.steps 5000")


def test_the_rate_of_the_added_steps_is_said(capsys):
    run = finished(override(load_config("nano"), {"optim.schedule": "cosine"}))
    advise(run, Display())
    out = capsys.readouterr().out
    assert "10 times the steps (from step 500 at the lowest learning rate of its schedule): " in out


@pytest.mark.parametrize("name", sorted(list_configs()))
@pytest.mark.parametrize("values", [{}, ODD, *SCHEDULES])
def test_the_command_begins_a_run_of_the_same_settings(name, values):
    config = finished(override(load_config(name), values)).config
    begun = parse(train_command(config, {}))
    for setting, _, field in iter_fields(Config):
        if not field.metadata["internal"]:
            assert get_field(begun, setting) == get_field(config, setting), setting


def test_the_command_that_begins_from_parameters_names_what_a_run_may_have_of_its_own():
    own = {"model.dropout": 0.3, "model.block_size": 16, "model.residual_init_scale": True}
    config = override(load_config("nano"), {"init_from": "runs/source", "model.n_embd": 64, **own})
    command = train_command(config, {"source": "runs/source"})
    begun = parse(command)
    assert "--model.n-embd" not in command  # the source's
    assert "--model.attention-dropout none" in command  # not the source's
    assert {name: get_field(begun, name) for name in own} == own
    assert begun.init_from == "runs/source"


def test_the_command_that_begins_a_branch_names_its_parent_and_its_changes():
    branch = {"branch_from": "runs/a b", "at_step": 200, "run_dir": "runs/c", "optim.clip": 0.5}
    config = override(load_config("nano"), branch)
    change = {"optim.clip": {"from": 1.0, "to": 0.5}, "sample.prompt": {"from": "x", "to": "y"}}
    assert train_command(config, {"change": change}).split("main.py ")[1] == (
        "--branch-from 'runs/a b' --at-step 200 --run-dir runs/c --optim.clip 0.5 --train.steps 500"
    )


@pytest.mark.slow
def test_what_training_prints_at_its_end_resumes_it(tiny_config, capsys):
    cosine = {"optim.schedule": "cosine", "optim.warmup_steps": 3, "train.steps": 4}
    gpt_jax.train(override(tiny_config, cosine))
    command = capsys.readouterr().out.splitlines()[-1].partition("): ")[2]
    resumed = gpt_jax.train(parse(command.replace("--train.steps 40", "--train.steps 6")))
    assert resumed.step == 6
    out = capsys.readouterr().out
    assert "resuming from step 4" in out
    assert "10 times the steps (about " in out


@pytest.mark.slow
def test_a_run_that_started_from_parameters_is_resumed_by_its_command(
    tiny_config, finished_run, tmp_path
):
    source = finished_run(tiny_config, **{"train.steps": 2})
    values = {"init_from": str(source.run_dir), "run_dir": str(tmp_path / "tuned")}
    config = gpt_jax.start_from(override(tiny_config, values), {"train.steps": 2})
    run = gpt_jax.train(config, quiet=True)
    command = resume_command(run, 4)
    assert "--model" not in command
    assert "--data.tokenizer" not in command
    again = gpt_jax.train(gpt_jax.start_from(parse(command), {}), quiet=True)
    assert again.step == 4
