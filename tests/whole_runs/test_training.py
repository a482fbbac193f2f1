"""Whole runs: resumed equals uninterrupted, nothing finished is destroyed, nothing half is left."""

import dataclasses
import functools
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, stopped_at

import gpt_jax
import main
from gpt_jax import storage
from gpt_jax.config import override
from gpt_jax.errors import ConfigError, Interrupted, OutOfTime, TrainingError, UserError
from gpt_jax.inference.evaluation import evaluate_split
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.shards.reader import open_shards
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.run import checkpoints, plots
from gpt_jax.run.metrics import TIMING_FIELDS, MetricsWriter, read_rows
from gpt_jax.storage import to_folder
from gpt_jax.tokenizer import CharTokenizer
from gpt_jax.training import compiled_steps, trainer


def train(config, **values):
    return gpt_jax.train(override(config, values), quiet=True)


def timeless(run_dir):
    """The rows without what differs between equal runs: times, and where a run was resumed."""
    return [
        {k: v for k, v in row.items() if k not in {*TIMING_FIELDS, "numerics"}}
        for row in read_rows(to_folder(run_dir))
    ]


def train_until(step, config, **values):
    with stopped_at(step):
        train(config, **values)


def assert_same_run(a, b):
    assert timeless(a.run_dir) == timeless(b.run_dir)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_run_is_a_folder_with_all_that_belongs_to_it(tiny_config):
    run = train(tiny_config)
    names = {path.name for path in run.run_dir.iterdir()}
    assert names >= {
        "config.json", "tokenizer.json", "metrics.jsonl", "summary.json", "samples.txt",
        "loss.png", "loss.svg", "tensorboard", "checkpoints",
    }  # fmt: skip
    config = json.loads((run.run_dir / "config.json").read_text())
    assert config["format"] == 1
    assert config["data"]["corpus"] == tiny_config.data.corpus
    assert config["corpus"]["sha256"] == run.corpus["sha256"]
    rows = read_rows(run.run_dir)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10, 12]
    for row in rows:
        evaluated = row["step"] % 4 == 0
        assert ("val_loss" in row) == evaluated
        if evaluated:
            assert {"train_loss", "val_loss", "val_bpb", "tokens_per_second"} <= set(row)
        if row["step"]:
            assert row["loss"] > 0
        assert "learning_rate" not in row  # it is constant
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert list((run.run_dir / "tensorboard").glob("events.out.tfevents*"))
    assert run.summary["val"]["tokens_predicted"] == len(run_val_text(run)) - 1
    sample = (run.run_dir / "samples.txt").read_text()
    assert run.config.sample.prompt in sample
    assert checkpoints.steps(run.run_dir) == [8, 12]


def run_val_text(run):
    text = Path(run.config.data.corpus).read_text()
    return text[int(0.8 * len(text)) :]


@pytest.mark.slow
def test_bits_a_byte_counts_the_bytes_of_the_text(tiny_config, tmp_path):
    book = tmp_path / "cyrillic.txt"
    book.write_text("страшила и дровосек " * 50, encoding="utf-8")
    run = train(tiny_config, **{"data.corpus": str(book)})
    text = run_val_text(run)
    exact = run.summary["val"]
    assert exact["bytes_predicted"] == len(text[1:].encode())
    bits = exact["nats_per_token"] * (len(text) - 1) / np.log(2)
    assert exact["bits_per_byte"] == pytest.approx(bits / len(text[1:].encode()))
    row = read_rows(run.run_dir)[-1]
    expected = row["val_loss"] / np.log(2) * len(text) / len(text.encode())
    assert row["val_bpb"] == pytest.approx(expected)
    assert gpt_jax.evaluate(run).record() == exact


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(tiny_config, finished_run, tmp_path):
    """One run, stopped before and after each checkpoint and at its end, and resumed each time."""
    whole = finished_run(tiny_config, run_dir=str(tmp_path / "whole"))
    for step in (0, 2, 4, 6, 10, 12):
        train_until(step, tiny_config)
    assert_same_run(whole, train(tiny_config))


@pytest.mark.slow
def test_more_steps_continue_a_run_as_if_it_had_been_longer_from_the_start(
    tiny_config, finished_run, tmp_path
):
    longer = finished_run(tiny_config, **{"train.steps": 20})
    other = {"run_dir": str(tmp_path / "other")}
    finished_run(tiny_config, **other)
    continued = train(tiny_config, **other, **{"train.steps": 20})
    assert continued.config.train.steps == 20
    assert_same_run(longer, continued)
    samples = (continued.run_dir / "samples.txt").read_text()
    assert "=== step 12," in samples
    assert "=== step 20," in samples


# --- schedules ------------------------------------------------------------------------------------

SCHEDULED = {
    "optim.schedule": "cosine", "optim.warmup_steps": 3, "optim.clip": 0.5,
    "optim.decay": "matrices", "optim.optimizer": "muon", "train.micro_batch": 4, "mesh.data": -1,
}  # fmt: skip
WSD = {"optim.schedule": "wsd", "optim.warmup_steps": 2}


def rates(run):
    return [row["learning_rate"] for row in read_rows(run.run_dir)[1:]]


@pytest.mark.slow
def test_a_run_says_how_devices_share_its_batch(tiny_config, monkeypatch, capsys):
    """Before it compiles anything; that it trains so is in test_sharding.py."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt("stopped by the test")

    monkeypatch.setattr(compiled_steps.CompiledSteps, "compile_ahead", stop)
    with pytest.raises(KeyboardInterrupt, match="by the test"):
        gpt_jax.train(override(tiny_config, {"mesh.data": 2, "mesh.sequence": 2}))
    shown = "4 x cpu (data 2 x sequence 2): batch 8 = 2 x 4 sequences (4 more left idle"
    assert shown in capsys.readouterr().out


@pytest.mark.slow
def test_a_scheduled_run_goes_on_bit_for_bit(tiny_config, tmp_path, capsys):
    whole = gpt_jax.train(override(tiny_config, SCHEDULED))
    # As many devices as divide a part, of the 8 there are.
    assert "4 x cpu: batch 8 = 2 micro-batches x 4 x 1 sequences" in capsys.readouterr().out
    other = {"run_dir": str(tmp_path / "other"), **SCHEDULED}
    train_until(6, tiny_config, **other)  # two steps after a checkpoint
    assert_same_run(whole, train(tiny_config, **other))
    config = json.loads((whole.run_dir / "config.json").read_text())
    assert config["optim"]["schedule_steps"] == 12


@pytest.mark.slow
def test_more_steps_do_not_move_the_end_of_a_schedule(tiny_config, tmp_path, capsys):
    cosine = {"optim.schedule": "cosine", "optim.warmup_steps": 3}
    run = train(tiny_config, **cosine)
    # Rows of steps 2, 4, ... 12 have the rate of the step before, whose number is one less.
    angles = np.pi * (np.array([3, 3, 5, 7, 9, 11]) - 3) / 9
    shares = np.array([2 / 4, 1, 1, 1, 1, 1]) * (0.1 + 0.9 * (1 + np.cos(angles)) / 2)
    np.testing.assert_allclose(rates(run), 3e-4 * shares, rtol=1e-6)  # 8 eps
    before = timeless(run.run_dir)
    with pytest.raises(ConfigError, match=r"optim.schedule_steps is 12 there and 20 here.*") as e:
        train(tiny_config, **cosine, **{"train.steps": 20})
    assert str(e.value).endswith(
        "; --optim.schedule-steps 12 keeps the learning rate of the 12 steps taken, and later "
        "steps stay at its floor"
    )
    assert timeless(run.run_dir) == before
    gpt_jax.train(override(tiny_config, cosine))
    assert "add --train.steps 24 --optim.schedule-steps 12" in capsys.readouterr().out
    # What the message says works, and is the run that it would have been from the start.
    more = {"train.steps": 20, "optim.schedule_steps": 12}
    longer = train(tiny_config, run_dir=str(tmp_path / "longer"), **cosine, **more)
    assert_same_run(longer, train(tiny_config, **cosine, **more))
    np.testing.assert_allclose(rates(longer)[6:], [3e-5] * 4, rtol=1e-6)


@pytest.mark.slow
def test_a_schedules_end_may_move_before_any_step_has_felt_it(tiny_config, finished_run, tmp_path):
    """The use of wsd: train on at the stable rate, and decay when it is enough."""
    far = {"optim.schedule_steps": 1000}
    finished_run(tiny_config, **WSD, **far)
    then = {"train.steps": 20, "optim.schedule_steps": 20, "optim.decay_steps": 6}
    longer = train(tiny_config, run_dir=str(tmp_path / "longer"), **WSD, **then)
    continued = train(tiny_config, **WSD, **then)
    assert_same_run(longer, continued)
    np.testing.assert_allclose(rates(continued)[-1], 3e-4 * (0.1 + 0.9 / 6), rtol=1e-6)
    saved = json.loads((continued.run_dir / "config.json").read_text())
    assert (saved["optim"]["schedule_steps"], saved["optim"]["decay_steps"]) == (20, 6)
    # Now it has been felt; and a decay that would begin before the last step taken is refused.
    with pytest.raises(ConfigError, match="schedule_steps is 20 there and 30 here"):
        train(tiny_config, **WSD, **{**then, "train.steps": 30, "optim.schedule_steps": 30})
    other = {"run_dir": str(tmp_path / "other"), **WSD}
    finished_run(tiny_config, **other, **far)
    with pytest.raises(ConfigError, match=r"schedule_steps is 1000 there and 16 here"):
        train(tiny_config, **other, **{"train.steps": 16, "optim.decay_steps": 5})


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(tiny_config, finished_run, capsys):
    run = finished_run(tiny_config)
    before = {p: p.read_bytes() for p in run.run_dir.rglob("*") if p.is_file()}
    again = gpt_jax.train(tiny_config)
    assert {p: p.read_bytes() for p in run.run_dir.rglob("*") if p.is_file()} == before
    assert again.step == 12
    out = capsys.readouterr().out
    assert "is finished: 12 steps" in out
    assert "Nothing was changed" in out
    assert "--train.steps 24" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", 1, "seed is 0 there and 1 here"),
        ("optim.learning_rate", 1e-3, r"optim.learning_rate is 0.0003 there and 0.001 here"),
        ("model.n_layer", 2, "model.n_layer is 1 there and 2 here"),
        ("train.steps", 8, r"train.steps is 12 there and 8 here \(it can grow\)"),
        ("train.spike", 2.0, "train.spike is None there and 2.0 here"),
        ("model.dtype", "bfloat16", "model.dtype is float32 there and bfloat16 here"),
        ("data.corpus", "python-manual", "data.corpus is .*book.txt there and python-manual here"),
    ],
)
def test_another_setting_is_refused_by_name(tiny_config, finished_run, name, value, message):
    run = finished_run(tiny_config)
    before = timeless(run.run_dir)
    with pytest.raises(ConfigError, match=message):
        train(tiny_config, **{name: value})
    assert timeless(run.run_dir) == before


@pytest.mark.slow
def test_when_to_look_at_a_run_may_change_and_it_learns_the_same(tiny_config, tmp_path):
    """Chunks, rows, evaluations and checkpoints at other steps; equal parameters, bit for bit."""
    whole = train(tiny_config, run_dir=str(tmp_path / "whole"))
    train(tiny_config, **{"train.steps": 4})
    looks = {"train.log_interval": 3, "train.eval_interval": 6, "train.eval_batches": 1}
    run = train(tiny_config, **looks, **{"train.checkpoint_interval": 9})
    jax.tree.map(np.testing.assert_array_equal, run.params, whole.params)
    assert [row["step"] for row in run.rows] == [0, 2, 4, 6, 9, 12]
    (changed,) = (row for row in run.rows if "changed" in row)
    assert changed["changed"]["train.log_interval"] == {"from": 2, "to": 3}
    assert (changed["step"], changed["changed"]["since"]) == (6, 4)
    assert changed["changed"].keys() == {"since", *looks, "train.checkpoint_interval"}
    assert gpt_jax.load_run(run.run_dir).config.train.eval_interval == 6


@pytest.mark.slow
def test_a_changed_text_is_refused_and_a_moved_one_is_not(
    tiny_config, finished_run, book, tmp_path
):
    run = finished_run(tiny_config)
    moved = tmp_path / "moved.txt"
    book.rename(moved)
    longer = {"train.steps": 14, "data.corpus": str(moved), "sample.prompt": None}
    assert train(tiny_config, **longer).step == 14
    moved.write_text(moved.read_text() + ".", encoding="utf-8")
    with pytest.raises(UserError, match="not the same text; name the old one"):
        train(tiny_config, **{**longer, "train.steps": 16})
    with pytest.raises(UserError, match="not the same text"):
        gpt_jax.evaluate(gpt_jax.load_run(run.run_dir), corpus_name=str(moved))


@pytest.mark.slow
def test_a_run_that_began_on_a_fallback_stays_on_it(tiny_config, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GPT_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("gpt_jax.input_pipeline.text_corpus.checkout_dir", lambda: None)
    monkeypatch.setenv("GPT_JAX_OZ_URL", "http://127.0.0.1:9/pg55.txt")
    monkeypatch.setattr("gpt_jax.input_pipeline.text_corpus.TRIES", 1)
    data = dataclasses.replace(
        tiny_config.data, corpus="oz", fallback_corpus="python-manual", train_fraction=0.99
    )
    config = dataclasses.replace(tiny_config, data=data)
    run = gpt_jax.train(config)
    out = capsys.readouterr().out
    assert out.count("note: corpus oz could not be downloaded") == 1
    assert "using python-manual instead" in out
    assert run.config.data.corpus == run.corpus["name"] == "python-manual"
    assert run.corpus["requested"] == "oz"
    assert run.summary["corpus"]["name"] == "python-manual"
    # The book is there now, and the run stays where it is all the same.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wizard_of_oz.txt").write_text("Dorothy lived in Kansas. " * 100)
    more = override(config, {"train.steps": 14})
    assert gpt_jax.train(more, quiet=True).config.data.corpus == "python-manual"
    with pytest.raises(UserError, match=r"not the same text|data.corpus is python-manual there"):
        train(config, **{"data.corpus": "oz", "train.steps": 16, "sample.prompt": None})


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tiny_config, finished_run, tmp_path, capsys
):
    whole = finished_run(tiny_config, **{"train.steps": 20})
    other = {"run_dir": str(tmp_path / "other")}
    run = finished_run(tiny_config, **other)
    next((run.run_dir / "checkpoints" / "00000012").rglob("_METADATA")).write_bytes(b"")
    again = gpt_jax.train(override(tiny_config, {**other, "train.steps": 20}))
    out = capsys.readouterr().out
    assert "00000012 is damaged" in out
    assert "resuming from step 8" in out
    assert_same_run(whole, again)


@pytest.mark.slow
@pytest.mark.usefixtures("changed_programs")
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_sound_checkpoint(
    tiny_config, monkeypatch
):
    original = compiled_steps.make_train_chunk

    def poisoned(*args):
        chunk = original(*args)

        def train_chunk(state, *inputs, steps):
            after, metrics = chunk(state, *inputs, steps=steps)
            at = state.step + jax.numpy.arange(steps) + 1
            return after, {**metrics, "loss": jax.numpy.where(at >= 8, np.nan, metrics["loss"])}

        return train_chunk

    monkeypatch.setattr(compiled_steps, "make_train_chunk", poisoned)
    message = r"not finite \(nan\) at step 8; .* that of step 4 stays"
    with pytest.raises(TrainingError, match=message):
        train(tiny_config)
    assert checkpoints.steps(Path(tiny_config.run_dir)) == [4]
    assert gpt_jax.load_run(tiny_config.run_dir).step == 4


SPIKES = {"train.on_divergence": "skip", "train.spike": 1.003, "optim.learning_rate": 1e-6}


@pytest.mark.slow
def test_a_spike_stops_a_run_or_is_left_out_and_counted(tiny_config, tmp_path, capsys):
    """Where nothing is learned a loss 3 in a thousand above those before is not rare."""
    stops = {**SPIKES, "train.on_divergence": "stop"}
    with pytest.raises(
        TrainingError, match=r"spike \(.*, and the limit .*\) at step \d+; of"
    ) as end:
        train(tiny_config, **stops, run_dir=str(tmp_path / "stops"))
    first = int(re.search(r"at step (\d+)", str(end.value))[1])
    run = gpt_jax.train(override(tiny_config, SPIKES))
    counts = {row["step"]: row["skipped"] for row in run.rows if "skipped" in row}
    named = re.findall(
        r"skipped updates \(non-finite or spiking\): step ([\d, ]+)", capsys.readouterr().out
    )
    steps = [int(step) for part in named for step in part.split(", ")]
    assert steps[0] == first
    assert len(steps) == sum(counts.values())
    assert {row for row in counts if counts[row]} == {step + step % 2 for step in steps}


@pytest.mark.slow
def test_a_run_that_skips_goes_on_bit_for_bit(tiny_config, finished_run, tmp_path):
    whole = finished_run(tiny_config, **SPIKES, run_dir=str(tmp_path / "whole"))
    assert sum(row.get("skipped", 0) for row in whole.rows)
    for _ in range(2):  # after the first chunk and after the second
        with pytest.raises(OutOfTime):
            train(tiny_config, **SPIKES, **{"train.max_minutes": 1e-9})
    assert_same_run(train(tiny_config, **SPIKES), whole)


@pytest.mark.slow
def test_a_run_all_of_whose_steps_are_skipped_ends(tiny_config):
    with pytest.raises(TrainingError, match=r"not finite .* step"):
        train(tiny_config, **{"optim.learning_rate": 1e38, "train.on_divergence": "skip"})


@pytest.mark.slow
# What tensorstore still writes when orbax gives a save up finds its event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", [6, 8, 12])
def test_a_run_whose_folder_goes_away_ends_in_one_line(tiny_config, monkeypatch, step):
    """Before an evaluation, before a save, and after the last step."""
    run_dir = Path(tiny_config.run_dir)
    log = MetricsWriter.write

    def write(self, row):
        log(self, row)
        if row["step"] == step:
            shutil.rmtree(run_dir, ignore_errors=True)

    monkeypatch.setattr(MetricsWriter, "write", write)
    with pytest.raises(TrainingError, match="was removed or replaced while it was trained"):
        train(tiny_config)
    assert not (run_dir / "config.json").exists()
    gc.collect()  # what is left of the save warns here, not in the next test


@pytest.mark.slow
def test_a_real_divergence_is_found(tiny_config):
    with pytest.raises(TrainingError, match=r"not finite .* step"):
        train(tiny_config, **{"optim.learning_rate": 1e38})
    rows = read_rows(Path(tiny_config.run_dir))
    assert all(np.isfinite(row.get("loss", 0.0)) for row in rows)


@pytest.mark.slow
def test_a_finished_run_whose_last_checkpoint_is_damaged_is_finished_again(
    tiny_config, finished_run, tmp_path
):
    run = finished_run(tiny_config)
    metadata = next((run.run_dir / "checkpoints" / "00000012").rglob("_METADATA"))
    metadata.write_bytes(metadata.read_bytes() + b"x")
    again = train(tiny_config)
    assert again.step == 12
    assert_same_run(again, finished_run(tiny_config, run_dir=str(tmp_path / "other")))


@pytest.mark.slow
def test_a_summary_of_fewer_steps_is_not_the_runs(tiny_config, finished_run, monkeypatch):
    finished_run(tiny_config)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finalize", lambda *args: None)  # killed after its last checkpoint
        train(tiny_config, **{"train.steps": 16})
    run = gpt_jax.load_run(tiny_config.run_dir)
    assert (run.step, run.summary) == (16, {})
    assert train(tiny_config, **{"train.steps": 16}).summary["step"] == 16


@pytest.mark.slow
def test_a_kill_between_more_steps_and_the_first_of_them_loses_nothing(
    tiny_config, finished_run, tmp_path, monkeypatch
):
    longer = finished_run(tiny_config, run_dir=str(tmp_path / "longer"), **{"train.steps": 20})
    finished_run(tiny_config)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config, **{"train.steps": 20})
    with pytest.raises(ConfigError, match=r"train.steps is 20 there and 12 here"):
        train(tiny_config)
    assert_same_run(longer, train(tiny_config, **{"train.steps": 20}))


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_names_with_dollars_and_chinese_are_only_names(tiny_config, book, tmp_path, recwarn):
    odd = tmp_path / "中文$x^$.txt"
    book.rename(odd)
    run = train(tiny_config, run_dir=str(tmp_path / "a$b^$c"), **{"data.corpus": str(odd)})
    assert (run.run_dir / "loss.svg").stat().st_size > 1000
    assert not recwarn.list


def test_the_picture_names_its_axes_and_units(tmp_path):
    plots.plot_losses([{"step": 0, "train_loss": 2.5, "val_loss": 2.6}], tmp_path, "a run")
    svg = (tmp_path / "loss.svg").read_text("utf-8")
    for text in (
        "optimizer step",
        "cross-entropy loss (nats per token)",
        "train, now",
        "validation",
    ):
        assert f">{text}" in svg


@pytest.mark.slow
def test_training_works_inside_a_running_event_loop(tiny_config):
    import asyncio

    async def notebook():
        return train(tiny_config)

    assert asyncio.run(notebook()).step == 12


@pytest.mark.slow
def test_a_full_disk_outside_a_checkpoint_is_one_line(tiny_config, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.MetricsWriter, "write", full)
    with pytest.raises(TrainingError, match=r"cannot write the run .*: No space left on device"):
        train(tiny_config)


@pytest.mark.slow
def test_two_processes_do_not_train_one_run(tiny_config, finished_run):
    finished_run(tiny_config)
    with storage.lock(Path(tiny_config.run_dir)), pytest.raises(UserError, match="another process"):
        train(tiny_config, **{"train.steps": 14})


def test_a_folder_of_other_files_is_refused_and_untouched(tiny_config):
    folder = Path(tiny_config.run_dir)
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds other files \(thesis.txt\) and no config.json"):
        train(tiny_config)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_steps_that_no_chunk_divides(tiny_config):
    values = {"train.steps": 7, "train.log_interval": 4}
    run = train(tiny_config, **values)
    assert [row["step"] for row in read_rows(run.run_dir)] == [0, 4, 7]
    assert run.step == 7


@pytest.mark.slow
def test_the_state_is_freed_before_the_exact_evaluation(tiny_config, monkeypatch):
    """The parameters are loaded again for it: beside them no others may be in memory."""
    made, of_state = [], trainer.Trainer.restore_or_initialize

    def restore_or_initialize(self):
        of_state(self)
        made.append(weakref.ref(self))

    def finalize(*args):
        made.append(made[0]())

    monkeypatch.setattr(trainer.Trainer, "restore_or_initialize", restore_or_initialize)
    monkeypatch.setattr(trainer, "finalize", finalize)
    train(tiny_config)
    assert made[1] is None


@pytest.mark.slow
def test_signals_are_put_back_and_work_outside_the_main_thread(tiny_config):
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=train, args=(tiny_config,))
    thread.start()
    thread.join()
    assert gpt_jax.load_run(tiny_config.run_dir).step == 12
    train(tiny_config, **{"train.steps": 14})
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_signal_saves_and_says_how_to_go_on(tiny_config, monkeypatch):
    write = trainer.MetricsWriter.write

    def interrupting(self, row):
        write(self, row)
        if row["step"] == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.MetricsWriter, "write", interrupting)
        message = r"SIGINT: saved at step \d+ of 12; run the same command to resume"
        with pytest.raises(Interrupted, match=message):
            train(tiny_config)
    assert checkpoints.steps(Path(tiny_config.run_dir))[-1] in (4, 6, 8)
    assert train(tiny_config).step == 12


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 4])
def test_ctrl_c_while_compiling_says_so_and_ends_before_a_step(
    tiny_config, monkeypatch, capsys, step
):
    """What is compiled here never is: a run that waits for it fails."""
    if step:
        train(tiny_config, **{"train.steps": step})
    what = "chunk_program" if step else "evaluation_program"

    def never(self, *args):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        program = Future()
        late = threading.Timer(60, program.set_exception, (AssertionError("it was waited for"),))
        late.daemon = True
        late.start()
        return program

    with monkeypatch.context() as patch:
        patch.setattr(compiled_steps.CompiledSteps, "compile_ahead", lambda *args, **kwargs: None)
        patch.setattr(compiled_steps.CompiledSteps, what, never)
        with pytest.raises(Interrupted) as ended:
            gpt_jax.train(tiny_config)
    said = "saved at step 4 of 12; run the same command to resume"
    if step == 0:
        said = "stopped before the first step; run the same command to start again"
    assert str(ended.value) == f"SIGINT: {said}"
    doing = "compiling the training step" if step else "compiling the evaluation"
    out = capsys.readouterr().out
    assert f"{doing}: stopping before the first step; once more to stop at once\n" in out
    assert train(tiny_config).step == 12


@pytest.mark.slow
def test_a_run_out_of_time_saves_and_goes_on_the_same(tiny_config, finished_run, tmp_path):
    """Stopped after each of three chunks, it ends with the numbers of a run left alone."""
    whole = finished_run(tiny_config, run_dir=str(tmp_path / "whole"))
    stops = [0]
    while stops[-1] < 6:
        with pytest.raises(OutOfTime, match=r"^1e-09 minutes are over: saved at step \d+ of 12"):
            train(tiny_config, **{"train.max_minutes": 1e-9})
        stops.append(checkpoints.steps(Path(tiny_config.run_dir))[-1])
    assert stops == [0, 2, 4, 6]
    parts = train(tiny_config, **{"train.max_minutes": 60.0})
    assert_same_run(parts, whole)


@pytest.mark.slow
def test_checkpoints_are_kept_and_read_by_step_and_by_loss(tiny_config):
    keep = {"train.keep_checkpoints": 1, "train.keep_interval": 4, "train.checkpoint_interval": 2}
    run = train(tiny_config, **keep)
    losses = {row["step"]: row["val_loss"] for row in run.rows if "val_loss" in row}
    best = min((4, 8, 12), key=lambda step: losses[step])
    assert checkpoints.steps(run.run_dir) == [4, 8, 12]
    assert gpt_jax.load_run(run.run_dir, "best").step == best
    early = gpt_jax.load_run(run.run_dir, 4)
    assert (early.step, early.summary) == (4, {})
    split = gpt_jax.evaluate(early).record()
    assert split["nats_per_token"] != run.summary["val"]["nats_per_token"]
    with pytest.raises(UserError, match=r"no checkpoint of step 6; it has those of 4, 8, 12 \(see"):
        gpt_jax.load_run(run.run_dir, 6)
    on = {"train.steps": 14, "train.keep_interval": None, "train.keep_best": False}
    train(tiny_config, **{**keep, **on})
    assert checkpoints.steps(run.run_dir) == [14]
    path = run.run_dir / "checkpoints" / "00000014.json"
    path.write_text(re.sub(r'"val_loss": [^,]*', '"val_loss": null', path.read_text()))
    with pytest.raises(UserError, match="no checkpoint of an evaluated step; it has those of 14"):
        gpt_jax.load_run(run.run_dir, "best")


BPE = {"data.tokenizer": "bpe", "data.vocab_size": 280}


@pytest.mark.slow
def test_a_run_of_byte_pairs_from_corpus_to_text(tiny_config, tmp_path):
    book = tmp_path / "cyrillic.txt"
    book.write_text("страшила и дровосек 😀 " * 80, encoding="utf-8")
    run = train(tiny_config, **BPE, **{"data.corpus": str(book)})
    assert run.config.model.vocab_size == 280
    val = run_val_text(run).encode()
    tokens = run.tokenizer.encode(val.decode())
    exact = run.summary["val"]
    assert exact["tokens_predicted"] == len(tokens) - 1
    assert exact["bytes_predicted"] == len(val) - len(run.tokenizer.decode_bytes(tokens[:1]))
    bits = exact["nats_per_token"] * (len(tokens) - 1) / np.log(2)
    assert exact["bits_per_byte"] == pytest.approx(bits / exact["bytes_predicted"])
    row = read_rows(run.run_dir)[-1]
    assert row["val_bpb"] == pytest.approx(row["val_loss"] / np.log(2) * len(tokens) / len(val))
    assert gpt_jax.evaluate(gpt_jax.load_run(run.run_dir)).record() == exact
    prompt = "奥兹 😀\0\r\n"
    assert gpt_jax.generate(run, prompt, max_new_tokens=40).startswith(prompt)


@pytest.mark.slow
def test_a_run_of_byte_pairs_goes_on_as_if_never_interrupted(tiny_config, finished_run, tmp_path):
    whole = train(tiny_config, **BPE, **{"train.steps": 16})
    other = {"run_dir": str(tmp_path / "other")}
    finished_run(tiny_config, **BPE, **other)
    assert_same_run(whole, train(tiny_config, **BPE, **other, **{"train.steps": 16}))
    message = r"data.tokenizer is bpe there and char here; data.vocab_size is 280 there and None"
    with pytest.raises(ConfigError, match=message):
        train(tiny_config, **other)


@pytest.mark.slow
def test_a_run_of_gpt2s_tokens_is_read_without_them(
    tiny_config, gpt2_files, no_vocabularies, monkeypatch, tmp_path
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    values = {"data.tokenizer": "gpt2", "train.micro_batch": 8}  # also of the exact evaluation
    run = train(tiny_config, **values, **{"train.steps": 2})
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    assert gpt_jax.evaluate(gpt_jax.load_run(run.run_dir)).record() == run.summary["val"]
    assert train(tiny_config, **values, **{"train.steps": 4}).step == 4


@pytest.mark.slow
def test_a_text_shows_a_character_with_the_last_of_its_tokens(
    tiny_config, finished_run, monkeypatch
):
    run = finished_run(tiny_config, **BPE)
    rows = [[run.tokenizer.tokens.index(bytes([b])) for b in t.encode()] for t in ("a😀", "éé€")]
    rows[1] = rows[1][:5]
    tokens_BT = np.array(rows, np.int32)
    monkeypatch.setattr(
        "gpt_jax.inference.generation.generate_tokens",
        lambda *args, **kwargs: np.split(tokens_BT, 5, axis=1),
    )
    settings = dataclasses.replace(run.config.sample, num_samples=2)
    assert list(gpt_jax.stream(run, "the", settings)) == [
        ["a", ""], ["", "é"], ["", ""], ["", "é"], ["😀", ""], ["", "\ufffd"]
    ]  # fmt: skip


# --- prepared corpora -----------------------------------------------------------------------------

LETTERS = CharTokenizer("\n abcdefgé")


def prepare(folder, seed=0, tokenizer=LETTERS, shards=2, n=400):
    """A prepared folder of random letters: `n` tokens to train on, 90 to validate."""
    folder.mkdir()
    writer = ShardWriter(folder, tokenizer, n // shards)
    ids = np.random.default_rng(seed).integers(0, tokenizer.vocab_size, n + 90)
    writer.append("train", ids[:n])
    writer.append("val", ids[n:])
    writer.finish("char", {"train": 3, "val": 1})
    return folder


def val_bytes(folder):
    return open_shards(folder).n_bytes["val"]


@pytest.mark.slow
@pytest.mark.usefixtures("own_compiler_options")  # to the bit, by two programs
@pytest.mark.parametrize("order", ["random", "epochs"])
def test_a_prepared_corpus_trains_alike_from_device_and_host_and_goes_on(
    tiny_config, tmp_path, order
):
    values = {"data.corpus": str(prepare(tmp_path / "corpus")), "data.order": order}
    whole = train(tiny_config, **values, **{"train.steps": 16, "data.resident": "device"})
    assert whole.config.model.vocab_size == LETTERS.vocab_size
    assert whole.tokenizer.to_json() == LETTERS.to_json()
    other = {**values, "run_dir": str(tmp_path / "other"), "train.steps": 16}
    train_until(10, tiny_config, **other, **{"data.resident": "host"})
    (tmp_path / "corpus").rename(tmp_path / "moved")
    moved = {"data.corpus": str(tmp_path / "moved"), "sample.prompt": None}
    assert_same_run(whole, train(tiny_config, **{**other, **moved, "data.resident": "host"}))


@pytest.mark.slow
def test_bits_a_byte_of_a_prepared_corpus_count_its_bytes(tiny_config, tmp_path, capsys):
    folder = prepare(tmp_path / "corpus")
    run = train(tiny_config, **{"data.corpus": str(folder), "train.final_eval_tokens": 50})
    row = read_rows(run.run_dir)[-1]
    bits = row["val_loss"] / np.log(2)
    assert row["val_bpb"] == pytest.approx(bits * 90 / val_bytes(folder))
    exact = run.summary["val"]
    (val,) = open_shards(folder).shards["val"]
    assert (exact["tokens_predicted"], exact["of_tokens"]) == (50, 89)
    assert exact["bytes_predicted"] == LETTERS.token_bytes[val[1:51]].sum()
    limited = gpt_jax.evaluate(run, max_tokens=50)
    assert limited.record() == exact
    assert "(the first 50 of 89 tokens, " in str(limited)
    assert "of_tokens" not in gpt_jax.evaluate(run).record()
    with pytest.raises(ConfigError, match="max_tokens=0 must be at least 1"):
        gpt_jax.evaluate(run, max_tokens=0)
    again = override(tiny_config, {"run_dir": run.run_dir.as_posix() + "2",
        "data.corpus": str(folder), "train.final_eval_tokens": 50, "train.steps": 2})  # fmt: skip
    gpt_jax.train(again)
    out = capsys.readouterr().out
    assert "part of the validation split: " in out
    assert "corpus, 490 tokens, from " in out
    assert "random, cut from tokens on each device" in out


@pytest.mark.slow
def test_the_exact_evaluation_of_shards_is_that_of_each(tiny_config, tmp_path):
    """The first token of each of the 2 training shards has nothing before it."""
    folder = prepare(tmp_path / "corpus")
    run = train(tiny_config, **{"data.corpus": str(folder), "train.steps": 2})
    both = gpt_jax.evaluate(run, split="train")
    token_bytes = run.tokenizer.token_bytes
    each = [
        evaluate_split(
            run.config.model, run.params, Dataset.from_shards((shard,), None), token_bytes
        )
        for shard in open_shards(folder).shards["train"]
    ]
    assert [part.tokens for part in each] == [199, 199]
    assert both.tokens == 398
    assert both.n_bytes == sum(part.n_bytes for part in each)
    mean = sum(part.nats_per_token for part in each) / 2
    assert both.nats_per_token == pytest.approx(mean, rel=1e-12)  # sums in float64


@pytest.mark.slow
def test_a_mixture_is_trained_on_and_evaluated_by_its_shares(tiny_config, tmp_path, monkeypatch):
    first, second = prepare(tmp_path / "a,b:2"), prepare(tmp_path / "c", seed=1, n=800)
    monkeypatch.chdir(tmp_path)
    name = f"a,b:2:3,{second}:1"
    run = train(tiny_config, **{"data.corpus": name})
    assert run.config.data.corpus == f"{first}:3,{second}:1"
    assert [part["share"] for part in run.corpus["parts"]] == [0.75, 0.25]
    exact, (a, b) = run.summary["val"], run.summary["val"]["parts"]
    assert exact["nats_per_token"] == 0.75 * a["nats_per_token"] + 0.25 * b["nats_per_token"]
    per_token = [part["bytes_predicted"] / part["tokens_predicted"] for part in (a, b)]
    by_hand = exact["nats_per_token"] / np.log(2) / (0.75 * per_token[0] + 0.25 * per_token[1])
    assert exact["bits_per_byte"] == pytest.approx(by_hand)
    row = read_rows(run.run_dir)[-1]
    mean_bytes = (0.75 * val_bytes(first) + 0.25 * val_bytes(second)) / 90
    assert row["val_bpb"] == pytest.approx(row["val_loss"] / np.log(2) / mean_bytes)
    assert train(tiny_config, **{"data.corpus": name, "train.steps": 14}).step == 14
    with pytest.raises(UserError, match="not the same tokens; name the old one"):
        train(tiny_config, **{"data.corpus": f"{first}:1,{second}:1", "train.steps": 16})
    with pytest.raises(ConfigError, match=r"data.order=epochs is for one corpus.*use data.order=r"):
        train(tiny_config, **{"data.corpus": name, "data.order": "epochs", "run_dir": "other"})


@pytest.mark.slow
def test_a_changed_prepared_corpus_is_refused(tiny_config, tmp_path):
    values = {"data.corpus": str(prepare(tmp_path / "one")), "train.steps": 2}
    run = train(tiny_config, **values)
    changed = {"data.corpus": str(prepare(tmp_path / "two", seed=1)), "train.steps": 4}
    with pytest.raises(UserError, match="not the same tokens; name the old one"):
        train(tiny_config, **changed)
    with pytest.raises(UserError, match="not the same tokens"):
        gpt_jax.evaluate(run, corpus_name=changed["data.corpus"])


@pytest.mark.slow
def test_a_folder_of_nanogpt_trains_as_it_is(
    tiny_config, tmp_path, gpt2_files, monkeypatch, no_vocabularies
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    folder = tmp_path / "owt"
    folder.mkdir()
    ids = {"train": np.arange(300) * 97 % 50_257, "val": np.array([50_256, *range(40)])}
    for split, part in ids.items():
        (folder / f"{split}.bin").write_bytes(part.astype("<u2").tobytes())
    values = {"data.corpus": str(folder), "train.steps": 2, "train.micro_batch": 8}
    run = train(tiny_config, **values)
    assert run.config.model.vocab_size == 50_257
    assert "<|endoftext|>" not in run.config.sample.prompt
    row, sizes = read_rows(run.run_dir)[-1], run.tokenizer.token_bytes
    per_token = sizes[ids["val"]].sum() / 41
    assert row["val_bpb"] == pytest.approx(row["val_loss"] / np.log(2) / per_token)
    # The run has the vocabulary: nothing is downloaded for it again.
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    assert gpt_jax.evaluate(gpt_jax.load_run(run.run_dir)).record() == run.summary["val"]
    assert train(tiny_config, **{**values, "train.steps": 4}).step == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"data.tokenizer": "gpt2"},
            "data.tokenizer=gpt2 is for a text, and .*leave data.tok",
        ),
        ({"model.block_size": 90}, "too short: its longest shard for val has 90 tokens.*needs 91"),
    ],
)
def test_settings_that_do_not_fit_a_prepared_corpus_are_refused(
    tiny_config, tmp_path, values, message
):
    folder = prepare(tmp_path / "corpus")
    with pytest.raises(UserError, match=message):
        train(tiny_config, **{"data.corpus": str(folder)}, **values)
    assert not Path(tiny_config.run_dir).exists()


# --- the real command, killed for real ------------------------------------------------------------


MAIN, FAST = ROOT / "main.py", Path(__file__).with_name("fast_main.py")


def command(run_dir, book, *more, program=FAST):
    # fmt: off
    return [
        sys.executable, str(program), "--config", "nano", "--run-dir", str(run_dir),
        "--data.corpus", str(book), "--model.n-layer", "1", "--model.n-embd", "16",
        "--model.n-head", "2", "--model.block-size", "8", "--train.batch-size", "4",
        "--train.steps", "240", "--train.eval-interval", "20", "--train.eval-batches", "2",
        "--train.checkpoint-interval", "20", "--sample.max-new-tokens", "5", "--mesh.data", "2",
        *more,
    ]
    # fmt: on


def train_here(run_dir, book, *more):
    """Runs `command` in this process. Other processes find its programs in the cache, and have its
    numbers if they have its environment.
    """
    assert main.main(command(run_dir, book, *more)[2:]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("own_compiler_options")
def test_killed_by_each_signal_the_command_goes_on_bit_for_bit(tmp_path, book, capsys):
    train_here(tmp_path / "a", book)
    rows, statuses = tmp_path / "b" / "metrics.jsonl", []
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        seen = rows.stat().st_size if rows.exists() else 0
        process = subprocess.Popen(
            command(tmp_path / "b", book, program=MAIN),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if rows.exists() and rows.stat().st_size > seen + 300:
                break
            time.sleep(0.005)
        process.send_signal(signum)
        _, err = process.communicate(timeout=120)
        statuses.append(process.returncode)
        if signum in (signal.SIGTERM, signal.SIGINT) and process.returncode:
            assert b"saved at step" in err
    assert statuses[0] == -signal.SIGKILL
    assert set(statuses) <= {-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT, 0}
    capsys.readouterr()
    train_here(tmp_path / "b", book)
    out = capsys.readouterr().out
    assert "finished" in out or "losses over the steps" in out
    assert_same_run(gpt_jax.load_run(tmp_path / "a"), gpt_jax.load_run(tmp_path / "b"))


@pytest.mark.slow
def test_the_commands_from_corpus_to_text(tmp_path, book):
    """train, sample and eval as a user types them, with plain lines where there is no terminal."""
    trained = subprocess.run(
        command(tmp_path / "r", book, "--train.steps", "40", program=MAIN),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    out = trained.stdout
    for expected in ("corpus", "sha256", "parameters", "devices", "tokens;", "whole validation"):
        assert expected in out
    assert "\x1b" not in out
    assert "\r" not in out
    (line,) = (line for line in out.splitlines() if line.startswith("a page that shows it: "))
    assert line.endswith(f"main.py report {tmp_path / 'r'}")
    evaluated = subprocess.run(
        [sys.executable, ROOT / "main.py", "eval", "--run-dir", tmp_path / "r", "--json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    record = json.loads(evaluated.stdout)
    for key in ("nats_per_token", "perplexity", "bits_per_byte", "tokens_predicted"):
        assert record[key] == summary["val"][key]
    sampled = subprocess.run(
        [
            sys.executable, ROOT / "main.py", "sample", "--run-dir", tmp_path / "r",
            "--max-new-tokens", "30", "--temperature", "0", "--num-samples", "2",
            "--prompt", "-",
        ],
        check=True, capture_output=True, text=True, input="the wizard\n",
    )  # fmt: skip
    first, second = sampled.stdout.split("\n--- 2 ---\n")
    assert first.rstrip("\n") == second.rstrip("\n")  # greedy: both the same
    assert first.startswith("the wizard")
    assert len(first.rstrip("\n")) == len("the wizard") + 30


# Run before the program, in its process: a disk that is full, as no file grows beyond 60 kB, less
# than a checkpoint's largest; and root, as which tests may run, without the power to write where no
# one may (prctl's PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH).
HARMS = {
    "full": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))",
    "read-only": "import ctypes; p = ctypes.CDLL(None).prctl; p(24, 1, 0, 0, 0); p(24, 2, 0, 0, 0)",
}


LARGE = ("--model.n-embd", "64", "--train.steps", "100")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Returns undisturbed(book): the run of LARGE that no disk disturbs, trained once."""

    @functools.cache
    def trained(text):
        folder = tmp_path_factory.mktemp("undisturbed")
        (folder / "book.txt").write_bytes(text)
        train_here(folder / "run", folder / "book.txt", *LARGE)
        return gpt_jax.load_run(folder / "run")

    return lambda book: trained(book.read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits and capabilities")
@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_disk_that_takes_no_more_is_one_line_and_nothing_is_lost(
    tmp_path, book, undisturbed, what
):
    run_dir = tmp_path / "run"

    def start_harmed():
        words = command(run_dir, book, *LARGE)
        harm = "; import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        return subprocess.Popen(
            [sys.executable, "-c", HARMS[what] + harm, *words[1:]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def fail(process):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 1, out + err
        return err

    if what == "full":
        train_here(run_dir, book, *LARGE, "--train.steps", "40")
        err = fail(start_harmed())
    else:
        process = start_harmed()
        while not checkpoints.steps(run_dir):
            assert process.poll() is None
            time.sleep(0.01)
        (run_dir / "checkpoints").chmod(0o555)
        err = fail(process)
        (run_dir / "checkpoints").chmod(0o755)
    (line,) = err.splitlines()
    assert line.startswith(f"error: cannot save a checkpoint in {run_dir}/checkpoints: ")
    assert ("File too large" if what == "full" else "ermission denied") in line
    kept = max(checkpoints.steps(run_dir))
    assert f"the last valid one is {kept}" in line
    assert gpt_jax.load_run(run_dir).step == kept
    train_here(run_dir, book, *LARGE)
    ours, theirs = gpt_jax.load_run(run_dir), undisturbed(book)
    assert ours.step == 100
    assert_same_run(ours, theirs)


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_training(tmp_path, book):
    process = subprocess.Popen(
        command(tmp_path / "r", book, "--train.steps", "40"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.stdout.close()  # as in `| head -1`
    assert process.wait(timeout=120) == 0, process.stderr.read()
    process.stderr.close()
    assert gpt_jax.load_run(tmp_path / "r").summary["step"] == 40


# --- what a machine can't do ----------------------------------------------------------------------


@pytest.mark.slow
def test_how_attention_is_computed_is_said_with_the_reason(tiny_config, capsys):
    gpt_jax.train(tiny_config)
    reason = "fused is for NVIDIA GPUs and TPUs, and this is cpu"
    assert f"\nattention  plain ({reason})\n" in capsys.readouterr().out
    fused = {"model.attention": "fused", "model.dropout": 0.0, "run_dir": tiny_config.run_dir + "2"}
    with pytest.raises(ConfigError, match=rf"model.attention=fused can't be: {reason}; .*=auto$"):
        train(tiny_config, **fused)
    assert not Path(tiny_config.run_dir + "2").exists()


def test_a_batch_too_large_for_the_machine_is_refused_before_a_folder_is_made(tiny_config):
    with pytest.raises(UserError, match=r"^training needs at least .* try --train.batch-size \d+$"):
        train(tiny_config, **{"train.batch_size": 10**9})
    assert not Path(tiny_config.run_dir).exists()


@pytest.mark.slow
def test_a_device_without_memory_left_is_one_line(tiny_config, monkeypatch):
    def fail(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nx")

    monkeypatch.setattr(compiled_steps.CompiledSteps, "init_state", fail)
    with pytest.raises(
        TrainingError, match=r"^the memory is too small: .* 9 bytes.; .*--model"
    ) as e:
        train(tiny_config)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_run_may_go_on_in_the_way_that_another_machine_needs(tiny_config, finished_run, tmp_path):
    """How attention and gradients are computed changes rounding only: the masks stay."""
    whole = finished_run(tiny_config)
    other = {"run_dir": str(tmp_path / "other")}
    train(tiny_config, **other, **{"train.steps": 8})
    ways = {"model.attention": "plain", "model.remat": "full", "train.loss_chunk": 16}
    ways |= {"train.micro_batch": 4}
    run = train(tiny_config, **other, **ways)
    assert run.config == override(whole.config, {**other, **ways})
    assert gpt_jax.load_run(run.run_dir).config == run.config
    # Other masks, or another batch, would move the last losses by some 1e-2.
    for a, b in zip(read_rows(whole.run_dir), read_rows(run.run_dir), strict=True):
        assert a["step"] == b["step"]
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-5)
    assert train(tiny_config, **other, **{"train.steps": 14}).config.model.remat == "none"


@pytest.mark.slow
def test_a_run_with_every_saving_trains_and_resumes(tiny_config, tmp_path):
    """bfloat16, what blocks computed computed again, the loss in chunks, a batch in parts."""
    savings = {
        "model.dtype": "bfloat16",
        "model.remat": "full",
        "train.loss_chunk": 16,
        "train.micro_batch": 4,
    }
    whole = train(tiny_config, **savings)
    other = {**savings, "run_dir": str(tmp_path / "other")}
    train(tiny_config, **other, **{"train.steps": 8})
    assert_same_run(whole, train(tiny_config, **other))
    assert whole.rows[-1]["val_loss"] < whole.rows[0]["val_loss"]
    assert {x.dtype for x in jax.tree.leaves(whole.params)} == {np.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("resident", ["device", "host"])
def test_fixed_evaluations_differ_by_what_was_learned_alone(tiny_config, tmp_path, resident):
    """With a learning rate that changes no parameter, all evaluations are equal, or none are."""
    still = {"optim.learning_rate": 1e-30, "optim.weight_decay": 0.0, "data.resident": resident}
    losses = {}
    for fixed in (True, False):
        values = {**still, "train.eval_fixed": fixed, "run_dir": str(tmp_path / f"{fixed}")}
        run = train(tiny_config, **values)
        rows = [row for row in run.rows if "val_loss" in row]
        losses[fixed] = [(row["train_loss"], row["val_loss"]) for row in rows]
    assert len(losses[True]) == 4
    assert len(set(losses[True])) == 1
    assert len(set(losses[False])) == 4
    assert losses[True][0] == losses[False][0]
