"""A recomputed step is the step that was trained."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import gpt_jax
import main
from gpt_jax.analysis.replay import replay
from gpt_jax.config import override
from gpt_jax.errors import UserError
from gpt_jax.run import checkpoints

# Losses of some 2.4 over a few steps of AdamW on 8 sequences of 8 tokens, summed in another order.
ROUNDING = 2e-4


def train(config, **values):
    return gpt_jax.train(override(config, values), quiet=True)


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def config(tiny_config):
    """A run with a row of each step; training and replay run the same programs of one step."""
    return override(tiny_config, {"train.log_interval": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "train.micro_batch": 4,
            "train.loss_chunk": 16,
            "data.resident": "host",
            "data.order": "epochs",
            "optim.optimizer": "muon",
            "optim.clip": 0.5,
        },
        {"train.on_divergence": "skip", "train.spike": 1.003, "optim.learning_rate": 1e-6},
    ],
    ids=["plain", "in parts", "skipping"],
)
def test_a_step_computed_again_is_that_of_its_row(config, finished_run, values):
    """From a checkpoint; test_damaged_checkpoints_are_passed_over does so from the beginning."""
    run = finished_run(config, **values)
    before = contents(run.run_dir)
    rows = {row["step"]: row for row in run.rows}
    assert checkpoints.steps(run.run_dir) == [8, 12]
    step = next(step for step in (10, 11, 12) if not rows[step].get("skipped"))
    found = replay(run.run_dir, step)
    assert found.from_step == 8
    for name in ("loss", "grad_norm"):
        assert getattr(found, name) == pytest.approx(rows[step][name], abs=ROUNDING)
    assert found.losses.mean() == pytest.approx(found.loss, abs=ROUNDING)
    total = math.sqrt(sum(gradient**2 for gradient, _ in found.norms.values()))
    assert total == pytest.approx(found.grad_norm, rel=1e-5)
    assert contents(run.run_dir) == before


@pytest.mark.slow
def test_what_is_shown_is_what_the_corpus_has_there(config, finished_run, book, capsys):
    run = finished_run(config)
    assert main.main(["replay", "--run-dir", str(run.run_dir), "--step", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    text = book.read_text()
    assert len(found["sequences"]) == 8
    for sequence in found["sequences"]:
        start = sequence["start"]
        assert sequence["text"] == text[start : start + 9]
        assert run.tokenizer.decode(sequence["tokens"]) == sequence["text"]
    assert set(found["norms"]) == {"/".join(path) for path in paths_of(run.params)}
    assert main.main(["replay", "--run-dir", str(run.run_dir), "--step", "3"]) == 0
    shown = capsys.readouterr().out
    assert f"step 3, recomputed from step 0: loss {found['loss']:.6f} nats" in shown
    losses = [float(line.split()[0]) for line in shown.splitlines()[3:11]]
    assert losses == sorted(losses, reverse=True)


def paths_of(params, prefix=()):
    for name, value in params.items():
        if isinstance(value, dict):
            yield from paths_of(value, (*prefix, name))
        else:
            yield (*prefix, name)


@pytest.mark.slow
def test_a_step_that_a_run_died_of_is_shown(config):
    with pytest.raises(gpt_jax.TrainingError) as end:
        train(config, **{"optim.learning_rate": 1e38})
    step = int(str(end.value).partition(" at step ")[2].partition(";")[0])
    found = replay(Path(config.run_dir), step)
    assert not math.isfinite(found.loss + found.grad_norm)
    assert "nan" in str(found)


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over(config, finished_run):
    run = finished_run(config)
    row = next(row for row in run.rows if row["step"] == 11)
    whole = replay(run.run_dir, 11)
    assert whole.from_step == 8
    (run.run_dir / "checkpoints" / "00000008.json").write_text("{")
    again = replay(run.run_dir, 11)
    assert again.from_step == 0
    for name in ("loss", "grad_norm"):
        assert getattr(again, name) == pytest.approx(getattr(whole, name), abs=ROUNDING)
        assert getattr(again, name) == pytest.approx(row[name], abs=ROUNDING)
    np.testing.assert_array_equal(again.batch, whole.batch)


@pytest.mark.slow
def test_a_run_that_started_from_another_is_computed_from_that(config, finished_run, tmp_path):
    finished_run(config, run_dir=str(tmp_path / "first"))
    values = {"init_from": str(tmp_path / "first"), "data.tokenizer": "char"}
    run = train(gpt_jax.start_from(override(config, values), {}))
    row = next(row for row in run.rows if row["step"] == 2)
    assert replay(run.run_dir, 2).loss == pytest.approx(row["loss"], abs=ROUNDING)


@pytest.mark.slow
def test_steps_that_a_run_does_not_have(config, finished_run):
    run = finished_run(config)
    for step in (-1, 0, 13):
        with pytest.raises(UserError, match=rf"has no step {step}; its steps are 1 to 12"):
            replay(run.run_dir, step)


def test_folders_without_steps(tmp_path, capsys):
    assert main.main(["replay", "--run-dir", str(tmp_path), "--step", "1"]) == 2
    assert "is not a run: it has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 10}))
    with pytest.raises(UserError, match="GPT-2 folder, which has no steps"):
        replay(tmp_path, 1)
