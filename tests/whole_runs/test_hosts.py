"""Several processes over loopback train one run, as hosts do over a network."""

import contextlib
import dataclasses
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT

import gpt_jax
import main
from gpt_jax.config import Config, MeshConfig
from gpt_jax.errors import ConfigError, TrainingError, UserError
from gpt_jax.parallel import multihost
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.multihost import HostsConfig, has_launcher
from gpt_jax.parallel.sharding import state_shardings
from gpt_jax.run import checkpoints
from gpt_jax.run.metrics import TIMING_FIELDS
from gpt_jax.training.trainer import Trainer

MAIN, FAST = ROOT / "main.py", Path(__file__).with_name("fast_main.py")
TIMEOUT = 20  # --hosts.timeout
STEPS = 360  # long enough to be told to stop before
NO_DEVICES = {"JAX_NUM_CPU_DEVICES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"}


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coordinator": "a:1"}, "hosts.count and hosts.index must be given too, or none"),
        ({"count": 2, "index": 0}, "hosts.coordinator must be given too, or none of the three"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "hosts.index=2 must be below hosts.count"),
        (
            {"coordinator": "a", "count": 2, "index": 0},
            "coordinator='a' must be ADDRESS:PORT",
        ),
        ({"timeout": 0}, "hosts.timeout=0 must be a whole number of at least 1"),
    ],
)
def test_settings_that_cannot_be_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        HostsConfig(**values)


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NTASKS": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "has_tpu", "expected"),
    [
        ({}, False, False),
        (SLURM, False, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False, False),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, False, False),  # no srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, False, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False, False),
        ({}, True, True),
        ({"JAX_PLATFORMS": "cpu"}, True, False),
    ],
)
def test_launchers_are_known_by_what_they_set(environment, has_tpu, expected):
    assert has_launcher(environment, has_tpu) is expected


def test_open_mpi_5_is_asked_by_its_package(monkeypatch):
    old = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:7"}
    assert multihost.cluster_detection_method(old) is None
    assert multihost.cluster_detection_method(SLURM) is None
    monkeypatch.setattr(multihost.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install mpi4py, or give"):
        multihost.cluster_detection_method({"OMPI_COMM_WORLD_SIZE": "2"})
    monkeypatch.setattr(multihost.importlib.util, "find_spec", lambda name: name)
    assert multihost.cluster_detection_method({"OMPI_COMM_WORLD_SIZE": "2"}) == "mpi4py"


# --- what hosts say to one another, by hand -------------------------------------------------------


def test_what_hosts_made_must_be_alike():
    same = {"made": {"a": 1}}
    assert multihost._problem([same, same]) is None
    problem = multihost._problem([same, {"made": {"a": 2, "b": None}}])
    assert isinstance(problem, ConfigError)
    assert str(problem) == "host 1 differs from host 0: a is 2 there and 1 on host 0"
    problem = multihost._problem([same, {"error": "no disk", "mistake": False}])
    assert (type(problem), str(problem)) == (TrainingError, "host 1: no disk")
    problem = multihost._problem([{"error": "no corpus", "mistake": True}, same])
    assert (type(problem), str(problem)) == (UserError, "host 0: no corpus")


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (RuntimeError("FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed"), True),
        (RuntimeError("UNAVAILABLE: no answer"), True),
        (RuntimeError("INTERNAL: ncclCommAbort"), True),
        (RuntimeError("INTERNAL: a kernel is wrong"), False),
        (ValueError("the service is unavailable: never mind"), False),
    ],
)
def test_only_what_says_so_is_a_lost_host(monkeypatch, error, is_loss):
    wrapped = TrainingError("cannot save a checkpoint")
    wrapped.__cause__ = error
    assert multihost.lost_host_message(wrapped) == ""  # there are no others
    monkeypatch.setattr(multihost, "host_count", lambda: 2)
    assert multihost.lost_host_message(wrapped) == (str(error) if is_loss else "")


def test_alone_nothing_is_exchanged():
    assert (multihost.host_count(), multihost.is_host0()) == (1, True)
    assert multihost.all_gather_json({"a": 1}) == [{"a": 1}]
    assert multihost.all_reduce_max([3, False]) == [3, False]
    assert multihost.start_all_reduce_max([3, False])() == [3, False]
    assert multihost.all_agree(lambda: 5, lambda made: pytest.fail("nobody to tell")) == 5


@pytest.mark.parametrize("n", [1, 2])
def test_hosts_stop_for_what_they_asked_a_chunk_ago_and_one_host_at_once(monkeypatch, n):
    """Reading what was asked last would wait for the chunk that was just dispatched."""
    asked = []

    def start(told):
        asked.append(told)
        i = len(asked)
        return lambda: told if n == 1 or len(asked) > i else pytest.fail("it waits")

    monkeypatch.setattr(multihost, "host_count", lambda: n)
    monkeypatch.setattr(multihost, "start_all_reduce_max", start)
    run = types.SimpleNamespace(signals=[], deadline=math.inf, step=10, config=Config(), asked=None)
    assert Trainer.agree_on_stopping(run) is None
    run.signals.append(signal.SIGTERM)
    answers = [Trainer.agree_on_stopping(run) for _ in range(2)]
    assert asked[1:] == [[signal.SIGTERM, False]] * 2
    assert [answer is not None for answer in answers] == [n == 1, True]
    assert answers[1].signum == signal.SIGTERM


def free_port():
    """Returns a port that nobody uses, of those that jax takes for a launcher's job."""
    for port in range(61440 + os.getpid() % 2048, 65536):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def slurm(port, n, i):
    """What srun sets for process `i` of `n`; jax makes its port of the job's number."""
    return {
        "SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(n), "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i),
    }  # fmt: skip


def open_mpi(port, n, i):
    """What mpirun sets before Open MPI 5."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"{(port - 61440) << 12}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(n), "OMPI_COMM_WORLD_RANK": str(i),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
    }  # fmt: skip


# --- real ones ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Hosts:
    """The processes of one run; `more` are arguments of a host's own."""

    processes: list

    @classmethod
    def start(
        cls, run_dir, book, n, *args, more=None, launcher=None, program=FAST, devices=1, env=()
    ):
        """Starts `n` of them, told where the others are as people or launchers do."""
        port = free_port()
        processes = []
        for i in range(n):
            env = {k: v for k, v in os.environ.items() if k not in NO_DEVICES} | dict(env)
            env |= {"JAX_NUM_CPU_DEVICES": str(devices)}
            # Each its own: jax may read there what another process has half written.
            env["JAX_COMPILATION_CACHE_DIR"] += f"/host{i}"
            where = (f"--hosts.timeout={TIMEOUT}",)
            if launcher:
                env |= launcher(port, n, i)
            else:
                where += (f"--hosts.coordinator=127.0.0.1:{port}", f"--hosts.count={n}")
                where += (f"--hosts.index={i}",)
            words = [
                sys.executable,
                str(program),
                *options(run_dir, book, *args),
                *where,
                *(more or {}).get(i, ()),
            ]
            processes.append(
                subprocess.Popen(
                    words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        return cls(processes)

    def end(self):
        """Returns (status, standard output, standard error) of each, once all have ended."""
        try:
            printed = [process.communicate(timeout=150) for process in self.processes]
        finally:
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        return [(p.returncode, *texts) for p, texts in zip(self.processes, printed, strict=True)]

    def wait_for_rows(self, run_dir, n):
        """Waits for so many rows; the processes must not end before."""
        rows, deadline = run_dir / "metrics.jsonl", time.monotonic() + 120
        while not rows.exists() or rows.read_text().count("\n") < n:
            assert time.monotonic() < deadline
            if any(process.poll() is not None for process in self.processes):
                pytest.fail(str(self.end()))
            time.sleep(0.01)


def options(run_dir, book, *args):
    # fmt: off
    return [
        "--run-dir", str(run_dir), "--data.corpus", str(book),
        "--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16",
        "--model.block-size", "16", "--train.batch-size", "8", "--train.steps", str(STEPS),
        "--train.log-interval", "20", "--train.eval-interval", "100", "--train.eval-batches", "2",
        "--train.checkpoint-interval", "60", "--sample.max-new-tokens", "5", *args,
    ]
    # fmt: on


def rows_of(run_dir):
    left_out = {*TIMING_FIELDS, "numerics"}  # the latter is where a run was resumed
    rows = gpt_jax.load_run(run_dir).rows
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


def train_alone(run_dir, book, devices, *args):
    """Trains in this process, on so many of its devices; returns what is printed."""
    words = options(run_dir, book, "--mesh.data", str(devices), *args)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main.main(words) == 0
    return out.getvalue()


def assert_close_rows(ours, theirs, steps):
    """A sum over devices, and no other, may be taken in another order: 3 roundings a step."""
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            np.testing.assert_allclose(value, other[name], rtol=steps * 3 * 2.0**-24, err_msg=name)


@pytest.mark.slow
def test_hosts_told_to_stop_all_save_and_another_number_goes_on(tmp_path, book):
    """Hosts that slurm started, and that share each tensor, so that both need all rows of a batch.

    That those which finish, or of which one dies, do as one process is in test_bucket.py.
    """
    run_dir, alone = tmp_path / "run", tmp_path / "alone"
    mesh = ("--mesh.tensor", "2")
    pair = Hosts.start(run_dir, book, 2, *mesh, launcher=slurm)
    pair.wait_for_rows(run_dir, 3)
    pair.processes[1].send_signal(signal.SIGTERM)  # one is told, both stop
    ended = pair.end()
    assert [status for status, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    said = [err.strip().splitlines()[-1] for _, _, err in ended]
    assert said[0] == said[1]
    assert "SIGTERM: saved at step " in said[0]
    assert "2 x cpu (tensor 2): batch 8 = 1 x 8 sequences" in ended[0][1]
    saved = checkpoints.steps(run_dir)[-1]
    assert f"saved at step {saved}" in said[0]
    assert f"resuming from step {saved}" in train_alone(run_dir, book, 1, *mesh)
    train_alone(alone, book, 1, *mesh)
    assert_close_rows(rows_of(run_dir), rows_of(alone), STEPS)


@pytest.mark.slow
def test_hosts_of_several_devices_that_share_the_parameters_train_as_one_does(tmp_path, book):
    """To the end: what fits only across hosts is evaluated and sampled across them, too."""
    mesh = ("--mesh.fsdp", "2", "--mesh.tensor", "2", "--train.steps", "40")
    mesh += ("--model.n-embd", "64", "--model.block-size", "8")
    mesh += ("--data.train-fraction", "0.1")  # more windows than the first host evaluates
    train_alone(tmp_path / "alone", book, 1, *mesh)
    watch = {"GPT_JAX_TEST_DEVICE_BYTES": str(tmp_path)}
    ended = Hosts.start(tmp_path / "two", book, 2, *mesh, devices=2, env=watch).end()
    assert [status for status, _, _ in ended] == [0] * 2, ended
    assert "4 x cpu (fsdp 2 x tensor 2): batch 8 = 2 x 4 sequences" in ended[0][1]
    ours = rows_of(tmp_path / "two")
    assert_close_rows(ours, rows_of(tmp_path / "alone"), 40)
    assert ours[-1]["loss"] < ours[1]["loss"]
    two, one = (gpt_jax.load_run(tmp_path / name) for name in ("two", "alone"))
    assert two.summary["val"]["tokens_predicted"] > 256 * 8  # of 512 windows in a batch
    # The evaluation after 40 steps sums once more over devices.
    figures = [run.summary["val"]["nats_per_token"] for run in (two, one)]
    np.testing.assert_allclose(*figures, rtol=41 * 3 * 2.0**-24)
    samples = [(tmp_path / name / "samples.txt").read_text() for name in ("two", "alone")]
    assert samples[0] == samples[1]
    assert_bytes_are_shares(tmp_path, two.params)


def assert_bytes_are_shares(folder, params):
    """On no device of two hosts is more than its share, of four, of what it computes with."""
    mesh = make_mesh(2, jax.devices()[:4], MeshConfig(data=1, fsdp=2, tensor=2), kv_heads=2)
    shardings = state_shardings(params, mesh)
    shapes = jax.tree.map(lambda x, s: s.shard_shape(x.shape), params, shardings)
    share = sum(
        4 * math.prod(s) for s in jax.tree.leaves(shapes, is_leaf=lambda s: type(s) is tuple)
    )
    seen = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert len(seen) == 2
    for most in seen:
        # Also the windows of a batch, 9 KiB; and when decoding the parameters in its order, too.
        assert share <= most["evaluate"] < 1.4 * share, (share, seen)
        assert 2 * share <= most["sample"] < 2.4 * share, (share, seen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "own", "message"),
    [
        (
            open_mpi,
            ("--optim.learning-rate", "1e-3", "--seed", "3"),
            "error: host 2 differs from host 0: optim.learning_rate is 0.001 there and 0.0003 on "
            "host 0; seed is 3 there and 0 on host 0",
        ),
        (None, ("--data.corpus", "missing.txt"), "'missing.txt' is neither a file nor a name"),
    ],
    ids=["settings", "corpus"],
)
def test_hosts_that_start_from_something_else_are_refused(tmp_path, book, launcher, own, message):
    """Three hosts; what Open MPI sets is enough for them to find each other."""
    ended = Hosts.start(tmp_path / "r", book, 3, more={2: own}, launcher=launcher).end()
    assert [status for status, _, _ in ended] == [2] * 3, ended
    assert all(message in err for _, _, err in ended), ended
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_host_that_nobody_meets_says_so(tmp_path, book):
    lonely = (sys.executable, str(FAST), *options(tmp_path / "r", book))
    lonely += ("--hosts.coordinator=127.0.0.1:9", "--hosts.count=2")
    env = {k: v for k, v in os.environ.items() if k not in NO_DEVICES}
    done = subprocess.run(
        [*lonely, "--hosts.index=1", "--hosts.timeout=2"],
        env=env, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode in (1, -signal.SIGABRT), done  # the latter is jax's own end
    said = "host 1 of 2: connecting at 127.0.0.1:9, timeout 2 s"
    assert done.stderr.splitlines()[0] == said
