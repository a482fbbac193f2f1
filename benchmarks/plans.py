"""The cost of meshes, from compiled steps: memory, collectives, lower bounds on time.

    pip install -r requirements-tpu.txt
    python benchmarks/plans.py          # an hour; no TPU is needed

Compiles the training step of base, xl and a model of 7 billion parameters for slices of TPU v5e:
the layouts that 16 devices can have, and 1 to 256 devices; and of base_8k, layouts of as many
devices as it has sequences, and of more. Nothing is measured: times are bounds by
the chip's data sheet. Writes a JSON; `python benchmarks/tables.py` makes the tables from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.machine import describe_machine
from gpt_jax.config import Config, fix_schedule, load_config, override
from gpt_jax.devices import COMPILE_ENVIRONMENT

ROOT = Path(__file__).parent.parent
# A shape as Llama 2's of 7 billion (Touvron et al. 2023), with base's vocabulary and recipe.
SEVEN_BILLION = {
    "model.n_layer": 32,
    "model.n_head": 32,
    "model.n_embd": 4096,
    "model.block_size": 2048,
    "model.positions": "rotary",
    "model.norm": "rms",
    "model.activation": "swiglu",
    "model.bias": False,
    "model.qkv_bias": False,
    "model.tied": False,
    "model.remat": "full",
}
Mesh = tuple[int, int, int, int]  # data, fsdp, tensor, sequence
LAYOUTS: dict[str, list[Mesh]] = {  # on 16 devices; xl's 25 heads can't be shared by 2 or 4
    "base": [
        *[(16, 1, 1, 1), (4, 4, 1, 1), (1, 16, 1, 1)],
        *[(8, 1, 2, 1), (4, 1, 4, 1), (1, 4, 4, 1), (4, 1, 1, 4)],
    ],
    "xl": [(16, 1, 1, 1), (4, 4, 1, 1), (1, 16, 1, 1)],
}
LONG: dict[int, list[Mesh]] = {  # base_8k, whose 64 sequences are fewer than the devices
    64: [(64, 1, 1, 1), (16, 1, 4, 1), (16, 1, 1, 4)],
    128: [(64, 1, 2, 1), (64, 1, 1, 2)],
    256: [(64, 1, 4, 1), (64, 1, 2, 2), (64, 1, 1, 4), (16, 4, 1, 4)],
}
LONG_AT_ONCE = {"train.micro_batch": 64, "train.loss_chunk": 32768}
SLICES = {
    1: "v5e:2x2",
    8: "v5e:2x4",
    16: "v5e:4x4",
    64: "v5e:8x8",
    128: "v5e:8x16",
    256: "v5e:16x16",
}
SEQUENCES = {"base": 8, "xl": 4, "7B": 4}  # on a device at once, at most
LOSS_CHUNK = 8192  # tokens
MOST_FSDP = {"base": 1, "xl": 64, "7B": 64}


def model_config(name: str) -> Config:
    if name == "7B":
        return override(load_config("base"), SEVEN_BILLION)
    return load_config(name)


def make(name: str, mesh: Mesh, n: int) -> dict[str, Any]:
    """Returns the plan of a model's step on n devices."""
    from gpt_jax.analysis.plan import make_plan
    from gpt_jax.analysis.topologies import topology_devices

    axes = ("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence")
    values = LONG_AT_ONCE
    if name in SEQUENCES:
        most = SEQUENCES[name] * mesh[0] * mesh[1]
        values = {"train.micro_batch": min(most, model_config(name).train.batch_size)}
        values |= {"train.loss_chunk": LOSS_CHUNK}
    config = override(model_config(name), values | dict(zip(axes, mesh, strict=True)))
    before = time.perf_counter()
    plan = make_plan(fix_schedule(config), topology_devices(SLICES[n])[:n])
    seconds = time.perf_counter() - before
    record = {"model": name, "n": n, "micro_batch": values["train.micro_batch"], **plan.record()}
    del record["chip"]
    print(f"{name}, {n} devices, {mesh}: compiled in {seconds:.0f} s\n{plan}\n", flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("layouts", "scale", "long"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/plans.json")
    args = parser.parse_args()
    os.environ |= COMPILE_ENVIRONMENT
    result = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    result |= {"command": "python benchmarks/plans.py"}
    from gpt_jax.analysis.chips import CHIPS

    result["chip"] = dataclasses.asdict(CHIPS["TPU v5 lite"])
    jobs: list[tuple[str, tuple[str, Mesh, int]]] = []
    if args.only in (None, "layouts"):
        jobs += [("layouts", (name, mesh, 16)) for name, x in LAYOUTS.items() for mesh in x]
    if args.only in (None, "scale"):
        for name, most in MOST_FSDP.items():
            for n in (1, 8, 64, 256):
                fsdp = min(n, most)
                jobs.append(("scale", (name, (n // fsdp, fsdp, 1, 1), n)))
    if args.only in (None, "long"):
        jobs += [("long", ("base_8k", mesh, n)) for n, x in LONG.items() for mesh in x]
    result |= {part: {"machine": describe_machine(), "plans": []} for part, _ in jobs}
    for part, job in jobs:
        result[part]["plans"].append(make(*job))
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
