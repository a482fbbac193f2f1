"""This project beside the same model in PyTorch: training, sampling, the whole command, memory.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py      # on a CPU, some 25 minutes

`benchmarks/gpu/` is for GPUs.

Every variant is alive in its own process and does one job in turn, A B C C B A, so that whatever
else the machine does hits all alike. Ratios are of medians. `--only` chooses parts. Writes a JSON;
`python benchmarks/tables.py` renders the tables from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402

# name: (model, steps in a chunk)
TRAINING = {"nano": 10, "shakespeare_cpu": 20, "4x256x128": 2, "6x384x256": 1}
# name: (streams, tokens of the prompt, tokens drawn, times in a chunk); nano's block_size is 64
SAMPLING = {
    "one stream, inside the context": (1, 1, 63, 50),
    "one stream, past the context": (1, 64, 64, 10),
    "64 streams, inside the context": (64, 1, 63, 2),
    "64 streams, past the context": (64, 64, 64, 1),
}
MATMUL = 2048


class Worker:
    """A process of `worker.py`."""

    def __init__(self, variant: str):
        self.variant = variant
        command = [sys.executable, str(ROOT / "benchmarks/worker.py"), variant]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: the worker {self.variant} ended; its message is above")
        return json.loads(line)

    def do(self, **job: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(sides: dict[str, Any], rounds: int, unit: float) -> dict[str, Any]:
    """Runs each side in turn, A B C C B A; returns medians and minima.

    `gpt_jax_time_ratio` is the median of the rounds' own ratios, beside the ratio of the medians,
    which is what the tables show.

    Args:
      sides: {name: function that returns seconds}; "gpt_jax" first.
      rounds: how often all sides run.
      unit: seconds are divided by it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():  # compiles, and warms up
        side()
    for i in range(rounds):
        for name in list(sides) if i % 2 == 0 else reversed(sides):
            seconds[name].append(sides[name]() / unit)
    ours = seconds["gpt_jax"]
    return {
        name: {
            "median": statistics.median(values),
            "minimum": min(values),
            "gpt_jax_time_ratio": statistics.median(
                a / b for a, b in zip(ours, values, strict=True)
            ),
            "rounds": rounds,
        }
        for name, values in seconds.items()
    }


def whole_command(python: str, rounds: int, compiled: bool) -> dict[str, Any]:
    """Times the whole commands, gpt_jax with its compilation cache cold and warm; their memory."""
    folder = Path(tempfile.mkdtemp())

    def run(command: list[str], **env: str) -> tuple[float, int]:
        before = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"error: {' '.join(command)} failed")
        return time.perf_counter() - before, usage.ru_maxrss * 1024

    def ours(cold: bool) -> tuple[float, int]:
        cache = folder / "cache"
        if cold:
            shutil.rmtree(cache, ignore_errors=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
        command = [python, "main.py", "--config", "nano", "--run-dir", str(folder / "run")]
        return run(command, XDG_CACHE_HOME=str(cache))

    torch_command = [python, "benchmarks/torch_script.py"]
    sides = {
        "gpt_jax, cold": lambda: ours(cold=True),
        "gpt_jax, warm": lambda: ours(cold=False),
        "torch eager": lambda: run(torch_command),
    }
    if compiled:
        sides["torch compiled"] = lambda: run([*torch_command, "--compile"])
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in sides}
    for i in range(rounds):
        ours_first = list(sides)  # warm always right after cold
        theirs_first = [*ours_first[2:][::-1], *ours_first[:2]]
        for name in ours_first if i % 2 == 0 else theirs_first:
            results[name].append(sides[name]())
            print(f"  {name}: {results[name][-1][0]:.1f} s", flush=True)
    shutil.rmtree(folder)
    return {
        name: {
            "seconds": statistics.median(s for s, _ in values),
            "peak_bytes": max(peak for _, peak in values),
            "rounds": rounds,
        }
        for name, values in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--whole-rounds", type=int, default=2)
    parser.add_argument("--only", choices=("training", "sampling", "whole"), action="append")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/speed_cpu.json")
    args = parser.parse_args()
    out = args.out
    parts = args.only or ["training", "sampling", "whole"]
    result = json.loads(out.read_text()) if args.only and out.exists() else {}
    result |= {"machine": describe_machine(), "command": "python " + " ".join(sys.argv)}

    names = ["jax", "torch"] + ([] if args.no_compile else ["torch_compiled"])
    labels = {"jax": "gpt_jax", "torch": "torch eager", "torch_compiled": "torch compiled"}
    if "training" in parts or "sampling" in parts:
        workers = {name: Worker(name) for name in names}

        def job(name: str, **work: Any):
            return lambda: workers[name].do(**work)["seconds"]

        if "training" in parts:
            result["training_ms_a_step"] = {}
            for model, steps in TRAINING.items():
                sides = {labels[n]: job(n, do="train", model=model, steps=steps) for n in names}
                table = compare(sides, args.rounds, unit=steps / 1000)
                result["training_ms_a_step"][model] = table
                print(model, json.dumps(table, indent=1), flush=True)
            result["training_peak_bytes"] = {
                labels[n]: workers[n].do(do="memory")["peak_bytes"] for n in names
            }
        if "sampling" in parts:
            result["sampling_seconds_a_token"] = {}
            for name, (batch, prompt, tokens, times) in SAMPLING.items():
                work = {"do": "sample", "model": "nano", "batch": batch, "prompt": prompt,
                        "tokens": tokens, "times": times}  # fmt: skip
                sides = {"gpt_jax": job("jax", **work, cache=True)}
                sides["torch eager, as nanoGPT samples"] = job("torch", **work, cache=False)
                if prompt == 1:
                    sides["torch eager, with a cache"] = job("torch", **work, cache=True)
                table = compare(sides, args.rounds, unit=batch * tokens * times)
                result["sampling_seconds_a_token"][name] = table
                print(name, json.dumps(table, indent=1), flush=True)
        floor = compare({"gpt_jax": job("jax", do="matmul", n=MATMUL)}, 20, unit=1.0)["gpt_jax"]
        result["matmul_gflops"] = 2 * MATMUL**3 / floor["median"] / 1e9
        print(f"matrix products: {result['matmul_gflops']:.0f} GFLOP/s", flush=True)
        for worker in workers.values():
            worker.close()
    if "whole" in parts:
        result["whole_command"] = whole_command(
            sys.executable, args.whole_rounds, compiled=not args.no_compile
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
