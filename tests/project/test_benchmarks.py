"""The scripts in benchmarks/ that use the package still fit it; their figures are files."""

import json
import math
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import longer, reproduce, tables
from gpt_jax.config import load_config


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

    shutil.copy(tables.RESULTS / "longer.json", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    before = tables.long_run()
    assert "Training takes" not in before  # nothing is said that was not measured
    assert "was 1.365 nats per token at step 5,000 and lowest, 1.284, at step 10,000" in before
    machine = {"cpu": "a CPU", "cores": 2}
    measured = {"machine": machine, **result, "steps": 5000}
    (tmp_path / tables.LONG_RUN).write_text(json.dumps(measured), encoding="utf-8")
    block = tables.long_run()
    assert "**After 5,000 steps**: validation loss 2.613 nats per token" in block
    assert "Training takes 0.1 s" in block
    assert "the whole command 8.0 minutes, on 2 cores (a CPU)" in block
    assert f"```text\n{prompt}" in block


def test_the_long_command_is_that_of_the_readme():
    words = longer.train_command(5000, "runs/nano")
    assert words[-2:] == ["--run-dir", load_config("nano").run_dir]  # the default: left out there
    assert " ".join(["python", *words[:-2]]) in (ROOT / "README.md").read_text("utf-8")
