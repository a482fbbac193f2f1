"""`trial`: pairs of runs until a change is decided; training is a stand-in that writes folders."""

import importlib
import json
import sys
import types
from pathlib import Path

import fake_tracker
import numpy as np
import pytest
from fake_runs import NANO, write_run

import gpt_jax
import main
from gpt_jax.config import Config, override
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.errors import ConfigError, Diverged, TrainingError, UserError
from gpt_jax.experiments import estimate, trial_checks, trial_runs, trials
from gpt_jax.experiments.fixed_settings import FIXED, OF_TRIAL
from gpt_jax.experiments.trials import trial
from gpt_jax.run.metrics import read_rows
from gpt_jax.training import run_setup

RATE = {"optim.learning_rate": 1e-3}


class Trainer:
    """Stands in for training: a run's loss is that of its seed, and less with a higher rate."""

    def __init__(self, gain=0.02, noise=0.003, scale=1.0):
        self.gain, self.noise, self.scale = gain, noise, scale
        self.calls, self.stops, self.diverges = [], {}, set()

    def __call__(self, config, quiet):
        name = Path(config.run_dir).name
        self.calls.append(name)
        if name in self.stops:
            raise self.stops.pop(name)
        if Path(config.run_dir).exists():
            return
        changed = config.optim.learning_rate != NANO.optim.learning_rate
        draw = np.random.default_rng([config.seed, changed * (self.noise > 0)])
        loss = 1.95 + 0.02 * np.random.default_rng(config.seed).normal()
        loss += changed * -self.gain + self.noise * draw.normal()
        settings = {"optim.learning_rate": config.optim.learning_rate}
        diverged = name in self.diverges
        write_run(config.run_dir, config.seed, loss, settings=settings, finished=not diverged)
        if diverged:
            raise Diverged("the loss is nan at step 450")


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("gpt_jax.training.trainer")
    stand_in = module.train = Trainer()
    monkeypatch.setitem(sys.modules, "gpt_jax.training.trainer", module)
    monkeypatch.setattr(trials, "check_sides", lambda sides, trees: None)
    return stand_in


def test_a_trial_ends_as_soon_as_the_interval_leaves_0_out(trainer):
    found = gpt_jax.trial(NANO, RATE, "out")
    n = len(found.pairs)
    assert (found.verdict, found.status) == ("better", 0)
    assert 6 <= n < 20  # the first count that can decide at 0.01
    assert trainer.calls == [f"{side}-{i}" for i in range(n) for side in ("base", "change")]
    assert found.sequence.high[-1] < 0 <= found.sequence.high[-2]
    assert found.sentence.startswith("the change is lower by 0.0")
    assert found.sentence.endswith(f"({n} pairs, alpha = 0.01)")
    assert [pair.seeds for pair in found.pairs] == [[i, i] for i in range(n)]
    assert gpt_jax.compare("out/base-*", "out/change-*").status == 0


def test_a_trial_draws_itself(trainer):
    found = gpt_jax.trial(NANO, RATE, "out")
    text = found.plot("found.svg").read_text("utf-8")
    assert "the change is lower by" in text
    assert "mean so far" in text
    before = Path("found.svg").read_bytes()
    assert found.plot("found.svg").read_bytes() == before
    with pytest.raises(UserError, match=r"must end in .png or .svg"):
        found.plot("found.pdf")
    gpt_jax.trial(NANO, RATE, "one", max_pairs=1).plot("one.png")


def test_a_worse_change_and_none(trainer):
    trainer.gain = -0.02
    assert gpt_jax.trial(NANO, RATE, "worse").status == 4
    trainer.gain, trainer.noise = 0.0, 0.02
    found = gpt_jax.trial(NANO, RATE, "none", max_pairs=8)
    assert (found.verdict, found.status, len(found.pairs)) == ("not shown", 3, 8)
    assert "no difference shown: " in found.sentence


def test_a_difference_that_matters_is_ruled_out(trainer):
    trainer.gain = 0.0
    found = gpt_jax.trial(NANO, RATE, "out", smallest=0.01)
    assert (found.verdict, found.status) == ("ruled out", 5)
    assert "a difference of 0.01 is ruled out" in found.sentence
    assert max(abs(found.sequence.low[-1]), found.sequence.high[-1]) < 0.01


def test_a_change_that_changes_nothing_is_recognised_after_one_pair(trainer):
    trainer.gain = trainer.noise = 0.0
    found = gpt_jax.trial(NANO, RATE, "out")
    assert (found.verdict, found.status, len(found.pairs)) == ("nothing changes", 3, 1)
    assert "equal to the last bit" in found.sentence


def test_zero_spread_alone_is_no_verdict(trainer):
    trainer.noise = 0.0  # every difference is -0.02
    found = gpt_jax.trial(NANO, RATE, "out", max_pairs=12)
    assert (found.verdict, len(found.pairs)) == ("not shown", 12)
    assert "without spread" in found.sentence


def test_unpaired_sides_have_different_seeds(trainer):
    found = gpt_jax.trial(override(NANO, {"seed": 3}), {}, "out", paired=False, max_pairs=3)
    assert [pair.seeds for pair in found.pairs] == [[3, 4], [5, 6], [7, 8]]
    assert trainer.calls == ["base-3", "change-4", "base-5", "change-6", "base-7", "change-8"]
    assert found.status == 3


def test_a_side_that_diverged_counts_with_the_loss_before_its_first_step(trainer):
    trainer.diverges = {"change-1"}
    found = gpt_jax.trial(NANO, RATE, "out", max_pairs=3)
    pair = found.pairs[1]
    first = json.loads(Path("out/change-1/metrics.jsonl").read_text("utf-8").splitlines()[0])
    assert pair.change == first["val_loss"] > 3.5
    assert pair.change_diverged == "the loss is nan at step 450"
    assert "(diverged)" in str(found)
    assert "a run that diverged counts with" in str(found)


def test_another_error_of_training_ends_the_trial(trainer):
    trainer.stops["change-0"] = TrainingError("cannot write the run")
    with pytest.raises(TrainingError, match="cannot write"):
        gpt_jax.trial(NANO, RATE, "out")


@pytest.mark.parametrize("stop", ["base-0", "change-0", "base-2", "change-2"])
def test_a_trial_that_was_stopped_continues_with_the_same_result(trainer, stop):
    expected = gpt_jax.trial(NANO, RATE, "whole")
    trainer.calls.clear()
    trainer.stops[stop] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        gpt_jax.trial(NANO, RATE, "out")
    found = gpt_jax.trial(NANO, RATE, "out")
    assert found.pairs == expected.pairs
    assert found.sentence == expected.sentence
    trainer.calls.clear()
    assert gpt_jax.trial(NANO, RATE, "out").pairs == expected.pairs
    assert trainer.calls == []


def test_more_pairs_continue_a_trial_without_a_verdict(trainer):
    trainer.noise = 0.02
    first = gpt_jax.trial(NANO, RATE, "out", max_pairs=2)
    more = gpt_jax.trial(NANO, RATE, "out", max_pairs=4)
    assert more.pairs[:2] == first.pairs
    assert len(trainer.calls) == 8


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"alpha": 0.05}, "out is another trial: alpha is 0.01 there and 0.05 here"),
        ({"paired": False}, "paired is true there and false here"),
        ({"smallest": 0.1}, "smallest is null there and 0.1 here|smallest is none there"),
        ({"change": {"optim.learning_rate": 2e-3}}, "change.optim.learning_rate is 0.001 there"),
        ({"config": override(NANO, {"train.steps": 100})}, "config.train.steps is 500 there"),
        ({"config": override(NANO, {"seed": 5})}, "config.seed is 0 there and 5 here"),
    ],
)
def test_another_trials_folder_is_refused(trainer, values, line):
    gpt_jax.trial(NANO, RATE, "out", max_pairs=1)
    with pytest.raises(UserError, match=line):
        trial(**{"config": NANO, "change": RATE, "out": "out", **values})
    assert len(trainer.calls) == 2


@pytest.mark.parametrize(
    ("change", "values", "line"),
    [
        ({}, {}, "nothing is changed"),
        ({"optim.lr": 1}, {}, "unknown setting 'optim.lr'; did you mean optim.learning_rate"),
        ({"seed": 1}, {}, "seed can't be tried"),
        ({"run_dir": "x"}, {}, "run_dir can't be tried"),
        ({"data.train_fraction": 0.5}, {}, "data.train_fraction can't be tried"),
        ({"sample.top_k": 5}, {}, "sample.top_k can't be tried"),
        ({"train.dropout_masks": "batch"}, {}, "unknown setting 'train.dropout_masks'"),
        ({"optim.learning_rate": -1.0}, {}, "must be a finite number above 0"),
        ({"optim.learning_rate": "x"}, {}, "must be a number"),
        (RATE, {"alpha": 1}, "alpha=1 must be"),
        (RATE, {"max_pairs": 0}, "max_pairs=0 must be"),
        (RATE, {"smallest": -1.0}, "smallest=-1.0 must be"),
        (RATE, {"config": override(NANO, {"seed": 2**32 - 3})}, "leaves no 20 seeds"),
    ],
)
def test_what_can_not_be_tried_is_one_line_before_anything_is_made(trainer, change, values, line):
    with pytest.raises(ConfigError) as caught:
        trial(**{"config": NANO, "change": change, "out": "out", **values})
    assert line in str(caught.value)
    assert not Path("out").exists()
    assert trainer.calls == []


@pytest.mark.parametrize("name", [*FIXED, "mesh.fsdp", "sample.top_p"])
def test_what_a_sweep_can_not_vary_a_trial_can_not_change(trainer, name):
    known = {n: get_field(NANO, n) for n, _, _ in iter_fields(Config)}
    name = next(n for n in known if n.startswith(name))
    with pytest.raises(ConfigError, match=f"change: {name} can't be tried, because ") as caught:
        gpt_jax.trial(NANO, {name: known[name]}, "out")
    why = str(caught.value).partition("because ")[2]
    told = {*FIXED.values()} - {why for why in FIXED.values() if "--seeds" in why or "sweep" in why}
    assert why in told | {*OF_TRIAL.values()}


@pytest.mark.parametrize(
    ("values", "change", "how", "line"),
    [
        ({"dropout_seed": 1}, RATE, {}, "are all set, so runs that differ in their seed would be"),
        ({"dropout_seed": 1}, {}, {"paired": False, "max_pairs": 1}, "are all set"),
        ({"model.dropout": 0.0}, RATE, {}, "init_seed and data_seed are both set and there is no"),
        ({"model.dropout": 0.0}, {"model.dropout": 0.1}, {"max_pairs": 2}, ""),
        ({}, {"model.dropout": 0.0}, {"max_pairs": 2}, ""),
        ({"dropout_seed": 1}, RATE, {"max_pairs": 1}, ""),
    ],
)
def test_pairs_that_would_be_the_same_training_are_refused(trainer, values, change, how, line):
    config = override(NANO, {"init_seed": 1, "data_seed": 1, **values})
    if not line:
        gpt_jax.trial(config, change, "out", **how)
        return
    with pytest.raises(ConfigError, match=line):
        gpt_jax.trial(config, change, "out", **how)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("values", "change", "line"),
    [
        ({}, {"model.n_embd": 400_000}, "the change: training needs at least "),
        ({"model.n_embd": 400_000}, {"model.n_embd": 16}, "the base: training needs at least "),
        ({}, {"model.block_size": 4000, "train.batch_size": 1}, "the change: .*too short"),
        ({"data.corpus": "nowhere.txt"}, RATE, "the base: .*nowhere.txt"),
        ({"sample.top_k": 999}, RATE, "the base: .*top_k"),
        ({}, {"model.attention": "fused", "model.dropout": 0.0}, "the change: model.attention=f"),
    ],
)
def test_both_sides_are_checked_before_anything_is_made(
    tiny_config, tmp_path, monkeypatch, values, change, line
):
    def train(*args, **kwargs):
        raise AssertionError("it trains")

    monkeypatch.setattr(trial_runs, "runner", lambda *args: train)
    monkeypatch.setattr(trials, "runner", lambda *args: train)
    config = override(tiny_config, values)
    with pytest.raises(ConfigError, match=line) as caught:
        gpt_jax.trial(config, change, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    question = trials.check_question(config, change, 0.01, 2, None, True)
    with pytest.raises(ConfigError, match=line):
        trials.plan_lines(config, question, tmp_path / "out", 2)


def test_a_trial_that_has_ended_needs_nothing_of_its_sides(trainer, monkeypatch):
    def refuse(sides, trees):
        raise UserError(", ".join(own.run_dir for own in sides.values()))

    first = gpt_jax.trial(NANO, RATE, "out", max_pairs=2)
    monkeypatch.setattr(trials, "check_sides", refuse)
    assert gpt_jax.trial(NANO, RATE, "out", max_pairs=2).pairs == first.pairs
    with pytest.raises(UserError, match=r"^out/base-2, out/change-2$"):  # what would run next
        gpt_jax.trial(NANO, RATE, "out", max_pairs=3)


def test_a_side_that_is_finished_needs_no_memory(tmp_path, monkeypatch):
    """Of the pair in which a trial was stopped; nothing of it is computed again."""
    monkeypatch.chdir(tmp_path)

    def full(config, **kwargs):
        raise UserError(f"{config.run_dir} needs 9 GiB")

    setup = lambda config, beside: run_setup.RunSetup(config, None, None, {}, resumes=True)
    monkeypatch.setattr(run_setup, "prepare_beside", setup)
    monkeypatch.setattr(run_setup, "check_machine", full)
    write_run("out/base-0")
    write_run("out/change-0", finished=False)
    sides = {side: override(NANO, {"run_dir": f"out/{side}-0"}) for side in ("base", "change")}
    with pytest.raises(ConfigError, match=r"^the change: out/change-0 needs 9 GiB$"):
        trial_checks.check_sides(sides, None)


def test_a_trial_that_an_earlier_release_allowed_goes_on(trainer):
    """Its change is refused by now, and its model's vocabulary was not known before it trained."""
    change = {"train.eval_interval": 7}
    with pytest.raises(ConfigError, match=r"train.eval_interval can't be tried"):
        gpt_jax.trial(NANO, change, "new", max_pairs=2)
    gpt_jax.trial(NANO, RATE, "out", max_pairs=1)
    path = Path("out/trial.json")
    record = json.loads(path.read_text())
    record["question"]["change"] = change
    record["question"]["config"]["model"]["vocab_size"] = 0
    path.write_text(json.dumps(record))
    known = override(NANO, {"model.vocab_size": 73})
    assert len(gpt_jax.trial(known, change, "out", max_pairs=2).pairs) == 2
    with pytest.raises(UserError, match=r"out is another trial: change.train.eval_interval"):
        gpt_jax.trial(known, {"train.eval_interval": 8}, "out", max_pairs=2)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', '{"format": 9, "question": {}}', "[]"])
def test_a_damaged_record_is_refused(trainer, text):
    gpt_jax.trial(NANO, RATE, "out", max_pairs=1)
    Path("out/trial.json").write_text(text)
    with pytest.raises(UserError, match=r"trial.json (is damaged|has format 9)"):
        gpt_jax.trial(NANO, RATE, "out")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"base": 1.5}, "the loss of base-1 is 1.5 there and 1.9"),
        ({"change": float("nan")}, "the loss of change-1 is nan"),
        ({"change": float("-inf")}, "the loss of change-1 is -inf"),
        ({"change_diverged": "x"}, "the loss of change-1 is .*, diverged there and"),
        ({"seeds": [1, 2]}, "its seeds are 1, 2"),
        ({"seeds": []}, "its seeds are none"),
        ({"equal": True}, "its runs are not equal to the last bit"),
    ],
)
def test_a_pair_is_what_its_own_runs_say(trainer, values, line):
    gpt_jax.trial(NANO, RATE, "out", max_pairs=2)
    path = Path("out/trial.json")
    record = json.loads(path.read_text("utf-8"))
    record["pairs"][1] |= values
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=f"trial.json is damaged: pair 2: {line}"):
        gpt_jax.trial(NANO, RATE, "out", max_pairs=3)


def test_a_folder_with_other_files_is_refused(trainer):
    write_run("out")
    with pytest.raises(UserError, match=r"holds other files .* and no trial.json"):
        gpt_jax.trial(NANO, RATE, "out")
    Path("file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        gpt_jax.trial(NANO, RATE, "file")


def test_the_command(trainer, capsys, monkeypatch):
    words = ["trial", "--config", "nano", "--change", "optim.learning-rate=1e-3", "--out", "out"]
    prepared = lambda config, other: types.SimpleNamespace(config=config)
    monkeypatch.setattr(estimate, "prepare_beside", prepared)
    monkeypatch.setattr(estimate, "estimate", lambda setup: estimate.Estimate(30.0, 60.0, 10**7))
    assert main.main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "at most 20 pairs in out, 0 of them done: at most 40 runs" in out
    assert "base: 500 steps, 1,024,000 tokens a run; -" in out
    assert "optim.learning-rate=0.001" in out
    assert "about 41 min, exact evaluations" in out  # 40 runs, and two programs
    assert "about 400 MB on the disk" in out
    assert not Path("out").exists()
    assert main.main(words) == 0
    out, err = capsys.readouterr()
    assert out.rstrip().splitlines()[-1].startswith("the change is lower by")
    assert "pair 1: base, seed 0" in err
    assert Path("out/report.html").is_file()
    assert main.main([*words, "--markdown", "--picture", "found.svg"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("**the change is lower by")
    assert "| seed | base | change |" in shown.out
    assert "picture: found.svg" in shown.err
    assert Path("found.svg").is_file()
    assert main.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == 0
    assert found["half_widths"][0] is None
    for wrong in (
        words[:-2], [*words, "--change", "optim.learning-rate=1"], [*words, "--change", "x=1"],
        [*words, "--change", "seed"], [*words, "--alpha", "2"], [*words, "--max-pairs", "x"],
        [*words, "--train.steps", "7"], [*words, "--picture", "found.pdf"],
        [*words, "--json", "--markdown"],
    ):  # fmt: skip
        assert main.main(wrong) == 2, wrong
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("seed=5", "change: seed can't be tried, because each pair of a trial has its own seed"),
        ("run-dir=", "change: run_dir can't be tried, because a trial's runs lie in the folder"),
        ("data.corpus=x", "data.corpus can't be tried, because losses on other texts can't be"),
        ("init-from=x", "init_from can't be tried, because it decides the model's settings"),
        ("mesh.fsdp=0", "mesh.fsdp can't be tried, because it changes rounding only"),
        ("branch-from=a", "--change: unknown setting 'branch_from'\n"),
        ("optim.lr=1", "unknown setting 'optim.lr'; did you mean optim.learning_rate?"),
        ("learning-rate", "'learning-rate' is not NAME=VALUE"),
    ],
)
def test_the_command_says_why_a_setting_can_not_be_tried(capsys, tmp_path, change, line):
    assert main.main(["trial", "--change", change, "--out", str(tmp_path / "out")]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "sweep", "trial"])
def test_every_verb_that_trains_takes_the_settings_of_init_from(
    verb, tmp_path, monkeypatch, capsys
):
    """Of the run that is named, not those of --config, which others than it contradict."""
    write_run(tmp_path / "source", settings={"model.n_embd": 64, "model.n_layer": 2})
    importlib.import_module("gpt_jax.experiments.sweeps")  # which keeps what it finds
    found = []
    stop = lambda config, *args, **kwargs: found.append(config) or 0
    monkeypatch.setattr("gpt_jax.training.trainer.train", stop)
    monkeypatch.setattr("gpt_jax.cli.trial._run", stop)
    monkeypatch.setattr("gpt_jax.experiments.sweep_plan.plan_sweep", stop)
    monkeypatch.setattr("gpt_jax.experiments.sweep_plan.describe_plan", lambda plan: "")
    own = {"train": ["--run-dir", str(tmp_path / "run")], "sweep": ["--dry-run"], "trial": []}
    words = [verb, "--init-from", str(tmp_path / "source"), "--model.dropout", "0.1", *own[verb]]
    words += [] if verb == "train" else ["--out", str(tmp_path / "out")]
    assert main.main(words) == 0, capsys.readouterr().err
    model = found[0].model
    assert (model.n_embd, model.n_layer, model.dropout) == (64, 2, 0.1)
    assert main.main([*words, "--model.n-embd", "32"]) == 2
    assert "is another model: model.n_embd is 64 there and 32 here" in capsys.readouterr().err


def test_its_runs_are_told_to_a_tracker_as_one_group(trainer, monkeypatch, capsys):
    module = fake_tracker.use(monkeypatch, "wandb")

    def train(config, quiet, on_row):
        trainer(config, quiet)
        for row in read_rows(config.run_dir):
            on_row(row)

    monkeypatch.setattr(sys.modules["gpt_jax.training.trainer"], "train", train)
    words = ["trial", "--change", "optim.learning-rate=1e-3", "--out", "out", "--max-pairs", "2"]
    assert main.main([*words, "--track", "wandb", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["status"] == 3
    assert [how["name"] for how in module.begun] == ["base-0", "change-0", "base-1", "change-1"]
    assert len({how["group"] for how in module.begun}) == 1
    assert module.finished == 4
    assert main.main([*words, "--track", "wandbb"]) == 2
    assert "unknown tracker; did you mean wandb?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_change_of_nothing_and_one_of_something(tiny_config, tmp_path):
    """Masks and batches are equal in a pair, so the same rate gives the same bits."""
    same = {"optim.learning_rate": tiny_config.optim.learning_rate}
    found = gpt_jax.trial(tiny_config, same, tmp_path / "same")
    assert (found.verdict, len(found.pairs)) == ("nothing changes", 1)
    found = gpt_jax.trial(
        tiny_config, {"optim.learning_rate": 1e-2}, tmp_path / "rate", max_pairs=1
    )
    assert found.verdict == "not shown"
    assert found.differences[0] < 0
