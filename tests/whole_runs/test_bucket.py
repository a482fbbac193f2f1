"""Runs in a bucket (gs://), against an emulator of Google's storage on loopback."""

import json
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_hosts import MAIN, Hosts, rows_of, train_alone
from test_training import assert_same_run, train

import gpt_jax
import main
from gpt_jax import hf, storage
from gpt_jax.analysis.replay import replay
from gpt_jax.errors import UserError
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import is_run

SERVE = """
import logging, sys, time
from gcp_storage_emulator.server import create_server
logging.disable()
server = create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket")
server.start()
print("ready", flush=True)
time.sleep(3600)
"""


INTERVALS = (
    "--train.steps", "200", "--train.checkpoint-interval", "50", "--train.eval-interval", "50",
)  # fmt: skip


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket's URL; this process and those that it starts find the emulator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdout.readline() == b"ready\n"
    url = f"http://localhost:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)  # for gcsfs
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)  # for orbax
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # looks for credentials
        yield "gs://bucket"
    server.kill()
    server.communicate()


def names_below(folder):
    return {path.relative_to(folder).as_posix() for path in storage.files_below(folder)}


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_run_in_a_bucket_is_the_one_on_a_disk(tiny_config, bucket, capsys):
    here, there = train(tiny_config), train(tiny_config, run_dir=f"{bucket}/a/run")
    assert str(there.run_dir) == f"{bucket}/a/run"
    assert_same_run(here, there)
    assert there.summary == here.summary

    def lasting(names):  # orbax and TensorBoard choose names of their own
        return {name for name in names if "/" not in name and name != ".lock"}

    assert lasting(names_below(there.run_dir)) == lasting(names_below(here.run_dir))
    assert checkpoints.steps(there.run_dir) == checkpoints.steps(here.run_dir)
    assert any(name.startswith("tensorboard/events") for name in names_below(there.run_dir))
    assert not checkpoints.problem(checkpoints.path_of(there.run_dir, 12))
    assert (there.run_dir / "loss.png").read_bytes() == (here.run_dir / "loss.png").read_bytes()
    text = gpt_jax.generate(there, "the ", max_new_tokens=10)
    assert text == gpt_jax.generate(here, "the ", max_new_tokens=10)
    assert replay(there.run_dir, 7).loss == replay(here.run_dir, 7).loss
    gpt_jax.train(there.config)
    assert "Nothing was changed" in capsys.readouterr().out

    path = checkpoints.path_of(there.run_dir, 12)
    file = max(storage.files_below(path), key=lambda file: file.stat().length)
    raw = file.read_bytes()
    for harm in (raw[:-1] + bytes([raw[-1] ^ 1]), b"", None):
        if harm is None:
            file.unlink()
        else:
            file.write_bytes(harm)
        assert gpt_jax.load_run(there.run_dir).step == 8
        assert f"{path} is damaged: {file.relative_to(path)}" in capsys.readouterr().err
    assert_same_run(train(there.config), here)


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_after_a_refused_write_and_a_kill(
    tiny_config, finished_run, bucket, monkeypatch
):
    """What is there stays, and what a kill leaves behind is cleared."""
    run_dir = storage.to_folder(f"{bucket}/killed")
    (run_dir / "tokenizer.json").write_text("{")  # before config.json, which makes it a run
    run = train(tiny_config, run_dir=str(run_dir), **{"train.steps": 4})
    path = type(run_dir)
    write = path.write_bytes

    def refuse(path, raw):
        if path.name == "00000008.json":
            raise RuntimeError("403")
        return write(path, raw)

    monkeypatch.setattr(path, "write_bytes", refuse)
    with pytest.raises(gpt_jax.TrainingError, match="RuntimeError: 403; the last valid one is 4"):
        train(tiny_config, run_dir=str(run_dir))
    monkeypatch.undo()
    left = run_dir / "checkpoints" / "00000010"
    (left / "state" / "d").write_text("half")
    on = train(tiny_config, run_dir=str(run_dir))
    assert not (left / "state" / "d").exists()
    assert is_run(run.run_dir)
    assert_same_run(on, finished_run(tiny_config))
    other = storage.to_folder(f"{bucket}/other")
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\)"):
        train(tiny_config, run_dir=str(other))


@pytest.mark.slow
def test_a_branch_in_a_bucket_is_the_one_on_a_disk(tiny_config, finished_run, bucket, capsys):
    """Between two checkpoints of a parent there; then the parent may go, and the branch resumes."""
    here = finished_run(tiny_config)
    parent = train(
        tiny_config, run_dir=f"{bucket}/trunk", **{"train.steps": 9, "train.keep_checkpoints": 5}
    )
    lower = {"optim.learning_rate": 1e-4, "run_dir": f"{bucket}/branch", "train.steps": 12}
    words = ["--branch-from", str(parent.run_dir), "--at-step", "7", "--train.steps", "10"]
    words += ["--optim.learning-rate", "1e-4", "--run-dir", lower["run_dir"]]
    assert main.main(words) == 0
    assert "its checkpoint of step 4, the 3 steps after that recomputed" in capsys.readouterr().out
    for path in storage.files_below(parent.run_dir):
        path.unlink()
    there = gpt_jax.train(gpt_jax.branch_from(f"{bucket}/trunk/", 7, lower), quiet=True)
    assert checkpoints.steps(there.run_dir) == [7, 8, 10, 12]
    place = {**lower, "run_dir": f"{tiny_config.run_dir}-branch"}
    alone = gpt_jax.train(gpt_jax.branch_from(here.run_dir, 7, place), quiet=True)
    losses = [[(row["step"], row.get("loss")) for row in run.rows] for run in (there, alone)]
    assert losses[0] == losses[1]
    assert there.summary["val"] == alone.summary["val"]
    jax.tree.map(np.testing.assert_array_equal, there.params, alone.params)


def exact_line(text):
    return next(line for line in text.splitlines() if line.startswith("whole validation split"))


@pytest.mark.slow
@pytest.mark.usefixtures("own_compiler_options")
def test_hosts_of_which_one_dies_go_on_bit_for_bit_as_one_process(tmp_path, book, bucket):
    """What a kill left in a bucket is finished there by one process, and on a disk by two hosts.

    To the bit they do as one process with the program's own options for XLA.
    """
    run_dir, alone = storage.to_folder(f"{bucket}/hosts/run"), tmp_path / "alone"
    hosts = (*INTERVALS, "--data.resident", "host")  # each host its own rows
    pair = Hosts.start(run_dir, book, 2, *hosts, program=MAIN)
    while not checkpoints.steps(run_dir):
        assert all(process.poll() is None for process in pair.processes), pair.end()
        time.sleep(0.02)
    pair.processes[1].kill()
    killed = time.monotonic()
    ended = pair.end()
    assert time.monotonic() - killed < 120  # not for ever; how long, benchmarks say
    assert ended[1][0] == -signal.SIGKILL
    # jax ends the process itself where it hears of the death before a step fails.
    said = ended[0][2]
    assert ended[0][0] in (1, -signal.SIGABRT), ended
    assert "another host ended or can't be reached" in said or "another task died" in said
    assert not (run_dir / "summary.json").exists()

    copied = tmp_path / "two"
    for file in storage.files_below(run_dir):
        path = copied / file.relative_to(run_dir).as_posix()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read_bytes())
    ended = Hosts.start(copied, book, 2, *hosts, program=MAIN).end()
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "resuming from step" in ended[0][1]
    assert "2 x cpu: batch 8 = 2 x 4 sequences" in ended[0][1]
    assert ended[1][1].replace("[Gloo]", "").count("whole validation") == 0  # one of them prints
    assert (copied / "loss.png").exists()
    assert len(list((copied / "tensorboard").iterdir())) <= 2  # host 0's, in each of two lives

    printed = train_alone(alone, book, 2, *INTERVALS)
    assert "resuming from step " in train_alone(run_dir, book, 2, *INTERVALS)
    assert_same_run(gpt_jax.load_run(run_dir), gpt_jax.load_run(alone))
    assert rows_of(copied) == rows_of(alone)
    assert exact_line(ended[0][1]) == exact_line(printed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gs://bucket", "gs://bucket is a bucket; name a folder in it"),
        ("gs://", "gs:// is a bucket; name a folder in it"),
        ("s3://bucket/run", "only gs://BUCKET/FOLDER and folders of this machine"),
        ("gs:/bucket/run", "only gs://BUCKET/FOLDER and folders of this machine"),
    ],
)
def test_other_places_are_refused(tiny_config, name, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config, run_dir=name)


def test_a_bucket_that_cannot_be_had_is_one_line(tiny_config, monkeypatch):
    class Unreachable:
        def exists(self):
            raise RuntimeError("no\ncredentials")

    monkeypatch.setattr(storage.folders, "_bucket_path", lambda text: Unreachable())
    message = r"gs://a/b is not available \(RuntimeError: no credentials\); check that the bucket"
    with pytest.raises(UserError, match=message):
        train(tiny_config, run_dir="gs://a/b")


def test_a_bucket_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="gs://a/b2 needs another package: pip install gcsfs"):
        storage.to_folder("gs://a/b2")


@pytest.mark.slow
def test_gpt2_folders_are_on_this_machine(tiny_config, bucket):
    with pytest.raises(UserError, match="gs://a/b: must be on this machine"):
        hf.save("gs://a/b", tiny_config.model, {})
    folder = storage.to_folder(f"{bucket}/gpt2")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="is a GPT-2 folder; copy it to this machine"):
        gpt_jax.load_run(f"{bucket}/gpt2")
