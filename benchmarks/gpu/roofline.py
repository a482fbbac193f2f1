#!/usr/bin/env python3
"""A lower bound on the time of a compiled GPU program, from its text alone.

    python benchmarks/gpu/roofline.py base-chunk.hlo --top 20
    python benchmarks/gpu/roofline.py base-chunk.hlo --chip h200 --json base-chunk-h200.json

Every kernel takes at least the time of its bytes or of its matrix products, whichever is longer.
Each argument is read once and each result written once; of what a kernel slices or updates only
that part counts. Kernels run one after another. A loop's body counts as often as the loop iterates
(once where the compiler does not know, which is said), a conditional with its largest branch.

The rates are shares of the chip's data sheet, 70% of its products and 90% of its bandwidth unless
said otherwise: assumptions, not measurements. Not counted: launches, kernels below these rates,
asynchronous copies and communication; the last two overlap with kernels and are shown apart.

Beside NAME.hlo, NAME.json of compile_for_gpu.py holds the tokens and the model's operations of a
call; --tokens and --model-flops override it. Reads what `compiled.as_text()` returns, also .gz,
with autotuned kernels or without. No jax is needed.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gzip
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt_jax.analysis.gpu_bound import BANDWIDTH_SHARE, MATMUL_SHARE, Rates
from gpt_jax.analysis.gpu_chips import CHIPS
from gpt_jax.analysis.gpu_kernels import Kernel, find_kernels


def total(kernels: list[Kernel]) -> dict[str, Any]:
    """Returns the sums over some kernels."""
    return {
        "launches": sum(k.times for k in kernels),
        "ms": 1e3 * sum(k.seconds for k in kernels),
        "gb": sum(k.times * k.bytes for k in kernels) / 1e9,
        "tflop": sum(k.times * k.flops for k in kernels) / 1e12,
    }


def summarize(
    kernels: list[Kernel], rates: Rates, facts: dict[str, Any], peak: float | None
) -> dict[str, Any]:
    """Returns the figures of a program, and sets each kernel's seconds.

    Args:
      kernels: of `find_kernels`.
      rates: what kernels reach.
      facts: of compile_for_gpu.py: tokens, model_flops, steps, devices; all may be absent.
      peak: FLOP/s of which MFU is a share; without it there is none.
    """
    for k in kernels:
        k.seconds = rates.seconds(k)
    ordinary = [k for k in kernels if k.group == "kernel"]
    by_dtype, by_kind = collections.defaultdict(list), collections.defaultdict(list)
    for k in ordinary:
        by_kind[f"{k.kind} {k.dtype}".strip()].append(k)
        if k.flops:
            by_dtype[k.dtype].append(k)
    figures = total(ordinary)
    seconds, steps = figures["ms"] / 1e3, facts.get("steps", 1)
    figures |= {
        "matmuls": {dtype: total(some) for dtype, some in sorted(by_dtype.items())},
        "copies": total([k for k in ordinary if k.kind == "copy"]),
        "async": total([k for k in kernels if k.group == "async"]),
        "collectives": total([k for k in kernels if k.group == "collective"]),
        "kinds": {kind: total(some) for kind, some in sorted(by_kind.items())},
        "ms_per_step": figures["ms"] / steps,
        "launches_per_step": figures["launches"] / steps,
    }
    per_gpu = seconds * facts.get("devices", 1)
    if facts.get("tokens"):
        figures["tokens_per_second_per_gpu"] = facts["tokens"] / per_gpu
    if facts.get("model_flops") and peak:
        figures["mfu"] = facts["model_flops"] / per_gpu / peak
    return figures


def show(figures: dict[str, Any], facts: dict[str, Any]) -> None:
    """Prints the figures as a table."""

    def row(name: str, f: dict[str, Any]) -> None:
        amounts = f"{f['ms']:>10.2f} {f['gb']:>10.2f} {f['tflop']:>9.2f}"
        print(f"{name:<40} {f['launches']:>8,} {amounts}")

    print(f"{'':<40} {'launches':>8} {'ms':>10} {'GB':>10} {'TFLOP':>9}")
    for name, f in sorted(figures["kinds"].items(), key=lambda item: -item[1]["ms"]):
        row(name, f)
    row("all kernels: the lower bound", figures)
    for dtype, f in figures["matmuls"].items():
        row(f"  of which matrix products in {dtype}", f)
    row("  of which copies", figures["copies"])
    row("overlapping: asynchronous copies", figures["async"])
    row("overlapping: collectives", figures["collectives"])
    said = [f"\nat least {figures['ms']:.1f} ms"]
    if figures["ms_per_step"] != figures["ms"]:
        said.append(
            f"{1e3 * figures['ms_per_step']:.1f} us and {figures['launches_per_step']:.1f} "
            "launches per step or token"
        )
    if "tokens_per_second_per_gpu" in figures:
        said.append(f"at most {figures['tokens_per_second_per_gpu']:,.0f} tokens/s per GPU")
    if "mfu" in figures:
        said.append(f"MFU at most {100 * figures['mfu']:.1f}%")
    if "program_gib" in facts:
        said.append(f"{facts['program_gib']:.1f} GiB planned")
    if "cuda_graphs" in facts:
        said.append(f"{facts['cuda_graphs']} CUDA graphs")
    print(", ".join(said))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("program", type=Path, help="text of a compiled program, .hlo or .gz")
    add("--facts", type=Path, help="default: NAME.json beside it, if there is one")
    add("--tokens", type=float, help="trained on or generated in a call, over all GPUs")
    add("--model-flops", type=float, help="the model's operations in a call, over all GPUs")
    add("--chip", choices=CHIPS, help="default: the one compiled for, else h100")
    for name, share in (("matmul", MATMUL_SHARE), ("bandwidth", BANDWIDTH_SHARE)):
        add(f"--{name}-share", type=float, default=share, help="of the peak, that kernels reach")
    add("--top", type=int, default=0, help="number of slowest kernels to print")
    add("--json", type=Path, help="write the figures and all kernels to this file")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    name = args.program
    content = name.read_bytes()
    text = (gzip.decompress(content) if name.suffix == ".gz" else content).decode()
    beside = args.facts or name.with_name(name.name.split(".")[0] + ".json")
    facts = json.loads(beside.read_text()) if beside.is_file() else {}
    facts |= {k: v for k in ("tokens", "model_flops") if (v := getattr(args, k))}
    compiled_for = (short for short, c in CHIPS.items() if c.name == facts.get("chip"))
    chip = CHIPS[args.chip or next(compiled_for, "h100")]
    kernels = find_kernels(text)
    rates = Rates.of(chip, args.matmul_share, args.bandwidth_share)
    figures = summarize(kernels, rates, facts, chip.peak_flops)
    show(figures, facts)
    if once := sum(k.unknown_times for k in kernels):
        print(f"{once} kernels are in loops of unknown length, and counted once")
    kernels.sort(key=lambda k: -k.seconds)
    for k in kernels[: args.top]:
        print(
            f"{1e3 * k.seconds:9.3f} ms {k.times:>6,}x {k.bytes / 1e6:9.1f} MB "
            f"{k.flops / 1e9:8.1f} GFLOP {k.dtype:<4} {k.kind} {k.name} | {k.shapes} | "
            f"{k.source[-100:]}"
        )
    if args.json:
        rows = [dataclasses.asdict(k) for k in kernels]
        args.json.write_text(json.dumps({"facts": facts, **figures, "kernels": rows}, indent=1))


if __name__ == "__main__":
    main()
