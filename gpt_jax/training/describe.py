"""What is printed before the first step, and for a run that is finished."""

from __future__ import annotations

from typing import Any

import jax

from gpt_jax.config import TrainConfig
from gpt_jax.console import Display
from gpt_jax.devices import missing_accelerator
from gpt_jax.model.attention import choose_attention
from gpt_jax.model.dtype import slow_dtype
from gpt_jax.parallel.backend import target_backend
from gpt_jax.run.load import Run
from gpt_jax.terminal import program_command, shell_command
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.run_setup import RunSetup


def describe_run(setup: RunSetup, compiled: CompiledSteps, display: Display) -> None:
    """Prints what is about to be trained, on what, and how."""
    mesh, n_params = compiled.mesh, compiled.n_params
    config, corpus = setup.config, setup.corpus
    model, batch_size = config.model, config.train.batch_size
    micro_batch = config.train.micro_batch_size
    origin = setup.origin
    backend = target_backend()
    attention, reason = choose_attention(model, backend)
    for note in (*corpus.notes, *setup.notes):
        display.note(note)
    if slow := slow_dtype(model.dtype, backend):
        display.note(slow)
    device = mesh.devices.flat[0]
    if hint := missing_accelerator(device.platform):
        display.note(hint)
    if small := describe_small_chunks(config.train):
        display.note(small)
    n = mesh.shape["data"] * mesh.shape["fsdp"]
    unused = len(jax.devices()) - mesh.size
    spare = f" ({unused} more left idle: the mesh does not use them)" if unused else ""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    layout = f" ({axes})" if mesh.shape["data"] < mesh.size else ""
    batches = f"{batch_size // micro_batch} micro-batches x " if micro_batch < batch_size else ""
    tokens_per_step = batch_size * model.block_size
    total = tokens_per_step * config.train.steps
    n_train, n_val = (setup.splits[name].n_tokens for name in ("train", "val"))
    display.facts(
        {
            "corpus": f"{corpus.name}, {corpus.size}, from {corpus.source}",
            "sha256": corpus.sha256,
            "split": f"{n_train:,} tokens to train on, {n_val:,} to validate",
            "model": f"{n_params:,} parameters: {model.n_layer} layers, {model.n_head} heads, "
            f"{model.n_embd} wide, context {model.block_size}, {model.vocab_size} tokens",
            **({"from": _describe_origin(origin, model.block_size)} if origin else {}),
            "attention": f"{attention} ({reason})" if reason else attention,
            "devices": f"{mesh.size} x {device.device_kind}{layout}: batch {batch_size} = {batches}"
            f"{n} x {micro_batch // n} sequences{spare}",
            "step": f"{tokens_per_step:,} tokens; {config.train.steps:,} steps = {total:,} tokens, "
            f"{total / n_train:.1f} times the training text",
            "batches": f"{config.data.order}, {compiled.loader.describe()}",
            "run": f"{config.run_dir} ({'resumed' if setup.resumes else 'new'})",
        }
    )
    display.line()


def describe_small_chunks(train: TrainConfig) -> str:
    """Returns a note where the intervals make chunks smaller than `log_interval`, or one step."""
    chunk = train.chunk_steps
    if chunk == train.log_interval and (chunk > 1 or train.steps == 1):
        return ""
    names = ("log_interval", "eval_interval", "checkpoint_interval")
    intervals = ", ".join(f"train.{name}={getattr(train, name)}" for name in names)
    steps = "1 step" if chunk == 1 else f"{chunk} steps"
    return (
        f"{intervals}: a compiled call and a row have {steps}, the intervals' greatest common "
        "divisor; a larger one is faster"
    )


def describe_changes(changed: dict[str, dict[str, Any]], step: int) -> str:
    """Returns a note about settings that a run is resumed with; see `resume.changed_measuring`."""
    changes = "; ".join(f"{name} {at['to']}, not {at['from']}" for name, at in changed.items())
    return f"changed from step {step} on: {changes}"


def _describe_origin(origin: dict[str, Any], block_size: int) -> str:
    if "sha256" not in origin:
        return f"step {origin['step']:,} of {origin['source']}, of which this is a branch"
    step = f", step {origin['step']:,}" if origin["step"] else ""
    cut = f", cut to the first {block_size:,} of its {origin['block_size']:,} positions"
    return (
        f"{origin['source']}{step}, parameters' sha256 {origin['sha256'][:12]}"
        f"{cut if block_size < origin['block_size'] else ''}"
    )


def describe_finished(run: Run, display: Display) -> None:
    """Prints what a run that needs no more steps has reached, and what can be done next."""
    run_dir = run.run_dir
    display.line(
        f"{run_dir} is finished: {run.step} steps on {run.corpus['name']}, validation loss "
        f"{run.summary['val']['nats_per_token']:.4f}. Nothing was changed."
    )
    more = f"add --train.steps {2 * run.step}"
    if (end := run.config.optim.schedule_steps) is not None:
        more += f" --optim.schedule-steps {end}"
    display.line(f"  resume it:        {more}")
    sample = program_command("sample", "--run-dir", run_dir)
    display.line(f"  write more text:  {sample}")
    display.line(f"  train a new one:  add {shell_command('--run-dir', f'{run_dir}-2')}")
