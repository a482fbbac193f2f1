"""What trackers are told of a run; a stand-in first, then the real packages, without a network."""

import functools
import importlib.util
import json
import sqlite3
import warnings

import fake_tracker
import pytest
from fake_runs import write_run

import main
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.run.metrics import read_rows
from gpt_jax.training.trackers import TrackedRuns, Trackers, check_trackers

# A picture of one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154"
    "78da63f8ffff3f0005fe02fea7359981000000004945 4e44ae426082".replace(" ", "")
)


@pytest.fixture
def run_dir(tmp_path):
    folder = write_run(tmp_path / "run", settings={"train.steps": 100})
    (folder / "samples.txt").write_text("=== step 100\nOnce", "utf-8")
    (folder / "loss.png").write_bytes(PNG)
    return folder


@pytest.fixture
def tracker(monkeypatch):
    return functools.partial(fake_tracker.use, monkeypatch)


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
    shown = capsys.readouterr().err.replace("begun\n", "")
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


def test_runs_of_a_group_go_on_side_by_side(tracker, tmp_path, capsys):
    """As the members of a sweep do: each ends alone, and what goes on has no results."""
    modules = [tracker(name) for name in ("wandb", "trackio")]
    a, b = (write_run(tmp_path / "sweep" / name) for name in ("a", "b"))
    with TrackedRuns(["wandb", "trackio"], tmp_path / "sweep") as tracked:
        for row in read_rows(a):
            tracked.on_row(a, row)
            if row["step"] < 200:
                tracked.on_row(b, row)
        tracked.on_end(a)
        tracked.on_end(a)
    out = capsys.readouterr().out
    assert out == ""  # which may be a result as JSON
    key = json.loads((tmp_path / "sweep" / "trackers.json").read_text("utf-8"))["id"]
    for module in modules:
        assert [how["group"] for how in module.begun] == [f"sweep-{key}"] * 2
        steps = {name.partition("-")[0]: steps for name, steps in module.of_runs.items()}
        assert steps == {"a": [0, 100, 200, 300, 400, 500, 500], "b": [0, 100]}
        assert module.finished == 2
    assert [how.get("reinit") for how in modules[0].begun] == ["create_new"] * 2
    with TrackedRuns(["wandb"], tmp_path / "sweep") as tracked:  # as a sweep that continues
        tracked.on_row(b, {"step": 200, "loss": 1.0})
    assert modules[0].begun[-1]["group"] == f"sweep-{key}"
    (tmp_path / "sweep" / "trackers.json").write_text("{")
    with TrackedRuns(["wandb"], tmp_path / "sweep") as tracked:
        tracked.on_row(b, {"step": 300, "loss": 1.0})
    assert "warning: wandb is told no more, and the run goes on" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_one_warning_of_a_whole_group(tracker, tmp_path, capsys, what):
    broken, sound = tracker("wandb", [what]), tracker("trackio")
    with TrackedRuns(["wandb", "trackio"], tmp_path) as tracked:
        for name in ("a", "b"):
            run_dir = write_run(tmp_path / name)
            for row in read_rows(run_dir):
                tracked.on_row(run_dir, row)
            tracked.on_end(run_dir)
    shown = capsys.readouterr().err.replace("begun\n", "")
    assert shown.count("\n") == shown.count("warning: wandb is told no more") == 1
    assert len(broken.begun) == (what != "init")
    assert (len(sound.begun), sound.finished, len(sound.rows)) == (2, 2, 14)


def real(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install -r requirements-track.txt")


def track_group(tmp_path, name):
    """Tracks two runs of a group side by side; returns the group's name."""
    run_dirs = [write_run(tmp_path / "sweep" / run, settings={"train.steps": 100}) for run in "ab"]
    with TrackedRuns([name], tmp_path / "sweep") as tracked:
        for row in read_rows(run_dirs[0]):
            for run_dir in run_dirs:
                tracked.on_row(run_dir, row)
        for run_dir in run_dirs:
            tracked.on_end(run_dir)
    return f"sweep-{json.loads((tmp_path / 'sweep' / 'trackers.json').read_text('utf-8'))['id']}"


@pytest.mark.slow
def test_wandb_itself_without_a_network(run_dir, tmp_path, monkeypatch, capsys):
    """A run, then two of a group; the package reads the environment once."""
    real("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        track(run_dir, "wandb")
        (file,) = (tmp_path / "wandb").rglob("run-*.wandb")
        group = track_group(tmp_path, "wandb").encode()
    assert "warning: wandb" not in capsys.readouterr().err
    written = file.read_bytes()
    for part in (b"val_loss", b"learning_rate", b"samples", b"losses", b"final/nats_per_token"):
        assert part in written, part
    assert list((tmp_path / "wandb").rglob("losses*.png"))
    others = [other.read_bytes() for other in (tmp_path / "wandb").rglob("run-*.wandb")]
    others.remove(written)
    assert len(others) == 2
    for written in others:
        for part in (group, b"val_loss", b"final/nats_per_token"):
            assert part in written, part


@pytest.mark.slow
def test_trackio_itself_without_a_network(run_dir, tmp_path, monkeypatch, capsys):
    """A run, then two of a group; the package reads the environment once."""
    real("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        track(run_dir, "trackio")
        group = track_group(tmp_path, "trackio")
    out, err = capsys.readouterr()
    assert out == ""
    assert "warning: trackio" not in err
    (file,) = (tmp_path / "trackio").rglob("gpt_jax.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
        configs = dict(database.execute("select run_name, config from configs").fetchall())
    steps: dict[str, set[int]] = {}
    for name, step, _ in rows:
        steps.setdefault(name, set()).add(step)
    assert sorted(name.partition("-")[0] for name in steps) == ["a", "b", "run"]
    assert list(steps.values()) == [{row["step"] for row in read_rows(run_dir)}] * 3
    text = " ".join(str(metrics) for name, _, metrics in rows if name.startswith("run"))
    for part in ("val_loss", "samples", "losses", "final/nats_per_token"):
        assert part in text, part
    groups = {name[0]: json.loads(config)["_Group"] for name, config in configs.items()}
    assert groups == {"r": None, "a": group, "b": group}
