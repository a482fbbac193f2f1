"""The steps of gpu_bench.py that measure the project's own programs."""

from __future__ import annotations

import gc
import gzip
import importlib.metadata
import importlib.util
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.harness import (
    BASE,
    NANO_VOCABULARY,
    OUT,
    PLAIN,
    PROMPT,
    TINY,
    Step,
    base_mfu,
    decoding_bytes,
    new_tokens,
    peak_flops,
    time_calls,
)
from benchmarks.gpu.internals import (
    GRAPHS,
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
    "transformers", "orbax-checkpoint", "nvidia-cudnn-cu13", "nvidia-cublas",
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


def peak_bytes() -> int:
    """Returns the most bytes of the device's memory that this process used at once."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def measure(training: Training, at_least: int = 4) -> dict[str, Any]:
    """Returns the time, loss and memory of train steps.

    The peak memory is None where what the process did before needed more.
    """
    planned = training.wait().memory_analysis()
    before = peak_bytes()
    training.start()
    loss = training.run()[-1]
    median, least, n = time_calls(training.run, at_least)
    peak = peak_bytes()
    return {
        "ms_per_step": 1e3 * median / training.steps,
        "min_ms_per_step": 1e3 * least / training.steps,
        "timed": n,
        "tokens_per_second": training.tokens / median,
        "compile_s": round(training.compile_seconds, 1),
        "loss": float(loss),
        "planned_gib": (planned.argument_size_in_bytes + planned.temp_size_in_bytes) / GIB,
        "peak_gib": peak / GIB if peak > before else None,
        "n_params": training.n_params,
        "device": jax.devices()[0].device_kind,
    }


def measure_base(training: Training, at_least: int = 4) -> dict[str, Any]:
    row = measure(training, at_least)
    mfu = base_mfu(row["tokens_per_second"], row["n_params"], row["device"])
    return {**row, "mfu": mfu, "peak_flops": peak_flops(row["device"])}


def multiplies_as_tf32() -> bool:
    """Returns whether float32 products are TF32's here, which has 11 bits: from their errors."""
    a = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    exact = a.astype(np.float64) @ a.astype(np.float64)
    found = np.asarray(jax.jit(lambda a: a @ a)(a))
    return bool(abs(found - exact).max() > 1e-5 * abs(exact).max())


def copied_bytes_per_second() -> float:
    """Returns the bytes that one copy after another reads and writes in a second."""
    x = jnp.ones((2**20 if TINY else 2**30,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    seconds, _, _ = time_calls(lambda: add(x).block_until_ready(), 10)
    return 2 * x.nbytes / seconds


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
    step.record(copy_tb_per_second=copied_bytes_per_second() / 1e12)
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

    Four programs compile side by side, then each runs alone; those of less memory first, so that
    each peak is its own.
    """
    chunks = ["64" if TINY else "8192", "none"]
    if "chunk" in step.args:
        chunks = [step.args["chunk"]]
    wanted = sorted(step.numbers("micro"))
    order = [(micro, chunk) for micro in wanted for chunk in chunks]
    for first in range(0, len(order), 4):
        group = []
        for micro, chunk in order[first : first + 4]:
            batch = {"micro": str(micro), "accumulate": str(max(1, 128 // micro)), "chunk": chunk}
            config = base_config(Step(step.name, batch))
            group.append(({"micro": micro, "chunk": chunk}, Training(config, 2)))
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
            row["seconds_of_500_steps"] = row["ms_per_step"] / 2
            step.record(graphs_here=name, **row, tf32=multiplies_as_tf32())
        except Exception as error:
            step.record_error(error, graphs_here=name)
        training.close()


def decode(step: Step) -> None:
    """Generates tokens with a key/value cache, for several numbers of streams.

    Beside it the bandwidth of copies, measured in the same process.
    """
    change_project({}, step.args.get("graphs", "default"))
    config = base_config(step) if step.args["model"] == "base" else nano_config()
    model = config.model
    copied = copied_bytes_per_second()
    params = init_params(model)
    n_params = sum(x.size for x in jax.tree.leaves(params))
    n = min(new_tokens(), model.block_size - PROMPT)
    for streams in step.numbers("batch"):
        call = lambda streams=streams: generate(model, params, streams, n)
        try:
            median, _, timed = time_calls(call, 3, 5.0)
        except Exception as error:  # out of memory, say
            step.record_error(error, streams=streams)
            continue
        row = {
            "streams": streams,
            "timed": timed,
            "tokens_per_second": streams * n / median,
            "ms_per_token": 1e3 * median / n,
            "copy_tb_per_second": copied / 1e12,
            "device": jax.devices()[0].device_kind,
        }
        if step.args["model"] == "base":
            least = decoding_bytes(streams, n_params)
            row |= {"gb_per_token": least / 1e9, "share_of_copies": least * n / median / copied}
        step.record(**row)
