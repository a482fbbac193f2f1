#!/usr/bin/env python3
"""Compiles the project's programs for NVIDIA GPUs that are only described: no GPU is needed.

    python benchmarks/gpu/compile_for_gpu.py base             # the train step for one H100
    python benchmarks/gpu/compile_for_gpu.py base --tuning unroll=1 split_qkv=False \
        --set model.vocab_size=50304 train.loss_chunk=None train.micro_batch=16
    python benchmarks/gpu/compile_for_gpu.py base --devices 8
    python benchmarks/gpu/compile_for_gpu.py nano --steps 50 --graphs chunk
    python benchmarks/gpu/compile_for_gpu.py base --program cached --set sample.num_samples=1
    python benchmarks/gpu/compile_for_gpu.py base --program plan --devices 8
    python benchmarks/gpu/compile_for_gpu.py base --program check --chip t4

Needs Python 3.12 and jax[cuda13]; see README.md. Writes NAME.hlo, the compiled program's text, and
NAME.json, the facts of it that roofline.py reads: tokens, the model's operations, memory, CUDA
graphs.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt_jax.analysis.gpu_chips import CHIPS

# Matrix products appear in the text as calls of cuBLAS with their shapes, and XLA does not time
# kernels to choose among them (there is nothing to run them on).
READABLE = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
DECODERS = ("cached", "recompute", "refill")
GIB = 2**30
VOCABULARY = 73  # the book's characters: for configs that take it from the corpus


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", help="a name in configs/, or a Python file")
    add(
        "--program",
        default="chunk",
        choices=("chunk", *DECODERS, "plan", "check"),
        help="chunk: train steps; cached, recompute, refill: decoding within the context, past it, "
        "past it with a refilled cache; plan: the project's plan; check: attention alone",
    )
    add("--steps", type=int, default=1, help="train steps in a chunk")
    add("--devices", type=int, default=1, help="GPUs, all in one machine")
    add("--chip", default="h100", choices=CHIPS)
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the config")
    add("--tuning", nargs="+", default=[], metavar="KEY=VALUE", help="of gpt_jax/model/tuning.py")
    add("--graphs", choices=("default", "step", "chunk"), help="what becomes one CUDA graph")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="XLA's, for this program")
    add("--triton", action="store_true", help="XLA's default flags, with products in Triton")
    add("--stablehlo", action="store_true", help="write NAME.stablehlo, the traced program")
    add("--out", help="NAME of the files; default: CONFIG-PROGRAM in the temporary folder")
    return parser.parse_args()


def parse_values(pairs: Sequence[str]) -> dict[str, Any]:
    """Returns {key: value} of KEY=VALUE; a value that is no Python literal is a string."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[key] = value
    return values


def library_calls(program: Any) -> str:
    """Returns the libraries' functions that a compiled program calls."""
    targets = re.findall(r'custom_call_target="([^"]+)"', program.as_text())
    return ", ".join(sorted(set(targets))) or "none"


def check(config: Any, device: Any, backend: str) -> None:
    """Compiles a matrix product, and the gradient of the attention that the config would take."""
    import jax
    import jax.numpy as jnp

    from benchmarks.gpu.internals import attend, choose_attention, compiling_for

    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=sharding)
    program = jax.jit(lambda x: jax.nn.relu(x @ x) + 1).lower(x).compile()
    print(f"{device.device_kind}, {backend}: a product compiles ({library_calls(program)})")
    name, reason = choose_attention(config.model, backend)
    print(f"attention: {name}{f' ({reason})' if reason else ''}")
    q = jax.ShapeDtypeStruct((4, 12, 1024, 64), jnp.bfloat16, sharding=sharding)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(name, q, k, v, 0, lambda x: x).astype(jnp.float32).sum()

    with compiling_for(backend):
        program = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, q, q).compile()
    print(f"its gradient compiles; library calls: {library_calls(program)}")


def count_graphs(folder: str) -> dict[str, int]:
    """Returns the number of CUDA graphs in a compiled program, and of commands outside them.

    XLA dumps the program's list of commands into `folder`. A loop outside a graph is run by the
    host, which launches what its body holds in each iteration.
    """
    found = list(Path(folder).glob("*.thunk_sequence_after_thunk_passes.txt"))
    text = max(found, key=lambda f: f.stat().st_size).read_text() if found else ""
    counts = {"cuda_graphs": 0, "loops_outside_graphs": 0, "commands_outside_graphs": 0}
    names = {"kCommandBuffer": "cuda_graphs", "kWhile": "loops_outside_graphs"}
    graph = None  # the indentation of the graph that a line is in
    for spaces, kind in re.findall(r"^( *)\d+: (k\w+)", text, re.MULTILINE):
        if graph is not None and len(spaces) > graph:
            continue
        graph = len(spaces) if kind == "kCommandBuffer" else None
        counts[names.get(kind, "commands_outside_graphs")] += 1
    return counts


def compile_program(args: argparse.Namespace, config: Any, devices: list, dump: str) -> None:
    """Compiles, writes NAME.hlo and NAME.json, and prints the most important facts."""
    from benchmarks.gpu import internals

    out = args.out or f"{tempfile.gettempdir()}/{Path(args.config).stem}-{args.program}"
    backend = CHIPS[args.chip].backend
    start = time.perf_counter()
    with internals.compiling_for(backend):
        if args.program == "chunk":
            lowered, facts = internals.lower_train_steps(config, devices, args.steps)
        else:
            lowered, facts = internals.lower_decoder(config, devices[0], args.program)
    if args.stablehlo:
        Path(f"{out}.stablehlo").write_text(lowered.as_text())
    options = internals.GRAPHS[args.graphs or "default"] | parse_values(args.options)
    traced = time.perf_counter()
    compiled = lowered.compile(options) if options else lowered.compile()
    done = time.perf_counter()
    Path(f"{out}.hlo").write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    facts |= {
        "command": " ".join(sys.argv[1:]),
        "chip": devices[0].device_kind,
        "devices": args.devices,
        "attention": internals.choose_attention(config.model, backend)[0],
        "program_gib": internals.program_bytes(memory) / GIB,
        "temporary_gib": memory.temp_size_in_bytes / GIB,
        "seconds": {"tracing": traced - start, "compiling": done - traced},
        **count_graphs(dump),
    }
    estimated = ""
    if args.program == "chunk":
        need = internals.estimate_memory(config, tuple(facts["mesh"].values()), backend)
        facts["estimated_gib"] = need.total / GIB
        estimated = f" ({facts['estimated_gib']:.2f} by the project's estimate)"
    Path(f"{out}.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(
        f"{facts['chip']} x {args.devices}, attention {facts['attention']}, "
        f"{facts['program_gib']:.2f} GiB per device planned{estimated}\n"
        f"{facts['cuda_graphs']} CUDA graphs; outside them {facts['commands_outside_graphs']} "
        f"commands and {facts['loops_outside_graphs']} loops\n"
        f"traced in {traced - start:.0f} s, compiled in {done - traced:.0f} s\n"
        f"wrote {out}.hlo and {out}.json"
    )


def main() -> None:
    args = parse_arguments()
    scratch = tempfile.TemporaryDirectory()
    os.environ["JAX_PLATFORMS"] = "cpu"  # the CUDA plugin is used as a compiler only
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_dump_to={scratch.name}"]
    os.environ["XLA_FLAGS"] = " ".join(flags + ([] if args.triton else [READABLE])).strip()

    from jax.experimental import topologies

    from benchmarks.gpu import internals

    internals.apply_changes(parse_values(args.tuning))
    config, values = internals.load_config(args.config), parse_values(args.set)
    if not config.model.vocab_size:
        values.setdefault("model.vocab_size", VOCABULARY)
    config = internals.fix_schedule(internals.override(config, values))
    chip = CHIPS[args.chip]
    devices = topologies.get_topology_desc(
        platform="cuda", target_config=chip.description(), topology=f"1x1x{args.devices}"
    ).devices
    if args.program == "check":
        check(config, devices[0], chip.backend)
    elif args.program == "plan":
        print(internals.plan_text(config, list(devices), chip.backend))
    else:
        compile_program(args, config, list(devices), scratch.name)


if __name__ == "__main__":
    main()
