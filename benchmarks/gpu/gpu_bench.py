#!/usr/bin/env python3
"""One step of gpu_run.sh: one measurement on a GPU.

    python benchmarks/gpu/gpu_bench.py facts
    python benchmarks/gpu/gpu_bench.py train micro=16 accumulate=8 unroll=1 chunk=none
    python benchmarks/gpu/gpu_bench.py torch_train mode=compiled
    python benchmarks/gpu/gpu_bench.py sweep micro=8,16,32,64
    python benchmarks/gpu/gpu_bench.py summary /tmp/first /tmp/second.jsonl

Each result is a line of JSON, printed and appended to $OUT/results.jsonl; the summary is of such
files, or of the folders with them. With TINY=1 everything is tiny and runs on a CPU: that shows
only that the steps work.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.harness import OUT, TINY, Step
from gpt_jax.devices import request_determinism

MODULES = {  # imported for their steps only: PyTorch and jax do not share a process
    "facts": "project_steps", "train": "project_steps", "sweep": "project_steps",
    "nano": "project_steps", "decode": "project_steps", "profile": "profiles",
    "correct": "correctness", "predict": "predictions", "summary": "summary",
    "run": "whole_runs", "reproducible": "whole_runs", "tests": "whole_runs",
    "torch_train": "torch_steps", "torch_nano": "torch_steps", "torch_decode": "torch_decoding",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=MODULES)
    parser.add_argument(
        "values", nargs="*", metavar="KEY=VALUE", help="arguments of the step; files of the summary"
    )
    args = parser.parse_args()
    if TINY:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.step == "summary":
        importlib.import_module("benchmarks.gpu.summary").summary(args.values or [OUT])
        return
    for value in args.values:
        if "=" not in value:
            parser.error(f"{value!r} is no KEY=VALUE")
    values = dict(pair.split("=", 1) for pair in args.values)
    if values.get("deterministic") == "1":
        request_determinism()  # XLA reads it once, when jax is imported
    module = importlib.import_module(f"benchmarks.gpu.{MODULES[args.step]}")
    getattr(module, args.step)(Step(args.step, values))


if __name__ == "__main__":
    main()
