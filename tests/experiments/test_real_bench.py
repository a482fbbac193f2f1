"""Sweeps and trials with real training, in small: groups, kills, pairs, budgets, other code."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, stopped_at

import gpt_jax
import main
from gpt_jax.config import override
from gpt_jax.experiments import sweep_pictures, trees
from gpt_jax.experiments.sides import read_run
from gpt_jax.experiments.sweep_results import read_result
from gpt_jax.run.metrics import TIMING_FIELDS

FAST = ROOT / "tests" / "whole_runs" / "fast_main.py"
RATE = {"optim.learning_rate": 1e-2}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_results(monkeypatch):
    """A sweep and a trial draw nothing, and write no page."""
    monkeypatch.setattr(sweep_pictures, "draw", lambda sweep: [])
    monkeypatch.setattr("gpt_jax.report.page.write_page", lambda folder, quiet=False: None)


def figures_of(run_dir):
    """All that a run found, but for its times."""
    run = read_run(run_dir)
    rows = [{k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in run.rows]
    return rows, run.summary["val"]


def test_members_of_several_groups_are_the_runs_they_would_have_been_alone(
    tiny_config, tmp_path, finished_run
):
    vary = {"optim.learning_rate": [1e-3, 1e-2], "model.qk_norm": [False, True]}
    found = gpt_jax.sweep(
        tiny_config, vary, out=tmp_path / "s", together="one-after-another", quiet=True
    )
    assert [m.state for m in found.members] == ["finished"] * 4
    for i in (1, 2):  # the last of the first group, the first of the second
        member = found.members[i].member
        assert member.values["model.qk_norm"] == (i == 2)
        alone = finished_run(
            tiny_config, **member.values, seed=member.seed, run_dir=str(tmp_path / f"alone{i}")
        )
        run = gpt_jax.load_run(tmp_path / "s" / member.run_dir)
        assert figures_of(run.run_dir) == figures_of(alone.run_dir)
        jax.tree.map(np.testing.assert_array_equal, run.params, alone.params)


def sweep_words(book, out):
    # fmt: off
    return [
        "sweep", "--config", "nano", "--data.corpus", str(book), "--model.n-layer", "1",
        "--model.n-embd", "16", "--model.n-head", "2", "--model.block-size", "8",
        "--train.batch-size", "4", "--train.steps", "120", "--train.eval-interval", "20",
        "--train.eval-batches", "2", "--train.checkpoint-interval", "20",
        "--train.sample-tokens", "0", "--sample.max-new-tokens", "5", "--mesh.data", "2",
        "--vary", "model.qk-norm=false,true", "--together", "one-after-another",
        "--out", str(out), "--json",
    ]
    # fmt: on


def test_a_sweep_killed_for_real_goes_on_bit_for_bit(tmp_path, book, capsys):
    """Killed in its second group; the same command finds the programs in the cache."""
    assert main.main(sweep_words(book, tmp_path / "whole")) == 0
    first, second = [m.member.run_dir for m in read_result(tmp_path / "whole").members]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, str(FAST), *sweep_words(book, killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows, deadline = killed / second / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if rows.exists() and rows.stat().st_size > 300:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    states = [m.state for m in read_result(killed).members]
    assert states == ["finished", "unfinished"]
    done = (killed / first / "metrics.jsonl").stat().st_mtime_ns
    assert main.main(sweep_words(book, killed)) == 0
    capsys.readouterr()
    assert (killed / first / "metrics.jsonl").stat().st_mtime_ns == done
    for name in (first, second):
        assert figures_of(killed / name) == figures_of(tmp_path / "whole" / name)


def test_two_pairs_are_four_runs_and_a_stopped_trial_goes_on(tiny_config, tmp_path, finished_run):
    out = tmp_path / "out"
    with stopped_at(8):
        gpt_jax.trial(tiny_config, RATE, out, max_pairs=2)
    found = gpt_jax.trial(tiny_config, RATE, out, max_pairs=2)
    assert (found.verdict, found.status) == ("not shown", 3)
    assert [pair.seeds for pair in found.pairs] == [[0, 0], [1, 1]]
    assert (found.differences < 0).all()
    for side, values, losses in zip(("base", "change"), ({}, RATE), found.losses_2N, strict=True):
        kept = {"train.keep_checkpoints": 1, "train.keep_best": False}
        alone = finished_run(
            tiny_config, **values, **kept, seed=1, run_dir=str(tmp_path / f"alone-{side}")
        )
        assert figures_of(out / f"{side}-1") == figures_of(alone.run_dir)
        assert losses[1] == alone.summary["val"]["nats_per_token"]


@pytest.mark.parametrize(("equal", "steps"), [("steps", 12), ("tokens", 6)])
def test_an_equal_budget_is_what_the_runs_spend(tiny_config, tmp_path, equal, steps):
    change = {"train.batch_size": 16}
    found = gpt_jax.trial(tiny_config, change, tmp_path / "out", max_pairs=1, equal=equal)
    assert (found.budget.base_steps, found.budget.change_steps) == (12, steps)
    taken = [
        read_run(tmp_path / "out" / f"{side}-0").summary["step"] for side in ("base", "change")
    ]
    assert taken == [12, steps]


TREE_MAIN = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from gpt_jax import devices
from gpt_jax.run import plots
devices.compiler_options = lambda backend, *, library_products: {}
plots.plot_losses = lambda rows, run_dir, title: "none"
from gpt_jax.cli.main import run
run()
"""


def make_tree(root, old="", new=""):
    """A checkout of this code that compiles as fast as the tests do, with one text replaced."""
    leave_out = shutil.ignore_patterns("__pycache__")
    for name in ("gpt_jax", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=leave_out)
    (root / "main.py").write_text(TREE_MAIN, "utf-8")
    if old:
        file = root / "gpt_jax" / "config" / "activations.py"
        text = file.read_text("utf-8")
        assert old in text
        file.write_text(text.replace(old, new), "utf-8")
    return root


def test_other_code_is_tried_by_its_own_program(tiny_config, tmp_path, monkeypatch, finished_run):
    ours = make_tree(tmp_path / "ours")
    theirs = make_tree(tmp_path / "theirs", "jax.nn.relu(x)", "jax.nn.tanh(x)")
    monkeypatch.setattr(trees, "checkout_dir", lambda: ours)
    config = override(tiny_config, {"train.sample_tokens": 0})
    found = gpt_jax.trial(config, {}, tmp_path / "out", against=theirs, max_pairs=1)
    kept = {"train.keep_checkpoints": 1, "train.keep_best": False}
    alone = finished_run(config, **kept, run_dir=str(tmp_path / "alone"))
    assert found.pairs[0].base == alone.summary["val"]["nats_per_token"]
    assert figures_of(tmp_path / "out" / "base-0") == figures_of(alone.run_dir)
    assert found.pairs[0].change != found.pairs[0].base
    assert Path(found.trees["change"].path) == theirs
