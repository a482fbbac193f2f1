"""The steps of gpu_bench.py that start whole programs as a user does, and read what these leave.

Trainings with `main.py`, killed or not, and tests. No jax is imported before these have ended: they
need the GPU's memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import chaos
from benchmarks.gpu.harness import OUT, ROOT, TINY, Step, seconds_left, work_folder

SMALL = (
    "--model.n-layer 1 --model.n-embd 16 --model.n-head 2 --model.block-size 8 "
    "--train.batch-size 4 --train.eval-batches 2 --train.final-eval-tokens 64 "
    "--sample.max-new-tokens 8 --sample.num-samples 1"
)
SHORT = "--train.steps 20 --train.eval-interval 10 --optim.warmup-steps 2"
KEPT_FILES = ("metrics.jsonl", "summary.json", "samples.txt")
SAMPLE_CHARACTERS = 600
# nano, long enough to be killed: saves are frequent.
LONG = "--train.steps {} --train.eval-interval {} --train.checkpoint-interval {} "
LONG += "--train.eval-batches 2 --train.final-eval-tokens 2048 --sample.max-new-tokens 8"
TESTS = (
    "tests/model/test_attention.py", "tests/model/test_layers.py",
    "tests/model/test_deterministic.py", "tests/model/test_dtype.py",
    "tests/model/test_tuning.py", "tests/inference/test_decoding.py",
)  # fmt: skip


def end(process: subprocess.Popen, seconds: float) -> int:
    """Waits, at most so long; then asks a training to save and stop. Returns its status."""
    try:
        return process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(6)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return 124  # as `timeout` says it


def run(step: Step) -> None:
    """Trains a config with main.py and records its losses, time and sample.

    Where it fails or the time limit ends it, how far it came.
    """
    name = step.args["config"]
    folder, log = work_folder(name), work_folder(f"{name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    small = f"{SMALL} {SHORT}".split() if TINY else []
    command = [sys.executable, "main.py", "--config", name, "--run-dir", str(folder), *small]
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        status = end(process, seconds_left() - 10)
    seconds = time.monotonic() - began
    said = log.read_text(errors="replace")
    print(said[-3000:])
    row = {"status": status, "seconds": seconds, **describe_run(folder)}
    if status == 124:
        row["error"] = f"the time limit ended it after {seconds:.0f} s"
    elif status:
        row["error"] = (said.strip().splitlines() or ["it said nothing"])[-1][:300]
    step.record(**row)
    for file_name in KEPT_FILES:
        if (folder / file_name).is_file():
            (OUT / name).mkdir(exist_ok=True)
            shutil.copy(folder / file_name, OUT / name)
    if status:
        sys.exit(status if status > 0 else 1)


def describe_run(folder: Path) -> dict[str, Any]:
    """Returns what a run's folder says, finished or not; {} where there is none."""
    if not (folder / "config.json").is_file():
        return {}
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    found: dict[str, Any] = {
        "of_steps": settings["train"]["steps"],
        "dtype": settings["model"].get("dtype", "float32"),  # older runs have none
        "corpus_sha256": settings["corpus"]["sha256"],
    }
    rows = read_rows(folder / "metrics.jsonl")
    evaluated = [row for row in rows if "val_loss" in row]
    if rows:
        found["steps"] = rows[-1]["step"]
    if evaluated:
        lowest = min(evaluated, key=lambda row: row["val_loss"])
        found |= {
            "val_loss": evaluated[-1]["val_loss"],
            "train_loss": evaluated[-1]["train_loss"],
            "lowest_val_loss": lowest["val_loss"],
            "lowest_at_step": lowest["step"],
            "evaluations": len(evaluated),
        }
    speeds = sorted(row["tokens_per_second"] for row in rows if row.get("tokens_per_second"))
    if speeds:
        found["tokens_per_second"] = speeds[len(speeds) // 2]
        tokens = settings["train"]["batch_size"] * settings["model"]["block_size"]
        found["seconds_of_steps"] = tokens * found["steps"] / found["tokens_per_second"]
    if (folder / "summary.json").is_file():
        exact = json.loads((folder / "summary.json").read_text("utf-8"))["val"]
        found["exact_val_loss"] = exact["nats_per_token"]
    if (folder / "samples.txt").is_file():
        text = (folder / "samples.txt").read_text("utf-8").partition(" ===\n")[2]
        found["sample"] = text[:SAMPLE_CHARACTERS]
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file of JSON lines; one that a kill cut off is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def reproducible(step: Step) -> None:
    """Compares runs of nano with --train.deterministic bit for bit: state and rows.

    Two alike, and one that is killed with SIGKILL in the middle and resumed. Three at a time.
    """
    steps, interval = (80, 20) if TINY else (2000, 250)
    settings = ["--config", "nano", "--train.deterministic", "true"]
    settings += LONG.format(steps, interval, interval).split()
    settings += (SMALL + " --train.log-interval 5").split() if TINY else []
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # they share the GPU
    first, second, killed = (work_folder(f"nano-{name}") for name in ("first", "second", "killed"))
    first.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    started = [chaos.start(folder, settings) for folder in (first, second)]
    try:
        killed_at = kill_in_the_middle(killed, settings)
        started.append(chaos.start(killed, settings))
        for name, process in zip(("first", "second", "killed"), started, strict=True):
            if status := end(process, seconds_left() - 15):
                log = Path(f"{work_folder(f'nano-{name}')}.log").read_text(errors="replace")
                step.record(run=name, error=f"exit status {status}: {log.strip()[-300:]}")
                sys.exit(1)
    finally:
        for process in started:  # none may disturb what is measured next
            process.kill()
            process.wait()
    trained = time.monotonic() - began
    for what, other in (("same_twice", second), ("same_after_kill", killed)):
        different = chaos.differences(first, other)
        row = {"deterministic": True, what: not different, "steps": steps}
        row |= {"killed_after_step": killed_at} if other is killed else {}
        step.record(**row, different=different[:5], seconds=round(trained, 1))


def kill_in_the_middle(folder: Path, settings: list[str]) -> int:
    """Starts a run, kills it once it has saved, and returns the last step saved.

    Raises:
      RuntimeError: it ended before, or saved nothing in time.
    """
    process = chaos.start(folder, settings)
    while process.poll() is None and not chaos.manifests(folder) and seconds_left() > 20:
        time.sleep(0.002)
    process.kill()
    status = process.wait()
    if status == -signal.SIGKILL and not chaos.manifests(folder):
        raise RuntimeError("no time left: the run to be killed has not saved yet")
    if status != -signal.SIGKILL or (folder / "summary.json").exists():
        log = Path(f"{folder}.log").read_text(errors="replace")
        raise RuntimeError(f"it ended before it was killed, with status {status}: {log[-300:]}")
    return max(map(int, chaos.manifests(folder)))


def tests(step: Step) -> None:
    """Runs the tests of what a GPU computes in its own way, and records how many passed.

    Their tolerances are of float32, so products are not TF32's; a warning is no failure here. Where
    the time limit ends them, those that ran count.
    """
    if not importlib.util.find_spec("pytest"):
        step.record(skipped="pytest is not installed")
        return
    chosen = ("tests/model/test_dtype.py", "tests/model/test_deterministic.py") if TINY else TESTS
    command = [sys.executable, "-m", "pytest", "-v", "-o", "addopts=", "-o", "filterwarnings="]
    command += ["-p", "no:cacheprovider", *chosen]
    if TINY:
        command += ["-m", "not slow"]
    env = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "PYTHONUNBUFFERED": "1"}
    log = work_folder("tests.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT
        )
        status = end(process, seconds_left() - 8)
    said = log.read_text(errors="replace")
    print(said[-6000:])
    row = count_tests(said)
    if status == 124:
        row["error"] = "the time limit ended them"
    elif status and not sum(row[name] for name in OUTCOMES):
        row["error"] = (said.strip().splitlines() or ["they said nothing"])[-1][:300]
    step.record(status=status, files=[Path(name).name for name in chosen], **row)
    if status:
        sys.exit(status if status > 0 else 1)


# A row's `skipped` says why a step was left out.
OUTCOMES = ("passed", "failed", "skipped_tests", "errors")


def count_tests(said: str) -> dict[str, Any]:
    """Returns how many tests of `pytest -v` passed, failed or were skipped, and which failed."""
    found = re.findall(r"^(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", said, re.MULTILINE)
    words = dict(zip(OUTCOMES, ("PASSED", "FAILED", "SKIPPED", "ERROR"), strict=True))
    counts = {name: sum(word == w for _, w in found) for name, word in words.items()}
    bad = [test for test, word in found if word in ("FAILED", "ERROR")]
    return {**counts, "failed_tests": bad[:20]}
