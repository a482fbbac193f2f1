"""The scripts in benchmarks/ that use the package still fit it; their figures are files."""

import dataclasses
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT
from fake_runs import NANO, write_sweep

from benchmarks import directions, longer, reproduce, speed, sweep, tables, trials, tuned, worker
from gpt_jax.config import load_config, override, to_dict
from gpt_jax.errors import UserError
from gpt_jax.experiments.outcomes import Pair
from gpt_jax.experiments.statistics import mean_of
from gpt_jax.experiments.trial_record import Question, record_text
from gpt_jax.input_pipeline.text_corpus import OZ_SHA256


@pytest.mark.slow
def test_the_loss_over_initialisations_is_near_that_of_guessing(tiny_config):
    found = reproduce.initial_losses(tiny_config, n=3)
    assert found["initialisations"] == 3
    assert found["lowest"] < found["mean"] < found["highest"]
    n = len(set(Path(tiny_config.data.corpus).read_text("utf-8")))
    assert abs(found["mean"] - math.log(n)) < 0.1  # logits of weights of 0.02 are near 0


@pytest.mark.slow
def test_a_finished_run_becomes_the_readmes_block(tmp_path, monkeypatch):
    """Losses, seconds of training and a sample, from a run of the previous release."""
    folder = ROOT / "tests" / "fixtures" / "run_2026_11" / "run"
    prompt = json.loads((folder / "config.json").read_text("utf-8"))["sample"]["prompt"]
    result = longer.describe_finished(folder, 480.0)
    assert result["steps"] == 4
    assert [row["step"] for row in result["rows"]] == [0, 4]
    assert result["seconds"] == {"training": 0.056979733002663124, "command": 480.0}
    assert result["exact"]["nats_per_token"] == 2.6127196477612418
    assert result["sample"].startswith(prompt)

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    machine = {"cpu": "a CPU", "cores": 2}
    measured = {"machine": machine, **result, "steps": 5000}
    (tmp_path / "nano_5000.json").write_text(json.dumps(measured), encoding="utf-8")
    block = tables.long_run()
    assert "**After 5,000 steps**: validation loss 2.613 nats per token" in block
    assert "Training takes 0.1 s" in block
    assert "the whole command 8.0 minutes, on 2 cores (a CPU)" in block
    assert f"```text\n{prompt}" in block


def test_the_speed_of_shakespeare_cpu_is_that_of_its_config(tmp_path, monkeypatch):
    """What the worker trains has the shape that the bounds count; a row of it has its place."""
    assert set(speed.TRAINING) <= set(worker.MODELS)
    config = worker.jax_config("shakespeare_cpu")
    assert config == override(load_config("shakespeare_cpu"), {"model.vocab_size": 65})
    for name, shape in worker.MODELS.items():
        config, fields = worker.jax_config(name), ("n_layer", "n_head", "n_embd", "block_size")
        found = [getattr(config.model, field) for field in fields]
        assert (*found, config.train.batch_size) == shape
        assert config.model.vocab_size == worker.vocab_size(name)
    result = json.loads((tables.RESULTS / "speed_cpu.json").read_text("utf-8"))
    row = result["training_ms_a_step"]["nano"]
    result["training_ms_a_step"]["shakespeare_cpu"] = row
    (tmp_path / "speed_cpu.json").write_text(json.dumps(result), encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert f"| shakespeare_cpu | {row['gpt_jax']['median']:.1f} |" in tables.speed()
    assert "shakespeare" not in tables.speed_short()


def test_the_long_command_is_that_of_the_readme():
    words = longer.train_command(5000, "runs/nano")
    assert words[-2:] == ["--run-dir", load_config("nano").run_dir]  # the default: left out there
    assert " ".join(["python", *words[:-2]]) in (ROOT / "README.md").read_text("utf-8")


# Differences as likely with either sign, or skewed a little: what the assumption bears.
BORNE = [kind for kind in trials.KINDS if "exponential, skewness" not in kind]


@pytest.mark.parametrize("kind", BORNE)
def test_with_no_difference_at_most_alpha_of_the_trials_end_with_a_verdict(kind):
    n = 4000
    found = trials.simulate(trials.KINDS[kind], n, seed=1)
    limit = trials.ALPHA + 4 * math.sqrt(trials.ALPHA * (1 - trials.ALPHA) / n)
    assert found["no_difference"]["false_verdicts"]["share"] <= limit
    assert found["no_difference"]["t_test_after_every_pair"]["share"] > 2 * trials.ALPHA
    decided = [found[f"{e:g} standard deviations"]["decided"]["share"] for e in trials.EFFECTS]
    assert decided[0] > 0.6
    assert min(decided[1:]) > 0.98


def test_trials_of_measured_differences_are_centred(tmp_path):
    path = tmp_path / "differences.json"
    lists = ([0.5, 0.52, 0.47, 0.51], [0.5, 0.53, 0.49, 0.5])  # at any depth
    rows = [{"name": "a", "differences": lists[1]}, {"name": "b", "mean": 1}]
    path.write_text(json.dumps({"differences": lists[0], "trials": {"rows": rows}}))
    found = trials.differences_of(path)
    assert [each.tolist() for each in found] == list(lists)
    noise = trials.measured(path)(np.random.default_rng(0), (1000, 20))
    assert abs(noise.mean()) < 0.05
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_measured_differences_are_those_of_trials_and_sweeps(tmp_path):
    """Each centred and scaled by itself; a pair with a run that diverged is left out."""
    trial_dir, members = tmp_path / "trial", []
    write_trial(trial_dir, [(2.0, 1.9), (2.1, 1.7), (2.0, 1.95), (2.0, 4.0)], diverged=3)
    (found,) = trials.differences_of(trial_dir)
    np.testing.assert_allclose(found, [-0.1, -0.4, -0.05])
    for value, losses in ((3e-4, (2.0, 2.1, 2.2)), (1e-3, (1.9, 2.1, 2.3))):
        values = {"optim.learning_rate": value}
        members += [(values, seed, loss) for seed, loss in enumerate(losses)]
    (other,) = trials.differences_of(write_sweep(tmp_path / "sweep", members))
    np.testing.assert_allclose(other, [-0.1, 0.0, 0.1], atol=1e-12)
    noise = trials.measured(trial_dir, tmp_path / "sweep")(np.random.default_rng(0), (100, 20))
    scaled = [(d - d.mean()) / d.std() for d in (found, other)]
    np.testing.assert_allclose(np.unique(noise.round(9)), np.sort(np.concatenate(scaled)).round(9))
    write_trial(tmp_path / "short", [(2.0, 1.9)] * 4)
    with pytest.raises(UserError, match="short has no three differences that differ"):
        trials.measured(tmp_path / "short")


def write_trial(folder, losses, *, config=NANO, paired=True, first=0, diverged=None, change=None):
    """Writes trial.json with a pair for each (base, change); returns the folder."""
    settings = {name: value for name, value in to_dict(config).items() if name != "run_dir"}
    change = {"model.qk_norm": True} if change is None else change
    question = Question(settings, change, 0.01, None, paired)
    pairs = [
        Pair([first + i] * 2, *both, change_diverged="nan" if i == diverged else None)
        for i, both in enumerate(losses)
    ]
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(record_text(question, pairs), encoding="utf-8")
    return folder


def test_the_tuned_config_is_told_by_its_trials_and_its_fresh_seeds(tmp_path, monkeypatch):
    """From trials and sweeps to the page, with sweeps that are there already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    nano = load_config("nano")
    gain = np.random.default_rng(0).normal(-0.16, 0.01, 8)
    pairs = [(1.95 + i / 100, 1.95 + i / 100 + x) for i, x in enumerate(gain)]
    short = override(nano, {"train.steps": 200})
    write_trial(Path("trials/qk-norm"), pairs, config=short)
    write_trial(Path("trials/same"), pairs[:1], config=nano, paired=False, change={})

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["benchmarks/tuned.py", *words, "--out", "tuned.json"])
        tuned.main()

    run("--trials", "trials/qk-norm", "trials/same")
    text = tables.tuned()
    row = "| qk-norm | `train.steps=200` | `model.qk-norm=true` | 8 | -0.15"
    assert row in text
    assert "| better |" in text
    assert "| same | nothing else | none | 1, not paired | -0.1" in text
    assert str(tmp_path) not in Path("tuned.json").read_text("utf-8")

    def sweep(config, seeds, out, together):
        gain = 0.2 * (out.name == "nano_tuned")
        losses = [1.9 + 0.01 * x - gain * (1 + x / 50) for x in (1, 3, 2, 6)]
        settings = {"model.qk_norm": out.name == "nano_tuned"}
        write_sweep(out, [(settings, s, x) for s, x in zip(seeds, losses, strict=True)])
        members = [
            types.SimpleNamespace(
                loss=x, bits_per_byte=1.4 * x, member=types.SimpleNamespace(run_dir="m0")
            )
            for x in losses
        ]
        return types.SimpleNamespace(members=members)

    loaded = types.SimpleNamespace(summary={"parameters": 620_873})
    monkeypatch.setattr("gpt_jax.sweep", sweep, raising=False)
    monkeypatch.setattr("gpt_jax.load_run", lambda run_dir: loaded, raising=False)
    monkeypatch.setattr(tuned, "load_config", lambda name: nano)
    monkeypatch.setattr(tuned, "load_corpus", lambda name: types.SimpleNamespace(sha256=OZ_SHA256))
    run("--seeds", "4")
    text = tables.tuned()
    assert row in text
    assert "| `nano` | 620,873 | 1.9300 ± 0.0344 |" in text
    assert "Seeds 100 to 103, which no trial has used" in text
    write_trial(Path("trials/late"), [(2.0, 1.9)], first=102)
    with pytest.raises(SystemExit, match="the trial late has used some of these seeds"):
        run("--trials", "trials/late", "--seeds", "4")
    with pytest.raises(SystemExit):
        run()


def test_the_trials_in_the_results_are_those_of_the_script():
    found = json.loads((tables.RESULTS / "trials.json").read_text("utf-8"))
    assert found["trials"] == 10_000
    assert set(trials.KINDS) <= set(found["kinds"])
    again = trials.simulate(trials.KINDS["normal"], found["trials"])
    stored = found["kinds"]["normal"]["1 standard deviations"]
    assert again["1 standard deviations"]["median_pairs"] == stored["median_pairs"]
    assert again["1 standard deviations"]["decided"] == pytest.approx(stored["decided"], abs=2e-3)


def test_a_t_test_of_the_trials_is_scipys():
    values = np.random.default_rng(0).normal(0.8, 1, (50, 20))
    p = scipy.stats.ttest_1samp(values, 0, axis=1).pvalue
    assert trials.t_tests(values)[:, -1].tolist() == (p < trials.ALPHA).tolist()


def test_a_sweep_is_measured_beside_separate_commands(tmp_path, monkeypatch):
    turns = {
        "sweep": [{"cold": 60.0, "warm": 30.0}, {"cold": 64.0, "warm": 34.0}],
        "separate": [{"cold": 120.0, "warm": 40.0}] * 2,
    }
    found = sweep.describe("a command", 8, 200, turns)
    assert found["ratio"] == {"cold": 62 / 120, "warm": 32 / 40}
    assert found["members_per_minute"]["separate"] == {"cold": 4.0, "warm": 12.0}
    assert "ratio" not in sweep.describe("a command", 8, 200, {**turns, "separate": []})
    (tmp_path / "sweep_cpu.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| one sweep | 7.7 | 15.0 |" in tables.sweep()
    assert "| time of the sweep over theirs | 0.52 | 0.80 |" in tables.sweep()


def test_a_sweeps_commands_are_those_of_its_runs():
    (words,) = sweep.sweep_commands(4, 200, Path("out"))
    runs = sweep.train_commands(4, 200, Path("out"))
    assert len(runs) == 8
    assert words[: len(sweep.SETTINGS) + 1] == ["sweep", *sweep.SETTINGS]
    assert len({tuple(run) for run in runs}) == 8


@pytest.mark.parametrize("name", ["more text", "wider and deeper", "byte pairs"])
def test_the_figures_of_the_committed_runs_come_out_equal(name):
    """From the values of each seed, by `mean_of` and the paired t test of `compare`.

    An earlier program had Student's t in four digits.
    """
    rows = json.loads((tables.RESULTS / "directions.json").read_text("utf-8"))["directions"]
    row, nano = rows[name], rows["nano"]["bits_per_byte"]["values"]
    for found, expected in (
        (dataclasses.asdict(mean_of(row["bits_per_byte"]["values"])), row["bits_per_byte"]),
        (directions.beside(nano, row["bits_per_byte"]["values"]), row["beside_nano"]),
    ):
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4)


def test_the_table_of_directions_says_which_help(tmp_path, monkeypatch):
    nano, rows = [2.0, 2.1, 2.2], {}
    for name, more in (("nano", 0.0), ("a", -0.5), ("b", 0.5), ("c", 0.01)):
        own = [x + more + 0.1 * i * (more != 0) for i, x in enumerate(nano)]
        rows[name] = {"parameters": 9, "bits_per_byte": dataclasses.asdict(mean_of(own))}
        rows[name] |= {} if name == "nano" else {"beside_nano": directions.beside(nano, own)}
    machine = {"cpu": "a CPU", "cores": 2, "memory_gib": 1, "versions": {}, "date": "today"}
    result = {"machine": machine, "command": "x", "steps": 5, "val_characters": 7}
    text = json.dumps({**result, "directions": rows})
    (tmp_path / "directions.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "machine", lambda result: "")
    table = tables.directions()
    assert "| nano | 9 | 2.100 ± 0.248 | - | - |" in table
    assert "| a | 9 | 1.700 ± 0.497 | -0.400 ± 0.248 | helps |" in table
    assert "| b | 9 | 2.700 ± 0.497 | +0.600 ± 0.248 | harms |" in table
    assert "+0.110 ± 0.248 | neither helps nor harms" in table
