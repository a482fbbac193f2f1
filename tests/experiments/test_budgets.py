"""Equal budgets of a trial, and sides that are other checkouts of the code."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import fake_tracker
import numpy as np
import pytest
from fake_runs import NANO, write_run

import gpt_jax
import main
from gpt_jax.config import override
from gpt_jax.errors import ConfigError, Interrupted, TrainingError, UserError
from gpt_jax.experiments import budgets, trees, trial_runs, trials
from gpt_jax.experiments.budgets import Budget, make_budget, measured_seconds, timing_config
from gpt_jax.training.flops import model_flops

TWICE = {"train.batch_size": 64}  # of 32


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """Training is a stand-in: a run writes its folder, as fast as its batch is small."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def train(config, quiet):
        calls.append((Path(config.run_dir).name, config.train.steps))
        if not Path(config.run_dir).exists():
            settings = {"train.batch_size": config.train.batch_size}
            settings |= {"train.steps": config.train.steps}
            settings |= {"train.eval_interval": config.train.eval_interval}
            write_run(config.run_dir, config.seed, 1.9 + config.seed / 100, settings=settings)

    module = types.ModuleType("gpt_jax.training.trainer")
    module.train = train
    monkeypatch.setitem(sys.modules, "gpt_jax.training.trainer", module)
    monkeypatch.setattr(trials, "check_sides", lambda sides, trees: None)
    return calls


def test_steps_of_the_change_spend_what_those_of_the_baseline_do():
    costs = {"base": 3.0, "change": 7.0}
    budget = make_budget("seconds", {"base": NANO}, costs)
    assert budget == Budget("seconds", 500, 214, 3.0, 7.0)
    assert str(budget) == (
        "equal seconds of training: base 500 steps of 3 s, change 214 steps of 7 s"
    )
    assert make_budget("tokens", {"base": NANO}, {"base": 1.0, "change": 1e9}).change_steps == 1


def test_equal_tokens_and_steps(trainer):
    found = gpt_jax.trial(NANO, TWICE, "tokens", max_pairs=1, equal="tokens")
    assert trainer == [("base-0", 500), ("change-0", 250)]
    assert found.budget == Budget("tokens", 500, 250, 2048.0, 4096.0)
    assert "equal tokens: base 500 steps of 2048 tokens, change 250 steps of 4096" in str(found)
    trainer.clear()
    gpt_jax.trial(NANO, TWICE, "steps", max_pairs=1, equal="steps")
    assert trainer == [("base-0", 500), ("change-0", 500)]
    record = json.loads(Path("tokens/trial.json").read_text("utf-8"))
    assert record["budget"]["change_steps"] == 250
    with pytest.raises(UserError, match="equal is tokens there and steps here"):
        gpt_jax.trial(NANO, TWICE, "tokens", equal="steps")


def test_steps_that_break_a_rule_are_refused_before_anything_is_made(trainer):
    warm = override(NANO, {"optim.schedule": "cosine", "optim.warmup_steps": 300})
    with pytest.raises(ConfigError, match=r"optim.warmup_steps=300 .* fit into .* 250 steps"):
        gpt_jax.trial(warm, TWICE, "out", equal="tokens")
    assert not Path("out").exists()
    assert trainer == []


def test_equal_flops_count_the_operations_of_the_model(trainer, monkeypatch):
    def prepared(config):
        return types.SimpleNamespace(config=override(config, {"model.vocab_size": 73}))

    monkeypatch.setattr("gpt_jax.training.run_setup.prepare_run", prepared)
    found = gpt_jax.trial(NANO, {"model.n_layer": 6}, "out", max_pairs=1, equal="flops")
    model = override(NANO, {"model.vocab_size": 73}).model
    assert found.budget.base_cost == model_flops(model, 620_873, 2048)
    assert found.budget.change_steps == round(500 * found.budget.base_cost
                                              / found.budget.change_cost)  # fmt: skip
    assert 240 < found.budget.change_steps < 270  # most operations are in the layers


def test_equal_seconds_are_measured_once_and_kept(trainer):
    found = gpt_jax.trial(NANO, TWICE, "out", max_pairs=1, equal="seconds")
    names = [name for name, _ in trainer]
    assert names[:4] == ["timing-base-0", "timing-change-0", "timing-base-1", "timing-change-1"]
    assert (found.budget.base_steps, found.budget.change_steps) == (500, 250)
    assert found.budget.base_cost == pytest.approx(2048 / 10_000)
    assert sorted(p.name for p in Path("out").iterdir() if p.is_dir()) == ["base-0", "change-0"]
    trainer.clear()
    gpt_jax.trial(NANO, TWICE, "out", max_pairs=2, equal="seconds")
    assert trainer == [("base-1", 500), ("change-1", 250)]


def test_a_timed_run_has_the_compiled_steps_of_its_side():
    schedule = {"optim.schedule": "cosine", "optim.warmup_steps": 200, "train.steps": 900}
    config = override(NANO, {"train.checkpoint_interval": 250, **schedule})
    short = timing_config(config, "x")
    assert short.train.chunk_steps == config.train.chunk_steps == 10
    assert short.optim.schedule_steps == 900
    assert short.train.steps == 3 * short.train.eval_interval == 60
    with pytest.raises(UserError, match="the base can't be timed: it ends in its first steps"):
        measured_seconds({"base": NANO}, Path("none"), lambda side, config: (1.0, "diverged"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--equal token", "equal='token' is unknown; did you mean tokens?"),
        ("--equal tokens --change train.steps=9", "train.steps can't be tried with equal=tokens"),
        ("--against .", "--against . is no checkout of the code: it has no main.py; make one"),
    ],
)
def test_the_command_line_refuses_in_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    change = ["--change", "optim.learning-rate=1e-3"]
    assert main.main(["trial", *change, "--out", "out", *words.split()]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not Path("out").exists()


# A checkout whose program trains nothing: what it needs of ours, and a loss of its own.
PROGRAM = """
import json, os, pathlib, signal, sys, time
from gpt_jax.config import LOSS
file = sys.argv[sys.argv.index("--config") + 1]
scope = {}
exec(open(file).read(), scope)
values = scope["get_config"]()
run = pathlib.Path(values["run_dir"])
with open("calls", "a") as calls:
    calls.write(f"{pathlib.Path(__file__).parent.name} {run.name}\\n")
if os.path.exists("waits"):
    signal.signal(signal.SIGTERM, lambda *_: (open("saved", "w"), os._exit(143)))
    os.rename("waits", "waiting")
    time.sleep(60)
if os.path.exists("fails"):
    sys.exit(os.rename("fails", "failed") or "error: cannot write the run")
run.mkdir(parents=True, exist_ok=True)
seed = values.get("seed", 0)
loss = LOSS + seed / 7 % 0.01
row = {"step": 0, "train_loss": 4.0, "val_loss": 4.0}
(run / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
if LOSS > 3:
    sys.exit("note\\nerror: the loss or its gradient is not finite (nan) at step 8; of the")
summary = {"step": 500, "val": {"nats_per_token": loss}}
(run / "summary.json").write_text(json.dumps(summary))
"""
CONFIG = """
LOSS = {loss}
def Config():
    return {{}}
def override(config, values):
    return {{**config, **values}}
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Returns checkout(name, loss): a checkout; the first is this program's own."""
    monkeypatch.chdir(tmp_path)
    made = []

    def make(name, loss):
        root = tmp_path / name
        (root / "gpt_jax").mkdir(parents=True)
        (root / "configs").mkdir()
        (root / "main.py").write_text(PROGRAM, "utf-8")
        (root / "gpt_jax" / "config.py").write_text(CONFIG.format(loss=loss), "utf-8")
        made.append(root)
        monkeypatch.setattr(trees, "checkout_dir", lambda: made[0])
        return root

    return make


def test_each_side_is_run_by_its_own_tree(checkout, tmp_path):
    base, change = checkout("ours", 2.0), checkout("theirs", 1.9)
    git = ["git", "-C", str(change), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a change"]):
        subprocess.run([*git, *words], check=True)
    found = gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=2)
    losses = [[2.0, 2.0 + 1 / 7 % 0.01], [1.9, 1.9 + 1 / 7 % 0.01]]
    np.testing.assert_allclose(found.losses_2N, losses)
    calls = ["ours base-0", "theirs change-0", "ours base-1", "theirs change-1"]
    assert Path("calls").read_text().split("\n")[:-1] == calls
    tree = found.trees["change"]
    assert (len(tree.commit), tree.dirty, found.trees["base"].commit) == (40, False, None)
    assert f"change: the code of {change}, commit {tree.commit[:10]}" in str(found)
    # It continues after a commit that changes no code, and not with other code.
    (change / "README.md").write_text("more")
    assert trees.read_tree(change).dirty
    assert len(gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=3).pairs) == 3
    (change / "gpt_jax" / "new.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"the code in .*theirs \(change\) has changed since out"):
        gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=4)
    with pytest.raises(UserError, match=r"is another trial: .*trees\.change\.path is "):
        gpt_jax.trial(NANO, {}, "out", against=checkout("third", 1.0))
    with pytest.raises(ConfigError, match="is this checkout itself"):
        gpt_jax.trial(NANO, {}, "other", against=base)
    with pytest.raises(ConfigError, match="equal=flops is counted from the settings"):
        gpt_jax.trial(NANO, {}, "other", against=change, equal="flops")


def test_settings_that_a_tree_does_not_take_are_refused_before_anything_is_made(checkout):
    checkout("ours", 2.0)
    change = checkout("theirs", 1.9)
    file = change / "gpt_jax" / "config.py"
    older = "    if values.get('model.qk_norm'):\n        raise ValueError('unknown setting')\n"
    file.write_text(file.read_text().replace("    return {**", older + "    return {**"))
    with pytest.raises(ConfigError, match=r"in .*theirs: ValueError: unknown setting$"):
        gpt_jax.trial(NANO, {"model.qk_norm": True}, "out", against=change)
    assert not Path("out").exists()
    assert not Path("calls").exists()
    assert len(gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=1).pairs) == 1


def test_how_a_process_of_a_tree_ends_is_told(checkout):
    checkout("ours", 2.0)
    change = checkout("theirs", 4.0)
    found = gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=1)
    assert found.pairs[0].change == 4.0
    assert found.pairs[0].change_diverged.startswith("the loss or its gradient is not finite")
    Path("fails").touch()
    with pytest.raises(TrainingError, match=r"ours: cannot write the run \(exit status 1\)"):
        gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=2)
    assert len(gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=2).pairs) == 2


def test_a_tracker_is_told_of_a_side_of_a_tree_once_it_has_ended(checkout, monkeypatch):
    checkout("ours", 2.0)
    change = checkout("theirs", 1.9)

    def train(tree, config, file):
        if not Path(config.run_dir).exists():
            loss = 1.9 + (tree.path == str(change)) / 100
            write_run(config.run_dir, config.seed, loss)

    monkeypatch.setattr(trial_runs, "train_in_tree", train)
    module = fake_tracker.use(monkeypatch, "trackio")
    for n in (1, 2):
        gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=n, track=["trackio"])
        assert (len(module.begun), module.finished) == (2 * n, 2 * n)
    assert list(module.of_runs.values()) == [[0, 100, 200, 300, 400, 500, 500]] * 4


def test_a_signal_is_passed_on_and_the_trial_continues(checkout):
    checkout("ours", 2.0)
    change = checkout("theirs", 1.9)
    Path("waits").touch()

    def stop():
        while not Path("waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match="run the same command to continue the trial"):
        gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=1)
    thread.join()
    assert Path("saved").exists()
    assert len(gpt_jax.trial(NANO, {}, "out", against=change, max_pairs=1).pairs) == 1


def test_the_config_file_of_a_side_says_what_differs_from_the_defaults(tmp_path):
    values = {"train.spike": 1.5, "model.qk_norm": True, "data.corpus": "it's", "optim.clip": 0.5}
    config = override(NANO, {**values, "run_dir": "out/base-0"})
    file = tmp_path / "base.py"
    file.write_text(trees.config_text(config), "utf-8")
    assert gpt_jax.load_config(file) == config


def test_dry_run_shows_budget_and_trees(checkout, monkeypatch):
    texts = lambda sides, pairs: ["about 3 min", "about 9 MB"]
    monkeypatch.setattr("gpt_jax.experiments.estimate.runs_text", texts)
    checkout("ours", 2.0)
    change = checkout("theirs", 1.9)
    question = trials.check_question(NANO, {}, 0.01, 3, None, True, equal="seconds", against=change)
    lines = "\n".join(trials.plan_lines(NANO, question, "out", 3))
    assert "at most 6 runs, one after another" in lines
    assert "base: 500 steps, 1,024,000 tokens a run; code of " in lines
    unknown = "as many steps as take the seconds of the base"
    assert f"change: {unknown}; code of {change}, no commit" in lines
    measured = "equal seconds: the steps of the change are measured first, before the first pair"
    assert measured in lines
    question = trials.check_question(NANO, {}, 0.01, 3, None, True, against=change)
    lines = "\n".join(trials.plan_lines(NANO, question, "out", 3))
    assert "at most 6 runs, 3,000 steps, one after another" in lines
    assert f"change: 500 steps, 1,024,000 tokens a run; code of {change}, no commit" in lines
    monkeypatch.setattr(trials, "check_sides", lambda sides, trees: None)
    question = trials.check_question(NANO, TWICE, 0.01, 3, None, True, equal="tokens")
    lines = "\n".join(trials.plan_lines(NANO, question, "out", 3))
    assert "at most 6 runs, 2,250 steps, one after another" in lines
    assert "change: 250 steps, 1,024,000 tokens a run" in lines
    question = trials.check_question(NANO, TWICE, 0.01, 3, None, True, equal="seconds")
    lines = trials.plan_lines(NANO, question, "out", 3)
    assert f"change: {unknown}; train.batch-size=64" in lines
    assert measured in lines
    assert lines[-2] == "about 3 min; with as many steps of the change as of the baseline"
    assert not Path("out").exists()
    assert budgets.EQUALS.keys() == {"steps", "tokens", "flops", "seconds"}
