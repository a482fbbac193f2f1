"""How low nano gets on its book before it overfits: reads a long run, writes a table's figures.

    python main.py --config nano --run-dir runs/nano-long --train.steps 14000 \\
        --train.eval-interval 250 --train.checkpoint-interval 250 --train.keep-checkpoints 100
    python benchmarks/longer.py runs/nano-long

Finds the evaluation with the lowest validation loss, loads the checkpoint of that step, evaluates
it on the whole validation split and lets it write.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from gpt_jax.devices import request_cpu_devices

PROMPT = "The Great Wizard said "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/longer.json"))
    args = parser.parse_args()
    request_cpu_devices(32)
    import gpt_jax

    rows = [row for row in gpt_jax.load_run(args.run_dir).rows if "val_loss" in row]
    lowest = min(rows, key=lambda row: row["val_loss"])
    best = gpt_jax.load_run(args.run_dir, lowest["step"])
    evaluation = gpt_jax.evaluate(best)
    sample = gpt_jax.generate(best, PROMPT, seed=0)
    keys = ("step", "train_loss", "val_loss", "val_bpb")
    result = {
        "machine": describe_machine(),
        "command": " ".join(["python", *sys.argv]),
        "rows": [{key: row[key] for key in keys} for row in rows],
        "lowest": {"step": lowest["step"], "exact": evaluation.record(), "sample": sample},
        "config": json.loads((args.run_dir / "config.json").read_text(encoding="utf-8"))["train"],
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"lowest at step {lowest['step']}: {evaluation}\nwritten: {args.out}")


if __name__ == "__main__":
    main()
