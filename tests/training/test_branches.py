"""A branch continues another run from one of its steps, bit for bit where nothing is changed."""

import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import stopped_at

import gpt_jax
import main
from gpt_jax.analysis.replay import replay
from gpt_jax.config import override
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.experiments.comparison import compare
from gpt_jax.run import checkpoints, plots
from gpt_jax.run.folder import read_init_from
from gpt_jax.run.metrics import TIMING_FIELDS, read_rows
from gpt_jax.training.advice import resume_command
from gpt_jax.training.branch_start import check_same_state
from gpt_jax.training.branches import branch_from

LOWER = {"optim.learning_rate": 1e-4}


@pytest.fixture
def parent(tiny_config, finished_run):
    """A run of 12 steps, with checkpoints at steps 8 and 12."""
    return finished_run(tiny_config, run_dir=tiny_config.run_dir + "s-parent")


@pytest.fixture
def branch(parent, tmp_path):
    """Returns branch(step, **values): the branch of `parent`, trained."""

    def train(step, values=None, name="branch", of=None):
        place = {"run_dir": str(tmp_path / name)}
        config = gpt_jax.branch_from(of or parent.run_dir, step, {**(values or {}), **place})
        return gpt_jax.train(config, quiet=True)

    return train


def state_of(run, step=None):
    """The arrays of a checkpoint, the last by default, by their paths: optimizer state and all."""
    from orbax.checkpoint import v1 as ocp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is loaded as it was saved
        loaded = ocp.load(str(checkpoints.path_of(run.run_dir, step or run.step)))
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree.leaves_with_path(loaded)}


def untimed(rows, left_out=()):
    hidden = {*TIMING_FIELDS, *left_out}
    return [{k: v for k, v in row.items() if k not in hidden} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 10, 9, 3])
def test_a_branch_without_a_change_is_its_parent(parent, branch, step):
    """At a checkpoint, between two at a row and within one, and before the first that is left."""
    run = branch(step)
    ours, theirs = state_of(run), state_of(parent)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert run.summary["val"] == parent.summary["val"]
    evaluations = lambda run: [row for row in run.rows if "val_loss" in row]
    means = ("branch", "loss", "grad_norm")
    assert untimed(evaluations(run), means) == untimed(evaluations(parent), means)
    assert checkpoints.steps(run.run_dir) == sorted({step, *(s for s in (8, 12) if s >= step)})
    if step % 2 == 0:
        assert untimed(run.rows, ["branch"]) == untimed(parent.rows)
    else:  # a row of one step more
        assert [row["step"] for row in run.rows if "loss" in row] == sorted(
            {step, *range(2, 14, 2)}
        )
        (before,) = [row for row in run.rows if row["step"] == step]
        (after,) = [row for row in run.rows if row["step"] == step + 1]
        (both,) = [row for row in parent.rows if row["step"] == step + 1]
        assert (before["loss"] + after["loss"]) / 2 == pytest.approx(both["loss"], rel=1e-12)


@pytest.mark.slow
def test_a_changed_branch_stands_alone_and_says_what_it_is(parent, branch, tmp_path, capsys):
    run = branch(10, LOWER)
    change = {"optim.learning_rate": {"from": 3e-4, "to": 1e-4}}
    assert untimed(run.rows, ["branch"])[:6] == untimed(parent.rows)[:6]
    (marked,) = [row for row in run.rows if "branch" in row]
    assert marked["step"] == 10
    assert marked["branch"] == {"from": str(parent.run_dir), "at_step": 10, **change}
    origin = read_init_from(run.run_dir)
    assert (origin["step"], origin["change"]) == (10, change)
    assert (run.config.branch_from, run.config.at_step) == (str(parent.run_dir), 10)
    assert not np.array_equal(run.params["head"]["bias"], parent.params["head"]["bias"])
    found = compare(parent.run_dir, run.run_dir)
    assert found.parts == (10,)
    assert found.settings == {"at_step": (None, 10), "optim.learning_rate": (3e-4, 1e-4)}
    assert f"{run.run_dir} and {parent.run_dir} part at step 10" in str(found)

    same = branch(10, name="same")  # recomputed with the parent's settings, whatever the branch's
    for name, array in state_of(same, 10).items():
        np.testing.assert_array_equal(state_of(run, 10)[name], array, err_msg=name)
    command = resume_command(run, 24).split("main.py ")[1]
    assert command == (
        f"--branch-from {parent.run_dir} --at-step 10 --run-dir {run.run_dir} "
        "--optim.learning-rate 0.0001 --train.steps 24"
    )
    shutil.rmtree(parent.run_dir)
    longer = {"train.steps": 16}
    again = branch(10, {**LOWER, **longer})
    assert again.step == 16
    assert checkpoints.steps(run.run_dir) == [10, 12, 16]  # its first stays
    assert replay(run.run_dir, 12).from_step == 10
    with pytest.raises(UserError, match="begins at step 10 and has no valid checkpoint up to"):
        replay(run.run_dir, 9)
    with pytest.raises(
        ConfigError, match=r"optim\.learning_rate is 0\.0001 there and 0\.0003 here"
    ):
        branch(10, longer)
    second = branch(14, name="second", of=run.run_dir)
    np.testing.assert_array_equal(second.params["head"]["bias"], again.params["head"]["bias"])
    assert compare(run.run_dir, second.run_dir).parts == (14,)
    with pytest.raises(UserError, match="begins at step 10, and at_step=9 is before that"):
        branch(9, name="third", of=run.run_dir)


@pytest.mark.slow
def test_a_killed_branch_resumes(parent, branch, tmp_path, monkeypatch):
    whole = branch(9, LOWER, "whole")
    with stopped_at(12):
        branch(9, LOWER)
    assert checkpoints.steps(tmp_path / "branch") == [9]
    (run_dir := Path(parent.run_dir)).rename(tmp_path / "moved")  # the parent is not needed
    run = branch(9, LOWER)
    assert untimed(run.rows) == untimed(whole.rows)

    (tmp_path / "moved").rename(run_dir)
    with stopped_at(8):  # while the parent's rows are written: no checkpoint of its own yet
        branch(9, LOWER, "early")
    assert checkpoints.steps(tmp_path / "early") == []
    run_dir.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"has no checkpoint yet, and branch_from=.* is not a run"):
        branch(9, LOWER, "early")
    (tmp_path / "moved").rename(run_dir)
    assert untimed(branch(9, LOWER, "early").rows) == untimed(whole.rows)


@pytest.mark.slow
def test_another_mesh_and_a_damaged_checkpoint_change_rounding_only(parent, branch, capsys):
    file = next(checkpoints.path_of(parent.run_dir, 8).rglob("*.zarr*"), None)
    file = file or next(p for p in checkpoints.path_of(parent.run_dir, 8).rglob("*") if p.is_file())
    file = file if file.is_file() else next(p for p in file.rglob("*") if p.is_file())
    file.write_bytes(file.read_bytes()[:-1])
    config = gpt_jax.branch_from(
        parent.run_dir, 9, {"run_dir": f"{parent.run_dir}-mesh", "mesh.data": 1, "mesh.fsdp": 2}
    )
    run = gpt_jax.train(config)
    shown = capsys.readouterr().out
    assert "is damaged" in shown
    assert "from its start, the 9 steps after that recomputed, about " in shown
    assert run.summary["val"]["nats_per_token"] == pytest.approx(
        parent.summary["val"]["nats_per_token"], abs=1e-4
    )
    row = next(row for row in run.rows if row["step"] == 10)
    assert row["numerics"]["mesh"] == "1x2x1x1"


def test_the_loss_picture_has_a_mark_where_the_branch_parts(tmp_path):
    rows = [{"step": i, "loss": 3.0, "train_loss": 3.0, "val_loss": 3.0} for i in (0, 10, 20)]
    plots.plot_losses(rows, tmp_path, "a run")
    assert "stroke-dasharray" not in (tmp_path / "loss.svg").read_text("utf-8")
    plots.plot_losses(rows, tmp_path, "a run", (10, "branch of $nano_$"))
    picture = (tmp_path / "loss.svg").read_text("utf-8")
    assert "branch of $nano_$" in picture
    assert "stroke-dasharray" in picture


def test_wsd_decays_from_one_trunk(parent):
    """A trunk of constant learning rate, whose branches decay from different steps."""
    wsd = {"optim.schedule": "wsd", "train.steps": 100, "optim.schedule_steps": 100_000}
    trunk = override(parent.config, wsd)
    for step in (40, 60):
        decay = {"optim.schedule_steps": step + 20, "optim.decay_steps": 20}
        check_same_state(trunk, override(trunk, decay))


REFUSED = {
    "model.n_layer": (2, "model.n_layer is 1 there and 2 here, which would change the shapes"),
    "optim.optimizer": ("muon", "optim.optimizer is adamw there and muon here, which would"),
    "optim.schedule": ("wsd", "optim.schedule is constant there and wsd here, which would change"),
    "optim.clip": (1.0, "optim.clip is None there and 1.0 here, which would change"),
    "init_from": ("gpt2", "init_from=gpt2 can't be given to a branch: it starts from the parent"),
    "init_seed": (3, "init_seed=3 can't be given to a branch: its parameters are the parent's"),
    "data.tokenizer": ("bpe", "data.tokenizer=bpe can't be given to a branch: the parent brings"),
    "train.steps": (8, "at_step=8 leaves none of train.steps=8 to train"),
    "at_step": (0, "at_step=0 must be a whole number of at least 1; a branch from step 0 is a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_differ_is_refused_in_one_line(parent, tmp_path, name):
    value, message = REFUSED[name]
    values = {"run_dir": str(tmp_path / "branch"), name: value}
    step = values.pop("at_step", 8)
    with pytest.raises(ConfigError) as caught:
        gpt_jax.train(branch_from(parent.run_dir, step, values), quiet=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "branch").exists()


def test_what_is_no_step_of_a_run_is_refused(parent, tmp_path, branch):
    own = {"run_dir": str(tmp_path / "branch")}
    with pytest.raises(UserError, match="has taken 12 steps, and at_step=13 is beyond them"):
        branch_from(parent.run_dir, 13, {**own, "train.steps": 20})
    with pytest.raises(ConfigError, match=r"leaves none of train\.steps=12 to train"):
        branch_from(parent.run_dir, 12, own)
    with pytest.raises(ConfigError, match="is the parent's folder"):
        branch_from(parent.run_dir, 8, {"run_dir": f"{parent.run_dir}/../{parent.run_dir.name}"})
    with pytest.raises(ConfigError, match="needs a folder of its own"):
        branch_from(parent.run_dir, 8, {})
    with pytest.raises(UserError, match="is not a run: it does not exist"):
        branch_from(tmp_path / "none", 8, own)
    shutil.copytree(parent.run_dir, tmp_path / "branch")
    with pytest.raises(UserError, match=r"a run that is no branch, not one of .* at step 8"):
        branch_from(parent.run_dir, 8, own)
    (parent.run_dir / "metrics.jsonl").write_text("{\n{}\n", "utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged at line 1"):
        branch_from(parent.run_dir, 8, {"run_dir": str(tmp_path / "other")})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--branch-from runs/a --run-dir b", "needs the step to continue from: --at-step X"),
        ("--at-step 4 --run-dir b", "without the run to branch from: --branch-from FOLDER"),
        ("--branch-from a --at-step 4 --config nano", "--config nano can't be given to a branch"),
        ("--branch-from a --at-step x", "--at-step takes a whole number, not 'x'"),
        ("--branch-from a --at-step 4", "a branch needs a folder of its own; give it as run_dir"),
        (
            "--branch-from a --at-step 4 --init-from gpt2 --run-dir b",
            "init_from=gpt2 can't be given to a branch",
        ),
    ],
)
def test_the_command_line_refuses_in_one_line(capsys, words, message):
    assert main.main(words.split()) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_rows_and_records_of_a_branch_are_read(parent, tmp_path):
    """As a newer or damaged folder has them: what is no list or number is no ancestor."""
    from gpt_jax.experiments.parting import parting_step
    from gpt_jax.experiments.sides import read_run

    folder = shutil.copytree(parent.run_dir, tmp_path / "copy")
    values = json.loads((folder / "config.json").read_text("utf-8"))
    values["origin"] = {"step": "x", "lineage": [3, {"path": 5, "step": None}]}
    (folder / "config.json").write_text(json.dumps(values), "utf-8")
    assert parting_step(read_run(parent.run_dir), read_run(folder)) is None
    assert read_rows(folder) == read_rows(parent.run_dir)
