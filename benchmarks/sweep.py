"""Members a minute of a sweep, beside the same runs as separate commands.

    python benchmarks/sweep.py [--members 8] [--steps 200] [--repeat 2]

Both ways train nano with the same seeds and learning rates. They take turns (A B A B), each with an
empty compilation cache and then with the one it has filled. The result is
benchmarks/results/sweep_cpu.json: seconds of each turn, members a minute, and the ratios.
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

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from gpt_jax.errors import UserError  # noqa: E402
from gpt_jax.storage import write_atomically  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "sweep_cpu.json"
RATES = ("3e-4", "4e-4")


def run_commands(commands: Sequence[Sequence[str]], cache: Path) -> float:
    """Returns the seconds that commands of this program take, one after another."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    began = time.monotonic()
    for words in commands:
        done = subprocess.run(
            [sys.executable, "main.py", *words], cwd=ROOT, env=environment, capture_output=True
        )
        if done.returncode:
            raise UserError(f"main.py {' '.join(words)} failed: {done.stderr.decode()[-500:]}")
    return time.monotonic() - began


def sweep_commands(seeds: int, steps: int, out: Path) -> list[list[str]]:
    """Returns the one command of a sweep."""
    vary = "optim.learning-rate=" + ",".join(RATES)
    grid = ["--vary", vary, "--seeds", str(seeds), "--out", str(out)]
    return [["sweep", "--config", "nano", "--train.steps", str(steps), *grid]]


def train_commands(seeds: int, steps: int, out: Path) -> list[list[str]]:
    """Returns the same runs as commands of their own, with the sweep's one checkpoint each."""
    shared = ["train", "--config", "nano", "--train.steps", str(steps)]
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


def measure(seeds: int, steps: int, repeat: int) -> dict[str, dict[str, list[float]]]:
    """Returns {way: {"cold": seconds of each turn, "warm": likewise}}."""
    ways = {"sweep": sweep_commands, "separate": train_commands}
    seconds: dict[str, dict[str, list[float]]] = {way: {"cold": [], "warm": []} for way in ways}
    for _ in range(repeat):
        for way, commands in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                cache = Path(folder) / "cache"
                for state in ("cold", "warm"):
                    taken = run_commands(commands(seeds, steps, Path(folder) / state), cache)
                    seconds[way][state].append(taken)
                    print(f"{way}, {state}: {taken:.1f} s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=8, help="an even number")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=2, help="turns of each way")
    args = parser.parse_args()
    seeds = max(1, args.members // len(RATES))
    seconds = measure(seeds, args.steps, args.repeat)
    n = seeds * len(RATES)
    result = {
        "machine": describe_machine(),
        "command": f"python benchmarks/sweep.py --members {n} --steps {args.steps} "
        f"--repeat {args.repeat}",
        "members": n,
        "steps": args.steps,
        "seconds": seconds,
        "members_per_minute": {
            way: {state: 60 * n / statistics.median(times) for state, times in states.items()}
            for way, states in seconds.items()
        },
        "ratio": {
            state: statistics.median(seconds["sweep"][state])
            / statistics.median(seconds["separate"][state])
            for state in ("cold", "warm")
        },
    }
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratio"]))


if __name__ == "__main__":
    main()
