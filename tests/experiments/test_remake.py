"""The command that made a sweep or a trial: read again, it asks for the same one."""

import dataclasses
import json
import shlex

import pytest

import gpt_jax.cli.trial as cli_trial
from gpt_jax.cli.parsers import named_config
from gpt_jax.cli.sweep import OWN, _parser
from gpt_jax.config import load_config, override
from gpt_jax.experiments.grid import make_points, parse_vary
from gpt_jax.experiments.members import (
    ONE_CHECKPOINT,
    make_members,
    new_record,
    open_sweep,
    parse_seeds,
    record_text,
)
from gpt_jax.experiments.remake import sweep_command, trial_command
from gpt_jax.experiments.trial_checks import check_question
from gpt_jax.experiments.trial_record import FORMAT, Question, TrialRecord

ODD = {
    "run_dir": "runs/a b",
    "data.corpus": "/texts/a b.txt",
    "optim.clip": 0.5,
    "model.n_layer": 2,
}


def words_of(command, verb):
    words = shlex.split(command)
    assert words[:3] == ["python", "main.py", verb]
    return words[3:]


def members_of(words):
    """The settings and members that `sweep` would make of a command line."""
    values = vars(_parser(load_config(named_config("sweep", words))).parse(words))
    own = {name: values.pop(name) for name in OWN}
    config = override(load_config(own["config"]), {**ONE_CHECKPOINT, **values})
    seeds = parse_seeds(own["seeds"], config.seed)
    base = dataclasses.replace(config, seed=seeds[0])
    return base, make_members(base, make_points(list(map(parse_vary, own["vary"])), None), seeds)


@pytest.mark.parametrize("name", ["nano", "base"])
@pytest.mark.parametrize("values", [{}, ODD])
@pytest.mark.parametrize(
    ("vary", "seeds"),
    [
        ([], "1"),
        ([], "3,5,8"),
        (["optim.learning-rate=1e-4,3e-4"], "2"),
        (["optim.learning-rate=1e-3,1e-4", "model.n-layer=3,1", "model.tied=true,false"], "2"),
        (["model.activation=gelu,relu2", "model.n-kv-head=none,2"], "1"),
    ],
)
def test_the_command_asks_for_the_same_sweep(name, values, vary, seeds, tmp_path):
    folder = tmp_path / "a sweep"
    folder.mkdir()
    config = override(load_config(name), {**ONE_CHECKPOINT, **values, "seed": 3})
    numbers = parse_seeds(seeds, 3)
    members = make_members(config, make_points(list(map(parse_vary, vary)), None), numbers)
    (folder / "sweep.json").write_text(record_text(new_record(config, name, members)))
    words = words_of(sweep_command(folder), "sweep")
    assert words[-2:] == ["--out", str(folder)]
    base, again = members_of(words)
    open_sweep(folder, base, name, again)  # which refuses another sweep
    assert again == members


def test_a_sweep_of_points_that_were_drawn_has_no_command(tmp_path):
    config = override(load_config("nano"), ONE_CHECKPOINT)
    vary = [parse_vary("optim.learning-rate=1e-4..1e-2"), parse_vary("optim.clip=0.1..1")]
    members = make_members(config, make_points(vary, 4), (0,))
    (tmp_path / "sweep.json").write_text(record_text(new_record(config, "nano", members)))
    assert sweep_command(tmp_path) is None


@pytest.mark.parametrize("values", [{}, {**ODD, "seed": 4}])
@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"optim.learning_rate": 0.001}, {}),
        ({"model.n_layer": 1}, {"equal": "flops", "smallest": 0.02, "alpha": 0.05}),
        ({}, {"paired": False}),
        ({"model.tied": True, "optim.clip": 2.0}, {"paired": False}),
    ],
)
def test_the_command_asks_for_the_same_trial(values, change, asked, tmp_path, monkeypatch):
    options = {"alpha": 0.01, "max_pairs": 20, "smallest": None, "paired": True, **asked}
    question = check_question(override(load_config("nano"), values), change, **options)
    record = dataclasses.asdict(TrialRecord(FORMAT, question, []))
    (tmp_path / "trial.json").write_text(json.dumps(record))
    found: list[Question] = []

    def run(config, change, options):
        assert options.pop("out") == str(tmp_path)
        del options["change"]  # its text
        paired = not options.pop("unpaired")
        for name in ("dry_run", "json", "markdown", "picture", "track"):
            del options[name]
        found.append(check_question(config, change, paired=paired, **options))
        return 0

    monkeypatch.setattr(cli_trial, "_run", run)
    cli_trial.command(words_of(trial_command(tmp_path), "trial"))
    assert found == [question]
