"""What trackers are told of a run; a stand-in first, then the real packages, without a network."""

import importlib.machinery
import importlib.util
import json
import sqlite3
import sys
import types
import warnings

import pytest
from fake_runs import write_run

import main
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.run.metrics import read_rows
from gpt_jax.training.trackers import Trackers, check_trackers

# A picture of one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154"
    "78da63f8ffff3f0005fe02fea7359981000000004945 4e44ae426082".replace(" ", "")
)


class Module(types.ModuleType):
    """Stands in for a tracker; `fails` names what raises."""

    def __init__(self, name, fails=()):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.fails, self.begun, self.rows, self.finished = set(fails), [], [], 0

    def init(self, **how):
        self._may_fail("init")
        self.begun.append(how)
        return self

    def log(self, values, step):
        self._may_fail("log")
        self.rows.append((step, values))

    def finish(self):
        self._may_fail("finish")
        self.finished += 1

    def Table(self, columns, data):
        return columns, data

    def Image(self, path):
        return f"image {path}"

    def _may_fail(self, what):
        if what in self.fails:
            raise OSError(f"no network\nfor {what}")


@pytest.fixture
def run_dir(tmp_path):
    folder = write_run(tmp_path / "run", settings={"train.steps": 100})
    (folder / "samples.txt").write_text("=== step 100\nOnce", "utf-8")
    (folder / "loss.png").write_bytes(PNG)
    return folder


@pytest.fixture
def tracker(monkeypatch):
    def make(name, fails=()):
        module = Module(name, fails)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


def track(run_dir, *names):
    with Trackers(names, run_dir) as trackers:
        for row in read_rows(run_dir):
            trackers.on_row(row)


def test_rows_settings_samples_and_pictures_are_logged(tracker, run_dir):
    wandb, trackio = tracker("wandb"), tracker("trackio")
    track(run_dir, "wandb", "trackio", "wandb")
    for module in (wandb, trackio):
        (begun,) = module.begun
        assert (begun["project"], begun["resume"]) == ("gpt_jax", "allow")
        assert begun["config"]["optim"]["learning_rate"] == 3e-4
        rows = read_rows(run_dir)
        numbers = [{k: v for k, v in row.items() if k != "step"} for row in rows]
        assert module.rows[:-1] == [(r["step"], n) for r, n in zip(rows, numbers, strict=True)]
        step, last = module.rows[-1]
        assert step == 100
        assert last["final/nats_per_token"] == 1.95
        assert last["samples"] == (["step", "text"], [[100, "=== step 100\nOnce"]])
        assert last["losses"] == f"image {run_dir / 'loss.png'}"
        assert module.finished == 1
    key = json.loads((run_dir / "trackers.json").read_text("utf-8"))["id"]
    assert wandb.begun[0]["id"] == key
    assert trackio.begun[0]["name"] == f"run-{key}"
    track(run_dir, "wandb")  # as a resumed run
    assert wandb.begun[1]["id"] == key


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_one_warning(tracker, run_dir, capsys, what):
    broken, sound = tracker("wandb", [what]), tracker("trackio")
    track(run_dir, "wandb", "trackio")
    shown = capsys.readouterr().err
    assert shown.count("\n") == shown.count("warning: ") == 1
    assert "wandb is told no more, and the run goes on (OSError: no network for" in shown
    assert len(sound.rows) == len(read_rows(run_dir)) + 1
    assert sound.finished == 1
    assert broken.finished == 0


def test_an_unfinished_run_sends_no_results(tracker, tmp_path):
    module = tracker("trackio")
    folder = write_run(tmp_path / "run", finished=False)
    trackers = Trackers(["trackio"], folder)
    trackers.on_row({"step": 10, "loss": 2.0, "numerics": {"jax": "1"}, "val_bpb": None})
    trackers.__exit__(KeyboardInterrupt)
    assert module.rows == [(10, {"loss": 2.0})]
    assert module.finished == 1


def test_unknown_and_missing_trackers_are_refused_before_work(monkeypatch, capsys, tmp_path):
    with pytest.raises(ConfigError, match="unknown tracker; did you mean wandb"):
        check_trackers(["wandbb"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--track trackio needs another package: pip install"):
        check_trackers(["trackio"])
    assert main.main(["--track", "wandb", "--run-dir", str(tmp_path / "run")]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def real(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install -r requirements-track.txt")


@pytest.mark.slow
def test_wandb_itself_without_a_network(run_dir, tmp_path, monkeypatch, capsys):
    real("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        track(run_dir, "wandb")
    assert "warning: wandb" not in capsys.readouterr().err
    (file,) = (tmp_path / "wandb").rglob("run-*.wandb")
    written = file.read_bytes()
    for part in (b"val_loss", b"learning_rate", b"samples", b"losses", b"final/nats_per_token"):
        assert part in written, part
    assert list((tmp_path / "wandb").rglob("losses*.png"))


@pytest.mark.slow
def test_trackio_itself_without_a_network(run_dir, tmp_path, monkeypatch, capsys):
    real("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        track(run_dir, "trackio")
    assert "warning: trackio" not in capsys.readouterr().err
    (file,) = (tmp_path / "trackio").rglob("gpt_jax.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert {step for step, _ in rows} == {row["step"] for row in read_rows(run_dir)}
    text = " ".join(str(metrics) for _, metrics in rows)
    for part in ("val_loss", "samples", "losses", "final/nats_per_token"):
        assert part in text, part
