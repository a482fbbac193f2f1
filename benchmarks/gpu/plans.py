#!/usr/bin/env python3
"""Plans of configs on NVIDIA GPUs, from their compiled steps; no GPU is needed.

    pip install -r requirements-gpu-plan.txt     # Python 3.12 or later, 5 GB
    python benchmarks/gpu/plans.py [--only base]

Runs `python main.py plan` for each of `PLANS` and writes what it says to
benchmarks/results/gpu_plans.json; `python benchmarks/tables.py` makes the tables of
docs/planning.md from it, and `make test-gpu-plan` holds the programs to it. Nothing is measured but
the time that compiling takes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402

OUT = ROOT / "benchmarks/results/gpu_plans.json"
Wanted = tuple[str, str, str]  # config, topology, options
OTHERS: tuple[Wanted, ...] = (  # that no header names
    ("base", "h100:1", "--train.micro-batch 16"),
    ("base", "h100:1", "--sampling --sample.num-samples 64"),
    ("base", "h200:1", ""),
    ("base", "a100:1", ""),
    ("base", "h100:8", ""),
    ("shakespeare_char", "t4:1", ""),
    ("nano", "t4:1", ""),
    ("nano", "l4:1", ""),
)


def header_plans() -> list[Wanted]:
    """Returns the plans for GPUs that the headers of configs name, smallest name first."""
    found = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        header = path.read_text("utf-8").replace("\\\\\n", " ")
        for line in re.findall(r"^python main\.py plan (.*)", header, re.MULTILINE):
            _, name, _, topology, *options = line.split()  # --config NAME --topology X
            if not re.match(r"v\d", topology):  # a TPU slice
                found.append((name, topology, " ".join(options)))
    return found


def all_plans() -> tuple[Wanted, ...]:
    """Returns all plans, those of a config together."""
    wanted = [*header_plans(), *OTHERS]
    return tuple(sorted(wanted, key=lambda plan: plan[0]))


PLANS = all_plans()


def words(name: str, topology: str, options: str) -> list[str]:
    """Returns the arguments of main.py."""
    return ["plan", "--config", name, "--topology", topology, *options.split()]


COMMANDS = {"python main.py " + " ".join(words(*plan)): plan for plan in PLANS}


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
    known = {command: plan for command, plan in known.items() if command in COMMANDS}
    for command, plan in COMMANDS.items():
        if args.only and plan[0] != args.only:
            continue
        began = time.perf_counter()
        known[command] = make_plan(*plan)
        print(f"{command}: {time.perf_counter() - began:.0f} s", flush=True)
        result = {
            "command": "python benchmarks/gpu/plans.py",
            "machine": describe_machine(),
            "plans": {command: known[command] for command in COMMANDS if command in known},
        }
        OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
