"""A sweep: its grid, its members, its folder, and that each member is the run it would be alone."""

import dataclasses
import json

import fake_tracker
import jax
import numpy as np
import pytest
from scipy import stats

import gpt_jax
from gpt_jax.config import Config, OptimConfig, override
from gpt_jax.config.fields import iter_fields
from gpt_jax.errors import ConfigError, TrainingError, UserError
from gpt_jax.experiments import sweep_plan, sweeps
from gpt_jax.experiments.fixed_settings import FIXED
from gpt_jax.experiments.grid import list_of, make_points, parse_vary
from gpt_jax.experiments.members import (
    make_members,
    member_config,
    parse_seeds,
    read_sweep,
    same_runs_line,
    shape_of,
)
from gpt_jax.experiments.statistics import mean_half_width, mean_of
from gpt_jax.experiments.sweep_results import read_result
from gpt_jax.run import checkpoints
from gpt_jax.training import compiled_steps

# --- the grid -------------------------------------------------------------------------------------


def test_lists_are_crossed_in_the_order_in_which_they_are_given():
    points = make_points([parse_vary("model.qk-norm=false,true"), parse_vary("optim.clip=none,1")])
    assert points == [
        {"model.qk_norm": a, "optim.clip": b} for a in (False, True) for b in (None, 1.0)
    ]
    assert make_points([]) == [{}]


def test_a_range_is_log_uniform_and_drawn_alike_each_time():
    ranges = [parse_vary("optim.learning-rate=1e-4..1e-2"), parse_vary("train.steps=10..1000")]
    points = make_points(ranges, 64)
    assert points == make_points(ranges, 64)
    rates = np.array([point["optim.learning_rate"] for point in points])
    assert len(points) == 64
    assert 1e-4 <= rates.min() < rates.max() <= 1e-2
    assert (rates < 1e-3).sum() == 32  # half of a Sobol sequence's 2^m points in half of the range
    assert all(type(point["train.steps"]) is int for point in points)
    assert len(make_points([*ranges, parse_vary("optim.beta1=0.9,0.8")], 5)) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.learning-rate", "has no values"),
        ("optim.learning-rate=", "empty value"),
        ("optim.learning-rate=1e-3,", "empty value"),
        ("optim.learning-rate=1e-3,fast", "takes a number, not 'fast'"),
        ("optim.learning-rate=1e-3,0.001", "0.001 twice"),
        ("optim.learning-rte=1e-3", "unknown setting; did you mean optim.learning_rate"),
        ("train.dropout-masks=batch", "unknown setting"),
        ("branch-from=a", "unknown setting$"),  # nothing near it can vary
        ("trian.keep-best=true", "unknown setting$"),
        ("seed=1,2", "use --seeds"),
        ("data-seed=1,2", "use --seeds"),
        ("run-dir=a,b", "--out"),
        ("data.corpus=oz,shakespeare", "can't be compared"),
        ("sample.top-k=1,2", "changes no result"),
        ("mesh.fsdp=1,2", "rounding"),
        ("train.steps=1.5,2", "takes a whole number"),
        ("model.qk-norm=yes,no", "takes true or false"),
        ("model.norm=a..b", "a range is for numbers"),
        ("optim.learning-rate=0..1", "above 0"),
        ("optim.learning-rate=1..0.1", "above 0"),
        ("optim.learning-rate=1..inf", "above 0"),
    ],
)
def test_what_can_not_vary_is_refused_in_a_line(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse_vary(text)
    assert "\n" not in str(error.value)


def test_a_grid_that_is_no_grid_is_refused():
    rate = parse_vary("optim.learning-rate=1e-4..1e-2")
    with pytest.raises(ConfigError, match="give --samples"):
        make_points([rate])
    with pytest.raises(ConfigError, match="at least 1"):
        make_points([rate], 0)
    with pytest.raises(ConfigError, match="--samples is for ranges"):
        make_points([parse_vary("optim.beta1=0.9")], 4)
    with pytest.raises(ConfigError, match="20,000 points"):
        make_points([rate, parse_vary("optim.beta1=0.9,0.8")], 10_000)
    with pytest.raises(ConfigError, match="given twice"):
        make_points([parse_vary("optim.beta1=0.9"), parse_vary("optim.beta1=0.8")])
    with pytest.raises(ConfigError, match="empty grid"):
        list_of("optim.beta1", [])


def test_every_setting_that_is_fixed_exists():
    names = {name for name, _, _ in iter_fields(Config)}
    for name in FIXED:
        assert name in names or any(each.startswith(name) for each in names)


# --- members --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"), [("1", (5,)), ("3", (5, 6, 7)), ("9,2", (9, 2)), ("0,4", (0, 4))]
)
def test_seeds(text, expected):
    assert parse_seeds(text, first=5) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("0", "at least 1"), ("3,3", "3 twice"), ("4294967296,1", "in \\[0, 2"), ("-1", "takes"),
     ("a", "takes"), ("1,", "takes"), ("9999999", "at most")],
)  # fmt: skip
def test_seeds_that_collide_or_are_none(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_seeds(text, first=0)


def test_members_that_only_seeds_could_tell_apart_need_one_to_follow():
    base = Config(init_seed=1, data_seed=1, dropout_seed=1)
    with pytest.raises(ConfigError, match="would be the same training"):
        make_members(base, [{}], (0, 1))
    assert len(make_members(dataclasses.replace(base, data_seed=None), [{}], (0, 1))) == 2


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"dropout_seed": None, "model.dropout": 0.0},
            "and data_seed are both set and there is n",
        ),
        ({"dropout_seed": None, "model.dropout": 0.0, "model.attention_dropout": 0.1}, ""),
        ({"dropout_seed": None, "model.dropout": 0.0, "model.embedding_dropout": 0.1}, ""),
        ({"dropout_seed": None}, ""),
        ({"init_seed": None}, ""),
        (
            {"init_seed": None, "init_from": "x"},
            "data_seed and dropout_seed are both set and param",
        ),
        ({"data_seed": None, "init_from": "x", "model.dropout": 0.0}, ""),
        (
            {"init_seed": None, "dropout_seed": None, "init_from": "x", "model.dropout": 0.0},
            "data_seed is set, there is no dropout and parameters are those of another run, so m "
            "would be the same training; leave it out",
        ),
    ],
)
def test_what_tells_runs_of_other_seeds_apart(values, line):
    held = {"init_seed": 1, "data_seed": 1, "dropout_seed": 1}
    found = same_runs_line(override(Config(), {**held, **values}), "m")
    assert line in found
    assert bool(line) == bool(found)


def test_a_point_without_dropout_may_have_members_that_collide():
    base = Config(init_seed=1, data_seed=1)
    points = make_points([parse_vary("model.dropout=0.2,0")])
    with pytest.raises(ConfigError, match="there is no dropout, so members that differ in --seeds"):
        make_members(base, points, (0, 1))
    assert len(make_members(base, points, (0,))) == 2


def test_members_of_one_shape_follow_one_another():
    points = [
        {"model.qk_norm": norm, "optim.learning_rate": rate}
        for rate in (1e-3, 1e-2)
        for norm in (False, True)
    ]
    members = make_members(Config(), points, (0, 1))
    shapes = [shape_of(member_config(Config(), m.values, m.seed)) for m in members]
    assert [shapes.index(shape) for shape in shapes] == [0] * 4 + [4] * 4
    assert len({member.run_dir for member in members}) == 8
    assert members[0].run_dir == "000-qk_norm=false-learning_rate=0.001-seed=0"


def test_a_point_that_breaks_a_rule_names_its_member():
    with pytest.raises(ConfigError, match=r"the member n_head=3: model.n_embd=128 must be"):
        make_members(Config(), [{"model.n_head": 3}], (0,))


def test_the_interval_is_students():
    values = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    np.testing.assert_allclose(2 * mean_half_width(values), high - low)
    assert np.isnan(mean_half_width(values[:1]))
    found = mean_of([1.0, 2.0, 4.0])
    assert (found.mean, found.values) == (pytest.approx(7 / 3), [1.0, 2.0, 4.0])
    assert 2 * found.half_width == pytest.approx(high - low)


# --- sweeps ---------------------------------------------------------------------------------------

VARY = {"optim.learning_rate": [1e-5, 1e-4]}


@pytest.fixture
def base(tiny_config):
    """A run with dropout, Muon, and updates that are skipped."""
    optim = OptimConfig(optimizer="muon", clip=0.5, schedule="cosine", warmup_steps=2)
    return override(
        dataclasses.replace(tiny_config, optim=optim),
        {"train.on_divergence": "skip", "train.spike": 1.001, "sample.max_new_tokens": 2},
    )


@pytest.fixture
def without_pictures(monkeypatch):
    from gpt_jax.experiments import sweep_pictures

    monkeypatch.setattr(sweep_pictures, "draw", lambda sweep: [])


def rows_of(run):
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second")}
            for r in run.rows]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("changed_programs")
def test_each_member_is_the_run_it_would_have_been_alone(base, tmp_path):
    found = gpt_jax.sweep(base, VARY, seeds=2, out=tmp_path / "sweep", quiet=True)
    assert compiled_steps.jit_functions.cache_info().misses == 1  # one shape, compiled once
    assert [m.state for m in found.members] == ["finished"] * 4
    for i in (0, 3):
        member = found.members[i].member
        own = {**member.values, "seed": member.seed, "run_dir": str(tmp_path / f"alone{i}")}
        alone = gpt_jax.train(override(base, own), quiet=True)
        run = gpt_jax.load_run(tmp_path / "sweep" / member.run_dir)
        assert rows_of(run) == rows_of(alone)
        jax.tree.map(np.testing.assert_array_equal, run.params, alone.params)
        assert found.members[i].loss == alone.summary["val"]["nats_per_token"]
        assert any(row.get("skipped") for row in run.rows)
    lowest = min(found.settings, key=lambda setting: setting.losses.mean())
    assert found.best is lowest
    assert f"--optim.learning-rate {lowest.values['optim.learning_rate']}" in found.command
    written = {path.name for path in (tmp_path / "sweep").iterdir() if path.is_file()}
    assert {"result.md", "result.json", "result.csv", "curves.png", "final.svg"} <= written
    assert json.loads((tmp_path / "sweep" / "result.json").read_text()) == found.record()
    assert len(found.csv().splitlines()) == 5
    assert "1e-05" in str(found)
    with pytest.raises(UserError, match=r"is another sweep: train\.steps is 12 there and 13 here"):
        gpt_jax.sweep(override(base, {"train.steps": 13}), VARY, seeds=2, out=tmp_path / "sweep")
    with pytest.raises(UserError, match="another sweep: it has 4 other members than the 2"):
        gpt_jax.sweep(base, VARY, out=tmp_path / "sweep")


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_killed_sweep_continues_and_a_member_that_diverges_stops_alone(
    tiny_config, tmp_path, monkeypatch, capsys
):
    vary = {"optim.learning_rate": [1e-3, 1e30, 2e-3]}
    original, trained = sweeps.train_prepared, []

    def killed(setup, *args):
        trained.append(setup.config.optim.learning_rate)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return original(setup, *args)

    monkeypatch.setattr(sweeps, "train_prepared", killed)
    module = fake_tracker.use(monkeypatch, "wandb")
    out = tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        gpt_jax.sweep(tiny_config, vary, out=out, quiet=True, track=["wandb"])
    assert [m.state for m in read_result(out).members] == ["finished", "unfinished", "unfinished"]
    found = gpt_jax.sweep(tiny_config, vary, out=out, track=["wandb"])
    assert trained == [1e-3, 1e30, 1e30, 2e-3]
    assert sorted(how["name"] for how in module.begun) == sorted(
        m.run_dir for m in read_sweep(out).members
    )
    assert len({how["group"] for how in module.begun}) == 1
    assert [steps[-1] for steps in module.of_runs.values()][::2] == [12, 12]
    assert module.finished == 3
    assert [m.state for m in found.members] == ["finished", "diverged", "finished"]
    assert "2/3  diverged  learning_rate=1e+30, seed 0" in capsys.readouterr().out
    assert found.n_diverged == 1
    assert found.record()["settings"][1]["mean"] is None
    gpt_jax.sweep(tiny_config, vary, out=out, quiet=True)
    assert len(trained) == 4  # nothing runs again
    for member in read_sweep(out).members:
        assert len(checkpoints.steps(out / member.run_dir)) <= 1


def test_what_does_not_fit_or_is_no_sweeps_folder_is_refused_before_work(
    tiny_config, tmp_path, monkeypatch
):
    def full(config, **_):
        raise UserError(f"training needs 9 GiB for {config.model.n_embd}")

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "else").write_text("")
    with pytest.raises(UserError, match=r"holds other files \(else\) and no sweep.json"):
        gpt_jax.sweep(tiny_config, VARY, out=tmp_path / "full", quiet=True)
    monkeypatch.setattr(sweep_plan, "check_machine", full)
    with pytest.raises(UserError, match="the member n_embd=32: training needs 9 GiB for 32"):
        gpt_jax.sweep(tiny_config, {"model.n_embd": [32]}, out=tmp_path / "big", quiet=True)
    assert not (tmp_path / "big").exists()


def test_another_error_than_divergence_ends_the_sweep(tiny_config, tmp_path, monkeypatch):
    def fail(*args):
        raise TrainingError("the disk is full")

    monkeypatch.setattr(sweeps, "train_prepared", fail)
    with pytest.raises(TrainingError, match="disk"):
        gpt_jax.sweep(tiny_config, VARY, out=tmp_path / "sweep", quiet=True)
    assert read_sweep(tmp_path / "sweep").members[0].diverged is None


@pytest.mark.slow
def test_the_command_shows_what_it_would_do_and_does_it(tiny_config, tmp_path, capsys):
    from gpt_jax.cli import main

    settings = ["--data.corpus", tiny_config.data.corpus, "--model.n-layer", "1"]
    settings += ["--model.n-embd", "16", "--model.n-head", "2", "--model.block-size", "8"]
    settings += ["--train.steps", "4", "--train.batch-size", "8", "--train.eval-batches", "2"]
    settings += ["--sample.max-new-tokens", "2"]
    grid = ["--vary", "optim.learning-rate=1e-3,1e30", "--out", str(tmp_path / "sweep")]
    assert main.main(["sweep", *settings, *grid, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "2 members to run, 0 done; 8 steps" in shown
    assert "compiled once: 1;" in shown
    assert "MB on the disk" in shown
    assert not (tmp_path / "sweep").exists()
    assert main.main(["sweep", *settings, *grid, "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert [member["state"] for member in record["members"]] == ["finished", "diverged"]
    assert (tmp_path / "sweep" / "report.html").is_file()
    assert "--out sweeps/NAME" in _error(main, capsys, settings)
    assert "lie in the folder --out" in _error(main, capsys, [*grid, "--run-dir", "x"])


def _error(main, capsys, words):
    assert main.main(["sweep", *words]) == 2
    return capsys.readouterr().err
