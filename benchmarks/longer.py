"""The losses of nano on its book over many more steps than the first command takes.

Ten times the steps of the first command, trained and timed here, for the README:

    python benchmarks/longer.py --steps 5000

How low it gets before it overfits, read from a long run:

    python main.py --config nano --run-dir runs/nano-long --train.steps 14000 \\
        --train.eval-interval 250 --train.checkpoint-interval 250 --train.keep-checkpoints 100
    python benchmarks/longer.py runs/nano-long

The second finds the evaluation with the lowest validation loss, evaluates the checkpoint of that
step on the whole validation split and samples from it. Both write a result file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from gpt_jax.devices import request_cpu_devices
from gpt_jax.experiments import child

ROOT = Path(__file__).parent.parent
RESULTS = Path("benchmarks/results")
PROMPT = "The Great Wizard said "
ROW_KEYS = ("step", "train_loss", "val_loss", "val_bpb")


def train_command(steps: int, run_dir: str | Path) -> list[str]:
    """Returns the first command with more steps, as main.py takes it."""
    return ["main.py", "--config", "nano", "--train.steps", str(steps), "--run-dir", str(run_dir)]


def evaluations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the losses of a run's evaluations."""
    return [{key: row[key] for key in ROW_KEYS} for row in rows if "val_loss" in row]


def describe_finished(run_dir: Path, command_seconds: float) -> dict[str, Any]:
    """Returns the losses, the time and a sample of a finished run.

    `seconds.training` is the time of the steps alone, without compiling and evaluations.
    """
    import gpt_jax

    run = gpt_jax.load_run(run_dir)
    training = sum(row.get("seconds", 0.0) for row in run.rows)
    return {
        "steps": run.step,
        "rows": evaluations(run.rows),
        "exact": run.summary["val"],
        "seconds": {"training": training, "command": command_seconds},
        "sample": gpt_jax.generate(run, run.config.sample.prompt, seed=0),
        "corpus": {key: run.corpus[key] for key in ("name", "sha256")},
    }


def describe_lowest(run_dir: Path) -> dict[str, Any]:
    """Returns a run's losses; at the lowest of validation, the exact evaluation and a sample."""
    import gpt_jax

    rows = evaluations(gpt_jax.load_run(run_dir).rows)
    lowest = min(rows, key=lambda row: row["val_loss"])
    best = gpt_jax.load_run(run_dir, lowest["step"])
    exact, sample = gpt_jax.evaluate(best).record(), gpt_jax.generate(best, PROMPT, seed=0)
    return {
        "rows": rows,
        "lowest": {"step": lowest["step"], "exact": exact, "sample": sample},
        "config": json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["train"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("run_dir", type=Path, nargs="?", help="a long run, to be read")
    what.add_argument("--steps", type=int, help="train nano for this many steps, in a new folder")
    parser.add_argument("--out", type=Path, help="the result file")
    args = parser.parse_args()
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv])}
    if args.steps:
        out = args.out or RESULTS / f"nano_{args.steps}.json"
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / "nano"
            before = time.perf_counter()
            script, *words = train_command(args.steps, run_dir)
            with child.start(ROOT / script, *words, cwd=ROOT) as process:
                if process.wait():
                    sys.exit(process.returncode)
            seconds = time.perf_counter() - before
            request_cpu_devices(32)
            result |= describe_finished(run_dir, seconds)
    else:
        out = args.out or RESULTS / "longer.json"
        request_cpu_devices(32)
        result |= describe_lowest(args.run_dir)
    result = {"machine": describe_machine(), **result}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
