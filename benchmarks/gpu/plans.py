#!/usr/bin/env python3
"""Plans of configs on NVIDIA GPUs, from their compiled steps; no GPU is needed.

    pip install -r requirements-gpu-plan.txt     # Python 3.12 or later, 5 GB
    python benchmarks/gpu/plans.py [--only base]

Runs `python main.py plan` for each of `PLANS` and writes what it says to
benchmarks/results/gpu_plans.json; `python benchmarks/tables.py` makes the table of docs/planning.md
from it, and `make test-gpu-plan` holds the programs to it. Nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402

OUT = ROOT / "benchmarks/results/gpu_plans.json"
PLANS: tuple[tuple[str, str, str], ...] = (  # config, topology, options
    ("base", "h100:1", ""),
    ("base", "h200:1", ""),
    ("base", "a100:1", ""),
    ("base", "h100:8", ""),
    ("base_8k", "h100:1", "--train.micro-batch 4"),
    ("medium", "h100:1", "--train.micro-batch 16"),
    ("large", "h100:8", "--train.micro-batch 64"),
    ("xl", "h100:8", "--mesh.data 1 --mesh.fsdp 8 --train.micro-batch 32"),
    ("shakespeare_char", "h100:1", ""),
    ("shakespeare_char", "t4:1", ""),
    ("nano", "t4:1", ""),
    ("nano", "l4:1", ""),
)


def words(name: str, topology: str, options: str) -> list[str]:
    """Returns the arguments of main.py."""
    return ["plan", "--config", name, "--topology", topology, *options.split()]


def make_plan(name: str, topology: str, options: str) -> dict[str, Any]:
    """Returns the record that `plan --json` prints.

    Raises:
      RuntimeError: it failed; it may say that the step does not fit.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "main.py", *words(name, topology, options), "--json"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="a config: keep what is known of the others")
    args = parser.parse_args()
    known = json.loads(OUT.read_text("utf-8"))["plans"] if args.only and OUT.exists() else {}
    for plan in PLANS:
        command = "python main.py " + " ".join(words(*plan))
        if args.only and plan[0] != args.only:
            continue
        began = time.perf_counter()
        known[command] = make_plan(*plan)
        print(f"{command}: {time.perf_counter() - began:.0f} s", flush=True)
        result = {
            "command": "python benchmarks/gpu/plans.py",
            "machine": describe_machine(),
            "plans": known,
        }
        OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
