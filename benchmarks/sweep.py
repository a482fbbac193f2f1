"""Members a minute of a sweep, beside the same runs as separate commands.

    python benchmarks/sweep.py [--members 8] [--steps 200] [--repeat 2]

Both ways train a small `nano` (`SETTINGS`) with the same seeds and learning rates. They take turns
(A B A B), each with an empty compilation cache and then with the one it has filled. The result is
benchmarks/results/sweep_cpu.json: seconds of each turn, members a minute, and the ratios of
medians. It is written after each turn; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from gpt_jax.errors import UserError  # noqa: E402
from gpt_jax.experiments import child  # noqa: E402
from gpt_jax.storage import write_atomically  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "sweep_cpu.json"
RATES = ("3e-4", "4e-4")
# Smaller than nano, so that the whole takes minutes: what is compared is the cost of starting.
SETTINGS = ["--config", "nano", "--model.n-layer", "2", "--model.n-embd", "64"]
SETTINGS += ["--model.n-head", "4", "--train.batch-size", "16"]
WAYS = ("sweep", "separate")
STATES = ("cold", "warm")


def run_commands(commands: Sequence[Sequence[str]], cache: Path) -> float:
    """Returns the seconds that commands of this program take, one after another."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    began = time.monotonic()
    for words in commands:
        how: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with child.start(ROOT / "main.py", *words, cwd=ROOT, env=environment, **how) as process:
            _, errors = process.communicate()
        if process.returncode:
            raise UserError(f"main.py {' '.join(words)} failed: {errors.decode()[-500:]}")
    return time.monotonic() - began


def sweep_commands(seeds: int, steps: int, out: Path) -> list[list[str]]:
    """Returns the one command of a sweep."""
    vary = "optim.learning-rate=" + ",".join(RATES)
    grid = ["--vary", vary, "--seeds", str(seeds), "--out", str(out)]
    return [["sweep", *SETTINGS, "--train.steps", str(steps), *grid]]


def train_commands(seeds: int, steps: int, out: Path) -> list[list[str]]:
    """Returns the same runs as commands of their own, with the sweep's one checkpoint each."""
    shared = ["train", *SETTINGS, "--train.steps", str(steps)]
    shared += ["--train.keep-checkpoints", "1", "--train.keep-best", "false"]
    own = [
        [
            "--optim.learning-rate",
            rate,
            "--seed",
            str(seed),
            "--run-dir",
            str(out / f"{rate}-{seed}"),
        ]
        for rate in RATES
        for seed in range(seeds)
    ]
    return [[*shared, *words] for words in own]


def measure_turn(way: str, seeds: int, steps: int) -> dict[str, float]:
    """Returns the seconds of a way, with an empty compilation cache and with the one it leaves."""
    commands = {"sweep": sweep_commands, "separate": train_commands}[way]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for state in STATES:
            runs = commands(seeds, steps, Path(folder) / state)
            seconds[state] = run_commands(runs, Path(folder) / "cache")
            print(f"{way}, {state}: {seconds[state]:.1f} s", flush=True)
    return seconds


def describe(command: str, n: int, steps: int, turns: dict[str, list[dict[str, float]]]) -> dict:
    """Returns the result file's content."""
    seconds = {
        way: {state: [turn[state] for turn in turns[way]] for state in STATES} for way in WAYS
    }
    result = {
        "machine": describe_machine(),
        "command": command,
        "settings": SETTINGS,
        "members": n,
        "steps": steps,
        "turns": turns,
    }
    if all(turns.values()):
        medians = {
            way: {state: statistics.median(times) for state, times in states.items()}
            for way, states in seconds.items()
        }
        result["members_per_minute"] = {
            way: {state: 60 * n / median for state, median in states.items()}
            for way, states in medians.items()
        }
        result["ratio"] = {s: medians["sweep"][s] / medians["separate"][s] for s in STATES}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=8, help="an even number")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=2, help="turns of each way")
    args = parser.parse_args()
    seeds = max(1, args.members // len(RATES))
    n = seeds * len(RATES)
    command = f"python benchmarks/sweep.py --members {n} --steps {args.steps}"
    before = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    same = (before.get("command"), before.get("settings")) == (command, SETTINGS)
    turns = before["turns"] if same else {way: [] for way in WAYS}
    while min(len(turns[way]) for way in WAYS) < args.repeat:
        way = min(WAYS, key=lambda way: len(turns[way]))
        turns[way].append(measure_turn(way, seeds, args.steps))
        result = describe(command, n, args.steps, turns)
        write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(describe(command, n, args.steps, turns)["ratio"]))


if __name__ == "__main__":
    main()
