"""The steps of gpu_bench.py that measure the project's own programs."""

from __future__ import annotations

import collections
import gc
import gzip
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.harness import (
    BASE,
    NANO_VOCABULARY,
    OUT,
    PLAIN,
    TINY,
    Step,
    base_mfu,
    time_calls,
)
from benchmarks.gpu.internals import (
    GRAPHS,
    STREAM_TOKENS,
    Training,
    apply_changes,
    choose_attention,
    generate,
    init_params,
    load_config,
    memory_limit,
    model_flops,
    override,
    target_backend,
)

PACKAGES = (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "torch",
    "orbax-checkpoint", "nvidia-cudnn-cu13", "nvidia-cublas",
)  # fmt: skip
NEEDED = ("orjson", "tensorboardX", "tiktoken", "tokenizers", "rich", "matplotlib", "safetensors")
GIB = 2**30


def change_project(args: dict[str, str], graphs: str = "default") -> None:
    """Applies the changes that arguments name, before anything is traced."""
    args = PLAIN | args if args.get("tuning") == "plain" else args
    apply_changes({key: int(args[key]) for key in PLAIN if key in args}, GRAPHS[graphs])


def base_config(step: Step) -> Any:
    """Returns base with the settings that a step's arguments name."""
    micro, accumulate = step.batch
    values: dict[str, Any] = {
        "train.batch_size": micro * accumulate,
        "train.micro_batch": micro,
        "model.vocab_size": BASE.vocab_size,
        "model.n_layer": BASE.n_layer,
        "model.n_head": BASE.n_head,
        "model.n_embd": BASE.n_embd,
        "model.block_size": BASE.block_size,
    }
    if "chunk" in step.args:
        chunk = step.args["chunk"]
        values["train.loss_chunk"] = None if chunk == "none" else int(chunk)
    values |= {f"model.{k}": step.args[k] for k in ("remat", "attention") if k in step.args}
    return override(load_config("base"), values)


def nano_config(**values: Any) -> Any:
    """Returns nano, tiny in a dry run."""
    small = {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": 8} if TINY else {}
    small = {f"model.{k}": v for k, v in small.items()}
    return override(load_config("nano"), {"model.vocab_size": NANO_VOCABULARY} | small | values)


def measure(training: Training, at_least: int = 4) -> dict[str, Any]:
    """Returns the time, loss and memory of train steps."""
    planned = training.wait().memory_analysis()
    training.start()
    loss = training.run()[-1]
    median, least, n = time_calls(training.run, at_least)
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "ms_per_step": 1e3 * median / training.steps,
        "min_ms_per_step": 1e3 * least / training.steps,
        "timed": n,
        "tokens_per_second": training.tokens / median,
        "compile_s": round(training.compile_seconds, 1),
        "loss": float(loss),
        "planned_gib": (planned.argument_size_in_bytes + planned.temp_size_in_bytes) / GIB,
        "peak_gib": peak / GIB,
        "n_params": training.n_params,
        "device": device.device_kind,
    }


def measure_base(training: Training, at_least: int = 4) -> dict[str, Any]:
    row = measure(training, at_least)
    mfu = base_mfu(row["tokens_per_second"], row["n_params"], row["device"])
    return {**row, "mfu": mfu}


# ---- the steps


def facts(step: Step) -> None:
    """Records machine and software, and the rates of products, copies and loop iterations."""
    device = jax.devices()[0]
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    step.record(
        devices=str(jax.devices()),
        kind=device.device_kind,
        backend=target_backend(),
        platform=getattr(device.client, "platform_version", "")[:200],
        bytes_limit=memory_limit(device),
        versions={name: installed[name] for name in PACKAGES if name in installed},
        missing=[name for name in NEEDED if importlib.util.find_spec(name) is None],
        python=sys.version.split()[0],
    )
    n = 256 if TINY else 8192
    multiply = jax.jit(lambda a: a @ a)
    for dtype in ("bfloat16", "float32"):
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        seconds, _, _ = time_calls(lambda a=a: multiply(a).block_until_ready(), 10)
        step.record(matmul=dtype, n=n, tflops_per_second=2 * n**3 / seconds / 1e12)
    x = jnp.ones((2**20 if TINY else 2**30,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    seconds, _, _ = time_calls(lambda: add(x).block_until_ready(), 10)
    step.record(copy_tb_per_second=2 * x.nbytes / seconds / 1e12)
    y = jnp.ones((128,))
    body = lambda c, _: (c * 1.0001 + 1, None)  # one small kernel
    for name, options in GRAPHS.items():
        loop = jax.jit(
            lambda x: jax.lax.scan(body, x, None, length=1000)[0], compiler_options=options
        )
        seconds, _, _ = time_calls(lambda loop=loop: loop(y).block_until_ready(), 10)
        step.record(loop_graphs=name, us_per_iteration=1e3 * seconds)


def train(step: Step) -> None:
    """Trains base, as configured or with changes; `save` keeps the program for roofline.py."""
    change_project(step.args, step.args.get("graphs", "default"))
    config = base_config(step)
    training = Training(config, 2)
    row = measure_base(training)
    step.record(**row, attention=choose_attention(config.model, target_backend())[0])
    if name := step.args.get("save"):
        with gzip.open(OUT / f"{name}.hlo.gz", "wt") as file:
            file.write(training.wait().as_text())
        flops = model_flops(config.model, training.n_params, training.tokens)
        kept = {"tokens": training.tokens, "steps": training.steps, "model_flops": flops}
        (OUT / f"{name}.json").write_text(json.dumps({**kept, "chip": row["device"]}))


def sweep(step: Step) -> None:
    """Trains base with several micro-batches, with and without chunks of the loss.

    Four programs compile side by side, then each runs alone; those nearest to 32 come first.
    """
    chunks = ["none", "64" if TINY else "8192"]
    wanted = sorted(step.numbers("micro"), key=lambda micro: abs(micro - 32))
    order = [(micro, chunk) for micro in wanted for chunk in chunks]
    for first in range(0, len(order), 4):
        group = []
        for micro, chunk in order[first : first + 4]:
            batch = {"micro": str(micro), "accumulate": str(max(1, 128 // micro)), "chunk": chunk}
            config = base_config(Step(step.name, batch))
            group.append(({"micro_here": micro, "chunk": chunk}, Training(config, 2)))
        failed = [_compile_error(training) for _, training in group]
        for (variant, training), error in zip(group, failed, strict=True):
            try:
                if error is not None:
                    raise error
                step.record(**variant, **measure_base(training, 3))
            except Exception as error:  # out of memory, say: the others may fit
                step.record_error(error, **variant)
            training.close()
            gc.collect()


def _compile_error(training: Training) -> Exception | None:
    try:
        training.wait()
    except Exception as error:
        return error
    return None


def nano(step: Step) -> None:
    """Trains nano with several ways of making CUDA graphs."""
    for name in step.args.get("graphs", "default").split(","):
        change_project({}, name)
        training = Training(nano_config(), 5 if TINY else 50)
        try:
            row = measure(training, 5)
            step.record(graphs_here=name, **row, seconds_of_500_steps=row["ms_per_step"] / 2)
        except Exception as error:
            step.record_error(error, graphs_here=name)
        training.close()


def decode(step: Step) -> None:
    """Generates tokens with a key/value cache, for several numbers of streams."""
    change_project({}, step.args.get("graphs", "default"))
    config = base_config(step) if step.args["model"] == "base" else nano_config()
    model = config.model
    params = init_params(model)
    n = 32 if TINY else min(256, model.block_size - 32)
    for streams in step.numbers("batch"):
        call = lambda streams=streams: generate(model, params, streams, n)
        median, _, _ = time_calls(call, 3, 5.0)
        step.record(
            streams=streams,
            tokens_per_second=streams * n / median,
            ms_per_token=1e3 * median / n,
            device=jax.devices()[0].device_kind,
        )


def profile(step: Step) -> None:
    """Appends kernels by name and time to $OUT/profiles.txt.

    Of 2 train steps; with `batch`, of so many streams that generate STREAM_TOKENS tokens.
    """
    change_project(step.args)
    name = " ".join([step.name, *step.args.values()])
    config = base_config(step) if step.args["model"] == "base" else nano_config()
    if streams := step.args.get("batch"):
        params = init_params(config.model)
        call = lambda: generate(config.model, params, int(streams), STREAM_TOKENS)
    else:
        training = Training(config, 2)
        training.wait()
        training.start()
        call = training.run
    call()
    folder = Path(os.environ.get("W", "/tmp")) / name.replace(" ", "_")
    with jax.profiler.trace(str(folder)):
        call()
    lines = [f"# {name}", *_profile_lines(next(folder.rglob("*.xplane.pb")))]
    with open(OUT / "profiles.txt", "a") as file:
        file.write("\n".join(lines) + "\n\n")
    step.record(profile=name, lines=len(lines), first=lines[1] if len(lines) > 1 else "no GPU")


def _profile_lines(trace: Path) -> list[str]:
    lines = []
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if "GPU" not in plane.name and not (TINY and "CPU" in plane.name):
            continue
        for line in plane.lines:
            events = [(e.name, e.start_ns, e.duration_ns) for e in line.events]
            if not events:
                continue
            busy: collections.Counter[str] = collections.Counter()
            for event, _, duration in events:
                busy[event] += duration
            count = collections.Counter(event for event, _, _ in events)
            span = max(s + d for _, s, d in events) - min(s for _, s, _ in events)
            lines.append(
                f"## {plane.name} {line.name}: busy {busy.total() / 1e6:.2f} ms of "
                f"{span / 1e6:.2f}, {len(events)} events"
            )
            lines += [
                f"{ns / 1e6:10.3f} ms {count[event]:6d}x  {event[:150]}"
                for event, ns in busy.most_common(45)
            ]
    return lines
